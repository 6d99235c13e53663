"""Which instances of a task are alike: word overlap of what differs between their instructions."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

# What is like an instance is sought among so many consecutive ones at a time, which bounds memory.
BLOCK_INSTANCES = 16384


def dice_similarity(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """(n, n) float64, 0..1: twice the number of distinct words that two texts share, over the sum of their numbers."""
    return np.stack(list(dice_rows(texts)))


def dice_rows(texts: Sequence[str]) -> Iterator[npt.NDArray[np.float64]]:
    """The rows of `dice_similarity`, (n,) each, one at a time: memory grows with the texts, not with their square."""
    words = [rouge_words(text) for text in texts]
    holders: dict[str, list[int]] = defaultdict(list)
    for place, own in enumerate(words):
        for word in own:
            holders[word].append(place)
    having = {word: np.array(places, dtype=np.intp) for word, places in holders.items()}
    sizes = np.array([len(own) for own in words])
    for own in words:
        shared = np.bincount(
            np.concatenate([np.empty(0, np.intp), *map(having.__getitem__, own)]), minlength=len(texts)
        )
        yield 2 * shared / np.maximum(len(own) + sizes, 1)


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
