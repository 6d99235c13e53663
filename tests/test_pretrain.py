"""The training run: it learns, it resumes exactly, and it says what is wrong."""

import gzip
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import write_tiny_bert, write_tiny_data

from cappy_lite.errors import InputValueError
from cappy_train import cli
from cappy_train.pretrain import (
    Run,
    Settings,
    learning_rate,
    pretrain,
    scorer_loss,
    trained_network,
    working_copy,
)

SETTINGS = Settings(
    steps=8,
    batch_tokens=256,
    batches_per_step=2,
    short=140,
    long=160,
    learning_rate=3e-3,
    checkpoint_every=4,
    evaluate_every=8,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return write_tiny_data(folder / "data"), write_tiny_bert(folder / "bert")


def log_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return trained_network(run).state_dict()


def test_it_learns(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    pretrain(*inputs, tmp_path, replace(SETTINGS, steps=300, checkpoint_every=50, evaluate_every=300))
    log = log_of(tmp_path)
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < losses[0] - 0.2
    (dev,) = (line for line in log if "t0_generation_dev_closed" in line)
    assert dev["t0_generation_dev_closed"] > 0.2
    assert all(line["pairs_per_second"] > 0 and line["tokens_per_second"] > 0 for line in log if "loss" in line)


def test_a_stopped_run_goes_on_to_the_same_weights(
    inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(*inputs, tmp_path / "whole", SETTINGS)
    updates = Run.update

    def update_and_stop(run: Run) -> None:
        updates(run)
        if run.step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "update", update_and_stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(*inputs, tmp_path / "stopped", SETTINGS)
    pretrain(*inputs, tmp_path / "stopped", SETTINGS)
    whole, stopped = weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_a_killed_run_goes_on_to_the_same_weights(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    data, base = inputs
    settings = replace(SETTINGS, steps=4000, checkpoint_every=1, evaluate_every=4000)
    script = (
        "from pathlib import Path; from cappy_train.pretrain import Settings, pretrain\n"
        f"pretrain(Path({str(data)!r}), Path({str(base)!r}), Path({str(tmp_path)!r}), {settings!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (tmp_path / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.3)
    process.kill()
    process.wait()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert 0 < state["step"] < 4000
    # The same number of steps in one go, at the learning rates of the long run.
    done = state["step"]

    class Enough(Exception):
        pass

    def stop_there(run: Run) -> None:
        if run.step == done:
            raise Enough

    whole = tmp_path / "whole"
    original = Run.save

    def save_and_stop(run: Run) -> None:
        original(run)
        stop_there(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", save_and_stop)
        with pytest.raises(Enough):
            pretrain(data, base, whole, settings)
    expected = weights_of(whole)
    assert all(torch.equal(expected[name], value) for name, value in state["network"].items())


def test_another_runs_folder_is_refused(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    pretrain(*inputs, tmp_path, replace(SETTINGS, steps=1))
    with pytest.raises(InputValueError, match="other settings"):
        pretrain(*inputs, tmp_path, SETTINGS)


def test_learning_rate_rises_and_falls() -> None:
    settings = Settings(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.02


def test_loss_by_hand() -> None:
    settings = Settings(listwise=0.5, temperature=0.2)
    logits = torch.tensor([[2.0, -1.0, 9.0]])
    labels = torch.tensor([[1.0, 0.0, float("nan")]])
    pointwise = (torch.log1p(torch.exp(torch.tensor(-2.0))) + torch.log1p(torch.exp(torch.tensor(-1.0)))) / 2
    share = torch.tensor([5.0, 0.0]).softmax(0)
    listwise = -(share * logits[0, :2].log_softmax(0)).sum()
    assert scorer_loss(logits, labels, settings) == pytest.approx(float(pointwise + 0.5 * listwise))


def test_places_without_a_candidate_give_no_gradient() -> None:
    logits = torch.tensor([[2.0, -1.0, 9.0]], requires_grad=True)
    scorer_loss(logits, torch.tensor([[1.0, 0.0, float("nan")]]), Settings()).backward()
    assert logits.grad is not None
    assert logits.grad[0, 2] == 0
    assert torch.isfinite(logits.grad).all()


def test_the_head_stays_float32_and_word_embeddings_stay(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    from cappy_train.network import from_bert

    before = from_bert(inputs[1])
    copy = working_copy(before)
    assert copy.head_output.weight.dtype == torch.float32
    assert copy.layers[0].output.weight.dtype == torch.bfloat16
    pretrain(*inputs, tmp_path, replace(SETTINGS, steps=2))
    after = weights_of(tmp_path)
    assert torch.equal(after["word_embeddings.weight"], before.word_embeddings.weight)
    assert not torch.equal(after["position_embeddings.weight"], before.position_embeddings.weight)


def test_command_line(inputs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, base = inputs
    data = write_tiny_data(tmp_path / "data", count=300)
    out = tmp_path / "run"
    arguments = ["pretrain", "--data", str(data), "--base", str(base), "--out", str(out), "--steps", "1"]
    assert cli.main(arguments) == 0
    assert (out / "checkpoint.pt").exists()
    assert cli.main(["pretrain", "--data", str(tmp_path / "none"), "--base", str(base), "--out", str(out)]) == 1
    assert "superni_train.jsonl.gz: no such file" in capsys.readouterr().err


def test_other_data_of_the_same_size_is_refused_and_harms_nothing(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data")
    run = tmp_path / "run"
    pretrain(data, inputs[1], run, replace(SETTINGS, steps=1))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    lines = gzip.decompress((data / "superni_train.jsonl.gz").read_bytes())
    (data / "superni_train.jsonl.gz").write_bytes(gzip.compress(lines.replace(b"street", b"mountain")))
    with pytest.raises(InputValueError, match="other settings or data"):
        pretrain(data, inputs[1], run, replace(SETTINGS, steps=1))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("name", ["rows_trec.jsonl.gz", "promptsource_templates.tar.gz", "t0_train.jsonl.gz"])
def test_a_missing_data_file_is_named(inputs: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    data = write_tiny_data(tmp_path / "data")
    (data / name).unlink()
    with pytest.raises(InputValueError, match=name.replace(".", r"\.")):
        pretrain(data, inputs[1], tmp_path / "run", SETTINGS)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_of_the_base_is_named(inputs: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    base = write_tiny_bert(tmp_path / "bert")
    (base / name).unlink()
    with pytest.raises(InputValueError, match=name.replace(".", r"\.")):
        pretrain(inputs[0], base, tmp_path / "run", SETTINGS)


def test_no_steps_are_refused(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputValueError, match="steps must be at least 1"):
        pretrain(*inputs, tmp_path, replace(SETTINGS, steps=0))


def test_too_little_data_is_refused(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputValueError, match="give more data"):
        pretrain(*inputs, tmp_path, replace(SETTINGS, batch_tokens=65536))


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputValueError, match=r"checkpoint\.pt is missing"):
        trained_network(tmp_path)
