"""Records of JSON Lines, JSON, CSV and Parquet files, plain or gzip: one after the other, each with its place."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from cappy_lite.errors import InputValueError

PARQUET_ROWS = 1024  # so many rows of a Parquet file are in memory at a time


@dataclass(frozen=True, slots=True)
class Record:
    """What one line or row holds; `number` counts the file's from 1, and `place` names file and line for messages."""

    value: Any
    path: Path
    number: int
    place: str


def read_records(paths: Sequence[Path], *, advance: Callable[[int], object] | None = None) -> Iterator[Record]:
    """The records of files, in their order; a file's format is told by the end of its name.

    .jsonl and .ndjson are JSON Lines; .json too, or one JSON value over several lines, whose items count where it is a
    list; .csv and .tsv have names in their first line, and a column of whole numbers alone gives int (an empty cell
    None); .parquet gives a row's columns. All but Parquet may end in .gz.

    Args:
        paths: the files.
        advance: told of the bytes that were read since it was last called; sums up to the files' sizes.

    Raises:
        InputValueError: a file is missing, damaged, or of another kind; the message names it, and its line or row.
    """
    for path in paths:
        reader = _READERS.get(_kind(path))
        if reader is None:
            known = ", ".join(_READERS)
            raise InputValueError(f"{path}: its name should end in one of {known} (.gz may follow, but for Parquet)")
        progress = _Progress(advance)
        yield from reader(path, progress)
        progress.reached(path.stat().st_size)


def size(paths: Sequence[Path]) -> int:
    """How many bytes files have."""
    return sum(path.stat().st_size for path in paths)


class _Progress:
    """Tells of the bytes of one file that were read."""

    def __init__(self, advance: Callable[[int], object] | None) -> None:
        self._advance, self._position = advance, 0

    def reached(self, position: int) -> None:
        if self._advance and position > self._position:
            self._advance(position - self._position)
            self._position = position


def _kind(path: Path) -> str:
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix if not name.endswith(".parquet.gz") else ".parquet.gz"


def _lines(path: Path, progress: _Progress) -> Iterator[tuple[int, bytes]]:
    """Lines that aren't empty, with their numbers from 1."""
    number = 0
    try:
        with path.open("rb") as raw:
            file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if path.suffix.lower() == ".gz" else raw
            for number, line in enumerate(file, start=1):
                progress.reached(raw.tell())
                if line.strip():
                    yield number, line
    except FileNotFoundError as error:
        raise InputValueError(f"{path}: no such file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputValueError(f"{path}, after line {number}: can't be read ({error})") from error


def _json_lines(path: Path, progress: _Progress) -> Iterator[Record]:
    for number, line in _lines(path, progress):
        place = f"{path}, line {number}"
        yield Record(_decoded(line, place), path, number, place)


def _json(path: Path, progress: _Progress) -> Iterator[Record]:
    """JSON Lines if the first line is a JSON object of its own, else one value."""
    first = next(_lines(path, _Progress(None)), (1, b""))[1]
    if first.lstrip().startswith(b"{") and _is_json(first):
        yield from _json_lines(path, progress)
        return
    value = _decoded(b"".join(line for _, line in _lines(path, progress)), str(path))
    if isinstance(value, list):
        for number, item in enumerate(value, start=1):
            yield Record(item, path, number, f"{path}, item {number}")
    else:
        yield Record(value, path, 1, str(path))


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _decoded(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # not UTF-8 or not JSON
        raise InputValueError(f"{place}: {error}") from error


def _table(path: Path, progress: _Progress) -> Iterator[Record]:
    """Rows of a CSV file, in two passes: whether a column is of numbers is known at its end alone."""
    numbers: set[str] = set()
    texts: set[str] = set()
    for _, row in _cells(path, _Progress(None)):
        for name, cell in row.items():
            if cell:
                (numbers if _is_whole(cell) else texts).add(name)
    numbers -= texts
    for number, row in _cells(path, progress):
        values = {name: (int(cell) if cell else None) if name in numbers else cell for name, cell in row.items()}
        yield Record(values, path, number, f"{path}, line {number}")


def _is_whole(cell: str) -> bool:
    # "007" and "+1" are names rather than numbers: they wouldn't print as they were.
    return re.fullmatch("0|-?[1-9][0-9]{0,17}", cell) is not None


def _cells(path: Path, progress: _Progress) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV file by the names of its first line, with the numbers of the lines that they end in."""
    csv.field_size_limit(sys.maxsize)  # else 128 KiB, which an article may have
    delimiter = "\t" if _kind(path) == ".tsv" else ","
    number = 0
    try:
        with path.open("rb") as raw:
            file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if path.suffix.lower() == ".gz" else raw
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            names = next(reader, [])
            if not names or len(set(names)) < len(names):
                raise InputValueError(f"{path}, line 1: should have the names of the columns, each once")
            for cells in reader:
                number = reader.line_num
                progress.reached(raw.tell())
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise InputValueError(f"{path}, line {number}: has {len(cells)} cells, the first line {len(names)}")
                yield number, dict(zip(names, cells, strict=True))
    except FileNotFoundError as error:
        raise InputValueError(f"{path}: no such file") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise InputValueError(f"{path}, after line {number}: can't be read ({error})") from error


def _parquet(path: Path, progress: _Progress) -> Iterator[Record]:
    parquet = import_parquet()
    import pyarrow

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            total, bytes_ = file.metadata.num_rows, path.stat().st_size
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(row, path, number, f"{path}, row {number}")
                progress.reached(bytes_ * number // total)
    except FileNotFoundError as error:
        raise InputValueError(f"{path}: no such file") from error
    except (OSError, pyarrow.ArrowException) as error:
        raise InputValueError(f"{path}, after row {number}: can't be read ({error})") from error


def import_parquet() -> Any:
    """pyarrow.parquet, which takes a moment to load.

    Raises:
        InputValueError: it isn't installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputValueError("Parquet needs pyarrow: pip install 'cappy-lite[train]'") from error
    return pyarrow.parquet


_READERS: dict[str, Callable[[Path, _Progress], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}
