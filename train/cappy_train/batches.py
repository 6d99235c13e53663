"""Packed batches of static shapes: rows of like length by a token budget, over `cappy_lite.packing`."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from cappy_lite.errors import InputValueError
from cappy_lite.packing import INSTRUCTION_FLOOR, Group, PackedRow, cut_lengths, cut_middle, pack, row_of
from cappy_lite.packing import SPECIAL_TOKENS as PAIR_SPECIAL_TOKENS
from cappy_lite.tokens import TextEncoder, read_tokenizer
from cappy_train.trainable import Places

T = TypeVar("T")

# Rows are padded to a multiple of this: few shapes, and little padding.
LENGTH_STEP = 16
# So are a row's places for candidates.
PLACES_STEP = 8
# So many texts are encoded at a time: the tokenizer's own results take more memory than ids do.
ENCODED_TEXTS = 4096
# A training row ends here, or so far beyond the longest pair; responses that don't fit are left out of it.
ROW_TOKENS = 640
ROOM_FOR_OTHERS = 128
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

    @property
    def tokens(self) -> int:
        return int((self.segment_ids >= 0).sum())

    def to(self, device: torch.device) -> Batch:
        """The batch in a device's memory."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))

    def logits(self, network: nn.Module) -> Tensor:
        """(B, K) logits of a PackedNetwork, or of what wraps one; meaningless in places without a candidate."""
        flat = network(
            self.input_ids, self.position_ids, self.token_type_ids, self.segment_ids, self.score_positions.flatten()
        )
        return flat.view(self.labels.shape)


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """An instruction, and responses with their labels (0..1)."""

    instruction: str
    responses: tuple[str, ...]
    labels: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Token ids of an instruction and its responses, the responses' labels, and how the row is cut.

    length: tokens of the longest sequence that it becomes. sequences: how many of them.
    """

    instruction: Sequence[int]
    responses: tuple[Sequence[int], ...]
    labels: tuple[float, ...]
    max_tokens: int
    length: int
    sequences: int = 1


class Packer:
    """Texts to packed rows, with the tokenizer in a file."""

    least_tokens = PAIR_SPECIAL_TOKENS + INSTRUCTION_FLOOR + 1

    def __init__(self, tokenizer_file: Path) -> None:
        self._tokenizer = read_tokenizer(tokenizer_file)
        self.cls_token, self.sep_token = special_tokens(tokenizer_file, self._tokenizer)
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

    def token_rows(self, rows: Sequence[LabelledRow], max_tokens: Sequence[int]) -> list[TokenRow]:
        """The rows' token ids; `max_tokens` has for each row how many tokens a pair of it may have."""
        token_rows = []
        encoded = encoded_rows(self._tokenizer, rows)
        for row, limit, (instruction, responses) in zip(rows, max_tokens, encoded, strict=True):
            length = len(self._training_row(instruction, responses, limit).input_ids)
            token_rows.append(TokenRow(instruction, responses, row.labels, limit, length))
        return token_rows

    def _training_row(
        self, instruction: Sequence[int], responses: Sequence[Sequence[int]], max_tokens: int
    ) -> PackedRow:
        """One row, in which all responses see the same tokens of the instruction; those that don't fit are left out.

        The instruction is cut as it would be beside the longer one of the first two responses; one that is longer still
        loses its end. So, as the second one is chosen, long responses stand beside long instructions cut in either way.
        """
        longest = max(map(len, responses[:2]))
        cut = cut_lengths(len(instruction), longest, max_tokens)
        head = [self.cls_id, *cut_middle(instruction, cut.instruction), self.sep_id]
        room = max_tokens - len(head) - 1
        left = max(ROW_TOKENS, max_tokens + ROOM_FOR_OTHERS) - len(head)
        kept, indices = [], []
        for index, ids in enumerate(responses):
            tail = [*ids[:room], self.sep_id]
            if len(tail) <= left:
                left -= len(tail)
                kept.append(tail)
                indices.append(index)
        return row_of([Group(head, kept, indices)])

    def batch(self, rows: Sequence[TokenRow]) -> Batch:
        """Rows as a batch: padded to the length of the longest, and with places for the most candidates."""
        packed = [self._training_row(row.instruction, row.responses, row.max_tokens) for row in rows]
        length = padded(max(row.length for row in rows))
        places = -(-max(len(first.candidate_indices) for first in packed) // PLACES_STEP) * PLACES_STEP
        labels = [np.array(row.labels)[first.candidate_indices] for row, first in zip(rows, packed, strict=True)]
        return collate(packed, labels, length, places)

    def scoring_batches(
        self, pairs: Sequence[tuple[str, Sequence[str]]], max_tokens: int
    ) -> Iterator[tuple[Batch, Places]]:
        """Batches that have every candidate of each (instruction, candidates) once, and whose they are."""
        rows: list[tuple[int, PackedRow]] = []
        for index, (instruction, candidates) in enumerate(pairs):
            candidate_ids = [self.encode(candidate) for candidate in candidates]
            rows += ((index, row) for row in self.pack(self.encode(instruction), candidate_ids, max_tokens))
        rows.sort(key=lambda item: len(item[1].input_ids))
        for part in chunks(rows, SCORING_TOKENS // ROW_TOKENS):
            length = padded(max(len(row.input_ids) for _, row in part))
            places = max(len(row.score_positions) for _, row in part)
            labels = [np.zeros(len(row.score_positions)) for _, row in part]
            batch = collate([row for _, row in part], labels, length, places)
            yield batch, [(index, row.candidate_indices) for index, row in part]


def encoded_rows(
    tokenizer: Tokenizer, rows: Sequence[LabelledRow]
) -> Iterator[tuple[Sequence[int], tuple[Sequence[int], ...]]]:
    """Token ids of each row's instruction and of its responses, without special tokens; 4 bytes each.

    Texts are encoded together, on several threads, without holding up others.
    """
    texts = [text for row in rows for text in (row.instruction, *row.responses)]
    ids = (
        array("i", encoding.ids)
        for part in chunks(texts, ENCODED_TEXTS)
        for encoding in tokenizer.encode_batch_fast(part, add_special_tokens=False)
    )
    for row in rows:
        instruction, *responses = islice(ids, 1 + len(row.responses))
        yield instruction, tuple(responses)


def special_tokens(tokenizer_file: Path, tokenizer: Tokenizer) -> tuple[str, str]:
    """What begins a row, and what ends each text in it, by the tokenizer's own names.

    Raises:
        InputValueError: it has no such tokens.
    """
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


def chunks(items: list[T], size: int) -> Iterator[list[T]]:
    """The items, so many at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
