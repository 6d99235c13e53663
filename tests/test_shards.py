"""Folders of Parquet shards, as every stage may write and read them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pyarrow as pa
import pytest

from cappy_lite.errors import InputValueError
from cappy_train.files import find_files, written_whole
from cappy_train.shards import RowGroup, Shards, open_writer, write_json

SCHEMA = pa.schema([("text", pa.string()), ("number", pa.int64())])
PLAN = {"stage": "test", "settings": {"seed": 1}, "inputs": []}


def tables(*counts: int) -> list[pa.Table]:
    return [pa.table({"text": [f"text {count}"] * count, "number": range(count)}, schema=SCHEMA) for count in counts]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with open_writer(tmp_path / "shards", PLAN) as writer:
        writer.add(writer.files.write(1, tables(4), SCHEMA, counts={"a": 2, "b": 1}, notes=["second"]))
        writer.add(writer.files.write(0, tables(2, 3), SCHEMA, counts={"a": 1}, notes=["first"]))
        writer.finish(2)
    return tmp_path / "shards"


def test_reads_what_was_written(folder: Path) -> None:
    shards = Shards(folder)
    shards.verify()
    assert shards.rows == 9
    assert shards.row_groups() == [RowGroup(0, 0, 2), RowGroup(0, 1, 3), RowGroup(1, 0, 4)]
    assert [shards.read(place).remove_column(0) for place in shards.row_groups()] == [
        table.remove_column(0) for table in tables(2, 3, 4)
    ]
    assert shards.read(RowGroup(0, 1, 3), columns=["number"]).column_names == ["number"]
    assert shards.manifest["plan"] == PLAN
    assert shards.manifest["counts"] == {"a": 3, "b": 1}
    assert shards.manifest["notes"] == ["first", "second"]
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "manifest.json", "shard-000000.parquet", "shard-000001.parquet"
    }  # fmt: skip


def test_a_later_writer_goes_on(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "again"
    with open_writer(out, PLAN) as writer:
        writer.add(writer.files.write(1, tables(4), SCHEMA, counts={"a": 2, "b": 1}, notes=["second"]))
    with open_writer(out, PLAN) as writer:
        assert (writer.done, writer.finished) == ({1}, False)
        writer.add(writer.files.write(0, tables(2, 3), SCHEMA, counts={"a": 1}, notes=["first"]))
        writer.finish(2)
    assert [path.read_bytes() for path in sorted(out.iterdir())] == [
        path.read_bytes() for path in sorted(folder.iterdir())
    ]
    with open_writer(out, PLAN) as writer:
        assert writer.finished
    with (
        pytest.raises(InputValueError, match=r"settings.seed was 1, and is 2 now"),
        open_writer(out, PLAN | {"settings": {"seed": 2}}),
    ):
        pass


def test_changed_files_are_seen(folder: Path) -> None:
    path = folder / "shard-000001.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:20] + bytes(9) + data[29:])
    with pytest.raises(InputValueError, match=r"shard-000001.parquet was changed or damaged: delete the folder"):
        Shards(folder).verify()
    with pytest.raises(InputValueError, match=r"shard-000001.parquet can't be read"):
        Shards(folder).read(RowGroup(1, 0, 4))
    path.write_bytes(data[:-1])
    with pytest.raises(InputValueError, match=r"shard-000001.parquet is missing or has not"):
        Shards(folder)
    path.unlink()
    with pytest.raises(InputValueError, match=r"shard-000001.parquet is missing"):
        Shards(folder)


def test_folders_that_are_none(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputValueError, match="give a folder that has one"):
        Shards(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", manifest | {"format": 0})
    with pytest.raises(InputValueError, match="has not the format 1"):
        Shards(folder)
    (folder / "manifest.json").write_text("[")
    with pytest.raises(InputValueError, match=r"manifest.json can't be read"):
        Shards(folder)


def test_a_folder_names_its_shards(tmp_path: Path, folder: Path) -> None:
    assert find_files(folder) == sorted(folder.glob("*.parquet")) == Shards(folder).paths()
    (folder / "manifest.json").rename(folder / "unfinished.json")
    with pytest.raises(InputValueError, match="no complete folder of shards: run the command that makes it again"):
        find_files(str(folder))
    with open_writer(tmp_path / "empty", PLAN) as writer:
        writer.finish(0)
    with pytest.raises(InputValueError, match="empty has no shards"):
        find_files(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    with pytest.raises(InputValueError, match="is a folder: name its files"):
        find_files(tmp_path / "other")


def test_a_shard_of_another_plan(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "other"
    with open_writer(out, PLAN | {"stage": "other"}):
        (out / "shard-000000.parquet").write_bytes((folder / "shard-000000.parquet").read_bytes())
    with pytest.raises(InputValueError, match="is of another job"), open_writer(out, PLAN | {"stage": "other"}):
        pass


def test_a_file_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with contextlib.suppress(KeyError), written_whole(path) as part:
        part.write_text("half")
        raise KeyError
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "before"
    with written_whole(path) as part:
        part.write_text("after")
    assert path.read_text() == "after"
    with pytest.raises(InputValueError, match="can't be written"), written_whole(path / "file") as part:
        part.write_text("")
