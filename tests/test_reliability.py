from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cappy_train.evaluate import Question
from cappy_train.reliability import calibration_error, reliability


def question(gains: list[float], *, group: str = "g", task: str = "t", texts: list[str] | None = None) -> Question:
    candidates = tuple(texts or [str(place) for place in range(len(gains))])
    return Question(task, None, "instruction", candidates, np.array(gains, dtype=float), group, "choice")


def found(gains: list[float], scores: list[float], texts: list[str] | None = None) -> dict[str, Any]:
    return reliability([question(gains, texts=texts)], [np.array(scores)])


def test_bins_and_the_calibration_error() -> None:
    result = found([1, 0, 1, 0.5, 0], [0.05, 0.05, 0.95, 1.0, 0.55])
    filled = {
        one["from"]: (one["candidates"], one["score"], one["gain"]) for one in result["bins"] if one["candidates"]
    }
    assert filled == {0.0: (2, 0.05, 0.5), 0.5: (1, 0.55, 0.0), 0.9: (2, 0.975, 0.75)}
    empty = next(one for one in result["bins"] if not one["candidates"])
    assert (empty["score"], empty["gain"]) == (None, None)
    assert result["calibration_error"]["value"] == pytest.approx((2 * 0.45 + 0.55 + 2 * 0.225) / 5)
    assert calibration_error(np.array([0.05, 0.05, 0.95, 1.0, 0.55]), np.array([1, 0, 1, 0.5, 0])) == pytest.approx(
        result["calibration_error"]["value"]
    )
    assert (result["candidates"], result["right"]) == (5, 3)
    assert (result["histogram"]["right"][1], result["histogram"]["right"][19]) == (1, 2)
    assert sum(result["histogram"]["wrong"]) == 2


def test_scores_outside_are_in_the_outer_bins() -> None:
    result = found([1, 0], [1.7, -0.3])
    assert result["bins"][9]["candidates"] == result["bins"][0]["candidates"] == 1
    assert result["bins"][9]["score"] == 1.7


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0])), min_size=1, max_size=12))
def test_auc_is_the_share_of_pairs_in_order(candidates: list[tuple[bool, float]]) -> None:
    result = found([float(right) for right, _ in candidates], [score for _, score in candidates])
    pairs = [
        (score > other) + (score == other) / 2
        for right, score in candidates
        for wrong, other in candidates
        if right and not wrong
    ]
    if pairs:
        assert result["auc"]["value"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
    else:
        assert result["auc"] is None


def test_a_tasks_auc_is_of_its_own_candidates() -> None:
    asked = [question([1, 0], task="low"), question([0.5, 0.4], task="high"), question([0, 0], task="never right")]
    scores = [np.array([0.2, 0.1]), np.array([0.9, 0.8]), np.array([0.3, 0.4])]
    result = reliability(asked, scores)
    assert result["task_auc"]["value"] == 1
    assert result["auc"]["value"] == pytest.approx((1 + 4) / 8)
    assert reliability([question([1, 1])], [np.array([0.1, 0.2])])["task_auc"] is None


def test_a_threshold_is_judged_beside_one_verdict_for_all() -> None:
    result = found([1, 0.5, 0.49, 0, 0], [0.5, 0.49, 0.51, 0.1, 0.2])
    assert result["threshold_accuracy"]["value"] == 3 / 5
    assert result["verdict_accuracy"]["value"] == 3 / 5
    assert found([1, 1, 0], [0.9, 0.9, 0.1])["verdict_accuracy"]["value"] == pytest.approx(2 / 3, abs=1e-5)


def test_length_correlations_are_of_ranks() -> None:
    texts = ["a", "bb", "bb", "dddd", "eeeeeeee"]
    result = found([1, 0.5, 0.5, 0.25, 0.25], [0.1, 0.3, 0.4, 0.35, 0.9], texts)
    assert result["score_length"]["value"] == pytest.approx(
        np.corrcoef([1, 2.5, 2.5, 4, 5], [1, 2, 4, 3, 5])[0, 1], abs=1e-5
    )
    expected = np.corrcoef([1, 2.5, 2.5, 4, 5], [5, 3.5, 3.5, 1.5, 1.5])[0, 1]
    assert result["gain_length"]["value"] == pytest.approx(expected, abs=1e-5)
    assert found([1, 0], [0.5, 0.5], ["a", "bb"])["score_length"] is None


def test_intervals_are_those_of_a_bootstrap_over_groups() -> None:
    rng = np.random.default_rng(1)
    # Three questions a group, alike: as many independent ones as there are groups.
    questions, scores = [], []
    for group in range(60):
        quality = rng.normal(0.5, 0.2)
        for _ in range(3):
            questions.append(question([1, 0], group=str(group)))
            scores.append(np.clip([quality + 0.1, quality], 0, 1))
    result = reliability(questions, scores)

    def auc(drawn: np.ndarray) -> float:
        right, wrong = (np.array([scores[place][side] for place in drawn]) for side in (0, 1))
        return float((right[:, None] > wrong).mean() + (right[:, None] == wrong).mean() / 2)

    resamples = [auc(np.concatenate([3 * rng.integers(60, size=60) + k for k in range(3)])) for _ in range(1000)]
    low, high = np.percentile(resamples, [2.5, 97.5])
    assert result["auc"]["low"] == pytest.approx(low, abs=0.02)
    assert result["auc"]["high"] == pytest.approx(high, abs=0.02)
    assert result["task_auc"] == result["auc"]  # of one task
    assert result["calibration_error"]["low"] < result["calibration_error"]["high"]
