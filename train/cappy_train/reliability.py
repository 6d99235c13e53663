"""What scores mean: whether they are as high as the labels on average, and whether they tell right from wrong.

All figures are over the candidates of all questions, each candidate once in its question. Intervals: percentiles of a
bootstrap over examples within tasks, as in `evaluate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cappy_train.evaluate import BoolArray, FloatArray, Question, estimate, resampled_sums

BINS = 10
# What a right candidate gains at least: a right choice, or half of an agreement with a reference.
RIGHT = 0.5
# Above which calibrated scores say that it is more right than wrong.
THRESHOLD = 0.5
HISTOGRAM_BINS = 20


def reliability(questions: Sequence[Question], scores: Sequence[FloatArray], *, seed: int = 0) -> dict[str, Any]:
    """How scores relate to gains.

    - bins: BINS equal parts of 0..1, each with how many scores it has and their mean and the mean gain (None if empty).
      Scores outside 0..1, which an imported model may give, are in the first and last bin.
    - calibration_error: the expected calibration error, the mean distance of a bin's mean gain from its mean score,
      weighted by its number of scores (Naeini et al., 2015). Where scores are calibrated, resamples are further from it
      than the data, so that its interval may lie above it.
    - auc: the probability that a right candidate (of a gain of RIGHT at least) scores higher than a wrong one, of any
      questions; equal scores count half. None without both kinds. Its interval is of the first order, as in DeLong et
      al. (1988).
    - task_auc: the same among the candidates of a task, as the mean over the tasks that have both kinds.
    - threshold_accuracy: the share of candidates that are right and score THRESHOLD at least, or neither.
    - verdict_accuracy: the same if all candidates got the verdict that fits more of them.
    - histogram: how many right and wrong candidates are in each of HISTOGRAM_BINS equal parts of 0..1.
    - score_length, gain_length: Spearman's rank correlations of a candidate's number of characters with its score and
      with its gain. None where one of the two is constant.

    Args:
        questions: one at least.
        scores: for each question (candidates,).

    Returns:
        Values for JSON; every estimate is {value, low, high}, as `evaluate.estimate` gives it.
    """
    score, gain = np.concatenate(scores), np.concatenate([question.gains for question in questions])
    length = np.array([len(text) for question in questions for text in question.candidates], dtype=np.float64)
    right = gain >= RIGHT
    counts_by_question = [len(own) for own in scores]
    tasks = np.repeat([question.task for question in questions], counts_by_question)
    by_bin = np.eye(BINS)[_bins(score, BINS)].T
    rows = [*by_bin, *by_bin * score, *by_bin * gain]
    (auc, influence), (task_auc, task_influence) = _auc(score, right), _task_auc(score, right, tasks)
    lengths, score_ranks, gain_ranks = ranks(length), ranks(score), ranks(gain)
    rows += [influence, task_influence, right, right == (score >= THRESHOLD)]
    rows += [*moments(lengths, score_ranks), *moments(lengths, gain_ranks)]

    # Sums over each question, then over all and over each resample: the data's own go first.
    owners = np.repeat(np.arange(len(questions)), counts_by_question)
    values: FloatArray = np.array(
        [np.bincount(owners, row, minlength=len(questions)) for row in rows], dtype=np.float64
    )
    sums = np.concatenate([values.sum(axis=1)[None], resampled_sums(questions, values, seed=seed)])
    in_bins, others, score_moments, gain_moments = np.split(sums, 3 * BINS + np.array([0, 4, 9]), axis=1)
    counts, score_sums, gain_sums = np.split(in_bins, 3, axis=1)
    candidates = counts.sum(axis=1)
    influences, task_influences, rights, hits = others.T
    return {
        "candidates": len(score),
        "right": int(right.sum()),
        "bins": [
            {
                "from": number / BINS,
                "to": (number + 1) / BINS,
                "candidates": round(count),
                "score": round(score_sum / count, 5) if count else None,
                "gain": round(gain_sum / count, 5) if count else None,
            }
            for number, (count, score_sum, gain_sum) in enumerate(
                zip(counts[0].tolist(), score_sums[0].tolist(), gain_sums[0].tolist(), strict=True)
            )
        ],
        "calibration_error": estimate(np.abs(score_sums - gain_sums).sum(axis=1) / candidates),
        "auc": None if auc is None else estimate(np.clip(auc + influences, 0, 1)),
        "task_auc": None if task_auc is None else estimate(np.clip(task_auc + task_influences, 0, 1)),
        "threshold_accuracy": estimate(hits / candidates),
        "verdict_accuracy": estimate(np.maximum(rights, candidates - rights) / candidates),
        "histogram": {
            name: np.bincount(_bins(score[some], HISTOGRAM_BINS), minlength=HISTOGRAM_BINS).tolist()
            for name, some in {"right": right, "wrong": ~right}.items()
        },
        "score_length": _estimated(correlations(candidates, score_moments)),
        "gain_length": _estimated(correlations(candidates, gain_moments)),
    }


def calibration_error(score: FloatArray, gain: FloatArray) -> float:
    """The expected calibration error of scores, as in `reliability`. score, gain: (candidates,)."""
    return float(np.abs(np.bincount(_bins(score, BINS), score - gain)).sum() / len(score))


def _bins(scores: FloatArray, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
    """The number of the equal part of 0..1 that each score is in."""
    return np.clip(np.floor(scores * count), 0, count - 1).astype(np.intp)


def _auc(score: FloatArray, right: BoolArray) -> tuple[float | None, FloatArray]:
    """The area under the ROC curve, and how much each candidate adds to it if it is there once more."""
    influence = np.zeros(len(score))
    if right.all() or not right.any():
        return None, influence
    rights, wrongs = np.sort(score[right]), np.sort(score[~right])
    influence[right] = _share_below(wrongs, score[right])
    influence[~right] = 1 - _share_below(rights, score[~right])
    auc = float(influence[right].mean())
    influence -= auc
    influence[right] /= len(rights)
    influence[~right] /= len(wrongs)
    return auc, influence


def _task_auc(score: FloatArray, right: BoolArray, tasks: npt.NDArray[np.str_]) -> tuple[float | None, FloatArray]:
    """`_auc` of each task's candidates, as the mean over tasks that have one."""
    aucs, influence = [], np.zeros(len(score))
    for task in np.unique(tasks):
        own = tasks == task
        auc, influence[own] = _auc(score[own], right[own])
        if auc is not None:
            aucs.append(auc)
    return (float(np.mean(aucs)), influence / len(aucs)) if aucs else (None, influence)


def _share_below(ordered: FloatArray, values: FloatArray) -> FloatArray:
    """The share of the ordered numbers that are below each value; equal ones count half."""
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * len(ordered))


def ranks(values: FloatArray) -> FloatArray:
    """Ranks, the mean of equal ones, put to -0.5..0.5. values: (n,)."""
    return _share_below(np.sort(values), values) - 0.5


def moments(a: FloatArray, b: FloatArray) -> list[FloatArray]:
    """What must be summed, each (n,), for Pearson's correlation of two values of n candidates: see `correlations`."""
    return [a, b, a * a, b * b, a * b]


def correlations(counts: FloatArray, sums: FloatArray) -> FloatArray | None:
    """Pearson's correlations by sums of `moments`: (1 + resamples,), the data's own first.

    None where one of the two values is constant in the data.

    Args:
        counts: (1 + resamples,), how many candidates.
        sums: (1 + resamples, 5).
    """
    a, b, aa, bb, ab = sums.T / counts
    spread = np.sqrt(np.maximum(aa - a * a, 0) * np.maximum(bb - b * b, 0))
    if spread[0] < 1e-9:
        return None
    return np.clip(np.divide(ab - a * b, spread, out=np.zeros_like(spread), where=~(spread <= 0)), -1, 1)


def _estimated(samples: FloatArray | None) -> dict[str, float | None] | None:
    return None if samples is None else estimate(samples)
