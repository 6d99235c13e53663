"""The stage `instances`: rows of every kind, templates, counts, and what goes wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet
from tiny_training import write_templates

from cappy_lite.errors import InputValueError
from cappy_train.cli import main
from cappy_train.files import find_files
from cappy_train.instances import Instance, read_instances
from cappy_train.paper import HELD_OUT, TRAINING
from cappy_train.records import read_records
from cappy_train.rendering import convert_instances, render_instances, split_of

YAML = """\
dataset: mood
templates:
  a: !Template
    answer_choices: sad ||| glad
    id: a
    jinja: '{{text}} How is it? ||| {{ answer_choices[label] }}'
    metadata: !TemplateMetadata {original_task: true}
    name: how
    reference: ''
  b: !Template
    answer_choices: null
    id: b
    jinja: '{% if label == 1 %}Write something glad. ||| {{text}}{% endif %}'
    metadata: !TemplateMetadata {original_task: false}
    name: write
    reference: ''
"""
ROWS: list[dict[str, Any]] = [
    {"text": 'a "sunny" day,\nall of it', "label": 1, "number": None},
    {"text": "007", "label": 0, "number": 3},
    {"text": "so so", "label": 0, "number": 12},
]
INSTRUCTIONS = [
    'a "sunny" day,\nall of it How is it?',
    "Write something glad.",
    "007 How is it?",
    "so so How is it?",
]


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    write_templates(tmp_path / "templates.tar.gz", {"mood": YAML})
    return tmp_path / "templates.tar.gz"


def write_rows(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """A file of rows, of the kind that its name says."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    if kind in {"csv", "tsv"}:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter="," if kind == "csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
        content = "\ufeff" + text.getvalue()
    elif kind == "json":
        content = json.dumps(rows, indent=1)
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


@pytest.mark.parametrize(
    "name", ["r.jsonl", "r.ndjson", "r.jsonl.gz", "r.json", "r.json.gz", "r.csv", "r.csv.gz", "r.tsv", "r.parquet"]
)
def test_rows_of_every_kind(tmp_path: Path, templates: Path, name: str) -> None:
    rows = write_rows(tmp_path / name)
    assert [record.value for record in read_records([rows])] == ROWS
    out = tmp_path / "out" / "made.jsonl"
    done = render_instances(rows, templates, "mood", out)
    instances = list(read_instances(out))
    assert [instance.instruction for instance in instances] == INSTRUCTIONS
    assert instances[0] == Instance(
        "mood:train:0:how", "mood", "how", INSTRUCTIONS[0], ("glad",), (), ("sad", "glad"), "train"
    )
    assert (done.rows, done.instances) == (3, 4)
    assert done.nothing == {"write": {"no prompt": 2}}
    assert str(done).endswith("  write: nothing of 2 rows: no prompt (2)")


@pytest.mark.parametrize("parts", [False, True])
def test_hugging_face_data_sets_in_a_folder(tmp_path: Path, templates: Path, parts: bool) -> None:
    data = datasets.Dataset.from_list(ROWS)
    folder = tmp_path / "saved"
    (datasets.DatasetDict({"train": data, "validation": data}) if parts else data).save_to_disk(folder)
    out = tmp_path / "made.jsonl"
    render_instances(folder, templates, "mood", out, split="dev")
    instances = list(read_instances(out, split="dev"))
    assert [instance.instruction for instance in instances] == INSTRUCTIONS
    assert instances[0].id == "mood:dev:0:how"
    if parts:
        with pytest.raises(InputValueError, match="has no split 'test': give one of train, validation"):
            render_instances(folder, templates, "mood", out, split="test")


def test_hugging_face_data_sets_by_name_need_the_package_and_the_network(
    tmp_path: Path, templates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputValueError, match="hub:no/such can't be loaded by datasets"):
        render_instances("hub:no/such", templates, "mood", tmp_path / "made.jsonl")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputValueError, match="pip install datasets"):
        render_instances("hub:no/such", templates, "mood", tmp_path / "made.jsonl")
    assert not (tmp_path / "made.jsonl").exists()


def test_one_template_a_row(tmp_path: Path, templates: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": f"day {number}", "label": 1} for number in range(60)])
    made = []
    for seed, out in ((0, "a.jsonl"), (0, "b.jsonl.gz"), (1, "c.parquet")):
        render_instances(rows, templates, "mood", tmp_path / out, one_per_row=True, seed=seed)
        made.append(list(read_instances(tmp_path / out)))
    assert made[0] == made[1] != made[2]
    assert len({instance.id.split(":")[2] for instance in made[0]}) == len(made[0]) == 60
    assert 10 < sum(instance.template == "how" for instance in made[0]) < 50


def test_a_row_that_the_drawn_template_is_not_for_gets_another(tmp_path: Path, templates: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": f"day {number}", "label": 0} for number in range(30)])
    done = render_instances(rows, templates, "mood", tmp_path / "a.jsonl", one_per_row=True)
    assert done.instances == 30
    assert 0 < done.nothing["write"].total() < 30


def test_what_a_killed_run_left_is_replaced(tmp_path: Path, templates: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    out = tmp_path / "made" / "a.parquet"
    render_instances(rows, templates, "mood", out)
    whole = out.read_bytes()
    (out.parent / "a.parquet.partial").write_bytes(whole[:100])
    render_instances(rows, templates, "mood", out)
    assert out.read_bytes() == whole
    assert [path.name for path in out.parent.iterdir()] == ["a.parquet"]


def test_named_templates_alone(tmp_path: Path, templates: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    done = render_instances(rows, templates, "mood", tmp_path / "a.jsonl", names=["write"])
    assert done.instances == 1
    with pytest.raises(InputValueError, match="no template 'sing': give some of 'how', 'write'"):
        render_instances(rows, templates, "mood", tmp_path / "a.jsonl", names=["sing"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.csv", "text,label\na,1\nb\n", r"r\.csv, line 3: has 1 cells, the first line 2"),
        ("r.csv", 'text,label\na,1\n"b,1\nc,0\n', r"r\.csv, after line 2: can't be read \(unexpected end of data"),
        ("r.csv", "text,text\n", r"r\.csv, line 1: should have the names of the columns"),
        ("r.csv", "", r"r\.csv, line 1: should have the names"),
        ("r.csv.gz", "text,label\n", r"r\.csv\.gz, after line 0: can't be read"),
        ("r.jsonl", '{"text": "a", "label": 1}\n[1]\n', r"r\.jsonl, line 2: a row is a JSON object"),
        ("r.jsonl", '{"text": "a", "label": 1}\n{"text"\n', r"r\.jsonl, line 2: "),
        ("r.json", '[{"text": "a", "label": 1},\n 3]', r"r\.json, item 2: a row is"),
        ("r.json", '[{"text": \n', r"r\.json: Expecting value"),
        ("r.parquet", "PAR1", r"r\.parquet, after row 0: can't be read"),
        ("r.txt", "a", r"r\.txt: its name should end in one of \.jsonl"),
        ("r.jsonl", '{"sentence": "a", "label": 1}\n', "no instance to write .*the row has no field text"),
        ("r.jsonl", "", "no instance to write .*0 rows gave 0"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(
    tmp_path: Path, templates: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    out = tmp_path / "out" / "made.jsonl"
    with pytest.raises(InputValueError, match=re.compile(message, re.DOTALL)):
        render_instances(tmp_path / name, templates, "mood", out)
    assert not list((tmp_path / "out").glob("*"))


def test_bad_outputs_are_refused_before_anything_is_read(tmp_path: Path, templates: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    before = rows.read_bytes()
    for out, message in ((rows, "is also read"), (tmp_path / "made.csv", "are written to .jsonl")):
        with pytest.raises(InputValueError, match=message):
            render_instances(rows, templates, "mood", out)
        with pytest.raises(InputValueError, match=message):
            convert_instances(rows, out, format="flan")
    assert rows.read_bytes() == before
    with pytest.raises(InputValueError, match="give 4 or more"):
        render_instances(rows, templates, "mood", tmp_path / "a.jsonl", longest=0)
    with pytest.raises(InputValueError, match="examples is -1"):
        convert_instances(rows, tmp_path / "a.jsonl", examples=-1)
    with pytest.raises(InputValueError, match="split is 'all'"):
        render_instances(rows, templates, "mood", tmp_path / "a.jsonl", split="all")


def test_splits() -> None:
    names = ("train_r1", "dev", "validation_matched", "test")
    assert [split_of(name) for name in names] == ["train", "dev", "dev", "test"]


def test_rows_are_divided_whole_and_alike(tmp_path: Path, templates: Path) -> None:
    rows = [{"text": f"day {number % 200}", "label": 1} for number in range(400)]  # each twice
    out = tmp_path / "out.jsonl"
    render_instances(write_rows(tmp_path / "rows.jsonl", rows), templates, "mood", out, shares=(60, 20, 20))
    splits: dict[str, set[str]] = {}
    for one in read_instances(out):
        (day,) = set(re.findall(r"day \d+", one.instruction + one.references[0]))
        splits.setdefault(day, set()).add(one.split)
    assert all(len(of_row) == 1 for of_row in splits.values())
    counts = Counter(next(iter(of_row)) for of_row in splits.values())
    assert 100 < counts["train"] < 140
    assert 25 < counts["dev"] < 55
    before = out.read_bytes()
    render_instances(write_rows(tmp_path / "rows.jsonl", rows), templates, "mood", out, shares=(3, 1, 1))
    assert out.read_bytes() == before
    render_instances(tmp_path / "rows.jsonl", templates, "mood", out, shares=(0, 0, 1), seed=1)
    assert {one.split for one in read_instances(out)} == {"test"}
    for shares in ((1, 1, -1), (0, 0, 0), (1, 1, float("nan"))):
        with pytest.raises(InputValueError, match="can't be divided by the shares"):
            render_instances(tmp_path / "rows.jsonl", templates, "mood", out, shares=shares)
    assert main(["instances", "--data", str(out), "--out", str(tmp_path / "no.jsonl"), "--divide", "1", "1", "1"]) == 1


def test_command(tmp_path: Path, templates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "r1.csv")
    write_rows(tmp_path / "r2.csv")
    out = tmp_path / "made.parquet"
    given = ["--data", str(tmp_path / "r*.csv"), "--templates", str(templates), "--dataset", "mood", "--out", str(out)]
    assert main(["instances", *given, "--split", "test", "--template", "how", "--cut", "8"]) == 0
    instances = list(read_instances(out, split="test"))
    assert [instance.id for instance in instances] == [f"mood:test:{number}:how" for number in range(6)]
    assert "6 rows gave 6 instances" in capsys.readouterr().err
    assert main(["instances", "--data", str(out), "--out", str(tmp_path / "a.jsonl"), "--split", "dev"]) == 0
    assert len(list(read_instances(tmp_path / "a.jsonl", split="dev"))) == 6
    for arguments, message in (
        (["--data", str(out)], "give --data and --out"),
        ([*given, "--dataset", "glad"], "has no templates/glad"),
        (["--data", "r", "--out", "o.jsonl", "--templates", "t"], "needs --dataset"),
        (["--data", "r", "--out", "o.jsonl", "--dataset", "d"], "give --templates too"),
        (["--data", str(tmp_path / "none.jsonl"), "--out", str(out)], "no such file"),
    ):
        assert main(["instances", *arguments]) == 1
        assert message in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["instances", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t") == ["use", "data set", "subset", "part"]
    assert len(lines) == 1 + 39 + 11
    assert "held out\tanli\t-\tr1" in lines
    assert "train\tglue\tmrpc\t-" in lines


def test_the_papers_data_sets() -> None:
    assert (len(set(TRAINING)), len(set(HELD_OUT))) == (39, 11)
    assert not set(TRAINING) & set(HELD_OUT)
    for name, subset, part in TRAINING + HELD_OUT:
        for text in (name, subset or "x", part or "x"):
            assert re.fullmatch(r"[\w.]+", text)


def test_files_are_found_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.jsonl"):
        (tmp_path / name).touch()
    found = find_files([tmp_path / "c.jsonl", str(tmp_path / "*.jsonl")])
    assert [path.name for path in found] == ["c.jsonl", "a.jsonl", "b.jsonl"]
    with pytest.raises(InputValueError, match="no file is named"):
        find_files([])
