"""Fresh processes: how long it takes to import, to open a model and to score for the first time, and their memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from tqdm import tqdm

from benchmarks.rounds import median_and_range
from benchmarks.scorer.report import ColdStart, Memory
from benchmarks.scorer.sizes import Question

# Last on the path, so that the sources of cappy_lite beside the benchmarks don't hide an installed one.
PROGRAM = f"""
import sys
sys.path.append({str(Path(__file__).resolve().parents[2])!r})
from benchmarks.scorer.process import main
main()
"""


class Reading(TypedDict):
    """What one process says: seconds until its first score; MiB resident then, at most, and at its end."""

    seconds: float
    before: float
    peak: float
    after: float


def cold_starts(folders: Mapping[str, Path], first: Question, starts: int) -> list[ColdStart]:
    """Starts of each scorer by turns; the first one in `folders` is compared with the others."""
    for name, folder in folders.items():
        start(name, folder, [first])  # so that its files are in the system's cache
    seconds = {name: np.empty(starts) for name in folders}
    for turn in tqdm(range(starts), desc="cold starts"):
        for name, folder in folders.items():
            seconds[name][turn] = start(name, folder, [first])["seconds"]
    ours = next(iter(seconds.values()))
    return [
        {"name": name, "seconds": median_and_range(each), "ours_by_its": median_and_range(ours / each)}
        for name, each in seconds.items()
    ]


def memories(folders: Mapping[str, Path], first: Question, large: Question, starts: int) -> list[Memory]:
    """MiB of a process that has opened a model and scored once, at its peak, and after a large call; medians."""
    readings: dict[str, list[Reading]] = {name: [] for name in folders}
    for _ in tqdm(range(starts), desc="memory"):
        for name, folder in folders.items():
            readings[name].append(start(name, folder, [first, large]))
    return [
        {
            "name": name,
            "before": float(np.median([reading["before"] for reading in each])),
            "peak": float(np.median([reading["peak"] for reading in each])),
            "after": float(np.median([reading["after"] for reading in each])),
        }
        for name, each in readings.items()
    ]


def start(name: str, folder: Path, questions: Sequence[Question]) -> Reading:
    """Scores the questions in a new process."""
    job = json.dumps({"name": name, "folder": str(folder), "questions": questions})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=job, stdout=subprocess.PIPE, encoding="utf-8", check=True
    )
    reading: Reading = json.loads(done.stdout.splitlines()[-1])
    return reading
