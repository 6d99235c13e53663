"""From scores to a ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


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
