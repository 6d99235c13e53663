"""The comparison of ways to quantise makes the graphs that it names, and measures them rightly."""

from __future__ import annotations

import collections
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_model import tiny_tokenizer, write_config
from tiny_training import LAYERS, tiny_network, write_tiny_bert, write_tiny_data

from benchmarks import markdown
from benchmarks.quantisation import __main__ as command
from benchmarks.quantisation import measures, report, training
from benchmarks.quantisation.runtime_graph import (
    blocks,
    dynamic_by_runtime,
    in_blocks,
    row_inputs,
    runtime_graph,
    static_by_runtime,
)
from benchmarks.quantisation.schemes import FLOAT32, SHIPPED, Material, clipped, mixed, schemes, shipped
from benchmarks.quantisation.sources import dev_sets, of_model, of_run, split
from benchmarks.scorer.sizes import equal_candidates
from cappy_lite.packing import PackedRow, groups_of, row_of
from cappy_lite.session import import_onnxruntime, session_options
from cappy_train.batches import Packer, network_scores
from cappy_train.evaluate import Question
from cappy_train.graph import Linear, QuantisedLinear, graph_weights, packed_graph, scorer_network
from cappy_train.network import ScorerNetwork
from cappy_train.quantise import observe, quantise

TEXTS = {
    "put the word together: dog runs": ("the dog runs on the street", "a cat", "snow"),
    "is the cat a dog": ("yes", "no", "the child eats pasta in the old house on the mountain"),
}
# All layers' inputs of the tiny network are multiples of it.
BLOCK = 16


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> ScorerNetwork:
    return tiny_network(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def run(network: ScorerNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    training.save_run(network, write_tiny_bert(tmp_path_factory.mktemp("again")) / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("data"), count=200)


@pytest.fixture(scope="module")
def packer(run: Path) -> Packer:
    return Packer(run / "tokenizer.json")


@pytest.fixture(scope="module")
def rows(packer: Packer) -> list[PackedRow]:
    """An instruction with its candidates, each, and both in one row."""
    ids = {"cls_id": packer.cls_id, "sep_id": packer.sep_id, "max_tokens": 160}
    groups = [
        groups_of(packer.encode(instruction), [packer.encode(text) for text in candidates], **ids)[0]
        for instruction, candidates in TEXTS.items()
    ]
    return [*(row_of([group]) for group in groups), row_of(groups)]


@pytest.fixture(scope="module")
def material(network: ScorerNetwork, rows: list[PackedRow], tmp_path_factory: pytest.TempPathFactory) -> Material:
    weights = graph_weights(network)
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(packed_graph(weights), path)
    return Material(weights, observe(path, rows), rows)


@pytest.fixture(scope="module")
def exact(material: Material, rows: list[PackedRow], tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    path = tmp_path_factory.mktemp("exact") / "model.onnx"
    onnx.save(packed_graph(material.weights), path)
    run = measures.open_graph(path, 1, own=True)
    return [run(row) for row in rows]


def logits(model: onnx.ModelProto, rows: list[PackedRow], path: Path) -> tuple[list[np.ndarray], dict[str, int]]:
    """What a graph of ONNX Runtime's operators gives, and which operators it comes down to."""
    options = session_options(1)
    options.optimized_model_filepath = str(path)
    session = import_onnxruntime().InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results = [session.run(["logits"], row_inputs(row))[0] for row in rows]
    return results, collections.Counter(node.op_type for node in onnx.load(path).graph.node)


# Graphs


def test_the_graph_of_ordinary_operators_follows_the_rule_of_attention(
    material: Material, rows: list[PackedRow], exact: list[np.ndarray], tmp_path: Path
) -> None:
    model = runtime_graph(material.weights)
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} <= {"", "com.microsoft"}
    results, _ = logits(model, rows, tmp_path / "optimised.onnx")
    for mine, theirs in zip(results, exact, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-6)


def test_ways_of_onnx_runtime_come_down_to_its_8_bit_operators(
    material: Material, rows: list[PackedRow], exact: list[np.ndarray], tmp_path: Path
) -> None:
    """A product that isn't recognised would be computed in float32, and be slow for it."""
    model = runtime_graph(material.weights)
    linears = 5 * LAYERS
    made = {
        ("QGemm",): [runtime_graph(shipped(material)), static_by_runtime(model, rows)],
        ("DynamicQuantizeMatMul", "MatMulIntegerToFloat"): [dynamic_by_runtime(model)],
        ("MatMulNBits",): [in_blocks(model, 8, BLOCK)],
    }
    for operators, models in made.items():
        for one in models:
            results, counts = logits(one, rows, tmp_path / "optimised.onnx")
            assert sum(counts[operator] for operator in operators) == linears
            differences = np.abs(np.concatenate(results) - np.concatenate(exact))
            assert 1e-5 < differences.max() < 0.1
    (results, counts) = logits(in_blocks(model, 4, BLOCK), rows, tmp_path / "optimised.onnx")
    assert counts["MatMulNBits"] == linears
    assert 1e-3 < np.abs(np.concatenate(results) - np.concatenate(exact)).max() < 0.5


@pytest.mark.parametrize("bits", [8, 4])
def test_blocks_hold_the_weights(bits: int) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    codes, scales = blocks(weight, bits, 16)
    assert codes.shape == (3, 4, 16 * bits // 8)
    values = codes if bits == 8 else np.stack([codes & 15, codes >> 4], axis=-1).reshape(3, 4, 16)
    decoded = (values.astype(np.float32) - 2 ** (bits - 1)) * scales.reshape(3, 4, 1)
    off = np.abs(decoded.reshape(3, 64).T - weight).reshape(4, 16, 3).max(axis=1)
    assert (off <= scales.reshape(3, 4).T / 2 + 1e-6).all()


def test_parts_are_left_in_float32(material: Material) -> None:
    operators = {
        scheme.name: collections.Counter(node.op_type for node in scheme.make(material).graph.node)
        for scheme in schemes([BLOCK])
        if scheme.own
    }
    assert operators[FLOAT32]["Gemm"] == 5 * LAYERS + 2
    assert operators[SHIPPED]["Gemm"] == 2
    assert operators[SHIPPED]["AttentionToBytes"] == LAYERS
    assert operators["attention in float32"]["Attention"] == LAYERS
    assert operators["attention in float32"]["Gemm"] == 2
    assert operators["last layer in float32"]["Gemm"] == 5 + 2
    assert operators["last layer in float32"]["AttentionToBytes"] == LAYERS - 1
    assert operators["feed-forward outputs in float32"]["Gemm"] == LAYERS + 2
    assert operators["embeddings in float32"]["EmbedToBytes"] == 0
    for same in (scheme.name for scheme in schemes([BLOCK]) if scheme.same_time):
        assert operators[same] == operators[SHIPPED]


def test_schemes_differ_in_scales(material: Material) -> None:
    codes = {
        name: linear
        for name, made in {
            SHIPPED: shipped(material),
            "8": quantise(material.weights, material.observations, weight_limit=127),
            "none": quantise(material.weights, material.observations, smoothing=None),
            "clipped": quantise(material.weights, [clipped(each) for each in material.observations]),
        }.items()
        if isinstance(linear := made.linears["layers.0.output"], QuantisedLinear)
    }
    assert {name: int(np.abs(one.weight).max()) for name, one in codes.items()} == {
        SHIPPED: 63,
        "8": 127,
        "none": 63,
        "clipped": 63,
    }
    assert (codes["none"].input_gain == 1).all()
    assert codes[SHIPPED].input_gain.std() > 0
    for whole in material.observations:
        within = clipped(whole)
        assert (within.low >= whole.low).all()
        assert (within.high <= whole.high).all()
    assert (clipped(material.observations[0]).high < material.observations[0].high).any()


def test_mixed_graphs_are_nearer_to_float32(
    material: Material, rows: list[PackedRow], exact: list[np.ndarray], tmp_path: Path
) -> None:
    """With all of its linear layers in float32, what is left is the embeddings' rounding."""
    weights = shipped(material)
    off = {}
    for name, linears in {"none": weights.linears, "all": material.weights.linears}.items():
        onnx.save(mixed(replace(weights, linears=linears)), tmp_path / f"{name}.onnx")
        run = measures.open_graph(tmp_path / f"{name}.onnx", 1, own=True)
        off[name] = np.mean([np.abs(run(row) - own).mean() for row, own in zip(rows, exact, strict=True)])
    assert 0 < off["all"] < off["none"]


# Measures


def question(task: str, gains: list[float], kind: str = "generation") -> Question:
    candidates = tuple(f"candidate {number}" for number in range(len(gains)))
    return Question(task, None, "instruction", candidates, np.array(gains), f"{task} {gains}", kind)


def test_differences_and_picks_are_counted() -> None:
    exact = [np.float32([0.1, 0.9]), np.float32([0.5, 0.51]), np.float32([0.3, 0.2, 0.1])]
    scores = [np.float32([0.2, 0.8]), np.float32([0.6, 0.5]), np.float32([0.1, 0.2, 0.1])]
    found = measures.difference(scores, exact)
    assert found["clear"] == 2
    assert found["same_pick"] == 0.5
    assert found["largest"] == pytest.approx(0.2)
    assert found["mean"] == pytest.approx((0.1 + 0.1 + 0.1 + 0.01 + 0.2) / 7)


def test_dev_figures_are_paired_with_float32s() -> None:
    asked = [question("a", [0.0, 1.0]), question("a", [1.0, 0.5]), question("b", [0.2, 0.4])]
    right = [np.float32(one.gains) for one in asked]
    wrong = [-one for one in right]
    figures = measures.dev_figures(asked, {"float32": wrong, "other": right}, "float32")
    assert figures["float32"]["difference"] == [0, 0, 0]
    assert figures["other"]["value"] == pytest.approx(1)
    assert figures["float32"]["value"] == pytest.approx(-1)
    assert figures["other"]["difference"][0] == pytest.approx(2)
    _, low, high = measures.dev_figures(
        [*asked, question("c", [0.0, 1.0])],
        {"float32": [*right, np.float32([1, 0])], "other": [*right, np.float32([0, 1])]},
        "float32",
    )["other"]["difference"]
    assert low == 0  # no draw of tasks has the third, in which alone they differ
    assert high > 0.3
    choices = [question("a", [0.0, 1.0], "choice"), question("a", [1.0, 0.0], "choice")]
    first = [np.float32([1, 0])] * 2
    assert measures.dev_figures(choices, {"first": first}, "first")["first"]["value"] == 0.5


def test_scores_that_neighbours_move_are_found(packer: Packer) -> None:
    (instruction, candidates), *_ = TEXTS.items()
    asked = [Question("task", None, instruction, candidates, np.zeros(3), "group", "generation")]

    def by_length(row: PackedRow) -> np.ndarray:
        return np.full(len(row.candidate_indices), len(row.input_ids) / 100, np.float32)

    def by_itself(row: PackedRow) -> np.ndarray:
        return np.zeros(len(row.candidate_indices), np.float32)

    for run, moved in ((by_length, 1.0), (by_itself, 0.0)):
        together = measures.score_all(run, measures.rows_of(packer, asked, 160), "")
        found = measures.steadiness(run, packer, asked, together, 160)
        assert (found["candidates"], found["moved"]) == (3, moved)
        assert (found["largest"] > 0.01) == bool(moved)


def test_every_20th_question_calibrates_and_is_not_asked(data: Path) -> None:
    sets = dev_sets(data)
    calibrating, asked = split(sets, 1_000)
    everything = [one for members in sets.values() for one in members]
    assert calibrating == everything[::20]
    assert sum(map(len, asked.values())) == len(everything) - len(calibrating)
    assert all(one not in calibrating for members in asked.values() for one in members)
    assert {name: len(members) for name, members in split(sets, 3)[1].items()} == dict.fromkeys(sets, 3)


# The command


def test_the_command_measures_writes_and_shows_again(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "SCHEMES", schemes([BLOCK]))
    monkeypatch.setattr(command, "SIZES", (equal_candidates(20, 3, 6),))
    monkeypatch.setattr(command, "STEADY_QUESTIONS", 2)
    docs, timed, whole = tmp_path / "docs.md", tmp_path / "times.json", tmp_path / "whole.json"
    docs.write_text(f"# Before\n{report.START}\nold\n{markdown.END}\nafter\n")
    arguments = ["--data", str(data), "--run", str(run), "--threads", "1", "--questions", "4", "--seconds", "0"]
    command.main([*arguments, "--only", "times", "--json", str(timed)])
    assert "| shipped | 0.0 | 1.00 [1.00, 1.00]," in capsys.readouterr().out
    assert all("difference" not in one for one in json.loads(timed.read_text())["schemes"])

    command.main([*arguments, "--only", "scores", "--load", str(timed), "--json", str(whole), "--docs", str(docs)])
    printed = capsys.readouterr().out
    measured = json.loads(whole.read_text())
    assert measured["weights"] == "a training run's, in float32"
    assert measured["questions"] == {"superni": 4, "t0_choice": 4, "t0_generation": 4}
    by_name = {one["name"]: one for one in measured["schemes"]}
    assert list(by_name) == [scheme.name for scheme in schemes([BLOCK])]
    assert all(("times" in one) != one["as_shipped"] for one in by_name.values())
    assert by_name[FLOAT32]["difference"]["largest"] == 0
    assert all(one["difference"]["mean"] > 0 for name, one in by_name.items() if name != FLOAT32)
    assert by_name[SHIPPED]["steadiness"]["moved"] == 0
    assert by_name["ONNX Runtime: dynamic"]["steadiness"]["moved"] > 0.5
    assert docs.read_text() == f"# Before\n{report.START}\n\n{printed}\n{markdown.END}\nafter\n"
    command.main(["--load", str(whole)])
    assert capsys.readouterr().out == printed


def test_weights_of_a_model_folder_are_read_back(network: ScorerNetwork, material: Material, tmp_path: Path) -> None:
    expected = graph_weights(network).linears["layers.0.output"].weight
    for name, weights in {"exact": material.weights, "rounded": shipped(material)}.items():
        folder = tmp_path / name
        folder.mkdir()
        onnx.save(packed_graph(weights), folder / "model.onnx")
        tiny_tokenizer().save(str(folder / "tokenizer.json"))
        (folder / "README.md").write_text("# Tiny\n")
        write_config(folder)
        source = of_model(str(folder))
        assert source.max_tokens == 160
        assert source.described == ("tiny's" if name == "exact" else "tiny's, read back from its 8 bits")
        mine = source.weights.linears["layers.0.output"]
        assert isinstance(mine, Linear)
        np.testing.assert_allclose(mine.weight, expected, atol=1e-7 if name == "exact" else 0.05)


# The trial of training


def test_a_network_is_made_of_its_weights_again(network: ScorerNetwork, run: Path) -> None:
    again = scorer_network(of_run(run).weights).state_dict()
    for name, weight in network.state_dict().items():
        assert torch.equal(again.pop(name), weight)
    assert not again


def test_roundings_are_those_of_the_8_bit_graph(
    network: ScorerNetwork, run: Path, data: Path, material: Material
) -> None:
    trial = training.Trial.of(of_run(run), data, 20, 1)
    quantised = trial.quantised(material.weights)
    rounding = training.rounding_copy(network, quantised)
    asked = trial.asked["superni"]
    pairs = [(one.instruction, one.candidates) for one in asked]
    in_8_bits = np.concatenate(trial.scores(quantised, "")["superni"])
    plain, rounded = (np.concatenate(network_scores(one, trial.packer, pairs, 160)) for one in (network, rounding))
    assert np.abs(rounded - in_8_bits).mean() < 0.6 * np.abs(plain - in_8_bits).mean()
    shared = {id(weight) for weight in network.parameters()}
    assert {id(weight) for weight in rounding.parameters()} == shared


def test_gradients_pass_roundings() -> None:
    values = torch.tensor([0.2, 0.8, 1.4], requires_grad=True)
    rounded = training.straight_through(values)
    (rounded * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert rounded.tolist() == [0.0, 1.0, 1.0]
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 2.0, 3.0]


def test_the_trial_trains_twice_and_compares(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "STEP_TOKENS", 512)
    monkeypatch.setattr(training, "BATCH_TOKENS", 256)
    written, docs = tmp_path / "trial.json", tmp_path / "docs.md"
    docs.write_text(f"{training.START}\n{markdown.END}\n")
    arguments = ["--data", str(data), "--run", str(run), "--out", str(tmp_path / "runs"), "--steps", "5"]
    arguments += ["--learning-rate", "0.01", "--questions", "4", "--json", str(written), "--docs", str(docs)]
    training.main(arguments)
    assert capsys.readouterr().out in docs.read_text()
    measured = json.loads(written.read_text())
    plain, aware = measured["runs"]
    assert (plain["name"], aware["name"]) == (training.PLAIN, training.AWARE)
    assert plain["loss"] != aware["loss"]
    assert all(one["difference"]["mean"] > 0 for one in (plain, aware))
    before = of_run(run).weights.linears["layers.0.output"].weight
    after = [of_run(folder).weights.linears["layers.0.output"].weight for folder in (tmp_path / "runs").iterdir()]
    assert len(after) == 2
    assert all(np.abs(one - before).max() > 1e-3 for one in after)
    with pytest.raises(ValueError, match="give --steps as many"):
        training.batched(Packer(run / "tokenizer.json"), [question("a", [0.0, 1.0])], 1)
