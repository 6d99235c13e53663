"""Packed batches: their shapes, their rows, and scores through them."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import write_tiny_bert

from cappy_lite.packing import pack
from cappy_train.batches import LabelledRow, Packer, padded
from cappy_train.network import from_bert
from cappy_train.trainable import network_scores


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


def some_rows(count: int) -> list[LabelledRow]:
    rng = random.Random(0)
    words = ["dog", "cat", "runs", "eats", "the", "a", "snow", "sun"]

    def text(length: int) -> str:
        return " ".join(rng.choices(words, k=length))

    made = []
    for _ in range(count):
        responses = tuple({text(rng.randint(1, 6)) for _ in range(rng.randint(2, 11))})
        made.append(LabelledRow(text(rng.randint(2, 60)), responses, tuple(rng.random() for _ in responses)))
    return made


def test_a_batch_has_each_rows_tokens_labels_and_scored_places(base: Path) -> None:
    packer = Packer(base / "tokenizer.json")
    made = some_rows(40)
    token_rows = packer.token_rows(made, [140] * 20 + [160] * 20)
    for start in range(0, 40, 5):
        rows, originals = token_rows[start : start + 5], made[start : start + 5]
        batch = packer.batch(rows)
        length = padded(max(row.length for row in rows))
        assert batch.input_ids.shape == batch.segment_ids.shape == (5, length)
        assert batch.labels.shape == batch.score_positions.shape
        assert batch.labels.shape[1] == (8 if max(len(row.labels) for row in rows) <= 8 else 16)
        for at, (row, original) in enumerate(zip(rows, originals, strict=True)):
            assert list(row.instruction) == list(packer.encode(original.instruction))
            present = ~batch.labels[at].isnan()
            assert torch.equal(batch.labels[at][present], torch.tensor(original.labels))
            positions = batch.score_positions[at][present] - at * length
            assert (batch.input_ids[at][positions] == packer.sep_id).all()
            assert int((batch.segment_ids[at] >= 0).sum()) == row.length
        moved = batch.to(torch.device("meta"))
        assert moved.labels.shape == batch.labels.shape
        assert moved.input_ids.is_meta


def words(packer: Packer, count: int, word: str) -> str:
    assert len(packer.encode(word)) == 1
    return " ".join([word] * count)


@pytest.mark.parametrize(
    ("lengths", "instruction", "kept"),
    [
        # As the first one alone leaves room for, and what is longer loses its end.
        ((5, 5, 100), 192, (5, 5, 61)),
        # As the second one leaves room for, since it is longer.
        ((5, 100, 5), 128, (5, 100, 5)),
        # What answers best is never cut to less than it keeps alone.
        ((100, 5, 300), 128, (100, 5, 125)),
        ((0, 0, 100), 192, (0, 0, 61)),
    ],
)
def test_long_responses_stay_in_the_row_of_a_long_instruction(
    base: Path, lengths: tuple[int, ...], instruction: int, kept: tuple[int, ...]
) -> None:
    packer = Packer(base / "tokenizer.json")
    responses = tuple(words(packer, length, "cat") for length in lengths)
    (row,) = packer.token_rows([LabelledRow(words(packer, 400, "dog"), responses, (1.0, 0.0, 0.0))], [256])
    batch = packer.batch([row])
    assert batch.labels[0, :3].tolist() == [1.0, 0.0, 0.0]
    assert int((batch.segment_ids == 0).sum()) == instruction + 2
    assert tuple(int((batch.segment_ids == at).sum()) - 1 for at in (1, 2, 3)) == kept
    assert int(batch.position_ids.max()) < 256


@pytest.mark.parametrize(
    ("instruction", "lengths", "limit", "kept"),
    [
        # The second one doesn't fit, and the ones behind it do.
        (400, (300, 300, 3, 3), 512, [0, 2, 3]),
        # A network that reads more has rows that are longer.
        (3000, (20, 40, 3, 3), 2048, [0, 1, 2, 3]),
    ],
)
def test_a_response_that_does_not_fit_leaves_its_room_to_others(
    base: Path, instruction: int, lengths: tuple[int, ...], limit: int, kept: list[int]
) -> None:
    packer = Packer(base / "tokenizer.json")
    responses = tuple(words(packer, length, "cat") for length in lengths)
    labels = (1.0, 0.25, 0.5, 0.75)
    (row,) = packer.token_rows([LabelledRow(words(packer, instruction, "dog"), responses, labels)], [limit])
    batch = packer.batch([row])
    assert row.length == batch.tokens <= limit + 128
    assert batch.labels[0, : len(kept)].tolist() == [labels[at] for at in kept]
    own = [int((batch.segment_ids == place).sum()) - 1 for place in range(1, len(kept) + 1)]
    assert own == [lengths[at] for at in kept]


def test_scores_are_those_of_each_candidate_on_its_own(base: Path) -> None:
    torch.manual_seed(0)
    network = from_bert(base).eval()
    packer = Packer(base / "tokenizer.json")
    pairs = [(row.instruction, row.responses) for row in some_rows(20)]
    for (instruction, candidates), scores in zip(pairs, network_scores(network, packer, pairs, 160), strict=True):
        for candidate, score in zip(candidates, scores, strict=True):
            instruction_ids, candidate_ids = packer.encode(instruction), packer.encode(candidate)
            (row,) = pack(instruction_ids, [candidate_ids], cls_id=packer.cls_id, sep_id=packer.sep_id, max_tokens=160)
            inputs = (row.input_ids, row.position_ids, row.token_type_ids, row.segment_ids)
            with torch.no_grad():
                logit = network(*(torch.from_numpy(ids)[None] for ids in inputs), torch.from_numpy(row.score_positions))
            assert score == pytest.approx(float(logit.sigmoid()), abs=1e-6)
            assert np.isfinite(score)
