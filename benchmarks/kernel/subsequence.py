"""From sequences of token ids to scores: the kernel beside rapidfuzz, which gives the subsequences' lengths alone.

rapidfuzz is fastest with strings, so it has one with a character for each different token. Neither's conversion counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from benchmarks.corpus import Corpus
from benchmarks.kernel.report import Subsequence
from benchmarks.rounds import Contestant, FloatArray, check_equal, median_and_range, rates, time_once
from cappy_lite import _kernel

# Bounds of a matrix: its texts, and all its pairs' 64-bit words of the recurrence.
MATRIX_TEXTS = 1_000
MATRIX_WORDS = 300_000_000


@dataclass(frozen=True)
class Task:
    """One amount of work in both forms.

    ours: makes the scores.
    rapidfuzz: calls that make the subsequences' lengths, by what they are; the fastest counts.
    scores: what our scores must be, given those lengths.
    """

    pairs: int
    ours: Callable[[], FloatArray]
    rapidfuzz: Mapping[str, Callable[[], npt.NDArray[Any]]]
    scores: Callable[[npt.NDArray[Any]], FloatArray]


def subsequence_alone(corpus: Corpus, length: int, shape: str, rounds: int) -> Subsequence:
    """Rates of the kernel and of rapidfuzz's best call for texts of this length.

    Raises:
        SystemExit: a number differs.
    """
    task = SHAPES[shape](corpus, length)
    for name, call in task.rapidfuzz.items():
        check_equal(task.ours(), task.scores(call()), f"{shape}, {length} tokens, beside rapidfuzz's {name}")
    theirs = {name: Contestant(call, task.pairs) for name, call in task.rapidfuzz.items()}
    best = min(theirs, key=lambda name: min(time_once(theirs[name]) for _ in range(3)))
    our_rate, their_rate = rates([Contestant(task.ours, task.pairs), theirs[best]], rounds)
    return {
        "shape": shape,
        "tokens": length,
        "pairs": task.pairs,
        "pairs_per_second": float(np.median(our_rate)),
        "rapidfuzz_call": best,
        "rapidfuzz_pairs_per_second": float(np.median(their_rate)),
        "times_as_fast": median_and_range(our_rate / their_rate),
    }


def one_against_many(corpus: Corpus, length: int) -> Task:
    """The first text, as the reference, with each of the others."""
    reference, *texts = corpus.texts(np.full(len(corpus) // length, length))
    (one, *many), dtype = as_characters([reference, *texts]), smallest_dtype(length)
    calls = {
        "cdist, one query": partial(process.cdist, [one], many, scorer=LCSseq.similarity, dtype=dtype, workers=1),
        "cdist, one choice": partial(process.cdist, many, [one], scorer=LCSseq.similarity, dtype=dtype, workers=1),
    }
    ours = partial(score_pairs, *as_sequences(texts, [reference] * len(texts)))
    return Task(len(texts), ours, calls, partial(scores_of, length))


def aligned_pairs(corpus: Corpus, length: int) -> Task:
    """Each text with its own other."""
    texts = corpus.texts(np.full(len(corpus) // length // 2 * 2, length))
    strings, dtype = as_characters(texts), smallest_dtype(length)
    call = partial(process.cpdist, strings[::2], strings[1::2], scorer=LCSseq.similarity, dtype=dtype, workers=1)
    ours = partial(score_pairs, *as_sequences(texts[::2], texts[1::2]))
    return Task(len(texts) // 2, ours, {"cpdist": call}, partial(scores_of, length))


def full_matrix(corpus: Corpus, length: int) -> Task:
    """Each text with each. Both do every pair once if they know that both sides are one list."""
    words = length * -(-length // 64)
    count = min(MATRIX_TEXTS, len(corpus) // length, int((MATRIX_WORDS / words) ** 0.5))
    texts = corpus.texts(np.full(count, length))
    strings, dtype = as_characters(texts), smallest_dtype(length)
    calls = {
        name: partial(process.cdist, strings, others, scorer=LCSseq.similarity, dtype=dtype, workers=1)
        for name, others in {"cdist, one list": strings, "cdist, two lists": list(strings)}.items()
    }
    ours = partial(score_matrix, *as_sequences(texts))
    return Task(count**2, ours, calls, lambda lengths: scores_of(length, lengths)[:, 2].reshape(count, count))


SHAPES = {"one against many": one_against_many, "aligned pairs": aligned_pairs, "full matrix": full_matrix}


def as_characters(texts: Sequence[str]) -> list[str]:
    """A character for each token. The most frequent tokens have the smallest codes, which rapidfuzz looks up faster."""
    tokens = [re.findall("[a-z0-9]+", text.lower()) for text in texts]
    frequencies = Counter(chain.from_iterable(tokens))
    # Surrogates are no characters.
    codes = {token: chr(rank + 0x800 * (rank >= 0xD800)) for rank, (token, _) in enumerate(frequencies.most_common())}
    return ["".join(map(codes.__getitem__, some)) for some in tokens]


def smallest_dtype(length: int) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if length < 256 else np.uint16


def as_sequences(*sides: list[str]) -> list[_kernel.Sequences]:
    lexicon = _kernel.Lexicon(False)
    return [lexicon.read(texts) for texts in sides]


def score_pairs(predictions: _kernel.Sequences, references: _kernel.Sequences) -> FloatArray:
    scores = np.empty((len(predictions), 3))
    _kernel.Scoring(lambda: None).rouge_l_pairs(predictions, references, scores)
    return scores


def score_matrix(texts: _kernel.Sequences) -> FloatArray:
    fmeasures = np.empty((len(texts), len(texts)))
    _kernel.Scoring(lambda: None).rouge_l_matrix(texts, 0, 1, fmeasures)
    return fmeasures


def scores_of(length: int, subsequences: npt.NDArray[Any]) -> FloatArray:
    """Scores (n, 3) by the subsequences' lengths, of pairs of texts of the same length; in rouge-score's own order."""
    share = subsequences.ravel() / length
    both = share + share
    fmeasures = np.divide(2 * share * share, both, out=np.zeros_like(share), where=both > 0)
    return np.column_stack([share, share, fmeasures])
