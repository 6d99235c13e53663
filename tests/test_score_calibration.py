"""A calibration is found from logits and labels, and proved on questions that it wasn't fitted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cappy_lite.activations import sigmoid
from cappy_lite.errors import InputValueError
from cappy_train.evaluate import Question
from cappy_train.score_calibration import KNOTS, LEAST_QUESTIONS, STEEPEST, calibrate, fit


def drawn(count: int, distortion: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are a distortion of those by which labels were drawn: half of them 0 or 1, half of them shares."""
    rng = np.random.default_rng(seed)
    exact = rng.normal(-1, 1.5, size=count)
    means = 1 / (1 + np.exp(-exact))
    labels = np.where(rng.random(count) < 0.5, rng.random(count) < means, rng.binomial(8, means) / 8)
    return distortion(exact).astype(np.float32), labels


def asked(tasks: dict[str, tuple[np.ndarray, np.ndarray]]) -> tuple[list[Question], list[np.ndarray]]:
    """Questions of four candidates, two to a group."""
    questions, logits = [], []
    for task, (own, labels) in tasks.items():
        for start in range(0, len(own), 4):
            gains = labels[start : start + 4]
            texts = tuple(str(place) for place in range(len(gains)))
            questions.append(Question(task, None, "instruction", texts, gains, f"{task}{start // 8}", "generation"))
            logits.append(own[start : start + 4])
    return questions, logits


@pytest.mark.parametrize(
    ("distort", "restore"),
    [
        (lambda exact: exact, lambda logits: logits),
        (lambda exact: exact / 3 + 2, lambda logits: 3 * (logits - 2)),
        (lambda exact: 4 * exact - 1, lambda logits: (logits + 1) / 4),
        (lambda exact: np.sinh(exact), lambda logits: np.arcsinh(logits)),
    ],
    ids=["none", "too close", "too far", "curved"],
)
def test_a_distortion_is_undone(
    distort: Callable[[np.ndarray], np.ndarray], restore: Callable[[np.ndarray], np.ndarray]
) -> None:
    logits, labels = drawn(10_000, distort)
    calibration = fit(logits, labels, np.ones(len(logits)))
    asked = np.quantile(logits, np.linspace(0.02, 0.98, 50)).astype(np.float32)
    np.testing.assert_allclose(sigmoid(calibration(asked)), sigmoid(restore(asked)), atol=0.05)
    assert len(calibration.logits) == len(KNOTS)
    slopes = np.diff(calibration.calibrated) / np.diff(calibration.logits)
    assert slopes.min() > 1 / STEEPEST * 0.99
    assert slopes.max() < STEEPEST * 1.01


def test_scores_have_the_mean_of_labels_around_each_knot() -> None:
    """The optimum's conditions, by knots' hat functions; what draws slopes to 1 moves them a little."""
    logits, labels = drawn(5_000, lambda exact: 2 * exact)
    weights = np.random.default_rng(1).random(len(logits)) + 0.1
    calibration = fit(logits, labels, weights)
    off = weights * (sigmoid(calibration(logits)) - labels)
    for knot in np.eye(len(calibration.logits)):
        assert abs(np.interp(logits, calibration.logits, knot) @ off) / weights.sum() < 1e-3


def test_labels_that_are_all_alike_leave_scores_apart() -> None:
    logits = np.linspace(-3, 3, 400, dtype=np.float32)
    for label in (0.0, 1.0):
        scores = sigmoid(fit(logits, np.full(400, label), np.ones(400))(logits))
        assert np.abs(scores - label).max() < 0.05
        assert (np.diff(scores) > 0).all()
    # Labels that the logits tell apart without a mistake.
    scores = sigmoid(fit(logits, (logits > 0).astype(np.float64), np.ones(400))(logits))
    assert (np.diff(scores) > 0).all()
    # Labels that fall where logits rise.
    scores = sigmoid(fit(logits, (logits < 0).astype(np.float64), np.ones(400))(logits))
    assert (np.diff(scores) > 0).all()
    assert np.abs(scores - 0.5).max() < 0.2


def test_few_different_logits_make_fewer_knots() -> None:
    logits = np.array([0, 0, 0, 1, 1, 1], np.float32)
    calibration = fit(logits, np.array([0, 0, 1, 1, 1, 0.5]), np.ones(6))
    assert calibration.logits.tolist() == [0, 1]
    with pytest.raises(InputValueError, match="all alike"):
        fit(np.zeros(6, np.float32), np.ones(6), np.ones(6))


def test_the_error_falls_on_other_questions() -> None:
    logits, labels = drawn(8_000, lambda exact: exact / 3 + 2)
    questions, by_question = asked({"task": (logits, labels)})
    calibrated = calibrate(questions, by_question)
    assert calibrated is not None
    proof = calibrated.proof
    assert proof.error_before > 0.4
    assert proof.error_after < 0.03
    assert proof.candidates + proof.fitted_candidates == 8_000
    assert 3_400 < proof.candidates < 4_600
    assert calibrated.knots["logits"] == sorted(set(calibrated.knots["logits"]))
    # Halves follow from groups, not from the order, and the result from the halves.
    order = np.random.default_rng(2).permutation(len(questions))
    again = calibrate([questions[place] for place in order], [by_question[place] for place in order])
    assert again is not None
    assert again.proof.candidates == proof.candidates
    np.testing.assert_allclose(again.knots["calibrated"], calibrated.knots["calibrated"], atol=1e-3)


def test_the_proof_has_no_say_in_the_fit() -> None:
    """A group's labels move either the fit, or what is measured without it."""
    logits, labels = drawn(2_000, lambda exact: exact)
    questions, by_question = asked({"task": (logits, labels)})
    first = calibrate(questions, by_question)
    assert first is not None
    changed = []
    for group in sorted({question.group for question in questions})[:20]:
        turned = [replace(one, gains=1 - one.gains) if one.group == group else one for one in questions]
        second = calibrate(turned, by_question)
        assert second is not None
        fit_changed = second.knots != first.knots
        changed.append(fit_changed)
        assert fit_changed == (second.proof.error_before == first.proof.error_before)
    assert 0 < sum(changed) < len(changed)


def test_every_task_weighs_as_much() -> None:
    """Two tasks whose labels contradict each other, one of them ten times as large."""
    low, _ = drawn(8_000, lambda exact: exact)
    few, _ = drawn(800, lambda exact: exact, seed=1)
    questions, by_question = asked({"wrong": (low, np.zeros(8_000)), "right": (few, np.ones(800))})
    calibrated = calibrate(questions, by_question)
    assert calibrated is not None
    assert np.abs(calibrated.knots["calibrated"]).max() < 1.5


def test_too_few_questions_are_left_alone() -> None:
    logits, labels = drawn(8 * 2 * LEAST_QUESTIONS, lambda exact: exact)
    questions, by_question = asked({"task": (logits, labels)})
    assert calibrate(questions, by_question) is not None
    assert calibrate(questions[: 2 * LEAST_QUESTIONS - 1], by_question[: 2 * LEAST_QUESTIONS - 1]) is None
