"""The stream of rows: which rows a run reads, in which order, as which batches, and how it goes on from a place."""

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import islice, takewhile
from pathlib import Path

import pytest
import torch
from tiny_training import write_tiny_bert, write_tiny_pairs

from cappy_lite.errors import InputValueError
from cappy_train.annotate import annotate
from cappy_train.batches import LabelledRow, Packer, TokenRow, padded
from cappy_train.instances import Candidate, Instance, read_instances, write_instances
from cappy_train.shards import Shards
from cappy_train.streaming import (
    ListedRows,
    Place,
    PlannedBatch,
    Reading,
    ShardRows,
    ahead,
    by_length,
    draw_responses,
    packed_by_processes,
    planned_batches,
)

READING = Reading(seed=0, responses=6, batch_tokens=256, short=140, long=160, long_share=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Path:
    return write_tiny_pairs(folder, shard_instances=16)[0]


@pytest.fixture(scope="module")
def packer(folder: Path) -> Packer:
    return Packer(write_tiny_bert(folder / "bert") / "tokenizer.json")


def epoch_of(rows: ShardRows, epoch: int) -> list[LabelledRow]:
    return [row for window in range(len(rows.sizes(epoch))) for row in rows.read(epoch, window)]


def one_epoch(rows: ShardRows, packer: Packer, start: Place = Place()) -> list[PlannedBatch]:  # noqa: B008
    return list(takewhile(lambda batch: batch.after.epoch == 0, planned_batches(rows, packer, READING, start)))


def test_a_row_is_an_instance_with_its_labelled_responses(pairs: Path, folder: Path) -> None:
    rows = epoch_of(ShardRows(pairs), 0)
    instances = list(read_instances(folder / "instances.jsonl.gz", split="train"))
    assert Counter(row.instruction for row in rows) == Counter(instance.instruction for instance in instances)
    references = {instance.instruction: instance.references for instance in instances}
    for row in rows:
        assert len(row.responses) == len(row.labels) > 1
        labels = dict(zip(row.responses, row.labels, strict=True))
        assert all(labels[text] == 1 for text in references[row.instruction])
    assert sum(len(row.responses) for row in rows) == Shards(pairs).rows


def test_epochs_mix_shards_in_an_order_of_the_seed(pairs: Path) -> None:
    rows = ShardRows(pairs, seed=1, window=3)
    assert len(rows.sizes(0)) == -(-len(Shards(pairs).row_groups()) // 3) > 2
    assert sum(rows.sizes(0)) == Shards(pairs).rows
    assert epoch_of(rows, 0) == epoch_of(ShardRows(pairs, seed=1, window=3), 0)
    assert epoch_of(rows, 0) != epoch_of(rows, 1)
    assert epoch_of(rows, 0) != epoch_of(ShardRows(pairs, seed=2, window=3), 0)
    by_instruction = sorted(epoch_of(rows, 0), key=repr)
    assert by_instruction == sorted(epoch_of(rows, 1), key=repr)


def test_a_window_mixes_tasks_where_files_are_sorted_by_task(tmp_path: Path) -> None:
    instance = Instance("", "", None, "", ("dog",), (Candidate("cat", "s"),), None, "train")
    instances = [
        replace(instance, id=f"{task} {number}", task=f"t{task}", instruction=f"{task} {number}")
        for task in range(8)
        for number in range(256)
    ]
    write_instances(tmp_path / "sorted.parquet", instances)
    rows = ShardRows(annotate([tmp_path / "sorted.parquet"], tmp_path / "pairs").folder, window=8)
    for window in range(len(rows.sizes(0))):
        assert len({row.instruction.split()[0] for row in rows.read(0, window)}) >= 4


def test_rows_with_choices_come_as_often_as_their_weight_says(pairs: Path, folder: Path) -> None:
    instances = list(read_instances(folder / "instances.jsonl.gz", split="train"))
    of_choices = Counter(instance.instruction for instance in instances if instance.choices)
    others = Counter(instance.instruction for instance in instances if not instance.choices)
    rows = ShardRows(pairs, choice_weight=2.5)
    counts = Counter(row.instruction for row in epoch_of(rows, 0))
    assert {name: counts[name] for name in others} == others
    assert all(2 * count <= counts[name] <= 3 * count for name, count in of_choices.items())
    assert 2.3 < sum(counts[name] for name in of_choices) / of_choices.total() < 2.7
    assert epoch_of(rows, 0) == epoch_of(ShardRows(pairs, choice_weight=2.5), 0) != epoch_of(rows, 1)
    assert rows.fingerprint != ShardRows(pairs).fingerprint
    few = Counter(row.instruction for row in epoch_of(ShardRows(pairs, choice_weight=0.3), 0))
    assert 0 < sum(few[name] for name in of_choices) < of_choices.total() / 2
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputValueError, match="choice_weight"):
            ShardRows(pairs, choice_weight=weight)


def test_an_epoch_has_every_row_once_in_batches_within_the_budget(pairs: Path, packer: Packer) -> None:
    rows = ShardRows(pairs, window=3)
    batches = one_epoch(rows, packer)
    instructions = Counter(tuple(row.instruction) for batch in batches for row in batch.rows)
    assert instructions == Counter(tuple(packer.encode(row.instruction)) for row in epoch_of(rows, 0))
    for batch in batches:
        length = padded(max(row.length for row in batch.rows))
        assert length * len(batch.rows) <= READING.batch_tokens or len(batch.rows) == 1
        assert all(len(row.responses) <= READING.responses for row in batch.rows)
        assert packer.batch(batch.rows).input_ids.shape == (len(batch.rows), length)
    assert [batch.epochs for batch in batches] == sorted({batch.epochs for batch in batches})
    assert batches[-1].epochs == 1
    assert {row.max_tokens for batch in batches for row in batch.rows} == {140, 160}
    lengths = [max(row.length for row in batch.rows) for batch in batches]
    assert lengths != sorted(lengths)


class NotedRows(ShardRows):
    """Notes which windows are read."""

    def read(self, epoch: int, window: int) -> list[LabelledRow]:
        self.windows = [*getattr(self, "windows", []), (epoch, window)]
        return super().read(epoch, window)


@pytest.mark.parametrize("window", [2, 100])
def test_the_stream_goes_on_from_any_place(pairs: Path, packer: Packer, window: int) -> None:
    whole = list(islice(planned_batches(ShardRows(pairs, window=window), packer, READING, Place()), 120))
    assert whole[-1].after.epoch > 0
    for number in random.Random(window).sample(range(60), 12):
        place = whole[number].after
        rows = NotedRows(pairs, window=window)
        rest = planned_batches(rows, packer, READING, place)
        assert [next(rest) for _ in range(3)] == whole[number + 1 : number + 4]
        assert rows.windows[0] == (place.epoch, place.window)  # what was before isn't read again


@pytest.mark.parametrize("start", [Place(), Place(window=1, batch=2)])
def test_processes_pack_the_same_stream(pairs: Path, packer: Packer, start: Place) -> None:
    rows = ShardRows(pairs, window=2)
    planned = islice(planned_batches(rows, packer, READING, start), 60)
    made = packed_by_processes(rows, packer, READING, start)
    for expected, (batch, after, epochs) in zip(planned, made, strict=False):
        packed = packer.batch(expected.rows)
        for field in fields(packed):
            one, other = getattr(batch, field.name), getattr(packed, field.name)
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        assert (after, epochs) == (expected.after, expected.epochs)
    assert after.epoch > 0


class DamagedRows(ListedRows):
    def read(self, epoch: int, window: int) -> list[LabelledRow]:
        raise InputValueError("shard-000003.parquet is damaged")


def test_what_is_wrong_in_a_process_is_told(packer: Packer) -> None:
    rows = DamagedRows([LabelledRow("i", ("a", "b"), (1.0, 0.0))])
    with pytest.raises(InputValueError, match=r"^shard-000003\.parquet is damaged$"):
        next(packed_by_processes(rows, packer, READING, Place()))


def test_another_epoch_draws_other_responses(packer: Packer) -> None:
    row = LabelledRow("what is a dog", tuple(f"word {number}" for number in range(40)), (1.0, *[0.0] * 39))
    batches = list(islice(planned_batches(ListedRows([row]), packer, READING, Place()), 2))
    first, second = ([list(ids) for ids in batch.rows[0].responses] for batch in batches)
    assert first[0] == second[0]  # the best one
    assert first != second


def test_drawing_keeps_one_of_the_best_first() -> None:
    row = LabelledRow("i", tuple("abcdefgh"), (0.0, 0.5, 0.9, 0.1, 0.9, 0.2, 0.0, 0.3))
    labels = dict(zip(row.responses, row.labels, strict=True))
    firsts, others = set(), set()
    for seed in range(200):
        drawn = draw_responses(row, 3, random.Random(seed))
        assert len(set(drawn.responses)) == 3
        assert tuple(labels[text] for text in drawn.responses) == drawn.labels
        firsts.add(drawn.responses[0])
        others.update(drawn.responses[1:])
    assert firsts == {"c", "e"}
    assert others == set("abcdefgh")
    assert sorted(draw_responses(row, 16, random.Random(0)).responses) == list("abcdefgh")


def test_the_longest_of_the_others_comes_second_more_often_than_by_chance() -> None:
    row = LabelledRow("i", ("best", *"abcdefgh", "the longest one"), (1.0, *[0.0] * 9))
    drawn = [draw_responses(row, 10, random.Random(seed)).responses for seed in range(400)]
    assert all(sorted(responses) == sorted(row.responses) for responses in drawn)
    assert 0.4 < sum(responses[1] == "the longest one" for responses in drawn) / 400 < 0.7
    assert draw_responses(LabelledRow("i", ("a",), (1.0,)), 10, random.Random(0)).responses == ("a",)


def test_the_best_response_is_in_the_row_of_tokens(packer: Packer) -> None:
    """A long one leaves less of a long instruction."""
    instruction = "the dog runs on the street " * 40
    row = LabelledRow(instruction, ("the house " * 15, "snow", "sun"), (1.0, 0.0, 0.2))
    batch = packer.batch(packer.token_rows([row], [160]))
    assert 1.0 in batch.labels


def test_batches_by_length_are_full_but_for_the_last() -> None:
    rng = random.Random(0)
    rows = [TokenRow([], (), (), 160, rng.randint(10, 120)) for _ in range(200)]
    batches = by_length(rows, 300)
    assert sorted(id(row) for batch in batches for row in batch) == sorted(map(id, rows))
    for batch in batches[:-1]:
        assert len(batch) == 300 // padded(batch[0].length)
    assert [len(batch) for batch in by_length([TokenRow([], (), (), 160, 900)], 300)] == [1]


def test_a_fingerprint_tells_data_apart(pairs: Path, tmp_path: Path) -> None:
    assert ShardRows(pairs).fingerprint == ShardRows(pairs, seed=1).fingerprint
    other, _ = write_tiny_pairs(tmp_path, count=65)
    assert ShardRows(pairs).fingerprint != ShardRows(other).fingerprint
    row = LabelledRow("i", ("a",), (1.0,))
    assert ListedRows([row]).fingerprint != ListedRows([LabelledRow("i", ("a",), (0.5,))]).fingerprint


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputValueError, match=r"manifest\.json: no such file"):
        ShardRows(tmp_path)
    with pytest.raises(InputValueError, match="rows is empty"):
        ListedRows([])


def test_a_damaged_shard_is_named_when_it_is_read(tmp_path: Path) -> None:
    pairs, _ = write_tiny_pairs(tmp_path)
    shard = sorted(pairs.glob("*.parquet"))[0]
    content = bytearray(shard.read_bytes())
    content[4:-200] = bytes(len(content) - 204)
    shard.write_bytes(bytes(content))
    with pytest.raises(InputValueError, match=f"{shard.name} can't be read"):
        epoch_of(ShardRows(pairs), 0)


def slow(items: Sequence[int], made: list[int]) -> Iterator[int]:
    for item in items:
        made.append(item)
        yield item


def test_ahead_makes_items_beforehand_but_not_all() -> None:
    made: list[int] = []
    stream = ahead(slow(range(1000), made), 3)
    assert next(stream) == 0
    deadline = time.monotonic() + 10
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert len(made) == 5  # the one taken, three that wait, and one at the door
    assert list(stream) == list(range(1, 1000))


def test_ahead_ends_with_who_reads_it() -> None:
    before = threading.active_count()
    stream = ahead(slow(range(1000), []), 3)
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before


def test_a_process_ends_although_a_stream_is_open() -> None:
    script = (
        "from itertools import count; from cappy_train.streaming import ahead; s = ahead(count(), 3); print(next(s))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "0\n")


def test_ahead_raises_what_was_raised() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise InputValueError("shard 3 is damaged")

    stream = ahead(broken(), 3)
    assert next(stream) == 1
    with pytest.raises(InputValueError, match="shard 3"):
        next(stream)
