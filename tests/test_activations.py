"""From outputs to scores: a calibration is applied as it is written, and never turns two candidates around."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_joint import write_tiny_joint
from tiny_model import WORDS, write_config

from cappy_lite import Scorer
from cappy_lite.activations import ScoreCalibration, sigmoid

INSTRUCTION = "Put the concepts together to form a sentence: ski, mountain, skier"
CANDIDATES = [*WORDS, "the skier skis down the mountain", "a cat", "a cat"]


def logit(scores: np.ndarray) -> np.ndarray:
    exact = scores.astype(np.float64)
    return np.log(exact / (1 - exact))


@pytest.mark.parametrize("graph", ["shared", "joint"])
def test_scores_are_the_sigmoids_of_calibrated_logits(graph: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if graph == "joint":
        write_tiny_joint(folder, score_activation="sigmoid")
    else:
        shutil.copytree(tiny_model, folder)
    plain = Scorer(folder, threads=1).score(INSTRUCTION, CANDIDATES)
    changes = {"graph": "joint"} if graph == "joint" else {}
    raw = logit(plain)
    # So that each piece, and both ends, are looked at.
    logits = np.quantile(raw, [0.2, 0.4, 0.6, 0.8]).tolist()
    slopes = [1 / 4, 5, 2]
    calibrated = np.cumsum([-1, *np.diff(logits) * slopes]).tolist()
    write_config(folder, **changes, calibration={"logits": logits, "calibrated": calibrated})
    scorer = Scorer(folder, threads=1)
    scores = scorer.score(INSTRUCTION, CANDIDATES)

    below, above = np.minimum(raw - logits[0], 0), np.maximum(raw - logits[-1], 0)
    expected = np.interp(raw, logits, calibrated) + slopes[0] * below + slopes[-1] * above
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-expected)), rtol=1e-5)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(np.argsort(-scores, kind="stable"), np.argsort(-plain, kind="stable"))
    with scorer.instruction(INSTRUCTION) as handle:
        np.testing.assert_array_equal(handle.score(CANDIDATES), scores)
    many = scorer.score_many([INSTRUCTION, "write"], [CANDIDATES[:3], []])
    np.testing.assert_array_equal(many[0], scores[:3])
    assert many[1].shape == (0,)
    if graph == "shared":
        assert [row.score for row in scorer.rerank(INSTRUCTION, CANDIDATES, top_k=2)] == sorted(scores)[: -1 - 2 : -1]


numbers = st.floats(-50, 50, width=32)


@given(
    st.lists(numbers, min_size=2, max_size=8, unique=True).map(sorted),
    st.lists(st.floats(1 / 8, 8), min_size=7, max_size=7),
    st.lists(numbers, min_size=1, max_size=20),
)
def test_order_never_changes(knots: list[float], slopes: list[float], logits: list[float]) -> None:
    calibrated = np.append(0, np.cumsum(np.diff(knots) * slopes[: len(knots) - 1])) - 1 / 3
    if (np.diff(calibrated) <= 0).any():  # knots so close that their difference is lost beside the sum
        return
    calibration = ScoreCalibration(knots, calibrated.tolist())
    # Neighbours of knots are where a rounding would show.
    near = np.array(knots, np.float32)
    asked = np.sort(np.concatenate([logits, near, np.nextafter(near, np.float32(-99)), np.nextafter(near, 99)]))
    found = calibration(asked.astype(np.float32))
    assert found.dtype == np.float64
    assert (np.diff(found) >= 0).all()
    assert (np.diff(sigmoid(found)) >= 0).all()
    np.testing.assert_allclose(calibration(np.array(knots)), calibrated, rtol=1e-12)


def test_close_logits_keep_their_difference() -> None:
    """They would lose it in float32: of scores near 1 that has few."""
    logits = np.array([4.0, 4.0001, 4.0002], np.float32)
    scores = sigmoid(ScoreCalibration([-1, 1], [-1 / 8, 1 / 8])(logits))
    assert (np.diff(scores) > 0).all()
    assert ScoreCalibration([-1, 1], [-1, 1])(np.empty((2, 0), np.float32)).shape == (2, 0)
