"""What a scorer is measured against: picks by simple rules, by the generator itself, and by agreement.

A baseline either scores candidates, as a scorer does, or gives for each question what its pick is worth: (n,) float64,
NaN where it has no answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cappy_lite.selection import consensus
from cappy_train.evaluate import FloatArray, Question, recorded_gains
from cappy_train.neighbours import rouge_words


def longest(pairs: list[tuple[str, tuple[str, ...]]]) -> list[FloatArray]:
    """Scores that pick the candidate with the most characters."""
    return [np.array([len(text) for text in candidates], dtype=np.float64) for _, candidates in pairs]


def overlap(pairs: list[tuple[str, tuple[str, ...]]]) -> list[FloatArray]:
    """The share of each candidate's distinct Rouge words that occur in the instruction; 0 where it has none."""
    scores = []
    for instruction, candidates in pairs:
        known = rouge_words(instruction)
        words = [rouge_words(text) for text in candidates]
        scores.append(np.array([len(own & known) / max(len(own), 1) for own in words]))
    return scores


def system_gains(questions: Sequence[Question]) -> dict[str, FloatArray]:
    """By source: the mean gain of its recorded responses to each question. Sources come in order of appearance."""
    sources = dict.fromkeys(response.source for question in questions for response in question.recorded)
    gains = {source: np.full(len(questions), np.nan) for source in sources}
    for index, question in enumerate(questions):
        by_response = recorded_gains(question)
        of = np.array([response.source for response in question.recorded])
        for source in set(of.tolist()):
            gains[source][index] = by_response[of == source].mean()
    return gains


def likelihoods(question: Question, key: str) -> FloatArray:
    """(n,) float64: of each recorded response `key`, one of `instances.LIKELIHOODS`; NaN where it isn't known."""
    return np.array([getattr(response, key) for response in question.recorded], dtype=np.float64)


def self_score_gains(questions: Sequence[Question], key: str) -> FloatArray:
    """Gains of the recorded response that its generator finds most likely, among those of known likelihood.

    key: "log_likelihood", the sum over a response's tokens, or "mean_log_likelihood".
    """
    return np.array([_most_likely(recorded_gains(question), likelihoods(question, key)) for question in questions])


def _most_likely(gains: FloatArray, values: FloatArray) -> float:
    return float("nan") if np.isnan(values).all() else float(gains[np.nanargmax(values)])


def has_likelihoods(questions: Sequence[Question], key: str, *, every: bool = False) -> bool:
    """Whether any recorded response has `key`, or with `every` all have."""
    known = (getattr(response, key) is not None for question in questions for response in question.recorded)
    return all(known) if every else any(known)


def consensus_gains(questions: Sequence[Question]) -> FloatArray:
    """Gains of the recorded response that agrees most with the others, by stemmed Rouge-L; see `consensus`."""
    return np.array(
        [
            recorded_gains(question)[consensus([response.text for response in question.recorded], stem=True).argmax()]
            for question in questions
        ]
    )
