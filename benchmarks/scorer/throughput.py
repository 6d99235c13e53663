"""Scores a second of one scorer that several threads share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks.rounds import median_and_range
from benchmarks.scorer.report import Throughput
from benchmarks.scorer.rivals import Score
from benchmarks.scorer.side_by_side import turns
from benchmarks.scorer.sizes import Question

CALLERS = (1, 2, 4, 8)
# Of a round, for each number of callers.
CALLS = 2 * max(CALLERS)


def throughput(score: Score, threads: int, question: Question, seconds: float) -> Throughput:
    """The same calls by so many callers at a time. threads: what one call computes on."""
    work = CALLS * len(question[1])
    calls = [partial(call_from, callers, score, question) for callers in CALLERS]
    measured = zip(CALLERS, turns(calls, work, seconds), strict=True)
    return {
        "threads": threads,
        "scores_per_second": {str(callers): median_and_range(rate) for callers, rate in measured},
    }


def call_from(callers: int, score: Score, question: Question) -> None:
    with ThreadPoolExecutor(callers) as pool:
        for call in [pool.submit(score, *question) for _ in range(CALLS)]:
            call.result()
