"""What the commands that make models and reports of them do when something around them fails: told, and nothing left.

Those that write shards, checkpoints and files of instances have it in tests of their own.
"""

from __future__ import annotations

import gzip
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_adapt import example
from test_export import write_run
from tiny_checkpoints import write_checkpoint
from tiny_scorer import write_tiny_scorer
from tiny_training import tiny_network

from cappy_train import web_models
from cappy_train.annotate import annotate
from cappy_train.cli import main
from cappy_train.instances import write_instances

# A file may grow to so many bytes: less than any model's or report's, more than a plan's or a log's.
ROOM = 4000


@contextmanager
def small_disk(room: int = ROOM) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read: a model, a run, a checkpoint and instances."""
    folder = tmp_path_factory.mktemp("given")
    write_tiny_scorer(folder / "model", seed=1)
    (folder / "run").mkdir()
    write_run(folder / "run", tiny_network(folder / "bert"))
    write_checkpoint(folder / "checkpoint", "bert")
    splits = ("train", "dev", "test", "train")
    instances = [example(number, split=splits[number % 4]) for number in range(60)]
    write_instances(folder / "instances.jsonl", instances)
    lines = (folder / "instances.jsonl").read_text().splitlines()
    (folder / "bad.jsonl").write_text("\n".join([*lines[:6], '{"id": "x"}', *lines[6:]]))
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress((folder / "instances.jsonl").read_bytes())[:-100])
    annotate(folder / "instances.jsonl", folder / "pairs")
    return folder


def command(stage: str, given: Path, out: Path, *, data: str = "instances.jsonl") -> list[str]:
    """The stage's command; `out` is a file for distractors, else a folder."""
    read = ["--data", str(given / data)]
    options = {
        "adapt": [*read, "--model", str(given / "model"), "--learning-rate", "1e-2"],
        "distractors": read,
        "evaluate": [*read, "--model", str(given / "model")],
        "export": ["--run", str(given / "run"), "--dev", str(given / data), "--base-model", "none", "--licence", "MIT"],
        "generator": read,
        "import": [str(given / "checkpoint")],
        "pretrain": ["--data", str(given / "pairs"), "--dev", str(given / data), "--base", str(given / "bert")],
    }
    return [stage, *options[stage], "--out", str(out)]


@pytest.mark.parametrize(
    ("stage", "name", "room"),
    [
        ("distractors", "out.jsonl", ROOM),
        ("evaluate", "out", ROOM),
        ("export", "out", ROOM),
        ("import", "out", ROOM),
        ("import", "out", 30_000),  # for the tokenizer, and not for the graph
    ],
)
def test_a_full_disk_is_told_and_nothing_is_left(
    stage: str, name: str, room: int, given: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with small_disk(room):
        assert main(command(stage, given, tmp_path / name)) == 1
    assert f"{tmp_path / name} can't be written: " in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_adaptation_goes_on_after_a_full_disk(given: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, words = tmp_path / "out", command("adapt", given, tmp_path / "out")
    with small_disk():
        assert main(words) == 1
    assert "make room" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out.run"]
    assert main(words) == 0
    model = (out / "model.onnx.data").read_bytes()
    out.rename(tmp_path / "first")
    tokenizer = (tmp_path / "out.run" / "tokenizer.json").stat().st_size
    with small_disk(tokenizer):  # the training is done, and the model can't be written
        assert main(words) == 1
    assert f"{out} can't be written: " in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "out.run"]
    assert main(words) == 0
    assert (out / "model.onnx.data").read_bytes() == model


@pytest.mark.parametrize(("data", "place"), [("bad.jsonl", "line 7: "), ("cut.jsonl.gz", "after line ")])
@pytest.mark.parametrize("stage", ["adapt", "distractors", "evaluate", "export", "generator", "pretrain"])
def test_bad_rows_and_damaged_files_are_named(
    stage: str, data: str, place: str, given: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / ("out.jsonl" if stage == "distractors" else "out")
    assert main(command(stage, given, out, data=data)) == 1
    assert f"{given / data}, {place}" in capfd.readouterr().err
    assert not list(tmp_path.rglob("*.partial"))
    assert not (out / "checkpoint.pt").exists()
    assert not out.is_file()


@pytest.mark.parametrize("stage", ["adapt", "evaluate"])
def test_a_damaged_model_is_named(stage: str, given: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_tiny_scorer(tmp_path / "model", seed=1)
    weights = tmp_path / "model" / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    words = command(stage, given, tmp_path / "out")
    words[words.index(str(given / "model"))] = str(tmp_path / "model")
    assert main(words) == 1
    assert "model.onnx.data" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_adaptation_to_an_api_that_is_down(
    given: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_models, "FIRST_PAUSE", 0.01)
    words = [*command("adapt", given, tmp_path / "out"), "--api", "http://127.0.0.1:9/v1", "--generator", "tiny"]
    assert main(words) == 1
    assert "failed 8 times, at last: no connection" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out.run"]  # its plan and journal
