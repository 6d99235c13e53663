"""Batches of pairs for a cross-encoder: those of an instruction with all its candidates stay together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cappy_lite.joint import Pair, PairTemplate
from cappy_lite.tokens import read_tokenizer
from cappy_train.batches import SCORING_TOKENS, LabelledRow, TokenRow, encoded_rows, padded
from cappy_train.streaming import by_length
from cappy_train.trainable import Places

# Candidates of an instruction that are scored together.
SCORED_TOGETHER = 16


@dataclass(frozen=True, slots=True)
class PairBatch:
    """B instructions with K places for candidates each, as P pairs padded to L tokens.

    input_ids, attention_mask, token_type_ids: (P, L) int64; the mask has 0 for padding, 1 else.
    pairs: (B, K) int64; which pair is in each place; 0 in places without a candidate.
    labels: (B, K) float32, 0..1; NaN in places without a candidate.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    pairs: Tensor
    labels: Tensor

    @property
    def tokens(self) -> int:
        return int(self.attention_mask.sum())

    def to(self, device: torch.device) -> PairBatch:
        """The batch in a device's memory."""
        return PairBatch(*(getattr(self, field.name).to(device) for field in fields(self)))

    def logits(self, network: nn.Module) -> Tensor:
        """(B, K) logits of a JointNetwork, or of what wraps one; meaningless in places without a candidate."""
        logits: Tensor = network(self.input_ids, self.attention_mask, self.token_type_ids)
        return logits[self.pairs]


class PairPacker:
    """Texts to batches of pairs, with the tokenizer in a file, joined and cut as `cappy_lite.joint` does it."""

    def __init__(self, tokenizer_file: Path, *, padding: int, max_tokens: int) -> None:
        """padding: id of the token that pairs are padded with. max_tokens: no pair is padded beyond.

        Raises:
            ModelError: the tokenizer doesn't make pairs.
        """
        self._tokenizer = read_tokenizer(tokenizer_file)
        self._template = PairTemplate.of(tokenizer_file, self._tokenizer)
        self._padding, self._max_tokens = padding, max_tokens

    @property
    def least_tokens(self) -> int:
        return self._template.least_tokens

    def token_rows(self, rows: Sequence[LabelledRow], max_tokens: Sequence[int]) -> list[TokenRow]:
        """The rows' token ids; `max_tokens` has for each row how many tokens a pair of it may have."""
        token_rows = []
        encoded = encoded_rows(self._tokenizer, rows)
        for row, limit, (instruction, responses) in zip(rows, max_tokens, encoded, strict=True):
            longest = max(map(len, responses))
            length = min(self._template.special_tokens + len(instruction) + longest, limit)
            token_rows.append(TokenRow(instruction, responses, row.labels, limit, length, len(responses)))
        return token_rows

    def batch(self, rows: Sequence[TokenRow]) -> PairBatch:
        """Rows as a batch: pairs padded to the length of the longest, and places for the most candidates."""
        pairs = [
            self._template.pair(row.instruction, response, row.max_tokens) for row in rows for response in row.responses
        ]
        places = max(row.sequences for row in rows)
        own = np.zeros((len(rows), places), dtype=np.int64)
        labels = np.full((len(rows), places), np.nan, dtype=np.float32)
        first = 0
        for index, row in enumerate(rows):
            own[index, : row.sequences] = np.arange(first, first + row.sequences)
            labels[index, : row.sequences] = row.labels
            first += row.sequences
        return self._padded_batch(pairs, own, labels)

    def scoring_batches(
        self, pairs: Sequence[tuple[str, Sequence[str]]], max_tokens: int
    ) -> Iterator[tuple[PairBatch, Places]]:
        """Batches that have every candidate of each (instruction, candidates) once, and whose they are."""
        places: Places = [
            (index, np.arange(start, min(start + SCORED_TOGETHER, len(candidates))))
            for index, (_, candidates) in enumerate(pairs)
            for start in range(0, len(candidates), SCORED_TOGETHER)
        ]
        rows = [
            LabelledRow(pairs[index][0], tuple(pairs[index][1][at] for at in own), (0.0,) * len(own))
            for index, own in places
        ]
        token_rows = self.token_rows(rows, [max_tokens] * len(rows))
        ordered = sorted(zip(token_rows, places, strict=True), key=lambda item: -padded(item[0].length))
        whose = iter([place for _, place in ordered])
        for part in by_length([row for row, _ in ordered], SCORING_TOKENS):
            yield self.batch(part), list(islice(whose, len(part)))

    def _padded_batch(self, pairs: Sequence[Pair], own: np.ndarray, labels: np.ndarray) -> PairBatch:
        longest = max(len(pair.input_ids) for pair in pairs)
        shape = len(pairs), max(longest, min(padded(longest), self._max_tokens))
        input_ids = np.full(shape, self._padding, dtype=np.int64)
        attention_mask, token_type_ids = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for at, pair in enumerate(pairs):
            length = len(pair.input_ids)
            input_ids[at, :length], token_type_ids[at, :length] = pair.input_ids, pair.token_type_ids
            attention_mask[at, :length] = 1
        arrays = (input_ids, attention_mask, token_type_ids, own, labels)
        return PairBatch(*(torch.from_numpy(array) for array in arrays))
