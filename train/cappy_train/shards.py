"""Folders of Parquet shards: each is written whole or not at all, and the manifest, written last, says what is there.

While a folder is made it has the file unfinished.json: the plan, which is what it is made from and how. A job that was
killed finds its plan and its shards and goes on; one with another plan is told so. Each shard's footer has the plan's
digest and the shard's counts, so that the manifest is the same however often the job was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from secrets import token_hex
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from tqdm import tqdm

from cappy_lite.errors import InputValueError
from cappy_train.files import PARTIAL, written_whole

FORMAT = 1
MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
LOCK = ".lock"
SHARD_NAME = re.compile(r"shard-(\d{6,})\.parquet")
# The key in a shard's footer.
FOOTER = b"cappy"
# A dictionary is kept up to this size; a larger one would be written out row by row.
DICTIONARY_BYTES = 1 << 28
MOST_NOTES = 100
# How long to wait for a file that another machine has written.
SEEN_SECONDS = 60.0
_SHARED = "give an --out that all machines share under one name"

# What a folder is made from and how, as JSON has it.
Plan = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shard:
    """A complete shard: its file's name, size and digest, the rows of its row groups, counts and notes of its maker."""

    name: str
    row_groups: tuple[int, ...]
    bytes: int
    sha256: str
    counts: dict[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Where some rows are: the what-th row group of the what-th shard; and how many they are."""

    shard: int
    group: int
    rows: int


class Shards:
    """A complete folder, to be read.

    manifest: the manifest's JSON: format, plan, rows, counts (summed over the shards), notes and shards.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a folder; checks that the manifest's files are there, each of its size.

        Raises:
            InputValueError: the folder is missing, unfinished, of another format, or a file isn't what it was.
        """
        self.folder = folder
        path = folder / MANIFEST
        if not path.exists():
            unfinished = (folder / UNFINISHED).exists()
            fix = "run the command that makes it again: it goes on" if unfinished else "give a folder that has one"
            raise InputValueError(f"{path}: no such file, so {folder} is no complete folder of shards: {fix}")
        self.manifest = _read_json(path)
        if self.manifest.get("format") != FORMAT:
            raise InputValueError(f"{path} has not the format {FORMAT}, which this version reads: make the folder anew")
        self._shards = [
            Shard(**record | {"row_groups": tuple(record["row_groups"]), "notes": tuple(record["notes"])})
            for record in self.manifest["shards"]
        ]
        for shard in self._shards:
            file = folder / shard.name
            if not file.is_file() or file.stat().st_size != shard.bytes:
                raise InputValueError(f"{file} is missing or has not {shard.bytes:,} bytes, as {path} says: {_ANEW}")

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.row_groups())

    def paths(self) -> list[Path]:
        """The shards' files in order."""
        return [self.folder / shard.name for shard in self._shards]

    def row_groups(self) -> list[RowGroup]:
        """All row groups in order."""
        return [
            RowGroup(number, group, rows)
            for number, shard in enumerate(self._shards)
            for group, rows in enumerate(shard.row_groups)
        ]

    def read(self, place: RowGroup, *, columns: Sequence[str] | None = None, repeated: Sequence[str] = ()) -> pa.Table:
        """The rows of one row group.

        Args:
            place: one of `row_groups`.
            columns: the ones to read; None: all.
            repeated: columns to get as dictionaries, which is small and quick where few texts repeat in many rows.

        Raises:
            InputValueError: the file can't be read.
        """
        path = self.folder / self._shards[place.shard].name
        try:
            with pq.ParquetFile(path, read_dictionary=list(repeated)) as file:
                return file.read_row_group(place.group, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise InputValueError(f"{path} can't be read ({error}): {_ANEW}") from error

    def verify(self) -> None:
        """Compares every shard with its digest.

        Raises:
            InputValueError: a file isn't what it was.
        """
        for shard in self._shards:
            if file_digest(self.folder / shard.name) != shard.sha256:
                raise InputValueError(f"{self.folder / shard.name} was changed or damaged: {_ANEW}")


_ANEW = "delete the folder and make it anew"


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """The shards of one plan in a folder, for whoever writes some: threads, processes, machines that see the folder.

    A shard may be written twice, even at the same time: the bytes are the same.

    plan: the plan's digest.
    """

    folder: Path
    plan: str

    def write(
        self,
        number: int,
        groups: Iterable[pa.Table],
        schema: pa.Schema,
        *,
        repeated: Sequence[str] = (),
        counts: Mapping[str, int],
        notes: Sequence[str] = (),
    ) -> Shard:
        """Writes the shard of a number, a row group a table.

        Args:
            groups: tables with the columns of `schema`.
            repeated: columns with few texts in many rows: the tables have them as dictionaries of int32, and so they
                are written; a reader sees texts.
            counts: any numbers, which the manifest sums up.
            notes: any lines; the manifest has the first ones of all.

        Raises:
            InputValueError: the file can't be written: the disk is full, for example. What was begun is removed. Or
                this machine doesn't see the folder that the plan was written to.
        """
        if not (self.folder / UNFINISHED).exists():
            raise InputValueError(f"{platform.node()} doesn't see {self.folder / UNFINISHED}: {_SHARED}")
        path = self.folder / f"shard-{number:06}.parquet"
        written = [
            field.with_type(pa.dictionary(pa.int32(), field.type)) if field.name in repeated else field
            for field in schema
        ]
        footer = {"plan": self.plan, "counts": dict(counts), "notes": list(notes[:MOST_NOTES])}
        with written_whole(path, mark=f".{token_hex(4)}") as part:
            with pq.ParquetWriter(
                part,
                pa.schema(written),
                compression="zstd",
                compression_level=1,
                use_dictionary=list(repeated),
                dictionary_pagesize_limit=DICTIONARY_BYTES,
                write_statistics=False,
                store_schema=False,
            ) as writer:
                for table in groups:
                    writer.write_table(table, row_group_size=max(len(table), 1))
                writer.add_key_value_metadata({FOOTER: json.dumps(footer).encode()})
            digest = file_digest(part)
        return self._shard(path, digest)

    def complete(self) -> Iterator[Shard]:
        """The shards that are there.

        Raises:
            InputValueError: one isn't of this plan, or can't be read.
        """
        for path in sorted(self.folder.iterdir()):
            if SHARD_NAME.fullmatch(path.name):
                yield self._shard(path, file_digest(path))

    def _shard(self, path: Path, digest: str) -> Shard:
        try:
            metadata = pq.read_metadata(path)
            footer = json.loads(metadata.metadata[FOOTER])
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise InputValueError(f"{path} is no shard of this folder ({error}): delete it, and run again") from error
        if footer["plan"] != self.plan:
            raise InputValueError(f"{path} is of another job: delete the folder, or give another --out")
        rows = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        return Shard(path.name, rows, path.stat().st_size, digest, footer["counts"], tuple(footer["notes"]))


class ShardWriter:
    """A folder in the making; see `open_writer`.

    files: what writes shards, in this process or in others, which then `add`s them.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder
        # As it will be read again.
        self._plan: Plan = json.loads(json.dumps(plan))
        self.files = ShardFiles(folder, hashlib.sha256(json.dumps(self._plan, sort_keys=True).encode()).hexdigest())
        self._remove_partial()
        self.finished = (folder / MANIFEST).exists()
        if self.finished:
            self._check_plan(_read_json(folder / MANIFEST).get("plan"))
            (folder / UNFINISHED).unlink(missing_ok=True)
        elif (folder / UNFINISHED).exists():
            self._check_plan(_read_json(folder / UNFINISHED))
        else:
            if any(path.name != LOCK for path in folder.iterdir()):
                raise InputValueError(f"{folder} has other files: give --out a new or an empty folder")
            write_json(folder / UNFINISHED, self._plan)
        self._shards = {} if self.finished else {_number(shard): shard for shard in self.files.complete()}

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the shards that are complete."""
        return frozenset(self._shards)

    def add(self, shard: Shard) -> None:
        """Takes a shard in that `files` wrote.

        Raises:
            InputValueError: it isn't seen here, so that another machine must have written it to a folder of its own.
        """
        path = self._folder / shard.name
        # A network's file system may be some seconds late.
        given_up = time.monotonic() + SEEN_SECONDS
        while not path.is_file() or path.stat().st_size != shard.bytes:
            if time.monotonic() > given_up:
                raise InputValueError(f"{path}, which a worker has written, isn't seen by {platform.node()}: {_SHARED}")
            time.sleep(0.1)
        self._shards[_number(shard)] = shard

    def finish(self, count: int) -> Shards:
        """Writes the manifest of the shards 0 to count - 1, which ends the job."""
        self._remove_partial()
        shards = [self._shards[number] for number in range(count)]
        counts: Counter[str] = Counter()
        for shard in shards:
            counts.update(shard.counts)
        manifest = {
            "format": FORMAT,
            "plan": self._plan,
            "rows": sum(sum(shard.row_groups) for shard in shards),
            "counts": dict(counts),
            "notes": list(islice((note for shard in shards for note in shard.notes), MOST_NOTES)),
            "shards": [asdict(shard) for shard in shards],
        }
        write_json(self._folder / MANIFEST, manifest)
        (self._folder / UNFINISHED).unlink()
        return Shards(self._folder)

    def _remove_partial(self) -> None:
        """Removes what killed processes left."""
        for path in self._folder.glob(f"*{PARTIAL}"):
            path.unlink(missing_ok=True)

    def _check_plan(self, other: object) -> None:
        theirs, ours = dict(_leaves(other)), dict(_leaves(self._plan))
        for key in [*ours, *theirs]:
            if ours.get(key) != theirs.get(key):
                raise InputValueError(
                    f"{self._folder} was begun with other inputs or settings: {key} was {theirs.get(key)!r}, and is "
                    f"{ours.get(key)!r} now: give what it was begun with, or another --out"
                )


def _number(shard: Shard) -> int:
    return int(shard.name[len("shard-") : -len(".parquet")])


@contextmanager
def open_writer(folder: Path, plan: Plan) -> Iterator[ShardWriter]:
    """The folder, made if need be, locked against other processes until the end of the block.

    Args:
        folder: a new one, an empty one, or one that was begun with the same plan.
        plan: what the folder is made from and how: JSON values; anything that the shards' bytes depend on.

    Raises:
        InputValueError: another process writes there, the folder was begun with another plan (the message says what
            differs) or has other files, or it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise InputValueError(
            f"{folder} is being written by another process: wait until it ends, or give another --out"
        ) from None
    except OSError as error:
        raise InputValueError(f"{folder} can't be written ({error}): give another --out") from error
    try:
        yield ShardWriter(folder, plan)
    finally:
        lock.release()


def write_json(path: Path, value: object) -> None:
    """A JSON file, written whole or not at all."""
    with written_whole(path) as part:
        part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def input_digests(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, size and sha256 of files that a folder is made from, for its plan."""
    return [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in tqdm(paths, desc="reading digests", unit=" files", leave=False, disable=None)
    ]


def file_digest(path: Path) -> str:
    """The file's sha256 in hexadecimal.

    Raises:
        InputValueError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputValueError(f"{path} can't be read ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputValueError(f"{path} can't be read ({error}): {_ANEW}") from error
    if not isinstance(value, dict):
        raise InputValueError(f"{path} should be a JSON object: {_ANEW}")
    return value


def _leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """The values in nested JSON, each with its path, such as inputs[0].sha256."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}[{index}]")
    else:
        yield name, value
