"""Instances as Arrow tables, streamed from JSON Lines (plain or gzip) and Parquet in blocks of so many rows."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cappy_lite.errors import InputValueError
from cappy_train.files import Source, find_files
from cappy_train.instances import SPLITS, Instance, parse_instance

TEXTS = pa.list_(pa.string())
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("instruction", pa.string()),
        ("references", TEXTS),
        ("choices", TEXTS),
        ("candidates", pa.list_(pa.struct([("text", pa.string()), ("source", pa.string())]))),
        ("split", pa.string()),
    ]
)
# These columns may be missing from a Parquet file.
OPTIONAL = ("choices", "candidates")
# Of a column of a Parquet file, read at a time.
BUFFER_BYTES = 1 << 18

Mask = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Block:
    """Consecutive rows of the inputs, all valid, in the columns of SCHEMA; bad rows are left out and named."""

    number: int
    table: pa.Table = field(default_factory=SCHEMA.empty_table)
    bad_rows: list[str] = field(default_factory=list)


def find_inputs(source: Source) -> list[Path]:
    """The files that a path, a pattern or several name, each once.

    Raises:
        InputValueError: one names no file, or a Parquet file hasn't the columns of instances.
    """
    found: dict[Path, Path] = {}
    for path in find_files(source):
        found.setdefault(path.resolve(), path)
    for path in found.values():
        _open(path).close()
    return list(found.values())


def read_blocks(paths: Sequence[Path], rows: int, *, skip: Container[int] = ()) -> Iterator[Block]:
    """All rows in order, in blocks of `rows` (the last may have fewer); bad rows count, and so do not move others.

    Args:
        paths: from `find_inputs`. Their format is seen by their first bytes.
        rows: how many rows a block has.
        skip: numbers of blocks that aren't wanted: empty ones come in their place.

    Raises:
        InputValueError: a file is damaged; the message names the place.
    """
    block, room, tables = Block(0), rows, list[pa.Table]()
    for path in paths:
        source = _open(path)
        try:
            while piece := source.take(room, wanted=block.number not in skip):
                room -= piece.rows
                tables.append(piece.table)
                block.bad_rows += piece.bad_rows
                if room == 0:
                    yield _filled(block, tables)
                    block, room, tables = Block(block.number + 1), rows, []
        finally:
            source.close()
    if room < rows:
        yield _filled(block, tables)


def _filled(block: Block, tables: list[pa.Table]) -> Block:
    block.table = pa.concat_tables(tables).combine_chunks()
    return block


@dataclass(frozen=True, slots=True)
class _Piece:
    """So many rows, good and bad, were read; the good ones, if they were wanted."""

    rows: int
    table: pa.Table
    bad_rows: list[str]


class _Source(Protocol):
    def take(self, rows: int, *, wanted: bool) -> _Piece | None:
        """The next rows, that many or fewer; None at the end."""

    def close(self) -> None: ...


def _open(path: Path) -> _Source:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InputValueError(f"{path} can't be read ({error})") from error
    if start == b"PAR1":
        return _ParquetSource(path)
    return _LinesSource(path, zipped=start.startswith(b"\x1f\x8b"))


class _LinesSource:
    def __init__(self, path: Path, *, zipped: bool) -> None:
        self._path = path
        self._file = cast(BinaryIO, gzip.open(path, "rb")) if zipped else path.open("rb")  # noqa: SIM115  # see close
        self._line = 0
        self._lines = self._numbered()

    def take(self, rows: int, *, wanted: bool) -> _Piece | None:
        lines = list(islice(self._lines, rows))
        if not lines:
            return None
        instances, bad_rows = list[Instance](), list[str]()
        for number, line in lines if wanted else ():
            try:
                instances.append(_parse_line(line))
            except ValueError as error:  # not UTF-8, not JSON, or not an instance
                bad_rows.append(f"{self._path}, line {number}: {error}")
        return _Piece(len(lines), _table(instances), bad_rows)

    def close(self) -> None:
        self._file.close()

    def _numbered(self) -> Iterator[tuple[int, bytes]]:
        """Lines that are not empty, with their numbers from 1."""
        try:
            for line in self._file:
                self._line += 1
                if line.strip():
                    yield self._line, line
        except (OSError, EOFError, zlib.error) as error:
            raise InputValueError(f"{self._path}, after line {self._line}: can't be read ({error})") from error


def _parse_line(line: bytes) -> Instance:
    record = json.loads(line)
    if b"\\u" in line:
        # Half of a surrogate pair passes as JSON; it can't be encoded, and raises.
        json.dumps(record, ensure_ascii=False).encode()
    return parse_instance(record)


def _table(instances: Sequence[Instance]) -> pa.Table:
    candidates = [
        [{"text": candidate.text, "source": candidate.source} for candidate in instance.candidates]
        for instance in instances
    ]
    columns = [
        [instance.id for instance in instances],
        [instance.task for instance in instances],
        [instance.instruction for instance in instances],
        [instance.references for instance in instances],
        [instance.choices for instance in instances],
        candidates,
        [instance.split for instance in instances],
    ]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


class _ParquetSource:
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            # Row groups may be large: they are read bit by bit, not ahead.
            self._file = pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
        except (OSError, pa.ArrowException) as error:
            raise InputValueError(f"{path} can't be read as Parquet ({error})") from error
        schema = self._file.schema_arrow
        if missing := [name for name in SCHEMA.names if name not in schema.names and name not in OPTIONAL]:
            raise InputValueError(f"{path} has no column {missing[0]}: it needs {', '.join(SCHEMA.names)}")
        self._columns = [name for name in SCHEMA.names if name in schema.names]
        _canonical(schema.empty_table(), path)
        self._next_group = 0
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None
        self._row = 0

    def take(self, rows: int, *, wanted: bool) -> _Piece | None:
        try:
            while not self._rest:
                self._rest = next(self._batches, None)
                if self._rest is None:
                    if self._next_group == self._file.num_row_groups:
                        return None
                    group, self._next_group = self._next_group, self._next_group + 1
                    count = self._file.metadata.row_group(group).num_rows
                    if not wanted and 0 < count <= rows:
                        self._row += count
                        return _Piece(count, SCHEMA.empty_table(), [])
                    # One thread, since others score and write: threads of pyarrow's would only get in their way.
                    self._batches = self._file.iter_batches(
                        rows, row_groups=[group], columns=self._columns, use_threads=False
                    )
        except (OSError, pa.ArrowException) as error:
            raise InputValueError(f"{self._path}, after row {self._row}: can't be read ({error})") from error
        part, rest = self._rest.slice(0, rows), self._rest.slice(rows)
        self._rest = rest if len(rest) else None
        first, self._row = self._row + 1, self._row + len(part)
        if not wanted:
            return _Piece(len(part), SCHEMA.empty_table(), [])
        return _Piece(len(part), *_checked(pa.Table.from_batches([part]), self._path, first))

    def close(self) -> None:
        self._file.close()


def _checked(table: pa.Table, path: Path, first: int) -> tuple[pa.Table, list[str]]:
    """The valid rows in SCHEMA's columns, and what is wrong with the others; `first` is the first row's number."""
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:  # a text isn't UTF-8; which one, isn't said
        if len(table) == 1:
            return SCHEMA.empty_table(), [f"{path}, row {first}: {error}"]
        half = len(table) // 2
        before, bad_before = _checked(table.slice(0, half), path, first)
        after, bad_after = _checked(table.slice(half), path, first + half)
        return pa.concat_tables([before, after]), bad_before + bad_after
    table = _canonical(table, path).combine_chunks()
    bad = _bad_rows(table)
    if not bad.any():
        return table, []
    named = [f"{path}, row {first + row}: {_fault(table.slice(row, 1).to_pylist()[0])}" for row in np.flatnonzero(bad)]
    return table.filter(pa.array(~bad)), named


def _fault(record: dict[str, Any]) -> str:
    try:
        parse_instance(record)
    except InputValueError as error:
        return str(error)
    return "not a valid instance"


def _canonical(table: pa.Table, path: Path) -> pa.Table:
    """The columns in SCHEMA's types; a null list of candidates is an empty one.

    Raises:
        InputValueError: a column is of another kind.
    """
    arrays = []
    for wanted in SCHEMA:
        column = table[wanted.name] if wanted.name in table.column_names else pa.nulls(len(table), wanted.type)
        try:
            if not _fits(column.type, wanted.type):
                raise pa.ArrowInvalid(f"type {column.type}")
            arrays.append(_candidates(column) if wanted.name == "candidates" else column.cast(wanted.type))
        except pa.ArrowException as error:
            raise InputValueError(
                f"{path}, column {wanted.name}: should be of type {wanted.type}, and is not ({error})"
            ) from error
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _fits(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether texts are texts, and lists lists; numbers would become texts otherwise."""
    if pa.types.is_null(given):
        return True
    if pa.types.is_dictionary(given):
        return _fits(given.value_type, wanted)
    if pa.types.is_list(wanted):
        lists = pa.types.is_list(given) or pa.types.is_large_list(given)
        return lists and _fits(given.value_type, wanted.value_type)
    if pa.types.is_struct(wanted):
        return pa.types.is_struct(given) and all(
            given.get_field_index(part.name) >= 0 and _fits(given.field(part.name).type, part.type) for part in wanted
        )
    return pa.types.is_string(given) or pa.types.is_large_string(given) or pa.types.is_string_view(given)


def _candidates(column: pa.ChunkedArray) -> pa.Array:
    """Lists of structs with text and source alone."""
    wanted = SCHEMA.field("candidates").type
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) and column.num_chunks else column
    if len(column) == 0 or column.null_count == len(column):
        return pa.array([[]] * len(column), type=wanted)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    values = column.flatten()
    if pa.types.is_null(values.type):
        values = pa.nulls(len(values), wanted.value_type)
    parts = [pc.struct_field(values, part.name).cast(part.type) for part in wanted.value_type]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(parts, fields=list(wanted.value_type)))


def _bad_rows(table: pa.Table) -> Mask:
    """Which rows `parse_instance` would refuse."""
    bad = ~_filled_in(pc.is_in(table["split"], value_set=pa.array(SPLITS)))
    for name in ("id", "task", "instruction"):
        bad |= ~_filled_in(pc.greater(pc.binary_length(table[name]), 0))
    bad |= ~_filled_in(pc.greater(pc.list_value_length(table["references"]), 0))
    bad |= pc.fill_null(pc.equal(pc.list_value_length(table["choices"]), 0), False).to_numpy()
    for name in ("references", "choices"):
        bad[owners(table[name])[texts(table[name]).is_null().to_numpy(zero_copy_only=False)]] = True
    members = texts(table["candidates"])
    for name in ("text", "source"):
        nulls = pc.struct_field(members, name).is_null().to_numpy(zero_copy_only=False)
        bad[owners(table["candidates"])[nulls]] = True
    with_choices = table["choices"].is_valid().to_numpy()
    lacking = ~among(
        texts(table["references"]), owners(table["references"]), texts(table["choices"]), owners(table["choices"])
    )
    bad[owners(table["references"])[lacking]] |= with_choices[owners(table["references"])[lacking]]
    return bad


def _filled_in(values: pa.ChunkedArray) -> Mask:
    mask: Mask = pc.fill_null(values, False).to_numpy()
    return mask


def texts(column: pa.ChunkedArray) -> pa.Array:
    """The members of a column of lists, one after the other."""
    return pa.concat_arrays([chunk.flatten() for chunk in column.chunks] or [pa.array([], column.type.value_type)])


def owners(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The row of each of these members."""
    rows: npt.NDArray[np.int64] = pc.list_parent_indices(column).to_numpy().astype(np.int64)
    return rows


def among(
    some: pa.Array, some_owners: npt.NDArray[np.int64], others: pa.Array, other_owners: npt.NDArray[np.int64]
) -> Mask:
    """Which of some texts are among the others that have the same owner."""
    codes = pa.concat_arrays([some, others]).dictionary_encode().indices.fill_null(-1).to_numpy().astype(np.int64)
    keys = np.concatenate([some_owners, other_owners]) * (len(codes) + 1) + codes
    return np.isin(keys[: len(some)], keys[len(some) :])
