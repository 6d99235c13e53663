from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from cappy_lite.errors import InputValueError
from cappy_train.instances import Candidate, Instance, parse_instance, read_instances


def record(**changes: Any) -> dict[str, Any]:
    return {
        "id": "boiling:0",
        "task": "boiling",
        "template": "ask",
        "instruction": "Does water boil at 90 °C?",
        "references": ["No"],
        "candidates": [{"text": "Yes", "source": "parrot"}],
        "choices": ["Yes", "No"],
        "split": "train",
    } | changes


def write(path: Path, *records: dict[str, Any]) -> Path:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["instances.jsonl", "instances.jsonl.gz"])
def test_reads_every_field(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, record(licence="MIT", kind="classification"))
    assert list(read_instances(path)) == [
        Instance(
            id="boiling:0",
            task="boiling",
            template="ask",
            instruction="Does water boil at 90 °C?",
            references=("No",),
            candidates=(Candidate("Yes", "parrot"),),
            choices=("Yes", "No"),
            split="train",
            licence="MIT",
        )
    ]


def test_optional_fields_may_be_null_or_absent() -> None:
    sparse = record(template=None, choices=None, candidates=None)
    del sparse["template"]
    instance = parse_instance(sparse)
    assert (instance.template, instance.choices, instance.candidates, instance.licence) == (None, None, (), None)


def test_reads_one_split_and_passes_over_empty_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "instances.jsonl", record(), record(id="b", split="dev"), record(id="c", split="test"))
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n"))
    assert [instance.id for instance in read_instances(path, split="dev")] == ["b"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "id should be"),
        ({"task": 7}, "task should be"),
        ({"template": ["ask"]}, "template should be"),
        ({"instruction": None}, "instruction should be"),
        ({"references": []}, "references should be"),
        ({"references": "No"}, "references should be"),
        ({"references": ["No", None]}, "references should be"),
        ({"choices": []}, "choices should be"),
        ({"references": ["Maybe"]}, "choices lacks a reference"),
        ({"candidates": ["Yes"]}, "candidates should be"),
        ({"candidates": [{"text": "Yes"}]}, "candidates should be"),
        ({"candidates": "Yes"}, "candidates should be"),
        ({"split": "validation"}, "split is 'validation'"),
    ],
)
def test_bad_values_are_named_with_file_and_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "bad.jsonl", record(id="good"), record(**changes))
    with pytest.raises(InputValueError, match=rf"bad\.jsonl, line 2: {message}"):
        list(read_instances(path))


@pytest.mark.parametrize("line", [b"[1]", b'{"id": ', b'{"id": "\xff"}', b"null"])
def test_lines_that_hold_no_object_are_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(InputValueError, match=r"bad\.jsonl, line 1: "):
        list(read_instances(path))


def test_a_repeated_id_names_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "twice.jsonl", record(), record(id="other"), record())
    with pytest.raises(InputValueError, match=r"line 3: id 'boiling:0' was line 1's"):
        list(read_instances(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputValueError, match=r"absent\.jsonl: no such file"):
        list(read_instances(tmp_path / "absent.jsonl"))


@pytest.mark.parametrize("damage", ["cut short", "altered", "not gzip"])
def test_a_damaged_gzip_file_is_named(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "bad.jsonl.gz", *(record(id=str(number)) for number in range(50)))
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "cut short": whole[:middle],
        "altered": whole[:middle] + b"\xff\x00\xff\x00" + whole[middle + 4 :],
        "not gzip": b"{}\n",
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(InputValueError, match=r"bad\.jsonl\.gz, (after )?line \d+: "):
        list(read_instances(path))


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputValueError, match="split is 'validation'"):
        list(read_instances(tmp_path / "any.jsonl", split="validation"))
