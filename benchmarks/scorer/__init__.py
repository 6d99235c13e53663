"""The benchmark of the scorer: `python -m benchmarks.scorer`."""
