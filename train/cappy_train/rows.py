"""Rows of a data set: of files, or of a Hugging Face data set in a local folder or by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cappy_lite.errors import InputValueError
from cappy_train.files import Source, find_files
from cappy_train.records import read_records, size

HUB = "hub:"
Row = dict[str, Any]


@contextmanager
def open_rows(source: Source, *, subset: str | None = None, split: str = "train") -> Iterator[Iterator[Row]]:
    """The rows of a data set, one after the other, under a progress bar; they aren't in memory together.

    Args:
        source: files as `read_records` reads them (a path, a pattern, or several); or a folder that `datasets` wrote by
            save_to_disk; or "hub:" and the name of a data set, which `datasets` then loads from the network.
        subset: of a data set by name.
        split: of a Hugging Face data set, by its own name for it; "dev" is also "validation".

    Raises:
        InputValueError: it is missing, can't be read, or needs `datasets`, which isn't installed.
    """
    if is_hugging_face(source):
        rows, total = _of_hugging_face(str(source), subset, split)
        with tqdm(total=total, unit=" rows", desc="rows") as bar:
            yield _counted(str(source), rows, bar)
    else:
        paths = find_files(source)
        with tqdm(total=size(paths), unit="B", unit_scale=True, desc="rows") as bar:
            yield _of_files(paths, bar)


def is_hugging_face(source: Source) -> bool:
    """Whether a source is a Hugging Face data set rather than files."""
    if not isinstance(source, (str, Path)):
        return False
    saved = ("dataset_dict.json", "dataset_info.json")
    return str(source).startswith(HUB) or any((Path(source) / name).is_file() for name in saved)


def _of_files(paths: list[Path], bar: Any) -> Iterator[Row]:
    for record in read_records(paths, advance=bar.update):
        if not isinstance(record.value, dict):
            raise InputValueError(f"{record.place}: a row is a JSON object, with a value for each field")
        yield record.value


def _counted(source: str, rows: Any, bar: Any) -> Iterator[Row]:
    try:
        for row in rows:
            yield row
            bar.update()
    except Exception as error:  # as in loading
        raise InputValueError(f"{source}, after row {bar.n}: can't be read ({error})") from error


def _of_hugging_face(source: str, subset: str | None, split: str) -> tuple[Any, int | None]:
    """A data set whose rows are read as they are needed, and how many they are, if that is known."""
    try:
        import datasets
    except ImportError as error:
        raise InputValueError(f"{source} is read by the package datasets: pip install datasets") from error
    try:
        if not source.startswith(HUB):
            data = datasets.load_from_disk(source)
            if not isinstance(data, datasets.DatasetDict):
                return data, len(data)
            name = "validation" if split == "dev" and "dev" not in data else split
            if name not in data:
                raise InputValueError(f"{source} has no split {split!r}: give one of {', '.join(data)}")
            return data[name], len(data[name])
        name = "validation" if split == "dev" else split
        return datasets.load_dataset(source.removeprefix(HUB), subset, split=name, streaming=True), None
    except InputValueError:
        raise
    except Exception as error:  # whatever stands between here and a data set: files, network, the data set's own faults
        raise InputValueError(f"{source} can't be loaded by datasets: {error}") from error
