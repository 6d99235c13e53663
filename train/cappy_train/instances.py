"""Instances: what every stage of training reads; from JSON Lines or Parquet, one file or many, and back to them."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from cappy_lite.arguments import check_text
from cappy_lite.errors import InputValueError
from cappy_train.files import Source, find_files, written_whole
from cappy_train.foreign import from_flan, from_superni, is_flan, is_superni
from cappy_train.records import PARQUET_ROWS, Record, import_parquet, read_records

if TYPE_CHECKING:
    import pyarrow

SPLITS = ("train", "dev", "test")
FORMATS = ("instances", "flan", "superni")
# Keys of a candidate that are there only where they are known.
LIKELIHOODS = ("log_likelihood", "mean_log_likelihood")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A response that some system gave, and the system's name.

    log_likelihood: natural logarithm of its probability under the model that gave it, the sum over its tokens, the end
        token included; None where it isn't known.
    mean_log_likelihood: the mean over the same tokens.
    """

    text: str
    source: str
    log_likelihood: float | None = None
    mean_log_likelihood: float | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """One instruction with its right responses.

    id: unique over all that is read together. Where several templates render one example, the template's name ends it.
    template: name of the template that rendered the instruction, or None.
    references: right responses, at least one.
    candidates: recorded responses of other systems, maybe none.
    choices: the responses to choose between, every reference among them; None for open generation.
    split: "train", "dev" or "test".
    licence: terms of the underlying data, where the file tells.
    """

    id: str
    task: str
    template: str | None
    instruction: str
    references: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    choices: tuple[str, ...] | None
    split: str
    licence: str | None = None


def read_instances(
    source: Source,
    *,
    split: str | None = None,
    format: str | None = None,
    examples: int = 0,
    advance: Callable[[int], object] | None = None,
) -> Iterator[Instance]:
    """Instances of one file or many, in order: JSON Lines, JSON or Parquet (see `read_records`), read as a stream.

    Ids must differ over the whole of what is read; eight bytes of memory are kept for each.

    Args:
        source: a path, a pattern such as "data/*.jsonl.gz", or a list of both. Empty lines are passed over; keys beyond
            those of `Instance` are ignored.
        split: yield this split alone; every line is checked all the same.
        format: "instances", "flan" or "superni" (see `cappy_train.foreign`; their instances are of split "train").
            None tells by a record's keys.
        examples: of Super-NaturalInstructions, so many positive examples are part of an instruction.
        advance: told of bytes as they are read, for a progress bar.

    Raises:
        InputValueError: a file is missing or damaged, or holds what is no valid instance; the message names the file
            and the line, row or place.
    """
    if split is not None and split not in SPLITS:
        raise InputValueError(f"split is {split!r}: give one of {', '.join(SPLITS)}, or None for all")
    if format is not None and format not in FORMATS:
        raise InputValueError(f"format is {format!r}: give one of {', '.join(FORMATS)}, or None to have it recognised")
    if examples < 0:
        raise InputValueError(f"examples is {examples}: give 0 or more")
    ids = _Ids()
    for place, instance in _placed(find_files(source), format, examples, advance):
        if ids.add(instance.id):
            first = _first_place(find_files(source), format, instance.id)
            if first != place:  # else another id has the same digest, which chance gives once in ages
                raise InputValueError(f"{place}: id {instance.id!r} was {_short(first, place)}'s")
        if split is None or instance.split == split:
            yield instance


def _placed(
    paths: list[Path], format: str | None, examples: int = 0, advance: Callable[[int], object] | None = None
) -> Iterator[tuple[str, Instance]]:
    """Instances with the places that they stand at."""
    names = _names(paths)
    for record in read_records(paths, advance=advance):
        place = record.place
        try:
            for within, value in _put(record, format or _recognised(record.value), names[record.path], examples):
                place = f"{record.place}, {within}" if within else record.place
                yield place, parse_instance(value)
        except InputValueError as error:
            raise InputValueError(f"{place}: {error}") from error


def _put(record: Record, format: str, name: str, examples: int) -> Iterator[tuple[str, Any]]:
    """What a record holds, put as instances are, each with its place in the record."""
    if format == "instances":
        yield "", record.value
    elif not isinstance(record.value, dict):
        raise InputValueError(f"should be a JSON object, of format {format}")
    elif format == "flan":
        yield "", from_flan(record.value, name, record.number)
    else:
        yield from from_superni(record.value, name, examples=examples)


def _recognised(value: object) -> str:
    if not isinstance(value, dict) or "references" in value:
        return "instances"
    if is_superni(value):
        return "superni"
    if is_flan(value):
        return "flan"
    if "instruction" in value:
        return "instances"
    raise InputValueError(
        f"has the keys {', '.join(map(str, value))}: none of the formats that are recognised ({', '.join(FORMATS)}). "
        "Rows are made instances by templates: cappy-train instances --templates"
    )


def _names(paths: list[Path]) -> dict[Path, str]:
    """A name for each file, by which ids and tasks are told apart: its path below the folder that all are in."""
    folders = [path.resolve().parent for path in paths]
    common = Path(os.path.commonpath(folders))
    return {path: str(path.resolve().relative_to(common)).partition(".")[0] for path in paths}


class _Ids:
    """Which ids were added, as digests of 64 bits: eight bytes an id in a sorted array, and the newest beside it."""

    NEW = 1 << 17

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._new: set[int] = set()

    def add(self, id: str) -> bool:
        """Whether it was there before; for two ids in 2**64 that is a mistake."""
        digest = int.from_bytes(blake2b(id.encode(errors="surrogatepass"), digest_size=8).digest())
        place = int(self._sorted.searchsorted(np.uint64(digest)))
        if digest in self._new or (place < len(self._sorted) and int(self._sorted[place]) == digest):
            return True
        self._new.add(digest)
        if len(self._new) == self.NEW:
            new = np.fromiter(self._new, np.uint64, self.NEW)
            self._sorted = np.sort(np.concatenate([self._sorted, new]), kind="stable")  # merges what is sorted
            self._new.clear()
        return False


def _first_place(paths: list[Path], format: str | None, id: str) -> str:
    return next(place for place, instance in _placed(paths, format) if instance.id == id)


def _short(place: str, beside: str) -> str:
    """A place without its file, where another place has the same."""
    file, _, rest = place.rpartition(", ")
    return rest if beside.startswith(f"{file}, ") else place


def write_instances(path: Path, instances: Iterable[Instance]) -> int:
    """Writes instances as JSON Lines (.jsonl, .jsonl.gz) or Parquet, by the name's end; returns how many.

    The file is written whole or not at all, in place of any that was there. The same instances give the same bytes.

    Raises:
        InputValueError: the name ends otherwise, an instance holds what UTF-8 can't, or the file can't be written.
    """
    check_output(path)
    instances = writable(instances)
    with written_whole(path) as partial:
        if path.suffix.lower() == ".parquet":
            return _write_parquet(partial, instances)
        with partial.open("wb") as raw:
            if path.suffix.lower() != ".gz":
                return _write_lines(raw, instances)
            # Neither name nor time, so that the same instances are the same bytes.
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as file:
                return _write_lines(file, instances)


def writable(instances: Iterable[Instance]) -> Iterator[Instance]:
    """The instances, if their texts are such that a file can hold them.

    Raises:
        InputValueError: one has a text that UTF-8 can't hold; the message names it.
    """
    for instance in instances:
        names = (instance.id, instance.task, instance.template or "", instance.licence or "")
        candidates = (text for candidate in instance.candidates for text in (candidate.text, candidate.source))
        for text in (*names, instance.instruction, *instance.references, *candidates, *(instance.choices or ())):
            check_text(f"instance {instance.id!r}", text)
        yield instance


def check_output(path: Path) -> None:
    """Refuses a name that `write_instances` couldn't write, before any work is done for it."""
    name = path.name.lower()
    if not name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise InputValueError(f"{path}: instances are written to .jsonl, .jsonl.gz or .parquet")


def _write_lines(file: IO[bytes] | gzip.GzipFile, instances: Iterable[Instance]) -> int:
    count = 0
    for instance in instances:
        record = asdict(instance)
        for candidate in record["candidates"]:
            for name in LIKELIHOODS:
                if candidate[name] is None:
                    del candidate[name]
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        count += 1
    return count


def _write_parquet(path: Path, instances: Iterable[Instance]) -> int:
    parquet = import_parquet()
    schema = arrow_schema()
    count = 0
    remaining = iter(instances)
    with parquet.ParquetWriter(path, schema, compression="zstd") as file:
        while batch := list(islice(remaining, PARQUET_ROWS)):
            file.write_table(arrow_table(batch))
            count += len(batch)
    return count


def arrow_schema() -> pyarrow.Schema:
    """The columns of instances in Parquet."""
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    candidate = pyarrow.struct([("text", text), ("source", text), *((name, number) for name in LIKELIHOODS)])
    types = {"references": pyarrow.list_(text), "candidates": pyarrow.list_(candidate), "choices": pyarrow.list_(text)}
    return pyarrow.schema([(field.name, types.get(field.name, text)) for field in fields(Instance)])


def arrow_table(instances: Iterable[Instance]) -> pyarrow.Table:
    """A row an instance, in the columns of `arrow_schema`."""
    import pyarrow

    return pyarrow.Table.from_pylist([asdict(instance) for instance in instances], schema=arrow_schema())


def parse_instance(record: object) -> Instance:
    """The instance that a decoded JSON value holds.

    Raises:
        InputValueError: a key is missing or its value can't be used; the message names the key.
    """
    if not isinstance(record, dict):
        raise InputValueError("an instance is a JSON object")
    references = _texts(record, "references")
    choices = None if record.get("choices") is None else _texts(record, "choices")
    if choices is not None and not set(references) <= set(choices):
        raise InputValueError("choices lacks a reference: list every reference among the choices, or give null")
    split = _text(record, "split")
    if split not in SPLITS:
        raise InputValueError(f"split is {split!r}: give one of {', '.join(SPLITS)}")
    return Instance(
        id=_text(record, "id"),
        task=_text(record, "task"),
        template=_optional_text(record, "template"),
        instruction=_text(record, "instruction"),
        references=references,
        candidates=_candidates(record),
        choices=choices,
        split=split,
        licence=_optional_text(record, "licence"),
    )


def _text(record: dict[str, object], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise InputValueError(f"{key} should be a text that is not empty")
    return value


def _optional_text(record: dict[str, object], key: str) -> str | None:
    return None if record.get(key) is None else _text(record, key)


def _texts(record: dict[str, object], key: str) -> tuple[str, ...]:
    value = record.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise InputValueError(f"{key} should be a list of one text or more")
    return tuple(value)


def _candidates(record: dict[str, object]) -> tuple[Candidate, ...]:
    value = record.get("candidates") or []
    if not isinstance(value, list) or not all(
        isinstance(item, dict) and isinstance(item.get("text"), str) and isinstance(item.get("source"), str)
        for item in value
    ):
        raise InputValueError("candidates should be a list of objects, each with a text and a source")
    return tuple(
        Candidate(item["text"], item["source"], *(_optional_number(item, name) for name in LIKELIHOODS))
        for item in value
    )


def _optional_number(candidate: dict[str, object], key: str) -> float | None:
    value = candidate.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise InputValueError(f"a candidate's {key} should be a number that is finite, or null")
    return float(value)
