"""Packed batches of static shapes: rows of like length by a token budget, over `cappy_lite.packing`."""

from __future__ import annotations

import random
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cappy_lite.errors import InputValueError
from cappy_lite.packing import PackedRow, pack
from cappy_lite.tokens import TextEncoder, read_tokenizer
from cappy_train.network import ScorerNetwork
from cappy_train.regression import MAX_RESPONSES, Example

T = TypeVar("T")

# Rows are padded to a multiple of this: few shapes, and little padding.
LENGTH_STEP = 8
# A training row ends here; responses beyond are left out of it.
ROW_TOKENS = 640
# What begins a row and what ends a text: BERT's, and RoBERTa's.
SPECIAL_TOKENS = (("[CLS]", "[SEP]"), ("<s>", "</s>"))
# Tokens of a batch when scoring.
SCORING_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Batch:
    """B packed rows padded to L tokens, with K places for candidates each.

    input_ids, position_ids, token_type_ids, segment_ids: (B, L) int64; padding has segment -1, which nothing sees.
    score_positions: (B, K) int64, indices into the B * L tokens laid end to end; 0 in places without a candidate.
    labels: (B, K) float32, 0..1; NaN in places without a candidate.
    """

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor
    segment_ids: Tensor
    score_positions: Tensor
    labels: Tensor

    def logits(self, network: ScorerNetwork) -> Tensor:
        """(B, K) logits; meaningless in places without a candidate."""
        flat = network(
            self.input_ids, self.position_ids, self.token_type_ids, self.segment_ids, self.score_positions.flatten()
        )
        return flat.view(self.labels.shape)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Token ids of an instruction and its responses, the responses' labels, and how the row is cut."""

    instruction: Sequence[int]
    responses: tuple[Sequence[int], ...]
    labels: tuple[float, ...]
    max_tokens: int
    length: int


class Packer:
    """Texts to packed rows, with the tokenizer in a file."""

    def __init__(self, tokenizer_file: Path) -> None:
        self.cls_token, self.sep_token = special_tokens(tokenizer_file)
        self._encoder = TextEncoder(tokenizer_file, cls_token=self.cls_token, sep_token=self.sep_token)
        self.cls_id = self._encoder.cls_id
        self.sep_id = self._encoder.sep_id

    def encode(self, text: str) -> Sequence[int]:
        """Token ids of a text, without special tokens; 4 bytes each, so that millions of texts fit in memory."""
        return array("i", self._encoder.encode(text))

    def pack(
        self, instruction: Sequence[int], responses: Sequence[Sequence[int]], max_tokens: int
    ) -> Iterator[PackedRow]:
        return pack(
            instruction,
            responses,
            cls_id=self.cls_id,
            sep_id=self.sep_id,
            max_tokens=max_tokens,
            row_tokens=ROW_TOKENS,
        )

    def token_rows(
        self, examples: Iterable[Example], *, short: int, long: int, long_share: float, seed: int
    ) -> list[TokenRow]:
        """A row an example: a share of them reads up to `long` tokens a pair, the others up to `short`."""
        rng = random.Random(f"{seed}:lengths")
        rows = []
        for example in examples:
            instruction = self.encode(example.instruction)
            responses = tuple(self.encode(response) for response in example.responses)
            max_tokens = long if rng.random() < long_share else short
            length = len(next(self.pack(instruction, responses, max_tokens)).input_ids)
            rows.append(TokenRow(instruction, responses, example.labels, max_tokens, length))
        return rows

    def batch(self, rows: Sequence[TokenRow]) -> Batch:
        """Rows as a batch, padded to the length of the longest."""
        packed = [next(self.pack(row.instruction, row.responses, row.max_tokens)) for row in rows]
        length = padded(max(row.length for row in rows))
        labels = [np.array(row.labels)[first.candidate_indices] for row, first in zip(rows, packed, strict=True)]
        return collate(packed, labels, length, MAX_RESPONSES)


def special_tokens(tokenizer_file: Path) -> tuple[str, str]:
    """What begins a row, and what ends each text in it, by the tokenizer's own names.

    Raises:
        InputValueError: it has no such tokens.
    """
    tokenizer = read_tokenizer(tokenizer_file)
    for pair in SPECIAL_TOKENS:
        if all(tokenizer.token_to_id(token) is not None for token in pair):
            return pair
    names = " nor ".join(" and ".join(pair) for pair in SPECIAL_TOKENS)
    raise InputValueError(f"{tokenizer_file} has neither the tokens {names}: give BERT's or RoBERTa's tokenizer")


def collate(rows: Sequence[PackedRow], labels: Sequence[np.ndarray], length: int, places: int) -> Batch:
    """Packed rows, padded to `length` tokens and `places` candidates."""

    def padded_ids(arrays: Iterable[np.ndarray], padding: int) -> Tensor:
        ids = np.full((len(rows), length), padding, dtype=np.int64)
        for row, values in zip(ids, arrays, strict=True):
            row[: len(values)] = values
        return torch.from_numpy(ids)

    score_positions = np.zeros((len(rows), places), dtype=np.int64)
    all_labels = np.full((len(rows), places), np.nan, dtype=np.float32)
    for index, (row, own) in enumerate(zip(rows, labels, strict=True)):
        score_positions[index, : len(own)] = index * length + row.score_positions
        all_labels[index, : len(own)] = own
    return Batch(
        input_ids=padded_ids((row.input_ids for row in rows), 0),
        position_ids=padded_ids((row.position_ids for row in rows), 0),
        token_type_ids=padded_ids((row.token_type_ids for row in rows), 0),
        segment_ids=padded_ids((row.segment_ids for row in rows), -1),
        score_positions=torch.from_numpy(score_positions),
        labels=torch.from_numpy(all_labels),
    )


def padded(length: int) -> int:
    """The length that a row of `length` tokens is padded to."""
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def plan(rows: Sequence[TokenRow], tokens: int, *, seed: int) -> list[list[int]]:
    """One epoch: batches of row numbers, each of one padded length and at most `tokens` tokens, in random order.

    Every batch of a length has the same number of rows, so that shapes are few; the rows left over sit this epoch out.
    """
    rng = random.Random(f"{seed}:plan")
    by_length: dict[int, list[int]] = defaultdict(list)
    for number in rng.sample(range(len(rows)), len(rows)):
        by_length[padded(rows[number].length)].append(number)
    batches = []
    for length in sorted(by_length):
        size = max(1, tokens // length)
        batches += [part for part in _chunks(by_length[length], size) if len(part) == size]
    rng.shuffle(batches)
    return batches


@torch.inference_mode()
def network_scores(
    network: ScorerNetwork, packer: Packer, pairs: Sequence[tuple[str, Sequence[str]]], max_tokens: int
) -> list[np.ndarray]:
    """Scores (float32, 0..1) of the candidates of each (instruction, candidates), in their order."""
    scores = [np.empty(len(candidates), dtype=np.float32) for _, candidates in pairs]
    rows: list[tuple[int, PackedRow]] = []
    for index, (instruction, candidates) in enumerate(pairs):
        candidate_ids = [packer.encode(candidate) for candidate in candidates]
        rows += ((index, row) for row in packer.pack(packer.encode(instruction), candidate_ids, max_tokens))
    rows.sort(key=lambda item: len(item[1].input_ids))
    for part in _chunks(rows, SCORING_TOKENS // ROW_TOKENS):
        length = padded(max(len(row.input_ids) for _, row in part))
        places = max(len(row.score_positions) for _, row in part)
        labels = [np.zeros(len(row.score_positions)) for _, row in part]
        values = collate([row for _, row in part], labels, length, places).logits(network).sigmoid().float().numpy()
        for (index, row), own in zip(part, values, strict=True):
            scores[index][row.candidate_indices] = own[: len(row.candidate_indices)]
    return scores


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
