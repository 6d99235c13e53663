"""Best of n: what a pick among n random responses is worth on average, as n grows.

n responses are drawn without replacement from the N that are recorded for a question, repetitions included. Where a
response's score doesn't depend on the others that were drawn, the expected gain has a closed form: the one of rank r
(0 is best) is picked in C(N - 1 - r, n - 1) of the C(N, n) subsets. Agreement depends on the others, so its curve is a
mean over all subsets if they are few, else over some drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np

from cappy_lite.rouge import rouge_l_matrix
from cappy_train.evaluate import FloatArray

# Consensus: all subsets up to so many, else so many at random.
SUBSETS = 512


def subset_sizes(counts: Sequence[int]) -> list[int]:
    """1, 2, 4, ... and the largest of `counts`, the numbers of responses that questions have."""
    most = max(counts)
    return sorted({1 << power for power in range(most.bit_length())} | {most})


def best_of(gains: FloatArray, scores: FloatArray, sizes: Sequence[int]) -> FloatArray:
    """(sizes,) float64: the expected gain of the best-scored of n random responses, exactly, for each n of `sizes`.

    gains, scores: (N,); of equal scores the first counts. An n over N is taken for N.
    """
    ranked = gains[np.argsort(-scores, kind="stable")]
    return np.array([_shares(len(gains), min(size, len(gains))) @ ranked for size in sizes])


@lru_cache(maxsize=4096)
def _shares(count: int, size: int) -> FloatArray:
    """(count,): the share of the subsets of `size` in which each rank is the best one. Their sum is 1."""
    # C(N - 1 - r, n - 1) / C(N, n), from rank to rank: the numbers themselves outgrow a float.
    ranks = np.arange(count - 1)
    steps = np.maximum(count - ranks - size, 0) / (count - 1 - ranks)
    shares: FloatArray = np.cumprod(np.concatenate([[size / count], steps]))
    return shares


def consensus_best_of(texts: Sequence[str], gains: FloatArray, sizes: Sequence[int], *, seed: int = 0) -> FloatArray:
    """(sizes,) float64: the expected gain of the response that agrees most with the other ones of n random ones.

    Agreement is stemmed Rouge-L, as in `cappy_lite.selection.consensus`, within the subset alone. Exact where there
    are at most SUBSETS subsets, else over as many random ones, drawn by `seed`.

    texts, gains: (N,); of equal agreement the first counts. An n over N is taken for N.
    """
    agreement = rouge_l_matrix(texts, stem=True)
    np.fill_diagonal(agreement, 0)
    rng = np.random.default_rng(seed)
    return np.array([_agreed(agreement, gains, min(size, len(gains)), rng) for size in sizes])


def _agreed(agreement: FloatArray, gains: FloatArray, size: int, rng: np.random.Generator) -> float:
    count = len(gains)
    if size <= 1:
        return float(gains.mean())
    if comb(count, size) <= SUBSETS:
        drawn = np.array(list(combinations(range(count), size)))
    else:
        drawn = np.argsort(rng.random((SUBSETS, count)), axis=1)[:, :size]
    chosen = np.zeros((len(drawn), count), bool)
    np.put_along_axis(chosen, drawn, True, axis=1)
    # Rounded, so that the order of summing breaks no ties.
    votes = np.where(chosen, np.round(chosen @ agreement, 9), -1)
    return float(gains[votes.argmax(axis=1)].mean())
