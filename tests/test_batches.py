"""Packed batches: their shapes, their rows, and scores through them."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import write_tiny_bert

from cappy_lite.packing import pack
from cappy_train.batches import Packer, network_scores, padded, plan
from cappy_train.network import from_bert
from cappy_train.regression import MAX_RESPONSES, Example


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


def some_examples(count: int) -> list[Example]:
    rng = random.Random(0)
    words = ["dog", "cat", "runs", "eats", "the", "a", "snow", "sun"]

    def text(length: int) -> str:
        return " ".join(rng.choices(words, k=length))

    made = []
    for _ in range(count):
        responses = tuple({text(rng.randint(1, 6)) for _ in range(rng.randint(2, 6))})
        made.append(Example("t", text(rng.randint(2, 60)), responses, tuple(rng.random() for _ in responses)))
    return made


def test_batches_have_few_shapes_and_every_row_fits(base: Path) -> None:
    packer = Packer(base / "tokenizer.json")
    made = some_examples(200)
    rows = packer.token_rows(made, short=140, long=160, long_share=0.5, seed=0)
    batches = plan(rows, 512, seed=0)
    numbers = [number for batch in batches for number in batch]
    assert len(numbers) == len(set(numbers)) > 150
    for batch_numbers in batches:
        batch = packer.batch([rows[number] for number in batch_numbers])
        length = padded(rows[batch_numbers[0]].length)
        assert batch.input_ids.shape == batch.segment_ids.shape == (max(1, 512 // length), length)
        assert batch.labels.shape == batch.score_positions.shape == (len(batch_numbers), MAX_RESPONSES)
        for at, number in enumerate(batch_numbers):
            example = made[number]
            present = ~batch.labels[at].isnan()
            assert torch.equal(batch.labels[at][present], torch.tensor(example.labels))
            positions = batch.score_positions[at][present] - at * length
            assert (batch.input_ids[at][positions] == packer.sep_id).all()
            assert int((batch.segment_ids[at] >= 0).sum()) == rows[number].length


def test_the_plan_follows_from_the_seed(base: Path) -> None:
    rows = Packer(base / "tokenizer.json").token_rows(some_examples(100), short=140, long=160, long_share=0, seed=0)
    assert plan(rows, 512, seed=1) == plan(rows, 512, seed=1)
    assert plan(rows, 512, seed=1) != plan(rows, 512, seed=2)


def test_scores_are_those_of_each_candidate_on_its_own(base: Path) -> None:
    torch.manual_seed(0)
    network = from_bert(base).eval()
    packer = Packer(base / "tokenizer.json")
    pairs = [(example.instruction, example.responses) for example in some_examples(20)]
    for (instruction, candidates), scores in zip(pairs, network_scores(network, packer, pairs, 160), strict=True):
        for candidate, score in zip(candidates, scores, strict=True):
            instruction_ids, candidate_ids = packer.encode(instruction), packer.encode(candidate)
            (row,) = pack(instruction_ids, [candidate_ids], cls_id=packer.cls_id, sep_id=packer.sep_id, max_tokens=160)
            inputs = (row.input_ids, row.position_ids, row.token_type_ids, row.segment_ids)
            with torch.no_grad():
                logit = network(*(torch.from_numpy(ids)[None] for ids in inputs), torch.from_numpy(row.score_positions))
            assert score == pytest.approx(float(logit.sigmoid()), abs=1e-6)
            assert np.isfinite(score)
