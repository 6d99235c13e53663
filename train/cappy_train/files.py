"""Files by name or pattern, and files that are written whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cappy_lite.errors import InputValueError

# One file, a pattern such as "data/*.jsonl.gz" (** goes down into folders), or several of both.
Source = str | Path | Sequence[str | Path]


def find_files(source: Source) -> list[Path]:
    """The files that a path, a pattern or several name: each once, those of a pattern in the order of their names.

    A folder of shards (see `cappy_train.shards`) is named as a path too, and stands for its shards in their order.

    Raises:
        InputValueError: a name stands for no file, for a folder of shards that is unfinished, damaged or empty, or for
            another folder.
    """
    names = [source] if isinstance(source, (str, Path)) else source
    found = {path: None for name in names for path in _matches(str(name))}
    if not found:
        raise InputValueError("no file is named: give a path, or a pattern such as 'data/*.jsonl.gz'")
    return list(found)


def _matches(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        # Imported here: pyarrow takes a moment to load.
        from cappy_train.shards import MANIFEST, UNFINISHED, Shards

        if (path / MANIFEST).exists() or (path / UNFINISHED).exists():
            if shards := Shards(path).paths():
                return shards
            raise InputValueError(f"{path} has no shards, since what it was made from was empty: leave it out")
        raise InputValueError(f"{path} is a folder: name its files, for example by the pattern '{path / '*.jsonl.gz'}'")
    if path.exists():
        return [path]
    names = sorted(glob.glob(name, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
    matches = [Path(match) for match in names if Path(match).is_file()]
    if not matches:
        raise InputValueError(f"{name}: no such file")
    return matches


def text_of(path: Path) -> str:
    """The text in a file.

    Raises:
        InputValueError: it can't be read, or isn't UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputValueError(f"{path} can't be read as UTF-8 text ({error}): name another file") from error


# What a file's name has at its end until it is complete.
PARTIAL = ".partial"


@contextmanager
def written_whole(path: Path, *, mark: str = "") -> Iterator[Path]:
    """A name to write to beside `path`: it becomes `path` when the block ends well, and goes away when it doesn't.

    What a killed process leaves has the same name, so the next run replaces it; unless it has a mark, as the name has
    where several processes may write the file at the same time.

    Raises:
        InputValueError: it can't be written; the disk may be full.
    """
    partial = path.with_name(path.name + mark + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputValueError(f"{path} can't be written: {error}: make room, or give another --out") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block ends well, and goes away when it doesn't.

    Raises:
        InputValueError: `out` exists, or can't be written; the disk may be full.
    """
    if out.exists():
        raise InputValueError(f"{out} exists: give --out a new folder")
    partial = out.with_name(out.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(out)
        _sync_folder(out.parent)
    except OSError as error:
        raise InputValueError(f"{out} can't be written: {error}: make room, or give another --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
