"""Annotation: which pairs, which scores; exactly once, however often it is killed."""

from __future__ import annotations

import gzip
import json
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rouge_score.rouge_scorer import RougeScorer

from cappy_lite.errors import InputTypeError, InputValueError
from cappy_train.annotate import PAIRS, annotate
from cappy_train.cli import main
from cappy_train.instance_tables import SCHEMA, read_blocks
from cappy_train.instances import arrow_schema, arrow_table, parse_instance, read_instances, write_instances
from cappy_train.shards import Shards, open_writer

Record = dict[str, Any]
COMMAND = [sys.executable, "-m", "cappy_train.cli", "annotate"]
WORDS = [
    "a",
    "the",
    "dog",
    "cats",
    "run",
    "running",
    "ran",
    "skis",
    "skiing",
    "7",
    "12",
    "snow,",
    "sun.",
    "film?",
    "word",
]


def instance(id: str, **given: Any) -> Record:
    record = {"id": id, "task": "t", "template": None, "instruction": f"Say {id}", "references": ["it"]}
    return record | {"candidates": [], "choices": None, "split": "train"} | given


def candidates(*texts: str) -> list[Record]:
    return [{"text": text, "source": f"s{number}", "correct": True} for number, text in enumerate(texts)]


def random_instances(count: int, *, seed: int = 0) -> list[Record]:
    source = random.Random(seed)

    def text() -> str:
        return " ".join(source.choices(WORDS, k=source.randint(1, 9)))

    return [
        instance(
            str(number),
            task=f"task {number % 3}",
            references=[text() for _ in range(source.randint(1, 3))],
            candidates=candidates(*(text() for _ in range(source.randint(0, 5)))),
            split=source.choice(["train", "dev", "test"]),
        )
        for number in range(count)
    ]


def write_lines(path: Path, records: list[Record]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def pairs_of(shards: Shards) -> list[Record]:
    return [pair for place in shards.row_groups() for pair in shards.read(place).to_pylist()]


def annotated(tmp_path: Path, records: list[Record], **options: Any) -> list[Record]:
    out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
    return pairs_of(annotate([write_lines(tmp_path / "in.jsonl", records)], out, **options))


def scores_of(pairs: list[Record], id: str) -> dict[str, tuple[str, float]]:
    return {pair["response"]: (pair["source"], pair["score"]) for pair in pairs if pair["instance_id"] == id}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_choices(tmp_path: Path) -> None:
    pairs = annotated(
        tmp_path,
        [
            instance("a", references=["yes"], choices=["no", "yes", "maybe"]),
            instance(
                "b",
                references=["entailment"],
                choices=["entailment", "not entailment"],
                candidates=candidates("Not entailment.", "Entailment!", "entailment it is", "not entailment", "?"),
            ),
        ],
    )
    assert scores_of(pairs, "a") == {"yes": ("reference", 1), "no": ("choice", 0), "maybe": ("choice", 0)}
    b = scores_of(pairs, "b")
    assert b.pop("entailment it is") == ("s2", 0.5)
    assert b == {
        "entailment": ("reference", 1),
        "not entailment": ("choice", 0),
        "Not entailment.": ("s0", 0),
        "Entailment!": ("s1", 1),
        "?": ("s4", 0),
    }
    assert pairs[0] == {
        "instruction": "Say a", "response": "yes", "score": 1, "task": "t", "instance_id": "a", "source": "reference"
    }  # fmt: skip


def test_open_generation(tmp_path: Path) -> None:
    texts = ["skiing dogs", "ski dog", "", "A DOG  skis", "ski dog", "cats", "A dog skis."]
    records = [
        instance("a", references=["A dog skis.", "The cat"], candidates=candidates(*texts)),
        instance("b", references=["something else"]),
    ]
    pairs = annotated(tmp_path, records)
    a = scores_of(pairs, "a")
    assert sum(pair["instance_id"] == "a" for pair in pairs) == len(a)
    assert a["something else"] == ("random", 0)
    assert a["A dog skis."] == ("reference", 1)
    assert a["The cat"] == ("reference", 1)
    assert a["A DOG  skis"] == ("s3", 1)
    assert a["ski dog"] == ("s1", pytest.approx(0.4))
    assert a["cats"] == ("s5", pytest.approx(2 / 3))
    assert a[""] == ("s2", 0)
    b = scores_of(pairs, "b")
    assert set(b.values()) == {("reference", 1.0), ("random", 0.0)}


def test_what_answers_nothing_has_no_words_of_the_answer(tmp_path: Path) -> None:
    said = [{"text": text, "source": "probe"} for text in ("Is the dog black? Say yes or no.", "yes yes", "Yes!")]
    records = [
        instance("a", references=["yes"], choices=["yes", "no"], candidates=said),
        instance("b", references=["yes, it is"], candidates=said),
    ]
    pairs = annotated(tmp_path, records)
    a, b = scores_of(pairs, "a"), scores_of(pairs, "b")
    assert [a[one["text"]] for one in said] == [("probe", 0), ("probe", 0), ("probe", 1)]
    assert [b[one["text"]] for one in said] == [("probe", 0)] * 3


def test_texts_in_which_rouge_finds_no_words(tmp_path: Path) -> None:
    texts = ["\u4f60\u597d", " + ", "-", "\u4f60 \u597d", "\u041a\u041e\u0422", ""]
    records = [instance("a", references=["\u4f60\u597d ", "+", "\u043a\u043e\u0442"], candidates=candidates(*texts))]
    assert scores_of(annotated(tmp_path, records), "a") == {
        "\u4f60\u597d ": ("reference", 1),
        "+": ("reference", 1),
        "\u043a\u043e\u0442": ("reference", 1),
        "\u4f60\u597d": ("s0", 1),
        " + ": ("s1", 1),
        "-": ("s2", 0),
        "\u4f60 \u597d": ("s3", 0),
        "\u041a\u041e\u0422": ("s4", 1),
        "": ("s5", 0),
    }


def test_candidates_have_rouge_scores_numbers(tmp_path: Path) -> None:
    records = random_instances(300)
    shards = annotate([write_lines(tmp_path / "in.jsonl", records)], tmp_path / "out", shard_instances=64)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    by_id = {record["id"]: record for record in records}
    pairs = pairs_of(shards)
    sampled = [pair for pair in pairs if pair["source"].startswith("s")]
    theirs = [
        scorer.score_multi(by_id[pair["instance_id"]]["references"], pair["response"])["rougeL"].fmeasure
        for pair in sampled
    ]
    assert pa.array([pair["score"] for pair in sampled], pa.float32()) == pa.array(theirs, pa.float32())
    assert len(sampled) > 500
    kinds = defaultdict(list)
    for pair in pairs:
        kinds[pair["instance_id"]].append(pair["response"])
    assert list(kinds) == [record["id"] for record in records]
    for record in records:
        assert len(set(kinds[record["id"]])) == len(kinds[record["id"]])
        assert {*record["references"], *(one["text"] for one in record["candidates"])} <= set(kinds[record["id"]])
    counts = shards.manifest["counts"]
    assert counts["instances"] == 300
    assert counts["references"] + counts["candidates"] + counts["random"] == shards.rows == len(pairs)
    given = sum(len(record["references"]) + len(record["candidates"]) for record in records)
    assert counts["duplicates"] == given + 300 - counts["without_random"] - shards.rows


def test_a_random_response_is_wrong(tmp_path: Path) -> None:
    few = [instance(str(number), references=[f"Answer {number % 2}"]) for number in range(20)]
    few += [instance("twin", instruction="Say 0", references=["another right answer"])]
    few += [instance("choice", references=["never drawn"], choices=["never drawn", "x"])]
    for seed in range(5):
        for pair in annotated(tmp_path, few, seed=seed):
            if pair["source"] == "random":
                assert pair["score"] == 0
                assert pair["response"] != "never drawn"
                if pair["instance_id"] == "0":
                    assert pair["response"] == "Answer 1"
    many = random_instances(50)
    assert annotated(tmp_path, many, seed=1) == annotated(tmp_path, many, seed=1)
    assert annotated(tmp_path, many, seed=1) != annotated(tmp_path, many, seed=2)


def test_no_other_response_for_a_lone_instance(tmp_path: Path) -> None:
    shards = annotate([write_lines(tmp_path / "in.jsonl", [instance("a")])], tmp_path / "out")
    assert scores_of(pairs_of(shards), "a") == {"it": ("reference", 1)}
    assert shards.manifest["counts"]["without_random"] == 1


def test_all_formats_give_the_same_pairs(tmp_path: Path) -> None:
    records = random_instances(90)
    table = next(read_blocks([write_lines(tmp_path / "a.jsonl", records)], 1000)).table
    with gzip.open(tmp_path / "zipped", "wt", encoding="utf-8") as file:
        file.write("\n\n".join(json.dumps(record) for record in records))
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=7)
    large = pa.schema([(field.name, pa.large_string()) for field in SCHEMA if field.type == pa.string()])
    large = large.append(pa.field("references", pa.large_list(pa.large_string())))
    pq.write_table(table.select(large.names).cast(large).append_column("more", table["id"]), tmp_path / "c.parquet")
    pq.write_table(
        table.set_column(1, "task", table["task"].dictionary_encode()).drop_columns("choices"), tmp_path / "d.parquet"
    )
    a, b, c, d, zipped = (
        pairs_of(annotate([tmp_path / name], tmp_path / f"out {name}", shard_instances=16))
        for name in ("a.jsonl", "b.parquet", "c.parquet", "d.parquet", "zipped")
    )
    assert a == b == zipped == d
    assert [pair for pair in c if pair["source"] == "reference"] == [p for p in a if p["source"] == "reference"]


def test_likelihoods_of_candidates_change_nothing(tmp_path: Path) -> None:
    known = {"log_likelihood": -3.5, "mean_log_likelihood": -0.5}
    records = random_instances(30)
    for record in records[::2]:
        record["candidates"] = [one | known for one in record["candidates"]]
    lines = write_lines(tmp_path / "in.jsonl", records)
    write_instances(tmp_path / "in.parquet", read_instances(lines))
    out = [pairs_of(annotate([lines.with_suffix(end)], tmp_path / end)) for end in (".jsonl", ".parquet")]
    assert out[0] == out[1] == annotated(tmp_path, random_instances(30))


def test_globs_name_each_file_once(tmp_path: Path) -> None:
    for number in range(3):
        write_lines(tmp_path / f"{number}.jsonl", random_instances(5, seed=number))
    shards = annotate([tmp_path / "1.jsonl", str(tmp_path / "*.jsonl")], tmp_path / "out")
    assert [one["name"] for one in shards.manifest["plan"]["inputs"]] == ["1.jsonl", "0.jsonl", "2.jsonl"]
    assert shards.manifest["counts"]["instances"] == 15


def test_a_folder_of_shards_is_an_input_by_its_name(tmp_path: Path) -> None:
    records = random_instances(40)
    folder, instances = tmp_path / "sampled", [parse_instance(record) for record in records]
    with open_writer(folder, {"stage": "sample"}) as writer:
        for number in range(4):
            tables = [arrow_table(instances[number * 10 : number * 10 + 10])]
            writer.add(writer.files.write(number, tables, arrow_schema(), counts={}))
        with pytest.raises(InputValueError, match="no complete folder of shards: run the command that makes it again"):
            annotate([folder], tmp_path / "early")
        writer.finish(4)
    assert pairs_of(annotate([folder], tmp_path / "out")) == annotated(tmp_path, records)
    assert list(read_instances(folder)) == instances


def test_one_split_alone(tmp_path: Path) -> None:
    records = random_instances(60)
    dev = {record["id"] for record in records if record["split"] == "dev"}
    assert {pair["instance_id"] for pair in annotated(tmp_path, records, split="dev")} == dev
    assert {pair["instance_id"] for pair in annotated(tmp_path, records)} == {record["id"] for record in records}


def test_the_columns(tmp_path: Path) -> None:
    shards = annotate([write_lines(tmp_path / "in.jsonl", random_instances(9))], tmp_path / "out")
    place = shards.row_groups()[0]
    assert shards.read(place).schema.remove_metadata() == PAIRS
    table = shards.read(place, columns=["instruction", "score"], repeated=["instruction"])
    assert [str(field.type).partition("<")[0] for field in table.schema] == ["dictionary", "float"]
    assert len(table["instruction"].chunk(0).dictionary) == 9


def test_instructions_that_repeat_stay_small(tmp_path: Path) -> None:
    records = [instance(str(number), instruction="long " * 1000, references=[str(number)]) for number in range(500)]
    annotate([write_lines(tmp_path / "in.jsonl", records)], tmp_path / "out")
    column = pq.read_metadata(tmp_path / "out" / "shard-000000.parquet").row_group(0).column(0)
    assert column.total_uncompressed_size < 20_000


@pytest.fixture(scope="module")
def long_job(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, bytes]]:
    """Arguments of a job with forty shards, and what it writes when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("job")
    records = random_instances(800)
    write_lines(folder / "a.jsonl", records[:350])
    table = next(read_blocks([write_lines(folder / "b", records[350:])], 1000)).table
    pq.write_table(table, folder / "c.parquet", row_group_size=37)
    arguments = ["--shard-instances", "20", "--data", str(folder / "a.jsonl"), str(folder / "c.parquet")]
    annotate(arguments[3:], folder / "out", shard_instances=20, threads=1)
    assert not list((folder / "out").glob("*.partial"))
    return arguments, contents(folder / "out")


def test_the_same_bytes_when_it_was_killed(long_job: tuple[list[str], dict[str, bytes]], tmp_path: Path) -> None:
    arguments, expected = long_job
    out = tmp_path / "out"
    out.mkdir()
    seed = random.randrange(1000)
    print(f"seed {seed}")
    source = random.Random(seed)
    killed = 0
    for _ in range(4):
        entries = len(list(out.iterdir())) + source.choice([0, 1, 2, 9, 9, 15])
        with subprocess.Popen([*COMMAND, *arguments, "--out", str(out)], stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and len(list(out.iterdir())) < entries:
                time.sleep(0.001)
            time.sleep(source.random() * 0.02)
            process.kill()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 2
    assert main(["annotate", *arguments, "--out", str(out)]) == 0
    assert contents(out) == expected


def test_goes_on_after_ctrl_c(long_job: tuple[list[str], dict[str, bytes]], tmp_path: Path) -> None:
    arguments, expected = long_job
    out = tmp_path / "out"
    with subprocess.Popen([*COMMAND, *arguments, "--out", str(out)], stderr=subprocess.PIPE) as process:
        while process.poll() is None and not list(out.glob("*.parquet")):
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert not list(out.glob("*.partial"))
    assert (out / "unfinished.json").exists()
    with pytest.raises(InputValueError, match="it goes on"):
        Shards(out)
    assert main(["annotate", *arguments, "--out", str(out), "--threads", "2"]) == 0
    assert contents(out) == expected


@pytest.mark.parametrize("lost", [["manifest.json"], ["manifest.json", "shard-000003.parquet", "shard-000039.parquet"]])
def test_makes_what_is_missing(long_job: tuple[list[str], dict[str, bytes]], tmp_path: Path, lost: list[str]) -> None:
    arguments, expected = long_job
    for name, data in expected.items():
        if name not in lost:
            (tmp_path / name).write_bytes(data)
    (tmp_path / "unfinished.json").write_text(json.dumps(json.loads(expected["manifest.json"])["plan"]))
    (tmp_path / "shard-000003.parquet.partial").write_bytes(b"half")
    assert main(["annotate", *arguments, "--out", str(tmp_path)]) == 0
    assert contents(tmp_path) == expected
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert main(["annotate", *arguments, "--out", str(tmp_path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != ".lock"} == {
        path: at for path, at in before.items() if path.name != ".lock"
    }


@pytest.mark.parametrize("finished", [True, False])
def test_other_inputs_or_settings_are_not_mixed(tmp_path: Path, finished: bool) -> None:
    path, out = write_lines(tmp_path / "in.jsonl", random_instances(5)), tmp_path / "out"
    annotate([path], out)
    if not finished:
        (out / "unfinished.json").write_text(json.dumps(Shards(out).manifest["plan"]))
        (out / "manifest.json").unlink()
    before = contents(out)
    with pytest.raises(InputValueError, match=r"settings.seed was 0, and is 1 now"):
        annotate([path], out, seed=1)
    with pytest.raises(InputValueError, match=r"inputs\[1\].name was None"):
        annotate([path, write_lines(tmp_path / "more.jsonl", random_instances(6))], out)
    write_lines(path, random_instances(5, seed=3))
    with pytest.raises(InputValueError, match=r"inputs\[0\].*give what it was begun with, or another --out"):
        annotate([path], out)
    assert contents(out) == before


def test_a_folder_with_other_files(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", random_instances(5))
    with pytest.raises(InputValueError, match="has other files"):
        annotate([path], tmp_path)
    with pytest.raises(InputValueError, match="can't be written"):
        annotate([path], path)
    out = tmp_path / "out"
    annotate([path], out)
    (out / "unfinished.json").write_text(json.dumps(Shards(out).manifest["plan"]))
    (out / "manifest.json").unlink()
    (out / "shard-000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputValueError, match=r"shard-000000.parquet is no shard .*delete it"):
        annotate([path], out)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    path, out = write_lines(tmp_path / "in.jsonl", random_instances(5)), tmp_path / "out"
    with open_writer(out, {}):
        before = contents(out)
        process = subprocess.run(
            [*COMMAND, "--data", path, "--out", out], capture_output=True, text=True, timeout=60, check=False
        )
        assert process.returncode == 1
        assert "is being written by another process: wait" in process.stderr
        assert "Traceback" not in process.stderr
        assert contents(out) == before


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A limit on the size of files fails as a full disk does: with an OSError in the middle of a write."""
    records = [instance(str(number), references=[random.Random(number).randbytes(20).hex()]) for number in range(3000)]
    path, out = write_lines(tmp_path / "in.jsonl", records[:50] + records), tmp_path / "out"
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from cappy_train.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["annotate", "--data", str(path), "--out", str(out), "--shard-instances", "1000"]
    process = subprocess.run(
        [sys.executable, "-c", limited, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert process.returncode == 1
    assert "parquet can't be written" in process.stderr
    assert "make room" in process.stderr
    assert "Traceback" not in process.stderr
    assert {path.name for path in out.iterdir()} == {".lock", "unfinished.json"}
    assert main(arguments) == 0
    assert main([*arguments[:3], "--out", str(tmp_path / "again"), *arguments[5:]]) == 0
    assert contents(out) == contents(tmp_path / "again")


BAD = {
    "id should be": {"id": ""},
    "task should be": {"task": None},
    "instruction should be": {"instruction": ""},
    "references should be": {"references": []},
    "choices should be": {"choices": []},
    "choices lacks a reference": {"choices": ["no"]},
    "candidates should be": {"candidates": [{"text": None, "source": "s"}]},
    "split is 'training'": {"split": "training"},
}


@pytest.mark.parametrize("form", ["line", "row"])
def test_bad_rows_are_named_and_nothing_past_them_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    bad = [instance("bad") | change for change in BAD.values()]
    bad += [instance("bad") | {"references": ["it", None]}, instance("bad") | {"references": None}]
    good = random_instances(40)
    records = [*good[:25], *bad, *good[25:]]
    path, out = tmp_path / "in", tmp_path / "out"
    if form == "row":
        columns = {field.name: [record[field.name] for record in records] for field in SCHEMA}
        columns["candidates"] = [
            [{"text": one["text"], "source": one["source"]} for one in record] for record in columns["candidates"]
        ]
        pq.write_table(pa.table(columns, schema=SCHEMA), path, row_group_size=9)
    else:
        write_lines(path, records)
    arguments = ["annotate", "--data", str(path), "--out", str(out), "--shard-instances", "10", "--threads", "2"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "bad rows: 10;" in error
    for number, message in enumerate(BAD, start=26):
        assert f"{path}, {form} {number}: {message}" in error
    assert {path.name for path in out.glob("shard*")} == {"shard-000000.parquet", "shard-000001.parquet"}
    assert main([*arguments, "--skip-bad-rows"]) == 0
    assert f"left out: {path}, {form} 26: {next(iter(BAD))}" in capsys.readouterr().err
    shards = Shards(out)
    assert shards.manifest["counts"]["bad_rows"] == len(shards.manifest["notes"]) == 10
    assert {pair["instance_id"] for pair in pairs_of(shards)} == {record["id"] for record in good}


def test_lines_that_are_no_instances(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    lone = json.dumps(instance("a", instruction="\ud800")).encode()
    path.write_bytes(json.dumps(instance("\U0001f600")).encode() + b"\n\n{\n[]\n\xff\n" + lone)
    shards = annotate([path], tmp_path / "out", skip_bad_rows=True)
    assert [note.partition(": ")[0] for note in shards.manifest["notes"]] == [
        f"{path}, line {number}" for number in (3, 4, 5, 6)
    ]
    assert [pair["instance_id"] for pair in pairs_of(shards)] == ["\U0001f600"]


def test_a_row_that_is_not_utf_8(tmp_path: Path) -> None:
    table = next(read_blocks([write_lines(tmp_path / "in.jsonl", random_instances(9))], 1000)).table
    texts = [text.encode() for text in table["instruction"].to_pylist()]
    texts[6] = b"\xff\xfe"
    buffers = pa.array(texts, pa.binary()).buffers()
    table = table.set_column(2, "instruction", pa.Array.from_buffers(pa.string(), 9, buffers))
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(InputValueError, match=r"in.parquet, row 7: .*UTF8"):
        annotate([tmp_path / "in.parquet"], tmp_path / "out")


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    good = write_lines(tmp_path / "in.jsonl", random_instances(50))
    table = next(read_blocks([good], 1000)).table
    pq.write_table(table, tmp_path / "good.parquet")
    data = (tmp_path / "good.parquet").read_bytes()
    (tmp_path / "half.parquet").write_bytes(data[: len(data) // 2])
    (tmp_path / "damaged.parquet").write_bytes(data[:100] + bytes(400) + data[500:])
    zipped = gzip.compress(good.read_bytes())
    (tmp_path / "half.gz").write_bytes(zipped[: len(zipped) // 2])
    pq.write_table(table.drop_columns("references"), tmp_path / "column.parquet")
    pq.write_table(table.set_column(0, "id", pa.array(range(50))), tmp_path / "type.parquet")
    for name, message in {
        "nowhere.jsonl": "no such file",
        "*.csv": "no such file",
        ".": "is a folder: name its files",
        "half.parquet": "can't be read as Parquet",
        "damaged.parquet": "damaged.parquet.* can't be read",
        "half.gz": r"half.gz, after line \d+: can't be read",
        "column.parquet": "has no column references",
        "type.parquet": "column id: should be of type string, and is not .*int64",
    }.items():
        out = tmp_path / f"out {name.replace('*', '')}"
        with pytest.raises(InputValueError, match=message):
            annotate([good, tmp_path / name], out)
        assert not (out / "manifest.json").exists()


def test_options(tmp_path: Path) -> None:
    path, out = write_lines(tmp_path / "in.jsonl", [instance("a")]), tmp_path / "out"
    with pytest.raises(InputValueError, match="shard_instances must be at least 1"):
        annotate([path], out, shard_instances=0)
    with pytest.raises(InputTypeError, match="threads must be an int"):
        annotate([path], out, threads=1.5)  # type: ignore[arg-type]
    with pytest.raises(InputValueError, match="split is 'all'"):
        annotate([path], out, split="all")
    with pytest.raises(InputTypeError, match="seed must be an int"):
        annotate([path], out, seed=0.5)  # type: ignore[arg-type]
    with pytest.raises(InputValueError, match="seed is -1"):
        annotate([path], out, seed=-1)
    with pytest.raises(InputValueError, match="no file is named"):
        annotate([], out)
    assert not out.exists()


def test_no_instances(tmp_path: Path) -> None:
    shards = annotate([write_lines(tmp_path / "in.jsonl", [])], tmp_path / "out")
    assert (shards.rows, shards.row_groups()) == (0, [])
    assert annotated(tmp_path, random_instances(5), split="train") is not None
    assert annotated(tmp_path, [instance("a")], split="dev") == []


def test_help_loads_neither_torch_nor_pyarrow() -> None:
    code = (
        "import sys; from cappy_train.cli import main\n"
        "try: main(['annotate', '--help'])\n"
        "except SystemExit: print({'torch', 'pyarrow'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert process.stdout.endswith("set()\n")


MEMORY = """
import sys
from pathlib import Path
from cappy_train.annotate import annotate
annotate([sys.argv[1]], Path(sys.argv[2]), shard_instances=100, threads=2)
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1])
"""


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    """Six times the rows, 180 MB more text: no more memory."""
    choices = ["0", *(f"{choice} " + "x" * 1500 for choice in range(16))]
    said = [{"text": "0 it", "source": "s"}]
    records = [instance("", references=["0"], choices=choices, candidates=said)] * 100
    table = pa.Table.from_pylist(records, schema=SCHEMA)
    peaks = []
    for rows in (1500, 9000):
        path = tmp_path / f"{rows}.parquet"
        with pq.ParquetWriter(path, SCHEMA, use_dictionary=False) as writer:
            for start in range(0, rows, 100):
                ids = pa.array([str(number) for number in range(start, start + 100)])
                writer.write_table(table.set_column(0, "id", ids))
        process = subprocess.run(
            [sys.executable, "-c", MEMORY, path, tmp_path / f"out{rows}"], capture_output=True, text=True, check=True
        )
        peaks.append(int(process.stdout) / 1024)
    assert peaks[1] < peaks[0] + 60


def test_globs_are_not_read_as_names(tmp_path: Path) -> None:
    """A file whose name looks like a glob is that file."""
    path = write_lines(tmp_path / "a[1].jsonl", [instance("a")])
    write_lines(tmp_path / "a1.jsonl", [instance("b")])
    assert [pair["instance_id"] for pair in pairs_of(annotate([path], tmp_path / "out"))] == ["a"]
