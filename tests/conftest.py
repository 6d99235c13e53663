from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from tiny_model import write_tiny_model

# Benchmarks aren't installed. Last on the path, so that an installed cappy_lite isn't hidden by its own sources.
sys.path.append(str(Path(__file__).resolve().parents[1]))

# Examples differ by a thousand times in size, so a time limit on each would say nothing.
settings.register_profile("cappy", deadline=None)
settings.load_profile("cappy")

# A shell's background jobs ignore Ctrl-C, and so would all processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Two processes of tests side by side, each with PyTorch on as many threads as there are cores, wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

# Tests that import ONNX Runtime by themselves mustn't start its telemetry either.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _away_from_the_sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`python -c` looks for modules in the working folder first: it must not hold the sources of cappy_lite."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder to read; a test that changes one writes its own."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
