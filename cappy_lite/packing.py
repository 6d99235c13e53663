"""Token ids to packed rows: an instruction, then its candidates, without padding.

A row reads `[CLS] instruction [SEP] candidate_1 [SEP] candidate_2 [SEP] ...`. A token sees its own segment and its
instruction's segment, so candidates never see each other, and each candidate's positions start again right after the
instruction: its score is what it would be alone. So several short instructions may share a row, each with its own
candidates, and candidates may stand in a row without their instruction, whose keys and values are given beside it.
Training packs with this module too: its rows are the same but for how it cuts what is too long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

# Tokens of a row beyond the texts of one pair: [CLS], and [SEP] after the instruction and after the candidate.
SPECIAL_TOKENS = 3
# An instruction keeps at least this many tokens (or all, if shorter) however long its candidate is.
INSTRUCTION_FLOOR = 128
# An instruction that must be cut is cut to a multiple of this, so that candidates of like length share one cut.
INSTRUCTION_STEP = 64
# Tokens that fill a row: enough for the products of matrices to run at full speed, few enough for what is between them
# to stay near the processor.
ROW_TOKENS = 512
# Up to so many, an instruction and its candidates are one row all the same: to take keys and values out of a row and
# into others would cost a tenth of the time.
LONGEST_ROW_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One row of the network's input. All arrays are int64; L tokens, S segments, n candidates.

    input_ids, position_ids, token_type_ids: (L,), as BERT's.
    segments: (S, 4); each segment's first token and end, and those of the context that it sees besides itself: none for
        an instruction, and for a candidate its instruction, in this row or in the context that is given beside it.
    score_spans: (S, 2); which of the score positions belong to each segment: first and end.
    score_positions: (n,); where each candidate's score is read (its last [SEP]).
    candidate_indices: (n,); which of the caller's candidates these are.
    """

    input_ids: IntArray
    position_ids: IntArray
    token_type_ids: IntArray
    segments: IntArray
    score_spans: IntArray
    score_positions: IntArray
    candidate_indices: IntArray

    @property
    def segment_ids(self) -> IntArray:
        """The number of each token's segment, (L,); 0 is the instruction of a row that has just one."""
        return np.repeat(np.arange(len(self.segments)), self.segments[:, 1] - self.segments[:, 0])


@dataclass(frozen=True, slots=True)
class Cut:
    """Lengths in tokens that one instruction and one candidate keep."""

    instruction: int
    candidate: int


@dataclass(frozen=True, slots=True)
class Group:
    """Candidates that are read beside the same tokens of an instruction.

    head: token ids of the instruction as it was cut, with its special tokens.
    candidates: token ids of each, as cut, with its [SEP].
    indices: which of the caller's candidates they are.
    """

    head: Sequence[int]
    candidates: Sequence[Sequence[int]]
    indices: Sequence[int]

    @property
    def tokens(self) -> int:
        """Tokens of a row that holds all of it."""
        return len(self.head) + sum(map(len, self.candidates))

    def parts(self, tokens: int) -> Iterator[Group]:
        """Groups of candidates with so many tokens at most; a candidate that has more alone is a part of its own."""
        for part in parts_within(list(map(len, self.candidates)), tokens):
            yield Group(self.head, self.candidates[part], self.indices[part])


def parts_within(lengths: Sequence[int], tokens: int) -> Iterator[slice]:
    """What of so long texts, one at least, fits into each row of so many tokens; a longer one has a row of its own."""
    start, total = 0, 0
    for index, length in enumerate(lengths):
        if index > start and total + length > tokens:
            yield slice(start, index)
            start, total = index, 0
        total += length
    yield slice(start, len(lengths))


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


def groups_of(
    instruction: Sequence[int], candidates: Sequence[Sequence[int]], *, cls_id: int, sep_id: int, max_tokens: int
) -> list[Group]:
    """The candidates by what is left of the instruction beside them, longest first; usually all of it.

    Args:
        instruction: token ids of the instruction, without special tokens.
        candidates: token ids of each candidate, without special tokens.
        cls_id, sep_id: ids of [CLS] and [SEP].
        max_tokens: the encoder's position limit, over an instruction and one candidate; at least
            SPECIAL_TOKENS + INSTRUCTION_FLOOR + 1.
    """
    members: dict[int, tuple[list[Sequence[int]], list[int]]] = {}
    for index, ids in enumerate(candidates):
        cut = cut_lengths(len(instruction), len(ids), max_tokens)
        texts, indices = members.setdefault(cut.instruction, ([], []))
        texts.append([*ids[: cut.candidate], sep_id])
        indices.append(index)
    return [
        Group([cls_id, *cut_middle(instruction, kept), sep_id], *members[kept])
        for kept in sorted(members, reverse=True)
    ]


def pack(
    instruction: Sequence[int],
    candidates: Sequence[Sequence[int]],
    *,
    cls_id: int,
    sep_id: int,
    max_tokens: int,
    row_tokens: int = ROW_TOKENS,
) -> Iterator[PackedRow]:
    """Packed rows that hold every candidate once, each row with the instruction.

    A row ends at `row_tokens` tokens, unless one candidate alone has more. Candidates keep their order within a row,
    and rows are made one at a time. The other arguments are those of `groups_of`.
    """
    for group in groups_of(instruction, candidates, cls_id=cls_id, sep_id=sep_id, max_tokens=max_tokens):
        for part in group.parts(row_tokens - len(group.head)):
            yield row_of([part])


def row_of(groups: Sequence[Group]) -> PackedRow:
    """The groups' instructions and candidates in one row: none sees another's."""
    heads = [len(group.head) for group in groups]
    segments = [ids for group in groups for ids in (group.head, *group.candidates)]
    of_group = np.repeat(np.arange(len(groups)), [1 + len(group.candidates) for group in groups])
    is_candidate = np.ones(len(segments), dtype=bool)
    is_candidate[np.flatnonzero(np.diff(of_group, prepend=-1))] = False
    return _row(groups, segments, is_candidate, np.array(heads)[of_group], in_row=of_group)


def row_alone(head: Sequence[int]) -> PackedRow:
    """An instruction without candidates. It is scored as if it were one, since graphs can't do without."""
    length = len(head)
    return PackedRow(
        input_ids=np.array(head, dtype=np.int64),
        position_ids=np.arange(length),
        token_type_ids=np.zeros(length, dtype=np.int64),
        segments=np.array([[0, length, 0, 0]]),
        score_spans=np.array([[0, 1]]),
        score_positions=np.array([length - 1]),
        candidate_indices=np.array([0]),
    )


def row_beside(group: Group) -> PackedRow:
    """The group's candidates alone; their instruction is given as the context."""
    count = len(group.candidates)
    heads = np.full(count, len(group.head))
    return _row([group], list(group.candidates), np.ones(count, dtype=bool), heads, in_row=None)


def _row(
    groups: Sequence[Group],
    segments: list[Sequence[int]],
    is_candidate: npt.NDArray[np.bool_],
    head_lengths: IntArray,
    in_row: IntArray | None,
) -> PackedRow:
    """A row of the segments, each with the length of its group's head; `in_row`: each one's group, if with heads."""
    lengths = np.array([len(ids) for ids in segments], dtype=np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    # A segment sees its group's head; a head sees itself alone.
    context_starts = np.zeros_like(starts) if in_row is None else starts[~is_candidate][in_row]
    contexts = np.stack([context_starts, context_starts + head_lengths], axis=1) * is_candidate[:, None]
    # Within a segment positions count up; candidates start where the instruction ended.
    offsets = np.where(is_candidate, head_lengths, 0) - starts
    scored = np.cumsum(is_candidate)
    return PackedRow(
        input_ids=np.fromiter(chain.from_iterable(segments), dtype=np.int64, count=int(ends[-1])),
        position_ids=np.arange(ends[-1]) + np.repeat(offsets, lengths),
        token_type_ids=np.repeat(is_candidate.astype(np.int64), lengths),
        segments=np.concatenate([starts[:, None], ends[:, None], contexts], axis=1),
        score_spans=np.stack([scored - is_candidate, scored], axis=1),
        score_positions=ends[is_candidate] - 1,
        candidate_indices=np.array([index for group in groups for index in group.indices], dtype=np.int64),
    )
