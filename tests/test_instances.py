from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from cappy_lite.errors import InputValueError
from cappy_train.instances import Candidate, Instance, parse_instance, read_instances, write_instances


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
        ({"candidates": [{"text": "Yes", "source": "s", "log_likelihood": "-1"}]}, "a candidate's log_likelihood"),
        ({"candidates": [{"text": "Yes", "source": "s", "log_likelihood": True}]}, "a candidate's log_likelihood"),
        ({"candidates": [{"text": "Yes", "source": "s", "log_likelihood": -(10**400)}]}, "a candidate's log_likelih"),
        ({"candidates": [{"text": "Y", "source": "s", "mean_log_likelihood": float("nan")}]}, "a candidate's mean_log"),
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


def flan(**changes: Any) -> dict[str, Any]:
    return {
        "inputs": "Is it wet?\n\nOPTIONS:\n- yes\n- no",
        "targets": "yes",
        "task_name": "wet",
        "template_type": "zs_opt",
    } | changes


def superni(**changes: Any) -> dict[str, Any]:
    return {
        "Definition": ["Turn it round."],
        "Positive Examples": [{"input": "ab", "output": "ba", "explanation": "round"}],
        "Instances": [{"id": "task9-x", "input": "cd", "output": ["dc"]}, {"input": "ef", "output": ["fe", "f e"]}],
        "Instance License": ["MIT"],
    } | changes


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz", "all.parquet"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    instances = [
        parse_instance(record(id=str(number), licence=None if number % 2 else "MIT", choices=None))
        for number in range(1500)
    ]
    instances.append(parse_instance(record(instruction="Zwei\nZeilen \u2028 ☃", candidates=[])))
    known = {"log_likelihood": -2, "mean_log_likelihood": -0.1}
    candidates = [{"text": "No", "source": "beam"} | known, {"text": "", "source": "nucleus", "log_likelihood": -0.3}]
    instances.append(parse_instance(record(id="sampled", candidates=candidates)))
    assert instances[-1].candidates == (Candidate("No", "beam", -2.0, -0.1), Candidate("", "nucleus", -0.3))
    assert write_instances(tmp_path / name, iter(instances)) == 1502
    assert list(read_instances(tmp_path / name)) == instances
    first = (tmp_path / name).read_bytes()
    write_instances(tmp_path / name, instances)
    assert (tmp_path / name).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_likelihood_that_is_not_known_is_no_key(tmp_path: Path) -> None:
    candidates = [{"text": "a", "source": "s"}, {"text": "b", "source": "s", "log_likelihood": -1.5}]
    write_instances(tmp_path / "all.jsonl", [parse_instance(record(candidates=candidates))])
    assert json.loads((tmp_path / "all.jsonl").read_bytes())["candidates"] == candidates


def test_what_fails_to_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text("before")

    def failing() -> Iterator[Instance]:
        yield parse_instance(record())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_instances(path, failing())
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["all.jsonl"]
    with pytest.raises(InputValueError, match=r"\.jsonl, \.jsonl\.gz or \.parquet"):
        write_instances(tmp_path / "all.txt", [])
    with pytest.raises(InputValueError, match="can't be written"):
        write_instances(path / "below.jsonl", [])
    for name in ("all.jsonl", "all.parquet"):
        with pytest.raises(InputValueError, match="instance 'boiling:0' has a lone surrogate"):
            write_instances(tmp_path / name, [parse_instance(record(instruction="\ud800"))])
    assert path.read_text() == "before"


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz", "all.parquet"])
def test_a_full_disk_is_told(tmp_path: Path, name: str) -> None:
    program = (
        "import resource, sys; from pathlib import Path; from cappy_train.instances import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "one = lambda n: Instance(str(n), 't', None, str(n ** 99), (str(n ** 98),), (), None, 'train')\n"
        "try: write_instances(Path(sys.argv[1]), map(one, range(9000)))\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / name], capture_output=True, text=True, check=True)
    assert f"{name} can't be written: " in done.stdout
    assert not list(tmp_path.iterdir())


def test_many_files_by_pattern_and_name(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "b.jsonl", record(id="b"))
    write(tmp_path / "a.jsonl.gz", record(id="a"))
    write_instances(tmp_path / "c[1].parquet", [parse_instance(record(id="c"))])
    sources = [str(tmp_path / "**" / "*.jsonl*"), tmp_path / "c[1].parquet", tmp_path / "a.jsonl.gz"]
    assert [instance.id for instance in read_instances(sources)] == ["a", "b", "c"]
    read: list[int] = []
    assert len(list(read_instances(sources, advance=read.append))) == 3
    assert sum(read) == sum(path.stat().st_size for path in tmp_path.rglob("*.*"))
    with pytest.raises(InputValueError, match=r"\*\.csv: no such file"):
        list(read_instances(str(tmp_path / "*.csv")))
    with pytest.raises(InputValueError, match="is a folder"):
        list(read_instances(tmp_path))


def test_ids_differ_over_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cappy_train.instances._Ids.NEW", 8)
    write(tmp_path / "a.jsonl", *(record(id=f"a{number}") for number in range(50)))
    write(tmp_path / "b.jsonl", *(record(id=f"b{number}") for number in range(50)), record(id="a3"))
    with pytest.raises(InputValueError, match=r"b\.jsonl, line 51: id 'a3' was .*a\.jsonl, line 4's"):
        list(read_instances(str(tmp_path / "*.jsonl")))
    assert len(list(read_instances(tmp_path / "a.jsonl"))) == 50


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    write_instances(path, [parse_instance(record(id=str(number))) for number in range(9)])
    table = parquet.read_table(path)
    parquet.write_table(table.set_column(0, "id", [["x", *"bcdefgh", ""]]), path)
    with pytest.raises(InputValueError, match=r"bad\.parquet, row 9: id should be"):
        list(read_instances(path))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputValueError, match=r"bad\.parquet, after row 0: can't be read"):
        list(read_instances(path))
    with pytest.raises(InputValueError, match=r"none\.parquet: no such file"):
        list(read_instances(tmp_path / "none.parquet"))


def test_flan_records_are_instances(tmp_path: Path) -> None:
    third = {"inputs": [1, 2], "targets": [3], "inputs_pretokenized": "Say it.", "targets_pretokenized": "It. "}
    path = write(tmp_path / "some.jsonl", flan(), flan(inputs="Name two.", targets=["a", "b", "a"]), third)
    first, second, third_ = read_instances(path)
    assert (first.id, first.task, first.template) == ("some:1", "wet", "zs_opt")
    assert (first.references, first.choices, first.split) == (("yes",), ("yes", "no"), "train")
    assert (second.references, second.choices) == (("a", "b"), None)
    assert (third_.task, third_.instruction, third_.references) == ("some", "Say it.", ("It.",))


def test_super_natural_instructions_are_instances(tmp_path: Path) -> None:
    path = tmp_path / "task9_turn.json"
    path.write_text(json.dumps(superni(), indent=2))
    first, second = read_instances(path)
    assert first.instruction == "Turn it round.\n\ncd"
    assert (first.id, first.task, first.references, first.licence) == ("task9-x", "task9_turn", ("dc",), "MIT")
    assert (second.id, second.references) == ("task9_turn:1", ("fe", "f e"))
    path.write_text(json.dumps(superni(Definition="Turn it.")))  # older files have a text, and may be one line
    shown = next(read_instances(path, examples=3))
    assert shown.instruction == (
        "Turn it.\n\nPositive Example 1 -\nInput: ab\nOutput: ba\n\n"
        "Now complete the following example -\nInput: cd\nOutput:"
    )


def test_files_of_one_name_in_several_folders_have_other_ids(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "part.jsonl", flan())
    assert [instance.id for instance in read_instances(str(tmp_path / "*" / "*"))] == ["x/part:1", "y/part:1"]


@pytest.mark.parametrize(
    ("value", "format", "message"),
    [
        ({"question": "?", "answer": "!"}, None, "line 1: has the keys question, answer: none of the formats"),
        ({"question": "?"}, "flan", "line 1: has no input and target"),
        (flan(targets=""), None, "line 1: targets should be"),
        (flan(targets=[]), None, "line 1: targets is an empty list"),
        (flan(inputs=3), None, "line 1: inputs should be"),
        (superni(Definition=[]) | {"Instances": 3}, None, "line 1: Instances should be a list"),
        (superni(Definition=None), None, "line 1: Definition should be"),
        (superni(Instances=[{"input": "x"}]), None, r"line 1: Instances\[0\] should be an object with output"),
        (superni(Instances=[{"input": "x", "output": []}]), None, r"line 1: Instances\[0\], output is an empty"),
        (superni(Instances=[{"id": 3, "input": "x", "output": "y"}]), None, r"line 1, Instances\[0\]: id should be"),
        ([1], "superni", "line 1: should be a JSON object"),
    ],
)
def test_what_can_not_be_read_is_named(tmp_path: Path, value: Any, format: str | None, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(value))
    with pytest.raises(InputValueError, match=rf"bad\.jsonl, {message}"):
        list(read_instances(path, format=format))
    with pytest.raises(InputValueError, match="format is 'csv'"):
        list(read_instances(path, format="csv"))
