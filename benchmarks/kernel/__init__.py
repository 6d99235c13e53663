"""The benchmark of Rouge-L: `python -m benchmarks.kernel`."""
