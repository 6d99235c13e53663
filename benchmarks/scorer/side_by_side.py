"""One size of work: `Scorer.score` beside other packages, and beside the matrix multiplications alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.rounds import Contestant, affordable_rounds, median_and_range, rates
from benchmarks.scorer.report import RivalResult, SizeResult
from benchmarks.scorer.rivals import FLOAT32, INT8, FloatArray, Rival, Score
from benchmarks.scorer.sizes import Question, Size

LEAST_ROUNDS, MOST_ROUNDS = 5, 101
# Between calls: threads of the last contestant's pool may spin for a while.
PAUSE = 0.02

# What neighbours may move our scores by.
STEADY = 1e-6
# What a rival's scores may be off by: in a padded batch float32 adds up in another order, and an 8-bit rounding that
# follows goes the other way now and then.
TOLERANCES = {INT8: 0.03, FLOAT32: 1e-4}


def side_by_side(
    size: Size,
    question: Question,
    ours: Score,
    rivals: Mapping[Rival, Score],
    references: Mapping[str, Score],
    floors: Mapping[str, Callable[[], object]],
    seconds: float,
) -> SizeResult:
    """Rates of all, taking turns for about so many seconds.

    Args:
        references: what scores are right, by the twin that they are of.
        floors: calls that only multiply, by how they do.

    Raises:
        SystemExit: our scores depend on neighbours, or an exact rival's are not those of its twin.
    """
    check_steady(ours, question)
    right = {twin: references[twin](*question) for twin in {rival.twin for rival in rivals}}
    found = {rival: score(*question) for rival, score in rivals.items()}
    for rival, scores in found.items():
        check_close(rival, scores, right[rival.twin], size)

    count = len(size.candidates)
    calls: list[Callable[[], object]] = [lambda: ours(*question), *floors.values()]
    calls += [lambda score=score: score(*question) for score in rivals.values()]
    contestants = [Contestant(call, count, settled) for call in calls]
    rounds = affordable_rounds(contestants, seconds, LEAST_ROUNDS, MOST_ROUNDS)
    our_rates, *others = rates(contestants, rounds)
    floor_rates = dict(zip(floors, others, strict=False))
    best = max(floor_rates, key=lambda kind: float(np.median(floor_rates[kind])))
    return {
        "name": size.name,
        "instruction": size.instruction,
        "candidates": list(size.candidates),
        "rounds": rounds,
        "candidates_per_second": float(np.median(our_rates)),
        "milliseconds": 1e3 * count / float(np.median(our_rates)),
        "floors": {kind: 1e3 * count / float(np.median(rate)) for kind, rate in floor_rates.items()},
        "floor": best,
        "times_the_floor": median_and_range(floor_rates[best] / our_rates),
        "rivals": [
            result(rival, rate, our_rates, found[rival], right[rival.twin])
            for rival, rate in zip(rivals, others[len(floors) :], strict=True)
        ],
    }


def result(rival: Rival, rate: FloatArray, our_rates: FloatArray, scores: FloatArray, right: FloatArray) -> RivalResult:
    return {
        "name": rival.name,
        "weights": rival.twin,
        "candidates_per_second": float(np.median(rate)),
        "times_as_fast": median_and_range(our_rates / rate),
        "off_by": float(np.abs(scores - right).max()),
        "rank_correlation": rank_correlation(scores, right),
    }


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
