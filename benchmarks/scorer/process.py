"""What one fresh process does for `benchmarks.scorer.processes`: opens a scorer, scores, and says what that took."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    job = json.load(sys.stdin)
    first, *others = job["questions"]
    start = time.perf_counter()
    from benchmarks.scorer.rivals import PROCESSES  # in which numpy is imported

    score = PROCESSES[job["name"]](Path(job["folder"]), None)
    score(*first)
    seconds = time.perf_counter() - start

    from benchmarks.machine import memory_mib

    before = memory_mib("VmRSS")
    for question in others:
        score(*question)
    print(json.dumps({"seconds": seconds, "before": before, "peak": memory_mib("VmHWM"), "after": memory_mib("VmRSS")}))
