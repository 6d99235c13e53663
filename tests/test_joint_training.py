"""A cross-encoder of any family is trained by the same loop, and its model folder scores as the network does."""

import json
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import FSDP, SETTINGS, assert_same_weights, launch, log_of, losses_of
from tiny_checkpoints import FAMILIES, MAX_TOKENS, write_checkpoint
from tiny_training import write_tiny_pairs
from transformers import AutoConfig, AutoModel

from cappy_lite import Scorer
from cappy_lite.errors import InputValueError
from cappy_lite.joint import PairEncoder
from cappy_train import cli
from cappy_train.batches import LabelledRow
from cappy_train.export import export
from cappy_train.joint_network import JointNetwork, from_encoder
from cappy_train.pretrain import pretrain
from cappy_train.streaming import by_length
from cappy_train.trainable import network_scores
from cappy_train.training import (
    parameter_groups,
    read_checkpoint,
    result_of,
    trained_network,
    trained_state,
)

INSTRUCTION = "put the word together: the dog runs in the snow"
CANDIDATES = ["the dog runs on the snow", "snow", "", "a child eats a house that is made of snow and runs"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_pairs(folder, shard_instances=16)
    for family in FAMILIES:
        write_checkpoint(folder / family, family)
    return folder


def network_from(checkpoint: Path, made: Path) -> tuple[JointNetwork, Path]:
    """A network, and its tokenizer's file."""
    torch.manual_seed(0)
    made.mkdir(parents=True, exist_ok=True)
    return from_encoder(checkpoint, made / "tokenizer.json"), made / "tokenizer.json"


def rows_of(count: int, *, seed: int = 0, words: int = 60) -> list[LabelledRow]:
    random = np.random.default_rng(seed)

    def text(most: int) -> str:
        return " ".join(random.choice(["snow", "the", "dog", "runs", "a", "in"], size=random.integers(1, most)))

    made = []
    for _ in range(count):
        responses = tuple(text(12) for _ in range(random.integers(2, 6)))
        made.append(LabelledRow(text(words), responses, tuple(random.uniform(size=len(responses)))))
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_has_the_pairs_that_the_runtime_makes(folder: Path, tmp_path: Path, family: str) -> None:
    """The same tokens, cut alike, whatever the limit; and labels beside them."""
    network, tokenizer = network_from(folder / family, tmp_path)
    packer = network.packer(tokenizer)
    rows = rows_of(12, words=600)
    limits = [140, 160] * 6
    token_rows = packer.token_rows(rows, limits)
    batch = packer.batch(token_rows)
    assert len(batch.input_ids) == sum(len(row.responses) for row in rows)
    lengths = batch.attention_mask.sum(1)
    for at, (row, limit, token_row) in enumerate(zip(rows, limits, token_rows, strict=True)):
        encoder = PairEncoder(tokenizer, limit)
        for place, response in enumerate(row.responses):
            pair = encoder.pair(encoder.encode(row.instruction), encoder.encode(response))
            number = batch.pairs[at, place]
            length = len(pair.input_ids)
            assert lengths[number] == length <= limit
            assert batch.input_ids[number, :length].tolist() == pair.input_ids.tolist()
            assert batch.token_type_ids[number, :length].tolist() == pair.token_type_ids.tolist()
        assert token_row.length == max(lengths[batch.pairs[at, : len(row.responses)]])
        own = batch.labels[at]
        assert own[: len(row.labels)].tolist() == pytest.approx(row.labels)
        assert own[len(row.labels) :].isnan().all()
    assert batch.tokens == lengths.sum()
    assert {140, 160} <= set(lengths.tolist())


def test_batches_hold_whole_instructions_within_the_budget(folder: Path, tmp_path: Path) -> None:
    network, tokenizer = network_from(folder / "bert", tmp_path)
    packer = network.packer(tokenizer)
    planned = by_length(packer.token_rows(rows_of(40), [160] * 40), 1000)
    batches = [packer.batch(rows) for rows in planned]
    assert sum(len(batch.labels) for batch in batches) == 40
    assert len(batches) > 3
    assert all(batch.input_ids.numel() <= 1000 for batch in batches)
    assert sum(batch.input_ids.numel() for batch in batches) > 600 * len(batches)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_in_bfloat16_are_those_of_float32(folder: Path, tmp_path: Path, family: str) -> None:
    """Those of norms too; a batch's other pairs, padding and dropout move nothing; nor does computing states again."""
    network, tokenizer = network_from(folder / family, tmp_path)
    packer = network.packer(tokenizer)
    token_rows = packer.token_rows(rows_of(8), [160] * 8)
    batch = packer.batch(token_rows)
    present = ~batch.labels.isnan()
    alone = torch.cat([packer.batch([row]).logits(network).flatten() for row in token_rows])
    torch.testing.assert_close(batch.logits(network)[present], alone)

    def gradients(precision: torch.dtype) -> dict[str, torch.Tensor]:
        network.precision = precision
        network.zero_grad()
        logits = batch.logits(network)
        assert logits.dtype == torch.float32
        (logits.sigmoid() - batch.labels)[present].square().mean().backward()
        return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}

    exact, rounded = gradients(torch.float32), gradients(torch.bfloat16)
    assert exact.keys() == {name for name, _ in network.named_parameters()}
    for name, gradient in exact.items():
        if gradient.norm() > 1e-6:  # keys' biases have none
            assert (rounded[name] - gradient).norm() < 0.1 * gradient.norm(), name
    assert not any(torch.equal(rounded[name], gradient) for name, gradient in exact.items() if gradient.norm() > 1e-6)
    network.recompute = True
    again = gradients(torch.float32)
    for name, gradient in exact.items():
        torch.testing.assert_close(again[name], gradient)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_it_learns_and_its_model_folder_scores_as_it_does(folder: Path, tmp_path: Path, family: str) -> None:
    settings = replace(SETTINGS, steps=80, batch_tokens=1000, checkpoint_every=20, evaluate_every=80, responses=4)
    instances = folder / "instances.jsonl.gz"
    run = tmp_path / "run"
    pretrain(folder / "pairs", run, dev=instances, base=str(folder / family), graph="joint", settings=settings)
    losses = losses_of(run)
    assert losses[-1] < losses[0] - 0.05
    (figures,) = (line for line in log_of(run) if "dev_gain" in line)
    assert figures["choice_dev_accuracy"] >= 0
    assert all(line["pairs_per_second"] > 0 for line in log_of(run) if "loss" in line)

    identity = {"name": "tiny", "base_model": "random weights", "licence": "MIT"}
    export(run, instances, tmp_path / "exact", float32=True, **identity)
    network = result_of(JointNetwork, trained_state(run))
    long = " ".join(["the dog runs in the snow"] * 40)
    asked = [(INSTRUCTION, CANDIDATES), (long, CANDIDATES)]
    packer = network.packer(run / "tokenizer.json")
    expected = network_scores(network, packer, asked, settings.long)
    stops = [(instruction, [f"{text}. " for text in texts]) for instruction, texts in asked]
    assert np.array_equal(network_scores(network, packer, stops, settings.long), expected)
    scorer = Scorer(tmp_path / "exact")
    assert np.abs(scorer.score(INSTRUCTION, CANDIDATES) - expected[0]).max() < 1e-4
    with pytest.warns(match="tokens"):
        assert np.abs(scorer.score(long, CANDIDATES) - expected[1]).max() < 1e-4
    config = json.loads((tmp_path / "exact" / "config.json").read_text())
    assert (config["graph"], config["score_activation"], config["max_tokens"]) == ("joint", "sigmoid", settings.long)
    assert config["training"]["steps"] == 80
    assert (
        f"| choice_dev_accuracy | {figures['choice_dev_accuracy']:.3f} |"
        in (tmp_path / "exact" / "README.md").read_text()
    )


def test_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a RoBERTa without a head, to 8 bits that are calibrated on the dev questions."""
    run, out = tmp_path / "run", tmp_path / "model"
    config = AutoConfig.from_pretrained(folder / "roberta")
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path / "base")
    for path in (folder / "roberta").glob("token*"):
        (tmp_path / "base" / path.name).write_bytes(path.read_bytes())
    arguments = ["pretrain", "--graph", "joint", "--data", str(folder / "pairs"), "--out", str(run)]
    arguments += ["--base", str(tmp_path / "base"), "--steps", "2", "--batch-tokens", "1000", "--responses", "4"]
    arguments += ["--short", "140", "--long", "160", "--layer-decay", "0.8", "--recompute", "--average", "0.5"]
    assert cli.main(arguments) == 0
    instances = str(folder / "instances.jsonl.gz")
    exporting = ["export", "--run", str(run), "--dev", instances, "--out", str(out)]
    (tmp_path / "notes.md").write_text("## What it learned from\n\nLittle.\n")
    exporting += ["--notes", str(tmp_path / "notes.md")]
    assert cli.main([*exporting, "--base-model", "tiny", "--licence", "MIT"]) == 0
    assert "Little.\n\n## Licence\n\nMIT.\n" in (out / "README.md").read_text()
    assert json.loads((out / "config.json").read_text())["parity"]["quantised_difference"] > 0
    state = trained_state(run)
    network = result_of(JointNetwork, state)
    assert all(torch.equal(state["average"][name], weight) for name, weight in network.state_dict().items())
    expected = network_scores(network, network.packer(run / "tokenizer.json"), [(INSTRUCTION, CANDIDATES)], 160)[0]
    assert np.abs(Scorer(out).score(INSTRUCTION, CANDIDATES) - expected).max() < 0.05
    with pytest.raises(InputValueError, match="trained a joint model"):
        trained_network(run)
    # The same folder as another kind of network.
    arguments[2] = "shared"
    assert cli.main([*arguments]) == 1
    assert "graph was 'joint', and is 'shared' now" in capsys.readouterr().err


def test_a_run_that_is_killed_ends_with_the_same_weights(folder: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=10, batch_tokens=1000, checkpoint_every=2, evaluate_every=5, responses=4)
    settings = replace(settings, average=0.9, layer_decay=0.9)
    arguments = {"dev": folder / "instances.jsonl.gz", "base": str(folder / "bert"), "settings": settings}
    arguments["graph"] = "joint"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cappy_train.pretrain", "cappy_train.joint_network"])

    def start(out: Path) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=pretrain, args=(folder / "pairs", out), kwargs=arguments)
        process.start()
        return process

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole)
    process.join()
    assert process.exitcode == 0
    process = start(killed)
    while process.is_alive() and not (killed / "checkpoint.pt").exists():
        time.sleep(0.005)
    time.sleep(0.05)
    process.kill()
    process.join()
    assert 0 < read_checkpoint(killed / "checkpoint.pt")["step"] < 10
    process = start(killed)
    process.join()
    assert process.exitcode == 0
    assert_same_weights(whole, killed)
    assert [line.get("dev_gain") for line in log_of(whole)] == [line.get("dev_gain") for line in log_of(killed)]


def test_two_processes_give_the_same_losses_as_one(folder: Path, tmp_path: Path) -> None:
    """DDP, then FSDP from DDP's checkpoint: as if one process had done it all, of the same batches a step."""
    settings = replace(SETTINGS, steps=4, batch_tokens=1000, batches_per_step=4, checkpoint_every=1, responses=4)
    settings = replace(settings, precision="float32")  # whose sums in another order differ little
    one, two = tmp_path / "one", tmp_path / "two"
    dev = folder / "instances.jsonl.gz"
    pretrain(folder / "pairs", one, dev=dev, base=str(folder / "bert"), graph="joint", settings=settings)
    launch(folder, two, settings, {}, last=2, graph="joint")
    launch(folder, two, settings, FSDP, last=4, graph="joint")
    assert len(losses_of(one)) == 4
    assert losses_of(two) == pytest.approx(losses_of(one), abs=2e-4)
    networks = [result_of(JointNetwork, trained_state(run)).state_dict() for run in (one, two)]
    for name, weight in networks[0].items():  # AdamW's first steps are no smaller where gradients are tiny
        torch.testing.assert_close(networks[1][name], weight, atol=settings.learning_rate, rtol=0)


def test_a_head_is_kept_if_it_has_one_output_and_drawn_from_the_seed_otherwise(folder: Path, tmp_path: Path) -> None:
    three = write_checkpoint(tmp_path / "three", "modernbert", num_labels=3)
    drawn = [network_from(three, tmp_path / "made")[0].state_dict() for _ in range(2)]
    assert drawn[0]["transformer.classifier.weight"].shape == (1, 32)
    assert all(torch.equal(drawn[0][name], weight) for name, weight in drawn[1].items())
    kept, _ = network_from(folder / "modernbert", tmp_path / "made")
    other = write_checkpoint(tmp_path / "other", "modernbert", seed=0)
    torch.manual_seed(5)
    again = from_encoder(other, tmp_path / "tokenizer.json").state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in kept.state_dict().items())


def test_layers_far_from_the_head_learn_slower(folder: Path, tmp_path: Path) -> None:
    network, _ = network_from(folder / "modernbert", tmp_path)
    network.words().requires_grad_(False)
    scales, groups = parameter_groups(network, replace(SETTINGS, layer_decay=0.5))
    names = {id(weight): name.removeprefix("transformer.") for name, weight in network.named_parameters()}
    rate = {names[id(weight)]: scale for scale, group in zip(scales, groups, strict=True) for weight in group["params"]}
    assert rate["classifier.weight"] == rate["head.dense.weight"] == rate["model.final_norm.weight"] == 1
    assert rate["model.layers.3.mlp.Wo.weight"] == 0.5
    assert rate["model.layers.0.attn.Wqkv.weight"] == 0.0625
    assert rate["model.embeddings.norm.weight"] == 0.03125
    network.transformer.config.num_hidden_layers = 7
    with pytest.raises(InputValueError, match="leave it at 1"):
        parameter_groups(network, replace(SETTINGS, layer_decay=0.5))


def test_what_cannot_be_trained_is_named(folder: Path, tmp_path: Path) -> None:
    def refused(message: str, *, base: Path = folder / "roberta", **changes: int) -> None:
        settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
        with pytest.raises(InputValueError, match=message):
            pretrain(folder / "pairs", tmp_path / "run", base=str(base), graph="joint", settings=settings)
        assert not (tmp_path / "run").exists()

    refused(f"reads {MAX_TOKENS} tokens at most", long=161)
    refused("short is 132: this network's pairs take 133 at least", short=132)
    other = write_checkpoint(tmp_path / "gpt", "bert")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    refused("is of type gpt2", base=other)
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    refused("lacks weights", base=other)
    with pytest.raises(InputValueError, match="--graph joint"):
        pretrain(folder / "pairs", tmp_path / "run", base=str(folder / "deberta-v3"), settings=SETTINGS)
    with pytest.raises(InputValueError, match="graph must be shared or joint"):
        pretrain(folder / "pairs", tmp_path / "run", graph="other")
