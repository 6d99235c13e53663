"""Running text to cut benchmark texts from: real instances' or made up, and always the same."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cappy_train.instances import read_instances

SEED = 0
SYNTHETIC_VOCABULARY = 50_000


class Corpus:
    """Text in words of rouge-score's tokenizer; what stands between two of them belongs to the first.

    most_words: where the text is cut off.
    """

    def __init__(self, name: str, text: str, most_words: int) -> None:
        self.name = name
        # The two letters beyond ASCII that have an ASCII letter in their lower case would make other words.
        self._text = text = text.replace("\u0130", "I").replace("\u212a", "K")
        starts = [word.start() for word in islice(re.finditer("[A-Za-z0-9]+", text), most_words + 1)]
        self._starts = np.array(starts if len(starts) > most_words else [*starts, len(text)])

    def __len__(self) -> int:
        """How many words there are."""
        return len(self._starts) - 1

    def texts(self, lengths: npt.NDArray[np.int64]) -> list[str]:
        """Consecutive texts of so many words each, from the beginning."""
        ends = np.cumsum(lengths)
        places = zip(self._starts[ends - lengths], self._starts[ends], strict=True)
        return [self._text[start:end] for start, end in places]


def read_corpus(path: Path, most_words: int) -> Corpus:
    """Every different line of a file of instances once, for many repeat a task's definition; instances in random order.

    Raises:
        InputValueError: the file can't be read as instances.
    """
    instances = list(read_instances(path))
    random.Random(SEED).shuffle(instances)
    lines: dict[str, None] = {}
    for instance in instances:
        for text in (instance.instruction, *instance.references, *(one.text for one in instance.candidates)):
            lines.update(dict.fromkeys(text.split("\n")))
    return Corpus(path.name, "\n".join(lines), most_words)


def synthetic_corpus(words: int) -> Corpus:
    """Made-up words with English suffixes, whose frequencies follow Zipf's law."""
    generator = np.random.default_rng(SEED)
    frequencies = 1 / (np.arange(SYNTHETIC_VOCABULARY) + 2.7)
    vocabulary = np.array(list(_made_up_words(SYNTHETIC_VOCABULARY)), dtype=object)
    drawn = generator.choice(vocabulary, words, p=frequencies / frequencies.sum())
    ends = generator.choice(np.array([" ", ", ", ". "], dtype=object), words, p=[0.88, 0.06, 0.06])
    return Corpus("synthetic", "".join(drawn + ends), words)


def _made_up_words(count: int) -> Iterable[str]:
    """Different words, short ones first."""
    source = random.Random(SEED)
    words: dict[str, None] = {}
    while len(words) < count:
        length = source.randint(2, 3 + len(words).bit_length() // 2)
        stem = "".join(source.choices("etaoinshrdlucmfwygpbvk", range(22, 0, -1), k=length))
        words[stem + source.choice(["", "", "", "s", "ed", "ing", "ation", "ly", "ness"])] = None
    return words
