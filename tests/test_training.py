"""The training loop: it learns, it resumes exactly, alone or with others, and it says what is wrong."""

import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import write_tiny_bert, write_tiny_pairs

from cappy_lite.errors import InputValueError
from cappy_train import training
from cappy_train.batches import LabelledRow
from cappy_train.evaluate import Question, dev_questions
from cappy_train.network import ScorerNetwork, from_bert
from cappy_train.pretrain import pretrain
from cappy_train.streaming import ListedRows, ShardRows
from cappy_train.training import (
    Settings,
    learning_rate,
    parameter_groups,
    read_checkpoint,
    train,
    trained_network,
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
# What accelerate reads where processes share weights out.
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_pairs(folder, shard_instances=16)
    write_tiny_bert(folder / "bert")
    return folder


@pytest.fixture(scope="module")
def dev(folder: Path) -> list[Question]:
    return dev_questions(folder / "instances.jsonl.gz")


def run(folder: Path, out: Path, settings: Settings, dev: Sequence[Question] = ()) -> None:
    torch.manual_seed(0)
    rows = ShardRows(folder / "pairs", seed=settings.seed)
    train(from_bert(folder / "bert"), rows, folder / "bert" / "tokenizer.json", out, settings, dev=dev)


def log_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in log_of(run) if "loss" in line]


def assert_same_weights(one: Path, other: Path) -> None:
    """In all that a checkpoint has: weights, average, moments."""
    states = [read_checkpoint(path / "checkpoint.pt") for path in (one, other)]
    assert states[0]["step"] == states[1]["step"]
    for part in ("network", "average"):
        assert all(torch.equal(states[0][part][name], states[1][part][name]) for name in states[0]["network"])
    first, second = (state["optimizer"]["state"] for state in states)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name][key]) for name in first for key, value in first[name].items())


def test_it_learns(folder: Path, tmp_path: Path, dev: list[Question]) -> None:
    run(folder, tmp_path, replace(SETTINGS, steps=400, checkpoint_every=40, evaluate_every=40), dev)
    losses = losses_of(tmp_path)
    assert losses[-1] < losses[0] - 0.2
    closed = [line["generation_dev_closed"] for line in log_of(tmp_path) if "dev_gain" in line]
    assert len(closed) == 10
    assert np.mean(closed[-3:]) > np.mean(closed[:3]) + 0.1
    assert all(line["pairs_per_second"] > 0 and line["tokens_per_second"] > 0 for line in log_of(tmp_path)[1::2])


@pytest.mark.parametrize("losses", [{"squared": 1.0}, {"pairwise": 1.0, "cross_entropy": 0.5}])
def test_it_learns_by_other_losses(folder: Path, tmp_path: Path, losses: dict[str, float]) -> None:
    run(folder, tmp_path, replace(SETTINGS, steps=100, checkpoint_every=20, losses=losses))
    made = losses_of(tmp_path)
    assert made[-1] < 0.95 * made[0]


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(folder: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=60, checkpoint_every=3, evaluate_every=20, average=0.9)
    instances = folder / "instances.jsonl.gz"
    arguments = {"dev": instances, "base": str(folder / "bert"), "settings": settings}
    # Processes that start in a moment, since theirs has what takes seconds to load; and alike, with as many threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cappy_train.pretrain"])
    whole = context.Process(target=pretrain, args=(folder / "pairs", tmp_path / "whole"), kwargs=arguments)
    whole.start()
    whole.join()
    assert whole.exitcode == 0
    killed, steps = tmp_path / "killed", []
    path = killed / "checkpoint.pt"
    rng = random.Random(0)
    for _ in range(3):
        process = context.Process(target=pretrain, args=(folder / "pairs", killed), kwargs=arguments)
        process.start()
        before = path.stat().st_mtime_ns if path.exists() else 0
        while process.is_alive() and not (path.exists() and path.stat().st_mtime_ns != before):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))  # to any moment, a checkpoint's writing included
        process.kill()
        process.join()
        steps.append(read_checkpoint(path)["step"])
    assert steps == sorted(steps)
    assert len({*steps} - {0, 60}) >= 2
    process = context.Process(target=pretrain, args=(folder / "pairs", killed), kwargs=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert_same_weights(tmp_path / "whole", killed)

    def figures(run: Path) -> list[dict[str, float]]:
        return [
            {name: value for name, value in line.items() if "dev" in name or name == "step"} for line in log_of(run)
        ]

    assert figures(killed) == figures(tmp_path / "whole")


def test_several_processes_give_the_same_losses_and_checkpoints_that_one_goes_on_from(
    folder: Path, tmp_path: Path
) -> None:
    """DDP, then FSDP from DDP's checkpoint, then one process from FSDP's: as if one had done it all."""
    settings = replace(SETTINGS, steps=9, batches_per_step=4, checkpoint_every=1, evaluate_every=3, average=0.9)
    here = partial(
        pretrain, folder / "pairs", dev=folder / "instances.jsonl.gz", base=str(folder / "bert"), settings=settings
    )
    here(tmp_path / "one")
    several = tmp_path / "several"
    for last, environment in [(3, {}), (6, FSDP)]:
        launch(folder, several, settings, environment, last=last)
    here(several)
    assert losses_of(several) == pytest.approx(losses_of(tmp_path / "one"), abs=2e-3)
    one, other = (trained_network(path).state_dict() for path in (tmp_path / "one", several))
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, atol=2e-3, rtol=0)
    gains = [[line["dev_gain"] for line in log_of(path) if "dev_gain" in line] for path in (tmp_path / "one", several)]
    assert len(gains[0]) == len(gains[1]) == 3
    assert gains[0] == pytest.approx(gains[1], abs=0.1)


def launch(
    folder: Path, out: Path, settings: Settings, environment: dict[str, str], *, last: int, graph: str = "shared"
) -> None:
    """`pretrain` in two processes, which end at step `last`."""
    script = out.with_name("stopped.py")
    script.write_text(
        "import sys; from cappy_train import cli, training\n"
        f"training._Run.over = property(lambda run: run.step >= {last})\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script), "pretrain"]
    command += ["--data", str(folder / "pairs"), "--out", str(out), "--base", str(folder / "bert"), "--graph", graph]
    command += ["--dev", str(folder / "instances.jsonl.gz")]
    default = asdict(Settings())
    for name, value in asdict(settings).items():
        if value != default[name]:
            command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_checkpoint(out / "checkpoint.pt")["step"] == last


def test_weights_do_not_depend_on_the_number_of_threads(folder: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            run(folder, tmp_path / str(threads), replace(SETTINGS, steps=4, batches_per_step=5, average=0.5))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert_same_weights(tmp_path / "1", tmp_path / "3")


def test_a_step_is_shared_evenly(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ThreeProcesses:
        num_processes, is_main_process = 3, True

        def __init__(self, cpu: bool) -> None:
            pass

    monkeypatch.setattr(training, "Accelerator", ThreeProcesses)
    with pytest.raises(InputValueError, match="a multiple of the 3 processes"):
        run(folder, tmp_path, SETTINGS)


def test_a_finished_run_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path, SETTINGS)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    run(folder, tmp_path, SETTINGS)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert [line["step"] for line in log_of(tmp_path)] == [4, 8]


def test_epochs_end_a_run(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "one", replace(SETTINGS, steps=None, epochs=1))
    run(folder, tmp_path / "three", replace(SETTINGS, steps=None, epochs=3))
    one, three = (read_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("one", "three"))
    assert 2.5 * one["step"] < three["step"] < 3.5 * one["step"]
    assert three["place"]["epoch"] in (2, 3)


def test_rows_in_memory_train_with_early_stopping(folder: Path, tmp_path: Path, dev: list[Question]) -> None:
    """What the best evaluation had is the result; more of a learning rate that ruins the network isn't waited for."""
    rows = ListedRows([LabelledRow("what is a dog", ("the dog runs", "snow", "a cat"), (1.0, 0.0, 0.3))])
    settings = replace(SETTINGS, steps=400, learning_rate=0.3, evaluate_every=2, patience=3)
    network = from_bert(folder / "bert")
    train(network, rows, folder / "bert" / "tokenizer.json", tmp_path, settings, dev=dev)
    gains = [line["dev_gain"] for line in log_of(tmp_path) if "dev_gain" in line]
    assert 4 <= len(gains) < 200
    assert max(gains[:-3]) >= max(gains[-3:])
    state = read_checkpoint(tmp_path / "checkpoint.pt")
    assert state["best"]["gain"] == pytest.approx(max(gains), abs=1e-5)
    assert state["step"] == 2 * len(gains)
    result = trained_network(tmp_path).state_dict()
    assert all(torch.equal(result[name], weight) for name, weight in state["best"]["weights"].items())
    assert not all(torch.equal(result[name], weight) for name, weight in state["network"].items())


def test_an_average_of_the_weights_is_the_result(folder: Path, tmp_path: Path) -> None:
    start = from_bert(folder / "bert").state_dict()["position_embeddings.weight"]
    run(folder, tmp_path, replace(SETTINGS, steps=1, average=0.75))
    state = read_checkpoint(tmp_path / "checkpoint.pt")
    last = state["network"]["position_embeddings.weight"]
    expected = 0.75 * start + 0.25 * last
    assert not torch.equal(last, start)
    torch.testing.assert_close(trained_network(tmp_path).position_embeddings.weight.detach(), expected)


def test_computing_states_again_changes_nothing(folder: Path, tmp_path: Path) -> None:
    for name, recompute in (("kept", False), ("again", True)):
        run(folder, tmp_path / name, replace(SETTINGS, steps=2, recompute=recompute, average=0.5))
    assert_same_weights(tmp_path / "kept", tmp_path / "again")


def test_the_encoder_computes_in_bfloat16_and_weights_are_float32(folder: Path, tmp_path: Path) -> None:
    before = from_bert(folder / "bert")
    for precision in ("bfloat16", "float32"):
        run(folder, tmp_path / precision, replace(SETTINGS, steps=2, checkpoint_every=1, precision=precision))
    rounded, exact = (losses_of(tmp_path / name) for name in ("bfloat16", "float32"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, abs=0.02)
    after = trained_network(tmp_path / "bfloat16").state_dict()
    assert all(weight.dtype == torch.float32 for weight in after.values())
    # Word embeddings stay, whatever the rest does.
    assert torch.equal(after["word_embeddings.weight"], before.word_embeddings.weight)
    assert not torch.equal(after["position_embeddings.weight"], before.position_embeddings.weight)


def test_layers_far_from_the_head_learn_slower(folder: Path) -> None:
    network = from_bert(folder / "bert")
    network.word_embeddings.requires_grad_(False)
    scales, groups = parameter_groups(network, replace(SETTINGS, layer_decay=0.5, weight_decay=0.1))
    names = {id(weight): name for name, weight in network.named_parameters()}
    rate = {names[id(weight)]: scale for scale, group in zip(scales, groups, strict=True) for weight in group["params"]}
    decay = {names[id(weight)]: group["weight_decay"] for group in groups for weight in group["params"]}
    assert rate["head_dense.weight"] == rate["head_output.bias"] == 1
    assert rate["layers.1.output.weight"] == 0.5
    assert rate["layers.0.output.bias"] == 0.25
    assert rate["position_embeddings.weight"] == rate["embedding_norm.weight"] == 0.125
    assert decay["layers.0.output.weight"] == decay["position_embeddings.weight"] == 0.1
    assert decay["layers.0.output.bias"] == decay["embedding_norm.weight"] == 0
    assert rate.keys() == {name for name, _ in network.named_parameters()} - {"word_embeddings.weight"}


def test_learning_rate_rises_and_falls() -> None:
    settings = Settings(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(step / 100, (step + 1) / 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.02


def test_a_loss_that_is_no_number_ends_the_run_and_spares_the_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = training.objective
    calls = []

    def breaks(logits: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        calls.append(0)
        return original(logits, *rest, **options) * (math.nan if len(calls) == 12 else 1)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "objective", breaks)
    with pytest.raises(InputValueError, match=r"step 6: the loss is nan.*lower learning rate"):
        run(folder, tmp_path, SETTINGS)
    assert read_checkpoint(tmp_path / "checkpoint.pt")["step"] == 4
    assert all(torch.isfinite(weight).all() for weight in trained_network(tmp_path).state_dict().values())


def test_another_runs_folder_is_refused_and_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "run", replace(SETTINGS, steps=1))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(InputValueError, match=r"learning_rate was 0\.003, and is 0\.1 now"):
        run(folder, tmp_path / "run", replace(SETTINGS, steps=1, learning_rate=0.1))
    other = tmp_path / "other"
    write_tiny_pairs(other, count=65)
    write_tiny_bert(other / "bert")
    with pytest.raises(InputValueError, match="other settings or data: data was"):
        run(other, tmp_path / "run", replace(SETTINGS, steps=1))
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_damaged_checkpoint_is_named(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path, replace(SETTINGS, steps=1))
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputValueError, match=r"checkpoint\.pt can't be read"):
        run(folder, tmp_path, replace(SETTINGS, steps=1))


def test_a_full_disk_is_told_and_leaves_the_last_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = []
    original = torch.save

    def full(state: object, path: Path) -> None:
        saves.append(path)
        original(state, path)
        if len(saves) == 2:
            path.write_bytes(path.read_bytes()[:100])
            raise RuntimeError(
                "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"
            )  # as PyTorch has it

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputValueError, match="make room"):
        run(folder, tmp_path, SETTINGS)
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "checkpoint.pt")["step"] == 4
    assert not list(tmp_path.glob("*.partial"))
    run(folder, tmp_path, SETTINGS)
    assert read_checkpoint(tmp_path / "checkpoint.pt")["step"] == 8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps is 0: it should be at least 1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"short": 20}, "short is 20: it should be from 132 to long"),
        ({"responses": 1}, "responses is 1"),
        ({"precision": "float16"}, "bfloat16 or float32"),
        ({"losses": {"mse": 1.0}}, "losses has 'mse'"),
        ({"average": 1.0}, "average is 1.0"),
    ],
)
def test_bad_settings_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(InputValueError, match=message):
        replace(SETTINGS, **changed)  # type: ignore[arg-type]


def test_settings_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputValueError, match="reads 160 tokens at most"):
        run(folder, tmp_path, replace(SETTINGS, long=161))
    with pytest.raises(InputValueError, match="patience needs dev questions"):
        run(folder, tmp_path, replace(SETTINGS, patience=1))


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputValueError, match=r"checkpoint\.pt is missing"):
        trained_network(tmp_path)


def test_the_result_is_a_network_of_its_own(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path, replace(SETTINGS, steps=1))
    network = trained_network(tmp_path)
    assert isinstance(network, ScorerNetwork)
    assert network.precision == torch.float32
    assert not network.training
