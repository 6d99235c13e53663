"""What a training run reads: labelled rows in an order that follows from a seed, as batches of rows of like length.

An epoch is a sequence of windows, each small enough for memory. The rows of a window are read and mixed, each keeps
some of its responses, and all become batches in random order. All of it follows from the seed, the epoch and the
window's number, so to go on from a place in the stream only its window is read again.
"""

from __future__ import annotations

import hashlib
import pickle
import queue
import random
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
from torch.utils.data import DataLoader, Dataset

from cappy_lite.errors import CappyError, InputValueError
from cappy_train.annotate import CHOICE, REPEATED
from cappy_train.batches import LabelledRow, TokenRow, padded
from cappy_train.shards import MANIFEST, RowGroup, Shards, file_digest
from cappy_train.trainable import TextBatch, TextPacker

T = TypeVar("T")

# Row groups that are mixed with each other: some thousand instances, of places all over the data. With few large ones
# a run sees one task after the other, where the data are sorted, and ends with what it saw last.
WINDOW_GROUPS = 128
# The share of rows whose longest response, after one with the best label, comes before the others.
LONGEST_SECOND = 0.5
# Processes that make batches for a GPU: two kept up with a small network on an H100, 410,000 tokens a second.
MAKERS = 2


class Rows(Protocol):
    """Rows of training data, in windows.

    fingerprint: two with the same one give the same rows.
    """

    @property
    def fingerprint(self) -> str: ...

    def sizes(self, epoch: int) -> Sequence[int]:
        """How large each window of an epoch is, in any unit; there is one at least."""
        ...

    def read(self, epoch: int, window: int) -> list[LabelledRow]:
        """The rows of a window."""
        ...


class ListedRows:
    """Rows in memory: one window."""

    def __init__(self, rows: Sequence[LabelledRow]) -> None:
        """Takes rows, one at least.

        Raises:
            InputValueError: there are none.
        """
        if not rows:
            raise InputValueError("rows is empty: give one at least")
        self._rows = list(rows)
        self.fingerprint = hashlib.sha256(repr(self._rows).encode(errors="surrogatepass")).hexdigest()

    def sizes(self, epoch: int) -> Sequence[int]:
        return [len(self._rows)]

    def read(self, epoch: int, window: int) -> list[LabelledRow]:
        return self._rows


class ShardRows:
    """The pairs in a folder of shards, those of an instance as a row.

    An epoch's windows are `window` row groups each, of all shards in random order.
    """

    def __init__(self, folder: Path, *, seed: int = 0, window: int = WINDOW_GROUPS, choice_weight: float = 1.0) -> None:
        """Opens a folder that `annotate` wrote.

        choice_weight: how often an epoch has an instance with choices, where it has others once; what is left beside a
            whole number is the share of them that it has once more, drawn at random.

        Raises:
            InputValueError: it isn't one, or it has no pairs; or the weight isn't above 0.
        """
        if not 0 < choice_weight < float("inf"):
            raise InputValueError(f"choice_weight is {choice_weight}: it should be above 0")
        self._shards = Shards(folder)
        self._groups = [group for group in self._shards.row_groups() if group.rows]
        if not self._groups:
            raise InputValueError(f"{folder} has no pairs: were there instances of that split?")
        self._seed, self._window, self._choice_weight = seed, window, choice_weight
        self.fingerprint = file_digest(folder / MANIFEST)
        if choice_weight != 1:
            self.fingerprint += f", choice_weight {choice_weight}"

    def sizes(self, epoch: int) -> Sequence[int]:
        return [sum(group.rows for group in window) for window in self._windows(epoch)]

    def read(self, epoch: int, window: int) -> list[LabelledRow]:
        rng = random.Random(f"{self._seed}:{epoch}:{window}:weights")
        rows = []
        for group in self._windows(epoch)[window]:
            for row, has_choices in self._rows(group):
                weight = self._choice_weight if has_choices else 1.0
                rows += [row] * (int(weight) + (rng.random() < weight % 1))
        return rows

    def _windows(self, epoch: int) -> list[list[RowGroup]]:
        groups = random.Random(f"{self._seed}:{epoch}:groups").sample(self._groups, len(self._groups))
        return [groups[start : start + self._window] for start in range(0, len(groups), self._window)]

    def _rows(self, group: RowGroup) -> Iterator[tuple[LabelledRow, bool]]:
        """The rows of a group, and whether theirs is an instance with choices."""
        table = self._shards.read(
            group, columns=["instruction", "response", "score", "instance_id", "source"], repeated=REPEATED
        ).combine_chunks()
        ids = table["instance_id"].combine_chunks().indices.to_numpy()
        starts = np.flatnonzero(np.diff(ids, prepend=-1))
        instructions = table["instruction"].take(pa.array(starts)).to_pylist()
        responses, scores = table["response"].to_pylist(), table["score"].to_pylist()
        sources = table["source"].combine_chunks()
        is_choice = sources.dictionary.to_numpy(zero_copy_only=False) == CHOICE
        with_choices = np.logical_or.reduceat(is_choice[sources.indices.to_numpy()], starts).tolist()
        ends = [*starts[1:], len(ids)]
        for instruction, start, end, has_choices in zip(instructions, starts, ends, with_choices, strict=True):
            yield LabelledRow(instruction, tuple(responses[start:end]), tuple(scores[start:end])), has_choices


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows become batches.

    seed: of all that is drawn at random.
    responses: the most that a row keeps.
    batch_tokens: tokens of a batch, padding included; a row that alone has more is a batch.
    short, long, long_share: bounds on the tokens of a pair, and the share of rows under the longer one.
    """

    seed: int
    responses: int
    batch_tokens: int
    short: int
    long: int
    long_share: float


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the stream: before the batch of this number in a window of an epoch, all from 0."""

    epoch: int = 0
    window: int = 0
    batch: int = 0


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """The rows of a batch, the place after it, and how many epochs are read with it."""

    rows: list[TokenRow]
    after: Place
    epochs: float


def planned_batches(rows: Rows, packer: TextPacker, reading: Reading, start: Place) -> Iterator[PlannedBatch]:
    """Batches from a place on, epoch after epoch without end."""
    for place in windows(rows, start):
        yield from planned_window(rows, packer, reading, place)


def windows(rows: Rows, start: Place) -> Iterator[Place]:
    """Where to begin in each window from a place on, epoch after epoch without end."""
    for epoch in count(start.epoch):
        first = start.window if epoch == start.epoch else 0
        for window in range(first, len(rows.sizes(epoch))):
            at_start = (epoch, window) == (start.epoch, start.window)
            yield start if at_start else Place(epoch, window)


def planned_window(rows: Rows, packer: TextPacker, reading: Reading, place: Place) -> list[PlannedBatch]:
    """The batches of a window from a place in it on."""
    sizes = rows.sizes(place.epoch)
    read = rows.read(place.epoch, place.window)
    batches = _window_batches(read, packer, reading, f"{reading.seed}:{place.epoch}:{place.window}")

    def share(batches_read: int) -> float:
        return (sum(sizes[: place.window]) + sizes[place.window] * batches_read / len(batches)) / sum(sizes)

    return [
        PlannedBatch(batch, Place(place.epoch, place.window, number), place.epoch + share(number))
        for number, batch in enumerate(batches, start=1)
    ][place.batch :]


class PackedWindows(Dataset[bytes]):
    """A window, by where to begin in it: its packed batches, each with the place after it and the epochs read, pickled;
    or, if there is anything wrong with it, the error.

    Processes give them to another one (see `packed_by_processes`) as bytes, since of tensors that processes share each
    takes a file descriptor, and a process may have few.
    """

    def __init__(self, rows: Rows, packer: TextPacker, reading: Reading) -> None:
        self._rows, self._packer, self._reading = rows, packer, reading

    def __getitem__(self, place: Place) -> bytes:
        try:
            planned = planned_window(self._rows, self._packer, self._reading, place)
            return pickle.dumps([(self._packer.batch(each.rows), each.after, each.epochs) for each in planned])
        except CappyError as error:  # DataLoader would tell of it by a traceback
            return pickle.dumps(error)


def packed_by_processes(
    rows: Rows, packer: TextPacker, reading: Reading, start: Place
) -> Iterator[tuple[TextBatch, Place, float]]:
    """What `planned_batches` has, packed, made by processes of their own, a window each.

    A GPU reads as fast as they make it, and Python code beside the loop that keeps a GPU busy would hold it up.
    """
    made = DataLoader(
        PackedWindows(rows, packer, reading),
        sampler=windows(rows, start),
        batch_size=None,
        num_workers=MAKERS,
        multiprocessing_context="spawn",  # what a device's driver keeps in this process must not be copied
    )
    read = map(pickle.loads, made)
    try:
        for window in read:
            if isinstance(window, CappyError):
                raise window
            yield from window
    finally:
        del read  # ends the processes, whoever keeps this generator's error


def _window_batches(
    rows: Sequence[LabelledRow], packer: TextPacker, reading: Reading, seed: str
) -> list[list[TokenRow]]:
    rng = random.Random(seed)
    drawn = [draw_responses(row, reading.responses, rng) for row in rows]
    limits = [reading.long if rng.random() < reading.long_share else reading.short for _ in drawn]
    token_rows = packer.token_rows(drawn, limits)
    rng.shuffle(token_rows)
    batches = by_length(token_rows, reading.batch_tokens)
    rng.shuffle(batches)
    return batches


def draw_responses(row: LabelledRow, most: int, rng: random.Random) -> LabelledRow:
    """So many responses of the row at most, drawn at random, and first of all one of those with the best label.

    First, since what no longer fits a row of tokens is left out. In half of the rows the longest of the others is
    second, beside which the instruction is cut then (see `Packer`): long ones are few, and would seldom have their way.
    """
    best = max(row.labels)
    first = rng.choice([at for at, label in enumerate(row.labels) if label == best])
    others = [at for at in range(len(row.labels)) if at != first]
    drawn = rng.sample(others, min(len(others), most - 1))
    if drawn and rng.random() < LONGEST_SECOND:
        longest = max(drawn, key=lambda at: len(row.responses[at]))
        drawn = [longest, *(at for at in drawn if at != longest)]
    chosen = [first, *drawn]
    return LabelledRow(
        row.instruction, tuple(row.responses[at] for at in chosen), tuple(row.labels[at] for at in chosen)
    )


def by_length(rows: Sequence[TokenRow], tokens: int) -> list[list[TokenRow]]:
    """The rows, longest first, in batches of at most `tokens` tokens with padding, or of one row.

    All but the last are full, so their shapes are few.
    """
    batches: list[list[TokenRow]] = []
    room = 0
    for row in sorted(rows, key=lambda row: -padded(row.length)):
        if not batches or row.sequences > room:
            batches.append([])
            room = tokens // padded(row.length)
        batches[-1].append(row)
        room -= row.sequences
    return batches


@dataclass(frozen=True, slots=True)
class _End:
    """That no item follows, and why, if it was an error."""

    error: BaseException | None = None


def ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """The items, made by a thread of their own that is up to `depth` of them ahead; it ends with this iterator."""
    made: queue.Queue[T | _End] = queue.Queue(depth)
    left = threading.Event()

    def wanted() -> bool:
        # At the end of the process too the thread must end by itself: one that was amid a library's work would crash.
        return not left.is_set() and threading.main_thread().is_alive()

    def put(item: T | _End) -> None:
        while wanted():
            with suppress(queue.Full):
                made.put(item, timeout=0.1)
                return

    def make() -> None:
        try:
            for item in items:
                put(item)
                if not wanted():
                    return
            put(_End())
        except BaseException as error:  # raised again where the items are used
            put(_End(error))

    thread = threading.Thread(target=make)
    thread.start()
    try:
        while not isinstance(item := made.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        left.set()
        thread.join()
