"""One size of work: `Scorer.score` beside another package, or beside the matrix multiplications alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.rounds import Contestant, affordable_rounds, median_and_range, rates
from benchmarks.rounds import FloatArray as Rates
from benchmarks.scorer.report import RivalResult, SizeResult
from benchmarks.scorer.rivals import FLOAT32, INT8, FloatArray, Rival, Score
from benchmarks.scorer.sizes import Question, Size

LEAST_ROUNDS, MOST_ROUNDS = 5, 101
# Between calls: threads of the last contestant's pool spin for a while, by default those of ONNX Runtime for 30 ms.
PAUSE = 0.05

# What neighbours may move our scores by.
STEADY = 1e-6
# What a rival's scores may be off by: in a padded batch float32 adds up in another order, and an 8-bit rounding that
# follows goes the other way now and then.
TOLERANCES = {INT8: 0.03, FLOAT32: 1e-4}


def beside_the_floor(
    size: Size, question: Question, ours: Score, floors: Mapping[str, Callable[[], object]], seconds: float
) -> SizeResult:
    """Our time and that of calls that only multiply, by how they do; no rivals yet.

    Raises:
        SystemExit: our scores depend on neighbours.
    """
    check_steady(ours, question)
    count = len(size.candidates)
    our_rates, *others = turns([lambda: ours(*question), *floors.values()], count, seconds)
    floor_rates = dict(zip(floors, others, strict=True))
    best = max(floor_rates, key=lambda kind: float(np.median(floor_rates[kind])))
    return {
        "name": size.name,
        "instruction": size.instruction,
        "candidates": list(size.candidates),
        "candidates_per_second": float(np.median(our_rates)),
        "milliseconds": 1e3 * count / float(np.median(our_rates)),
        "floors": {kind: 1e3 * count / float(np.median(rate)) for kind, rate in floor_rates.items()},
        "floor": best,
        "times_the_floor": median_and_range(floor_rates[best] / our_rates),
        "rivals": [],
    }


def side_by_side(
    size: Size, question: Question, ours: Score, rival: Rival, score: Score, right: FloatArray, seconds: float
) -> RivalResult:
    """Our rate and a rival's, open as `score`, whose scores should be `right`.

    Raises:
        SystemExit: an exact rival's scores are others.
    """
    found = score(*question)
    check_close(rival, found, right, size)
    our_rates, its_rates = turns([lambda: ours(*question), lambda: score(*question)], len(size.candidates), seconds)
    return {
        "name": rival.name,
        "weights": rival.twin,
        "rounds": len(its_rates),
        "candidates_per_second": float(np.median(its_rates)),
        "times_as_fast": median_and_range(our_rates / its_rates),
        "off_by": float(np.abs(found - right).max()),
        "rank_correlation": rank_correlation(found, right),
    }


def turns(calls: Sequence[Callable[[], object]], count: int, seconds: float) -> Rates:
    """Candidates a second of calls that score so many, by turns, for about so long: (calls, rounds)."""
    contestants = [Contestant(call, count, settled) for call in calls]
    return rates(contestants, affordable_rounds(contestants, seconds, LEAST_ROUNDS, MOST_ROUNDS))


def settled() -> tuple[()]:
    """No arguments, a moment later."""
    time.sleep(PAUSE)
    return ()


def check_steady(score: Score, question: Question) -> None:
    """Scores alone and beside others must be the same, or times of many say nothing of one."""
    instruction, candidates = question
    together = score(instruction, candidates)
    alone = [score(instruction, [candidate])[0] for candidate in candidates]
    difference = np.abs(together - alone).max()
    if not difference <= STEADY:
        raise SystemExit(f"DIFFERENT: cappy-lite's scores move by {difference:.2g} beside others")


def check_close(rival: Rival, scores: FloatArray, right: FloatArray, size: Size) -> None:
    difference = np.abs(scores - right).max()
    # One that rounds for itself must still be of the same model.
    tolerance = TOLERANCES[rival.twin] if rival.exact else 0.2
    if not difference <= tolerance:
        raise SystemExit(
            f"DIFFERENT: {rival.name}, {rival.twin}, {size.name}: scores off by {difference:.2g}, over {tolerance}"
        )


def rank_correlation(scores: FloatArray, right: FloatArray) -> float:
    """Spearman's, as if there were no ties."""
    ranks = [values.argsort(kind="stable").argsort() for values in (scores, right)]
    return float(np.corrcoef(*ranks)[0, 1])
