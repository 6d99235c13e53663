"""Scores that can be taken at their word: what candidates of a score are worth on average is that score.

A strictly increasing function from the network's logit to a calibrated one, which never changes a pick, is fitted on
half of some held-out questions and proved on the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, pad

from cappy_lite.activations import ScoreCalibration, sigmoid
from cappy_lite.errors import InputValueError
from cappy_train.evaluate import FloatArray, Question, task_weights
from cappy_train.reliability import calibration_error

# The function bends at logits that have these shares of the candidates below them.
KNOTS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
# Slopes are between 1 / STEEPEST and STEEPEST. In flatter pieces close scores would become equal in float32, and
# beyond the end of a steeper one all those near 0 or 1.
STEEPEST = 8.0
# How strongly slopes are drawn to 1, where the data say nothing else.
DRAWN_TO_ONE = 1e-4
ITERATIONS = 500
# With fewer questions in either half, a calibration would be fitted to chance.
LEAST_QUESTIONS = 50

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CalibrationProof:
    """How well a calibration holds: expected calibration errors (0..1), as `reliability` has them, on other questions.

    error_before, error_after: of the scores without it, and with it.
    candidates: how many these are of.
    fitted_candidates: how many others it was fitted to.
    """

    error_before: float
    error_after: float
    candidates: int
    fitted_candidates: int


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A calibration, as a model's config has it, and its proof."""

    knots: dict[str, list[float]]
    proof: CalibrationProof


def calibrate(questions: Sequence[Question], logits: Sequence[Logits]) -> Calibrated | None:
    """Fits a calibration on one half of the questions, and proves it on the other. Groups are halved by their names.

    Every task weighs as much in the fit as any other, and in it templates, their questions and their candidates.

    Args:
        logits: for each question (candidates,), by the graph that scores are calibrated of.

    Returns:
        None if a half has fewer than LEAST_QUESTIONS.
    """
    halves: list[list[int]] = [[], []]
    for number, question in enumerate(questions):
        halves[hashlib.sha256(question.group.encode()).digest()[0] % 2].append(number)
    if min(map(len, halves)) < LEAST_QUESTIONS:
        return None
    (fitted, fitted_logits), (proving, proving_logits) = (
        ([questions[number] for number in half], [logits[number] for number in half]) for half in halves
    )
    counts = [len(own) for own in fitted_logits]
    calibration = fit(
        np.concatenate(fitted_logits),
        np.concatenate([question.gains for question in fitted]),
        np.repeat(task_weights(fitted) / counts, counts),
    )
    others, labels = np.concatenate(proving_logits), np.concatenate([question.gains for question in proving])
    before, after = (
        calibration_error(sigmoid(own).astype(np.float64), labels) for own in (others, calibration(others))
    )
    return Calibrated(
        knots={"logits": calibration.logits.tolist(), "calibrated": calibration.calibrated.tolist()},
        proof=CalibrationProof(before, after, len(others), sum(counts)),
    )


def fit(logits: Logits, labels: FloatArray, weights: FloatArray) -> ScoreCalibration:
    """The calibration of the least cross-entropy with the labels, among those that bend at KNOTS.

    At the least the weighted means of scores and labels are the same around each knot, unless that took a slope beyond
    the bounds. Labels are moved a little towards 1/2, as Platt (1999) does, so that scores stay below 1.

    Args:
        logits, labels, weights: (n,); labels 0..1, weights above 0.

    Raises:
        InputValueError: the logits are all alike.
    """
    order = np.argsort(logits)
    shares = np.cumsum(weights[order]) / weights.sum()
    knots = np.unique(logits[order][np.searchsorted(shares, KNOTS)].astype(np.float64).round(6))
    if len(knots) < 2:
        raise InputValueError("the logits are all alike, so there is nothing to calibrate: train the network first")
    pieces = np.clip(np.searchsorted(knots, logits, side="right") - 1, 0, len(knots) - 2)
    beyond = torch.from_numpy(logits - knots[pieces])
    widths, piece = torch.from_numpy(np.diff(knots)), torch.from_numpy(pieces)
    targets = torch.from_numpy((labels * len(labels) + 0.5) / (len(labels) + 1))
    shared_weights = torch.from_numpy(weights / weights.sum())
    # From the middle knot, so that what is sought depends on each other as little as may be: tenfold fewer iterations.
    middle = len(knots) // 2
    anchor = torch.tensor(knots[middle : middle + 1], requires_grad=True)
    steepness = torch.zeros(len(widths), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([anchor, steepness], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def slopes_and_values() -> tuple[torch.Tensor, torch.Tensor]:
        slopes = STEEPEST ** torch.tanh(steepness)
        rises = pad(torch.cumsum(slopes * widths, 0), (1, 0))
        return slopes, anchor + rises - rises[middle]

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        slopes, values = slopes_and_values()
        entropy = binary_cross_entropy_with_logits(
            values[piece] + slopes[piece] * beyond, targets, weight=shared_weights, reduction="sum"
        )
        total = entropy + DRAWN_TO_ONE * steepness.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        _, values = slopes_and_values()
    return ScoreCalibration(knots.tolist(), values.numpy().round(9).tolist())
