"""Token ids to packed rows: one instruction, then its candidates, without padding.

A row reads `[CLS] instruction [SEP] candidate_1 [SEP] candidate_2 [SEP] ...`. A token sees its own segment and its
instruction's segment, so candidates never see each other, and each candidate's positions start again right after the
instruction: its score is what it would be alone. Training packs with this module too, so both see the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

# Tokens of a row beyond the texts of one pair: [CLS], and [SEP] after the instruction and after the candidate.
SPECIAL_TOKENS = 3
# An instruction keeps at least this many tokens (or all, if shorter) however long its candidate is.
INSTRUCTION_FLOOR = 128
# An instruction that must be cut is cut to a multiple of this, so that candidates of like length share one cut.
INSTRUCTION_STEP = 64
# Tokens of candidates, with their [SEP]s, that fill a row.
CANDIDATE_ROOM = 128


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One row of the network's input. All arrays are int64; L tokens, n candidates.

    input_ids, position_ids, token_type_ids: (L,), as BERT's.
    segment_ids: (L,); 0 for the instruction, k for the row's k-th candidate, counted from 1.
    score_positions: (n,); where each candidate's score is read (its last [SEP]).
    candidate_indices: (n,); which of the caller's candidates these are.
    """

    input_ids: IntArray
    position_ids: IntArray
    token_type_ids: IntArray
    segment_ids: IntArray
    score_positions: IntArray
    candidate_indices: IntArray


@dataclass(frozen=True, slots=True)
class Cut:
    """Lengths in tokens that one instruction and one candidate keep."""

    instruction: int
    candidate: int


def cut_lengths(instruction: int, candidate: int, max_tokens: int) -> Cut:
    """Lengths that an instruction and one candidate (in tokens, without special ones) keep within `max_tokens`.

    The candidate comes first: the instruction gives way down to INSTRUCTION_FLOOR, and only a candidate that still
    doesn't fit is cut. The result depends on no other candidate, so neither does a score.
    """
    room = max_tokens - SPECIAL_TOKENS
    kept_candidate = min(candidate, room - min(instruction, INSTRUCTION_FLOOR))
    instruction_room = room - kept_candidate
    if instruction > instruction_room:
        instruction = instruction_room // INSTRUCTION_STEP * INSTRUCTION_STEP
    return Cut(instruction, kept_candidate)


def cut_middle(ids: Sequence[int], length: int) -> Sequence[int]:
    """The head and the tail of `ids`, `length` in all: an instruction asks at either end, seldom between."""
    if len(ids) <= length:
        return ids
    tail = length // 2
    return [*ids[: length - tail], *ids[len(ids) - tail :]]


def row_length(instruction: int) -> int:
    """Tokens at which a row is full that begins with an instruction of so many tokens, special ones included.

    Longer rows share the instruction among more candidates, shorter ones spend less attention on candidates that don't
    see each other. Measured with the shipped graph, 96 short candidates and instructions of 13 to 419 tokens, on one
    and on two cores: room for 128 tokens of candidates was the fastest of six rules or within 20 % of it.
    """
    return instruction + CANDIDATE_ROOM


def pack(
    instruction: Sequence[int],
    candidates: Sequence[Sequence[int]],
    *,
    cls_id: int,
    sep_id: int,
    max_tokens: int,
    row_tokens: int | None = None,
) -> Iterator[PackedRow]:
    """Packed rows that hold every candidate once, each beside the instruction.

    A row ends at `row_tokens` tokens, unless one candidate alone has more. Candidates keep their order within a row,
    and rows are made one at a time, so memory does not grow with the number of candidates.

    Args:
        instruction: token ids of the instruction, without special tokens.
        candidates: token ids of each candidate, without special tokens.
        cls_id, sep_id: ids of [CLS] and [SEP].
        max_tokens: the encoder's position limit, over an instruction and one candidate; at least
            SPECIAL_TOKENS + INSTRUCTION_FLOOR + 1.
        row_tokens: length at which a row is full; by default `row_length` of its instruction.
    """
    cuts = [cut_lengths(len(instruction), len(ids), max_tokens) for ids in candidates]
    for kept in sorted({cut.instruction for cut in cuts}, reverse=True):
        head = [cls_id, *cut_middle(instruction, kept), sep_id]
        limit = row_length(len(head)) if row_tokens is None else row_tokens
        members: list[int] = []
        length = len(head)
        for index, cut in enumerate(cuts):
            if cut.instruction != kept:
                continue
            if members and length + cut.candidate + 1 > limit:
                yield _row(head, candidates, cuts, members, sep_id)
                members, length = [], len(head)
            members.append(index)
            length += cut.candidate + 1
        yield _row(head, candidates, cuts, members, sep_id)


def _row(
    head: Sequence[int], candidates: Sequence[Sequence[int]], cuts: Sequence[Cut], members: Sequence[int], sep_id: int
) -> PackedRow:
    lengths = np.array([len(head)] + [cuts[index].candidate + 1 for index in members], dtype=np.int64)
    ends = np.cumsum(lengths)
    input_ids = np.empty(ends[-1], dtype=np.int64)
    input_ids[: len(head)] = head
    for index, start, end in zip(members, ends[:-1], ends[1:], strict=True):
        input_ids[start : end - 1] = candidates[index][: end - 1 - start]
        input_ids[end - 1] = sep_id
    segment_ids = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    # Within a segment positions count up; candidates start where the instruction ended.
    starts = np.repeat(ends - lengths, lengths)
    position_ids = np.arange(ends[-1]) - starts + np.where(segment_ids > 0, len(head), 0)
    return PackedRow(
        input_ids=input_ids,
        position_ids=position_ids,
        token_type_ids=np.minimum(segment_ids, 1),
        segment_ids=segment_ids,
        score_positions=ends[1:] - 1,
        candidate_indices=np.array(members, dtype=np.int64),
    )
