"""Packed rows: every candidate once, whole or cut by rule, at the same positions whatever stands beside it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cappy_lite.packing import (
    INSTRUCTION_FLOOR,
    INSTRUCTION_STEP,
    ROW_TOKENS,
    SPECIAL_TOKENS,
    Group,
    PackedRow,
    cut_lengths,
    cut_middle,
    groups_of,
    pack,
    row_alone,
    row_beside,
    row_of,
)

CLS, SEP = 101, 102
# Token ids that are no special tokens, so that a row can be read back; few, so that texts share tokens.
TOKENS = st.integers(200, 220)
MAX_TOKENS = st.sampled_from([SPECIAL_TOKENS + INSTRUCTION_FLOOR + 1, 160, 200, 512])
INSTRUCTIONS = st.lists(TOKENS, max_size=20) | st.integers(0, 600).map(lambda n: [200 + i % 19 for i in range(n)])
CANDIDATES = st.lists(
    st.lists(TOKENS, max_size=6) | st.integers(0, 600).map(lambda n: [200 + i % 17 for i in range(n)]), max_size=12
)
ROW_LIMITS = st.sampled_from([1, 40, 200, 1024, ROW_TOKENS])


def rows_of(
    instruction: list[int], candidates: list[list[int]], max_tokens: int = 512, row_tokens: int = ROW_TOKENS
) -> list[PackedRow]:
    return list(pack(instruction, candidates, cls_id=CLS, sep_id=SEP, max_tokens=max_tokens, row_tokens=row_tokens))


def segments(row: PackedRow) -> Iterator[tuple[list[int], list[int], list[int], int]]:
    """Each candidate of a row with all that its score depends on: the instruction's and its own ids, and positions."""
    head = row.segment_ids == 0
    for number, place in enumerate(row.score_positions, 1):
        own = row.segment_ids == number
        assert np.flatnonzero(own)[-1] == place
        yield (
            row.input_ids[head].tolist(),
            row.input_ids[own].tolist(),
            row.position_ids[head | own].tolist(),
            int(row.candidate_indices[number - 1]),
        )


def test_a_row_in_full() -> None:
    [row] = rows_of([7, 8], [[20], [], [21, 22]])
    assert row.input_ids.tolist() == [CLS, 7, 8, SEP, 20, SEP, SEP, 21, 22, SEP]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 4, 4, 5, 6]
    assert row.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert row.segment_ids.tolist() == [0, 0, 0, 0, 1, 1, 2, 3, 3, 3]
    assert row.segments.tolist() == [[0, 4, 0, 0], [4, 6, 0, 4], [6, 7, 0, 4], [7, 10, 0, 4]]
    assert row.score_spans.tolist() == [[0, 0], [0, 1], [1, 2], [2, 3]]
    assert row.score_positions.tolist() == [5, 6, 9]
    assert row.candidate_indices.tolist() == [0, 1, 2]


def groups(instruction: list[int], candidates: list[list[int]]) -> list[Group]:
    return groups_of(instruction, candidates, cls_id=CLS, sep_id=SEP, max_tokens=512)


def test_two_instructions_in_a_row() -> None:
    row = row_of([*groups([7, 8], [[20], []]), *groups([9], [[21, 22]])])
    assert row.input_ids.tolist() == [CLS, 7, 8, SEP, 20, SEP, SEP, CLS, 9, SEP, 21, 22, SEP]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 4, 0, 1, 2, 3, 4, 5]
    assert row.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]
    assert row.segments.tolist() == [[0, 4, 0, 0], [4, 6, 0, 4], [6, 7, 0, 4], [7, 10, 0, 0], [10, 13, 7, 10]]
    assert row.score_spans.tolist() == [[0, 0], [0, 1], [1, 2], [2, 2], [2, 3]]
    assert row.score_positions.tolist() == [5, 6, 12]
    assert row.candidate_indices.tolist() == [0, 1, 0]


def test_candidates_beside_their_instruction() -> None:
    [group] = groups([7, 8], [[20], [21, 22]])
    row = row_beside(group)
    assert row.input_ids.tolist() == [20, SEP, 21, 22, SEP]
    assert row.position_ids.tolist() == [4, 5, 4, 5, 6]
    assert row.token_type_ids.tolist() == [1, 1, 1, 1, 1]
    assert row.segments.tolist() == [[0, 2, 0, 4], [2, 5, 0, 4]]
    assert row.score_spans.tolist() == [[0, 1], [1, 2]]
    assert row.score_positions.tolist() == [1, 4]
    assert row.candidate_indices.tolist() == [0, 1]


def test_a_row_of_an_instruction_alone() -> None:
    row = row_alone([1, 5, 6, 2])
    assert (row.input_ids.tolist(), row.position_ids.tolist()) == ([1, 5, 6, 2], [0, 1, 2, 3])
    assert row.token_type_ids.tolist() == [0, 0, 0, 0]
    assert row.segments.tolist() == [[0, 4, 0, 0]]
    assert (row.score_spans.tolist(), row.score_positions.tolist()) == ([[0, 1]], [3])


def test_a_groups_parts_fill_rows_in_order() -> None:
    [group] = groups([7], [[20] * length for length in (3, 3, 9, 1, 1)])
    assert [list(part.indices) for part in group.parts(8)] == [[0, 1], [2], [3, 4]]
    assert [list(part.indices) for part in group.parts(1)] == [[0], [1], [2], [3], [4]]
    assert group.tokens == 3 + 4 + 4 + 10 + 2 + 2


def test_a_full_row_starts_another() -> None:
    first, second = rows_of([7], [[20, 21], [22, 23], [24]], row_tokens=9)
    assert first.input_ids.tolist() == [CLS, 7, SEP, 20, 21, SEP, 22, 23, SEP]
    assert second.input_ids.tolist() == [CLS, 7, SEP, 24, SEP]
    assert second.candidate_indices.tolist() == [2]


def test_candidates_that_cut_the_instruction_differently_get_rows_of_their_own() -> None:
    instruction = list(range(1000, 1140))  # 140 tokens; beside a candidate of up to 17 it stays whole in 160
    whole, cut = rows_of(instruction, [[20] * 18, [21] * 17, [22] * 20, [23]], max_tokens=160)
    assert whole.candidate_indices.tolist() == [1, 3]
    assert cut.candidate_indices.tolist() == [0, 2]
    assert cut.input_ids[:130].tolist() == [CLS, *range(1000, 1064), *range(1076, 1140), SEP]


def test_no_candidates_make_no_rows() -> None:
    assert rows_of([7, 8], []) == []


def test_rows_are_made_one_at_a_time() -> None:
    rows = pack([7], [[20]] * 100_000, cls_id=CLS, sep_id=SEP, max_tokens=512)
    assert next(rows).candidate_indices.tolist() == list(range((ROW_TOKENS - 3) // 2))


@given(INSTRUCTIONS, CANDIDATES, MAX_TOKENS, ROW_LIMITS)
def test_every_candidate_is_packed_once(
    instruction: list[int], candidates: list[list[int]], max_tokens: int, row_tokens: int
) -> None:
    rows = rows_of(instruction, candidates, max_tokens, row_tokens)
    packed = np.concatenate([row.candidate_indices for row in rows]) if rows else np.empty(0)
    assert sorted(packed) == list(range(len(candidates)))
    for row in rows:
        assert (np.diff(row.candidate_indices) > 0).all()


@given(INSTRUCTIONS, CANDIDATES, MAX_TOKENS, ROW_LIMITS)
def test_rows_are_bounded_and_well_formed(
    instruction: list[int], candidates: list[list[int]], max_tokens: int, row_tokens: int
) -> None:
    for row in rows_of(instruction, candidates, max_tokens, row_tokens):
        length, count = len(row.input_ids), len(row.score_positions)
        assert count >= 1
        assert length <= row_tokens or count == 1
        assert length <= max(row_tokens, max_tokens)
        for tokens in (row.input_ids, row.position_ids, row.token_type_ids, row.segment_ids):
            assert tokens.shape == (length,)
            assert tokens.dtype == np.int64
        for entries in (row.score_positions, row.candidate_indices):
            assert entries.shape == (count,)
            assert entries.dtype == np.int64
        assert row.position_ids.max() < max_tokens
        assert (row.input_ids[row.score_positions] == SEP).all()
        assert np.array_equal(row.token_type_ids, row.segment_ids > 0)
        assert np.array_equal(np.unique(row.segment_ids), np.arange(count + 1))
        assert (np.diff(row.segment_ids) >= 0).all()


@given(INSTRUCTIONS, CANDIDATES, MAX_TOKENS, ROW_LIMITS)
def test_texts_are_kept_as_the_cut_says(
    instruction: list[int], candidates: list[list[int]], max_tokens: int, row_tokens: int
) -> None:
    for row in rows_of(instruction, candidates, max_tokens, row_tokens):
        for head, own, positions, index in segments(row):
            cut = cut_lengths(len(instruction), len(candidates[index]), max_tokens)
            assert head == [CLS, *cut_middle(instruction, cut.instruction), SEP]
            assert own == [*candidates[index][: cut.candidate], SEP]
            assert positions == list(range(len(head) + len(own)))


@given(INSTRUCTIONS, CANDIDATES, MAX_TOKENS, ROW_LIMITS)
def test_a_candidate_alone_reads_the_same(
    instruction: list[int], candidates: list[list[int]], max_tokens: int, row_tokens: int
) -> None:
    for row in rows_of(instruction, candidates, max_tokens, row_tokens):
        for *together, index in segments(row):
            [alone] = rows_of(instruction, [candidates[index]], max_tokens, row_tokens)
            assert [*together, 0] == list(*segments(alone))


@given(st.integers(0, 2000), st.integers(0, 2000), MAX_TOKENS)
def test_a_cut_fits_and_takes_no_more_than_it_must(instruction: int, candidate: int, max_tokens: int) -> None:
    cut = cut_lengths(instruction, candidate, max_tokens)
    room = max_tokens - SPECIAL_TOKENS
    assert 0 <= cut.instruction <= instruction
    assert 0 <= cut.candidate <= candidate
    assert cut.instruction + cut.candidate <= room
    if instruction + candidate <= room:
        assert (cut.instruction, cut.candidate) == (instruction, candidate)
    if cut.candidate < candidate:  # only once the instruction has given all that it must
        assert cut.instruction == min(instruction, INSTRUCTION_FLOOR)
        assert cut.instruction + cut.candidate == room
    if cut.instruction < instruction:
        assert cut.instruction >= INSTRUCTION_FLOOR
        assert cut.instruction % INSTRUCTION_STEP == 0
        assert cut.instruction + cut.candidate + INSTRUCTION_STEP > room


@pytest.mark.parametrize(
    ("instruction", "candidate", "expected"),
    [
        (0, 0, (0, 0)),
        (400, 109, (400, 109)),
        (400, 110, (384, 110)),
        (509, 0, (509, 0)),
        (510, 0, (448, 0)),
        (10, 499, (10, 499)),
        (10, 500, (10, 499)),
        (128, 381, (128, 381)),
        (128, 382, (128, 381)),
        (5000, 5000, (128, 381)),
    ],
)
def test_cuts_by_example(instruction: int, candidate: int, expected: tuple[int, int]) -> None:
    cut = cut_lengths(instruction, candidate, 512)
    assert (cut.instruction, cut.candidate) == expected


@given(st.integers(0, 600), MAX_TOKENS)
def test_a_longer_candidate_never_leaves_the_instruction_more(instruction: int, max_tokens: int) -> None:
    kept = [cut_lengths(instruction, candidate, max_tokens).instruction for candidate in range(max_tokens + 10)]
    assert all(longer <= shorter for shorter, longer in pairwise(kept))


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, []), (1, [1]), (2, [1, 5]), (3, [1, 2, 5]), (4, [1, 2, 4, 5]), (5, [1, 2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])],
)
def test_cut_middle(length: int, expected: list[int]) -> None:
    ids = [1, 2, 3, 4, 5]
    assert list(cut_middle(ids, length)) == expected
    assert ids == [1, 2, 3, 4, 5]
