"""From scores to a ranking, and scores by agreement, which need no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from cappy_lite.rouge import Tokenizer


class Ranked(NamedTuple):
    """One candidate of a ranking."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody misses here
    """Its place in the caller's list, from 0."""
    text: str
    score: float
    """0..1; how well it answers the instruction."""


def rank(candidates: Sequence[str], scores: npt.NDArray[np.float32], top_k: int | None = None) -> list[Ranked]:
    """The best `top_k` candidates (all, if None), best first; ties keep the input's order.

    Args:
        candidates: n texts.
        scores: (n,), 0..1.
        top_k: at least 1.
    """
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [Ranked(int(index), candidates[index], float(scores[index])) for index in order]


def consensus(
    candidates: Sequence[str], *, stem: bool = False, tokenizer: Tokenizer = "rouge", threads: int | None = None
) -> npt.NDArray[np.float64]:
    """How much each candidate agrees with the others: its mean Rouge-L F-measure with them.

    The best is the pick of minimum Bayes risk decoding with Rouge-L; of short answers it is that of a majority vote
    (self-consistency). So repetitions belong in: each is a vote. It takes n**2 / 2 comparisons.

    Args:
        candidates: n texts.
        stem, tokenizer, threads: as for `cappy_lite.rouge.rouge_l_matrix`.

    Returns:
        float64 (n,), 0..1, in the input's order; 0 for one candidate alone.

    Raises:
        InputTypeError, InputValueError: as for `rouge_l_matrix`.
    """
    # Not at the top: scorers rank without Rouge-L, whose fallback in Python warns when it is loaded.
    from cappy_lite.rouge import rouge_l_matrix

    agreement = rouge_l_matrix(candidates, stem=stem, tokenizer=tokenizer, threads=threads)
    np.fill_diagonal(agreement, 0)
    means: npt.NDArray[np.float64] = agreement.sum(axis=1) / max(len(agreement) - 1, 1)
    return means
