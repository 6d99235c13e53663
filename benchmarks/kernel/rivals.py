"""Other packages that compute Rouge-L, each the fastest way that it offers on one thread.

Not here: `evaluate` and `kurenai` call rouge-score; `torchmetrics` needs PyTorch; `py-rouge` is imported by the same
name as `rouge`; `pyrouge` and `sacrerouge` run the Perl script, a process for each batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

# Rust's thread pools read it once, when they start.
os.environ["RAYON_NUM_THREADS"] = "1"

import fast_rouge
import rapidrouge.rouge_scorer
import rouge
import rouge_metric
import rouge_score.rouge_scorer
import rouge_score_rs.rouge_scorer

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rival:
    """A package by its name on PyPI.

    score: from whether to stem, predictions and their references, one each, to (n, 3): precision, recall, F-measure.
    definition: in what its numbers differ by intent from rouge-score's; "" if they should be the same.
    """

    package: str
    score: Callable[[bool, list[str], list[str]], FloatArray]
    stems: bool = True
    definition: str = ""


def _rows(rows: Iterable[Iterable[float]]) -> FloatArray:
    return np.fromiter(chain.from_iterable(rows), np.float64).reshape(-1, 3)


def _rouge_score(stem: bool, predictions: list[str], references: list[str]) -> FloatArray:
    scorer = rouge_score.rouge_scorer.RougeScorer(["rougeL"], use_stemmer=stem)
    pairs = zip(references, predictions, strict=True)
    return _rows(scorer.score(reference, prediction)["rougeL"] for reference, prediction in pairs)


def _rouge_score_rs(stem: bool, predictions: list[str], references: list[str]) -> FloatArray:
    scorer = rouge_score_rs.rouge_scorer.RougeScorer(["rougeL"], use_stemmer=stem)
    return _rows(scores["rougeL"] for scores in scorer.score_batch(references, predictions))


def _rouge_rust(stem: bool, predictions: list[str], references: list[str]) -> FloatArray:
    scores = fast_rouge.score_batch_flat(references, predictions)
    return np.column_stack([scores.rougeL_precision, scores.rougeL_recall, scores.rougeL_fmeasure])


def _rapidrouge(stem: bool, predictions: list[str], references: list[str]) -> FloatArray:
    scorer = rapidrouge.rouge_scorer.RougeScorer(["rougeL"], use_stemmer=stem)
    pairs = zip(references, predictions, strict=True)
    return _rows(scorer.score(reference, prediction)["rougeL"] for reference, prediction in pairs)


def _rouge(stem: bool, predictions: list[str], references: list[str]) -> FloatArray:
    scores = rouge.Rouge(metrics=["rouge-l"]).get_scores(predictions, references)
    return _rows((one["rouge-l"]["p"], one["rouge-l"]["r"], one["rouge-l"]["f"]) for one in scores)


def _rouge_metric(stem: bool, predictions: list[str], references: list[str]) -> FloatArray:
    scorer = rouge_metric.PyRouge(rouge_n=False, rouge_l=True, mode="individual")
    scores = scorer.evaluate(predictions, [[reference] for reference in references])
    return _rows((one["rouge-l"]["p"], one["rouge-l"]["r"], one["rouge-l"]["f"]) for one in scores)


STANDARD = Rival("rouge-score", _rouge_score)
NEAREST = Rival("rouge-score-rs", _rouge_score_rs)
RIVALS = (
    STANDARD,
    NEAREST,
    Rival("rouge-rust", _rouge_rust, stems=False),
    Rival("rapidrouge", _rapidrouge),
    Rival("rouge", _rouge, stems=False, definition="splits at spaces, keeps case, counts a word once"),
    Rival("rouge-metric", _rouge_metric, stems=False, definition="splits at spaces, keeps case"),
)
