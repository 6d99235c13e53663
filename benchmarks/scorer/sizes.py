"""What is scored: instructions and candidates of lengths that are exact in the model's own tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.corpus import SEED, Corpus
from cappy_lite.models import TOKENIZER_FILE

# An instruction and its candidates.
Question = tuple[str, list[str]]


@dataclass(frozen=True)
class Size:
    """Lengths in tokens, without special ones."""

    name: str
    instruction: int
    candidates: tuple[int, ...]


def equal_candidates(instruction: int, count: int, length: int) -> Size:
    return Size(f"{instruction} tokens, {count} x {length}", instruction, (length,) * count)


def mixed_candidates(instruction: int, count: int, shortest: int, longest: int) -> Size:
    """Candidates of random lengths; as many have `shortest` to twice that as half `longest` to that."""
    places = np.random.default_rng(SEED).random(count)
    lengths = np.floor(shortest * ((longest + 1) / shortest) ** places).astype(int)
    return Size(f"{instruction} tokens, {count} of {shortest} to {longest}", instruction, tuple(lengths.tolist()))


def open_tokenizer(folder: Path) -> Tokenizer:
    """A model's tokenizer, as text alone is read: without truncation and padding."""
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def draw(corpus: Corpus, tokenizer: Tokenizer, size: Size) -> Question:
    """An instruction and candidates of these lengths; no two texts are the same.

    Raises:
        ValueError: the corpus is too short.
    """
    lengths = (size.instruction, *size.candidates)
    longest = max(lengths)
    # A word has a token at least.
    pieces = iter(corpus.texts(np.full(len(corpus) // longest, longest)))
    texts: dict[str, None] = {}
    for length in lengths:
        texts[_next_text(pieces, tokenizer, length, texts)] = None
    instruction, *candidates = texts
    return instruction, candidates


def _next_text(pieces: Iterable[str], tokenizer: Tokenizer, length: int, others: dict[str, None]) -> str:
    """The first piece's beginning that has so many tokens and is none of the others."""
    for piece in pieces:
        ends = tokenizer.encode(piece, add_special_tokens=False).offsets
        if len(ends) >= length:
            text = piece[: ends[length - 1][1]]
            # Some tokenizers read a beginning of a word otherwise than the word.
            if text not in others and count_tokens(tokenizer, text) == length:
                return text
    raise ValueError(f"the corpus has too little text for another of {length} tokens")


def count_tokens(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


SIZES: Sequence[Size] = (
    equal_candidates(64, 8, 16),
    equal_candidates(256, 32, 16),
    equal_candidates(440, 64, 32),
    equal_candidates(32, 2, 2),
    mixed_candidates(128, 200, 2, 128),
)
# What a fresh process scores first, and what shows its memory.
FIRST = equal_candidates(32, 2, 2)
LARGE = equal_candidates(64, 32, 400)
# What several threads score at a time.
THROUGHPUT = equal_candidates(64, 8, 16)
