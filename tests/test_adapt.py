"""Adaptation: a scorer learns from a task's own examples, gives a model folder, and never a worse one."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_api import KEY, MODEL, serving
from tiny_generators import write_generator
from tiny_joint import write_tiny_joint
from tiny_scorer import write_tiny_scorer

from cappy_lite import Scorer
from cappy_lite.errors import InputValueError
from cappy_train.adapt import (
    AFTER,
    BEFORE,
    adapt,
    adaptation_gains,
    fitting_settings,
    markdown,
    pick_questions,
    read_examples,
    with_choices,
)
from cappy_train.batches import LabelledRow, Packer
from cappy_train.cli import main
from cappy_train.evaluation import CONSENSUS, ORACLE, RANDOM, Method
from cappy_train.instances import Candidate, Instance, read_instances, write_instances

ANIMALS = ("dog", "cat", "car", "house", "film", "chef", "child", "snow", "sun", "skier")
PLACES = ("street", "mountain", "water", "house")


def example(number: int, *, split: str = "train") -> Instance:
    """A task that is easy to learn: answers about the right animal, and one that are about nothing."""
    rng = random.Random(number)
    animal, place = rng.choice(ANIMALS), rng.choice(PLACES)
    right = f"the {animal} runs down to the {place}"
    candidates = [Candidate(right, "good", -1.0, -0.1), Candidate("question and answer", "bad", -9.0, -3.0)]
    rng.shuffle(candidates)
    return Instance(
        id=f"e{number}",
        task="animals",
        template=None,
        instruction=f"write a sentence {number}: {animal}, {place}",
        references=(f"{right} today",),
        candidates=tuple(candidates),
        choices=None,
        split=split,
    )


def choice(number: int, *, split: str = "train", recorded: bool = False) -> Instance:
    right = ("yes", "no")[number % 2]
    return Instance(
        id=f"c{number}",
        task="choices",
        template=None,
        instruction=f"is it {'good' if number % 2 else 'old'} {number}",
        references=(right,),
        candidates=(Candidate(right, "model"),) if recorded else (),
        choices=("yes", "no", "not"),
        split=split,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated one, of which the calibration doesn't hold any more after training."""
    folder = write_tiny_scorer(tmp_path_factory.mktemp("models") / "tiny", seed=1)
    config = json.loads((folder / "config.json").read_text())
    config["calibration"] = {"logits": [-1, 0, 2], "calibrated": [-3, -2, 2]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "animals.jsonl.gz"
    write_instances(path, [example(number, split="test" if number % 4 == 3 else "train") for number in range(80)])
    return path


@pytest.fixture(scope="module")
def adapted(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("adapted") / "animals"
    return out, adapt(data, out, model=model, learning_rate=1e-2)


def by_name(compared: dict[str, Any]) -> dict[str, Any]:
    return {method["name"]: method for method in compared["methods"]}


def test_picks_are_better_afterwards(adapted: tuple[Path, dict[str, Any]], model: Path) -> None:
    out, report = adapted
    assert not report["kept_start"]
    for part in ("held out", "test"):
        methods = by_name(report["picks"][part])
        assert methods["after"]["average"]["value"] > methods["before"]["average"]["value"]
        assert methods["before"]["ahead"]["after"]["value"] == pytest.approx(
            methods["after"]["average"]["value"] - methods["before"]["average"]["value"], abs=1e-4
        )
        assert methods["oracle"]["average"]["value"] == methods["good"]["average"]["value"]
        assert methods["self-score, sum"]["average"] == methods["good"]["average"]
    asked = [example(number) for number in range(100, 120)]
    scorer = Scorer(out, threads=1)
    texts = [tuple(candidate.text for candidate in one.candidates) for one in asked]
    picks = [text[int(scorer.score(one.instruction, text).argmax())] for one, text in zip(asked, texts, strict=True)]
    assert sum(pick == "question and answer" for pick in picks) < 5


def test_the_folder_is_a_model_with_its_report(adapted: tuple[Path, dict[str, Any]], model: Path) -> None:
    out, report = adapted
    assert json.loads((out / "adaptation.json").read_text()) == report
    assert (out / "adaptation.md").read_text() == markdown(report)
    config = json.loads((out / "config.json").read_text())
    assert (config["name"], config["licence"], config["max_tokens"]) == ("animals", "MIT", 160)
    assert config["base_model"] == "tiny, which started from random weights"
    assert config["calibration"] is config["calibration_proof"] is None
    assert "they are no calibrated probabilities" in (out / "README.md").read_text()
    assert config["training"] == report["training"]
    assert "instances of animals" in (out / "README.md").read_text()
    assert (out / "model.fp32.onnx").exists()  # to adapt it again
    assert sorted(path.name for path in out.parent.iterdir()) == ["animals", "animals.run"]


def test_the_report_says_what_it_is_of(adapted: tuple[Path, dict[str, Any]]) -> None:
    _, report = adapted
    assert report["instances"] == {
        "train": 48,
        "candidates all alike": 0,
        "held out": 12,
        "held out of": "train",
        "test": 20,
        "without candidates": 0,
    }
    assert set(report["seconds"]) == {"labels", "training", "export", "report"}
    assert report["peak_memory_mib"] > 50
    text = markdown(report)
    assert "## Held out: 12 questions" in text
    assert "## Test: 20 questions" in text
    assert "| before |" in text
    assert "No step was better" not in text


def test_where_nothing_is_better_the_start_stays(
    adapted: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    start, _ = adapted
    report = adapt(data, tmp_path / "out", model=start, learning_rate=1e-12, epochs=1)
    assert report["kept_start"]
    assert "No step was better" in markdown(report)
    for name in ("model.onnx", "model.onnx.data", "model.fp32.onnx", "config.json", "README.md", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (start / name).read_bytes()
    methods = by_name(report["picks"]["test"])
    assert methods["before"]["average"] == methods["after"]["average"]
    Scorer(tmp_path / "out")


def test_a_killed_run_goes_on_to_the_same_model(model: Path, data: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    adapt(data, whole, model=model, learning_rate=1e-2, epochs=20)
    options = ["--learning-rate", "1e-2", "--epochs", "20", "--model", str(model), "--out", str(killed)]
    command = [sys.executable, "-m", "cappy_train.cli", "adapt", "--data", str(data), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        checkpoint = tmp_path / "killed.run" / "checkpoint.pt"
        while not checkpoint.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not killed.exists()
    report = adapt(data, killed, model=model, learning_rate=1e-2, epochs=20)
    assert (killed / "model.onnx.data").read_bytes() == (whole / "model.onnx.data").read_bytes()
    assert report["picks"] == json.loads((whole / "adaptation.json").read_text())["picks"]


def test_recorded_candidates_load_no_language_model(model: Path, data: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cappy_train.adapt import adapt\n"
        f"adapt({str(data)!r}, Path({str(tmp_path / 'out')!r}), model={str(model)!r}, epochs=1)\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('transformers', 'openai')\n"
        "             or name in ('cappy_train.local_models', 'cappy_train.web_models')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_candidates_are_sampled_where_a_generator_is_given(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    write_instances(path, [replace(example(number), candidates=()) for number in range(12)])
    generator = write_generator(tmp_path / "generator", "gpt2")
    options = ["--data", str(path), "--out", str(tmp_path / "out"), "--model", str(model), "--epochs", "1"]
    assert main(["adapt", *options, "--generator", str(generator)]) == 0
    sampled = list(read_instances(tmp_path / "out.run" / "sampled"))
    assert {len(one.candidates) for one in sampled} == {17}
    report = json.loads((tmp_path / "out" / "adaptation.json").read_text())
    methods = by_name(report["picks"]["held out"])
    assert {"beam", "sampling", "temperature", "top-k", "nucleus", "self-score, sum", "consensus"} <= set(methods)
    assert report["data"] == ["examples.jsonl"]
    assert "sampling" in report["seconds"]


def test_candidates_are_sampled_by_a_web_api(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    path = tmp_path / "examples.jsonl"
    write_instances(path, [replace(example(number), candidates=()) for number in range(6)])
    options = ["--data", str(path), "--out", str(tmp_path / "out"), "--model", str(model), "--epochs", "1"]
    with serving(write_generator(tmp_path / "generator", "gpt2")) as api:
        assert main(["adapt", *options, "--api", api.url, "--generator", MODEL]) == 0
    report = json.loads((tmp_path / "out" / "adaptation.json").read_text())
    assert {"sampling", "temperature", "nucleus"} <= set(by_name(report["picks"]["held out"]))


def test_an_api_needs_a_models_name(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapt", "--data", str(data), "--out", str(tmp_path / "out"), "--api", "http://localhost:1/v1"]) == 1
    assert "--api needs --generator" in capsys.readouterr().err


def test_choices_join_the_candidates(model: Path, tmp_path: Path) -> None:
    joined = with_choices(choice(0, recorded=True))
    assert [(one.text, one.source) for one in joined.candidates] == [
        ("yes", "model"),
        ("no", "choice"),
        ("not", "choice"),
    ]
    (question,) = pick_questions([choice(0, recorded=True)])
    assert question.candidates == ("yes", "no", "not")
    assert question.gains.tolist() == [1, 0, 0]
    path = tmp_path / "choices.parquet"
    write_instances(path, [choice(number, recorded=number % 2 == 0) for number in range(40)])
    report = adapt(path, tmp_path / "out", model=model, learning_rate=1e-2)
    methods = by_name(report["picks"]["held out"])
    assert "choice" not in methods
    assert methods["random"]["average"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert methods["oracle"]["average"]["value"] == 1
    assert methods["model"]["average"]["value"] == 1
    assert methods["model"]["answered"] < report["instances"]["held out"]


def test_gains_are_of_systems_and_not_of_choices(model: Path) -> None:
    questions = pick_questions([choice(0, recorded=True), choice(1), example(0)])
    scorer = Scorer(model, threads=1)
    gains = adaptation_gains(questions, scorer, scorer)
    assert list(gains)[:2] == [BEFORE, AFTER]
    assert np.isnan(gains[Method("system", "model")]).tolist() == [False, True, True]
    assert np.isnan(gains[CONSENSUS]).tolist() == [False, True, False]
    assert gains[RANDOM][1] == pytest.approx(1 / 3)
    assert gains[ORACLE].tolist()[:2] == [1, 1]


def test_renderings_of_an_example_are_held_out_together(tmp_path: Path) -> None:
    path = tmp_path / "two.parquet"
    rendered = [
        replace(example(number), id=f"e{number}:{name}", template=name) for number in range(30) for name in ("a", "b")
    ]
    write_instances(path, rendered)
    found = read_examples([path], seed=0)
    held_out = {one.id for one in found.held_out}
    assert len(held_out) == 12
    assert {id.split(":")[0] + ":b" for id in held_out} == {id for id in held_out if id.endswith("b")}
    assert len(found.rows) == 48
    other = read_examples([path], seed=1)
    assert {one.id for one in other.held_out} != held_out


def test_a_split_dev_is_what_stops_it(tmp_path: Path) -> None:
    path = tmp_path / "dev.parquet"
    without = replace(example(9), candidates=())
    alike = replace(example(8), candidates=example(8).candidates[:1])
    write_instances(path, [*(example(number) for number in range(5)), example(5, split="dev"), without, alike])
    found = read_examples([path], seed=0)
    assert [one.id for one in found.held_out] == ["e5"]
    assert found.counts() == {
        "train": 5,
        "candidates all alike": 1,
        "held out": 1,
        "held out of": "dev",
        "test": 0,
        "without candidates": 1,
    }


def test_few_examples_are_read_more_often(model: Path) -> None:
    packer = Packer(model / "tokenizer.json")

    def fitted(count: int, epochs: float | None = None) -> tuple[float, int]:
        rows = [LabelledRow("the dog runs " * 20, ("a dog", "a cat"), (1.0, 0.0))] * count
        settings = fitting_settings(rows, packer, 160, epochs=epochs, learning_rate=1e-4, seed=0)
        assert (settings.short, settings.long) == (160, 160)
        assert settings.batches_per_step > 1  # a batch is a thread's: one would leave cores idle
        return settings.epochs, settings.evaluate_every

    few, many = fitted(20), fitted(20_000)
    assert few[0] > 3 == many[0]
    assert few[1] == 1
    assert many[1] > 10
    assert fitted(20, 2.0)[0] == 2


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ([replace(example(0), candidates=())], r"no instance has candidates or choices .*--generator"),
        ([example(0, split="test")], "no instance of split train"),
        ([example(0)], "give two at least"),
        ([replace(example(n), candidates=example(n).candidates[:1]) for n in range(9)], "candidates differ in what"),
    ],
)
def test_data_that_teaches_nothing_is_refused(
    instances: list[Instance], message: str, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    write_instances(path, instances)
    with pytest.raises(InputValueError, match=message):
        adapt(path, tmp_path / "out", model=model)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_is_refused_before_any_work(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputValueError, match="exists: give --out a new folder"):
        adapt(data, tmp_path, model=model)
    with pytest.raises(InputValueError, match="graph joint"):
        adapt(data, tmp_path / "out", model=write_tiny_joint(tmp_path / "joint"))
    with pytest.raises(InputValueError, match="no such file"):
        adapt(tmp_path / "none.jsonl", tmp_path / "out", model=model)
    assert {path.name for path in tmp_path.iterdir()} == {"joint"}
    given = ["--data", str(data), "--out", str(tmp_path / "out")]
    assert main(["adapt", *given, "--model", "cappy-maxi"]) == 1
    assert "unknown model 'cappy-maxi'" in capsys.readouterr().err


def test_a_run_of_something_else_is_refused(
    adapted: tuple[Path, dict[str, Any]], model: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(adapted[0].with_name("animals.run"), run)
    with pytest.raises(InputValueError, match=r"run was begun with other settings: seed was 0, and is 1 now"):
        adapt(data, tmp_path / "out", model=model, run=run, seed=1)
    other = tmp_path / "other.jsonl"
    write_instances(other, [example(number) for number in range(500, 520)])
    with pytest.raises(InputValueError, match="run with other settings or data"):
        adapt(other, tmp_path / "out", model=model, run=run)


def test_the_command_prints_the_report(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--run", str(tmp_path / "run"), "--epochs", "1", "--seed", "3"]
    assert main(["adapt", "--data", str(data), "--out", str(out), "--model", str(model), *options]) == 0
    assert capsys.readouterr().out.strip().endswith((out / "adaptation.md").read_text().strip())
    assert (tmp_path / "run" / "checkpoint.pt").exists()
