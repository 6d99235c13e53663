"""Which instances of a task are alike: word overlap of what differs between their instructions."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def dice_similarity(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """(n, n) float64, 0..1: twice the number of distinct words that two texts share, over the sum of their numbers."""
    words = [rouge_words(text) for text in texts]
    columns = {word: column for column, word in enumerate(sorted(set().union(*words)))}
    has = np.zeros((len(texts), len(columns)))
    for row, own in enumerate(words):
        has[row, [columns[word] for word in own]] = 1
    sizes = has.sum(axis=1)
    return 2 * (has @ has.T) / np.maximum(sizes[:, None] + sizes, 1)


def varying_parts(instructions: Sequence[str]) -> list[str]:
    """What differs between instructions: each from the first word in which any two of them differ."""
    low, high = min(instructions), max(instructions)
    shared = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    start = max(low.rfind(space, 0, shared) for space in " \n") + 1
    return [text[start:] for text in instructions]


def rouge_words(text: str) -> set[str]:
    """The words that Rouge-L counts: runs of a-z and 0-9 in the lower-cased text."""
    return set(re.findall("[a-z0-9]+", text.lower()))


def normal(text: str) -> str:
    """The text without case and with single spaces: texts that are equal so far are one answer."""
    return " ".join(text.lower().split())
