"""A run becomes a model folder that the runtime loads, or an error and nothing at all."""

from __future__ import annotations

import collections
import json
import math
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny_training import HIDDEN, LAYERS, record, tiny_network, write_tiny_bert, write_tiny_data

from cappy_lite import Scorer
from cappy_lite.activations import sigmoid
from cappy_lite.errors import InputValueError, ModelError
from cappy_lite.models import check_files, read_config
from cappy_lite.packing import PackedRow
from cappy_lite.session import Session, kept_outputs, session_options
from cappy_train.batches import Packer
from cappy_train.cli import main
from cappy_train.evaluate import Question
from cappy_train.export import Parity, check_parity, export, measure_parity, packed_rows, seal, write_model
from cappy_train.graph import QuantisedLinear, graph_weights, joint_twin, packed_graph, read_weights
from cappy_train.network import ScorerNetwork
from cappy_train.quantise import FLOAT_LAYERS, observe, quantise
from cappy_train.read_back import network_of
from cappy_train.trainable import network_scores

INSTRUCTION = "put the word together: dog runs"
CANDIDATES = ["the dog runs on the street", "a cat", "snow", "the child eats pasta in the old house on the mountain"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of instances, whose split dev calibrates."""
    return write_tiny_data(tmp_path_factory.mktemp("data"), count=200) / "*_train.jsonl.gz"


IDENTITY = {"name": "tiny", "base_model": "random weights", "licence": "MIT"}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> ScorerNetwork:
    return tiny_network(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def run(network: ScorerNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), network)


@pytest.fixture(scope="module")
def model(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    export(run, data, folder, **IDENTITY)
    return folder


def write_run(folder: Path, network: ScorerNetwork) -> Path:
    """What `pretrain` leaves in its folder, as far as an export reads it."""
    write_tiny_bert(folder)  # for its tokenizer
    settings = {"losses": {"squared": 1.0, "pairwise": 0.5}}
    state = {"settings": settings, "sizes": network.config.to_dict(), "network": network.state_dict()}
    torch.save(state, folder / "checkpoint.pt")
    log = [{"step": 1, "superni_dev_closed": 0.1}, {"step": 2, "superni_dev_closed": 0.2}, {"step": 2, "loss": 1.5}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return folder


def rows_of(run: Path, candidates: list[str]) -> list[PackedRow]:
    question = Question("task", None, INSTRUCTION, tuple(candidates), np.zeros(len(candidates)), "group", "generation")
    return packed_rows(Packer(run / "tokenizer.json"), question, 160)


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_the_folder_holds_a_model_that_loads(model: Path) -> None:
    config = read_config(model)
    check_files(model, config)
    assert config.name == "tiny"
    assert config.max_tokens == 160
    assert set(config.files) == {"model.onnx", "model.onnx.data", "tokenizer.json", "README.md"}
    assert {path.name for path in model.iterdir()} == {*config.files, "config.json", "model.fp32.onnx"}
    assert [path.name for path in model.parent.iterdir()] == ["tiny"]


def test_the_config_has_parity_and_training_figures(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    parity = Parity(**config["parity"])
    check_parity(parity)
    assert 0 < parity.network_difference < 1e-5
    assert 0 < parity.quantised_difference < 0.015
    assert 0 < parity.clear_questions <= parity.questions
    assert config["training"] == {"steps": 2, "superni_dev_closed": 0.2, "loss": 1.5}
    assert {key: config[key] for key in IDENTITY} == IDENTITY
    assert list(config["calibration"]) == ["logits", "calibrated"]
    proof = config["calibration_proof"]
    assert proof["error_after"] < proof["error_before"] / 2
    assert min(proof["candidates"], proof["fitted_candidates"]) > 200
    card = (model / "README.md").read_text()
    assert f"error is {proof['error_after']:.3f} with it and {proof['error_before']:.3f} without" in card
    assert "no calibrated probabilities" not in card
    assert "random weights" in card
    assert "its maker's to say" in card
    assert "squared (weight 1), pairwise (weight 0.5)" in card
    assert "MIT" in card
    assert "| superni_dev_closed | 0.200 |" in card
    assert "{" not in card


def test_the_scorer_gives_the_networks_scores_calibrated(model: Path, run: Path, network: ScorerNetwork) -> None:
    expected = network_scores(network, Packer(run / "tokenizer.json"), [(INSTRUCTION, CANDIDATES)], 160)[0]
    assert expected.std() > 0.01
    (row,) = rows_of(run, CANDIDATES)
    logits = Session(model / "model.onnx", 1).run(row)
    np.testing.assert_allclose(sigmoid(logits), expected, atol=0.05)
    assert np.abs(sigmoid(logits) - expected).max() > 0  # these are the quantised graph's
    calibration = read_config(model).calibration
    assert calibration is not None
    scores = Scorer(model, threads=1).score(INSTRUCTION, CANDIDATES)
    np.testing.assert_array_equal(scores, sigmoid(calibration(logits)))
    assert np.abs(scores - sigmoid(logits)).max() > 0.02
    exact = Session(model / "model.fp32.onnx", 1)
    np.testing.assert_allclose(1 / (1 + np.exp(-exact.run(row))), expected, atol=1e-5)


def test_a_candidate_scores_the_same_alone_and_beside_others(model: Path, run: Path) -> None:
    (row,) = rows_of(run, CANDIDATES)
    rows_alone = [rows_of(run, [candidate])[0] for candidate in CANDIDATES]
    for file in ("model.fp32.onnx", "model.onnx"):
        session = Session(model / file, 1)
        together = session.run(row)
        alone = np.concatenate([session.run(row_alone) for row_alone in rows_alone])
        if file == "model.onnx":
            np.testing.assert_array_equal(alone, together)
        np.testing.assert_allclose(alone, together, atol=1e-5)
        assert together.std() > 0.05


@pytest.mark.parametrize("file", ["model.fp32.onnx", "model.onnx"])
def test_keys_and_values_are_given_of_as_many_tokens_as_are_asked_for(model: Path, run: Path, file: str) -> None:
    """Else they would all stay in memory to the end of a run, for nobody."""
    session = Session(model / file, 1)
    (row,) = rows_of(run, CANDIDATES)
    names = kept_outputs(LAYERS)
    everything = session.keep(row)
    assert everything.shape == (LAYERS, len(row.input_ids), 2 * HIDDEN)
    for count in (0, 1, len(row.input_ids) - 1):
        np.testing.assert_array_equal(session.tensors(names, row, kept_tokens=count), everything[:, :count])
    for count in (-1, len(row.input_ids) + 1):
        with pytest.raises(Exception, match="not so: count"):
            session.tensors(names, row, kept_tokens=count)


def test_a_graph_has_no_node_too_many(model: Path, tmp_path: Path) -> None:
    """As ONNX Runtime runs it: five products of 8-bit matrices a layer, one node between any two of them."""
    options = session_options(1)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(model / "model.onnx"), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx", load_external_data=False)
    operators = collections.Counter(node.op_type for node in optimised.graph.node)
    layers = 2
    assert operators["Linear"] == 4 * layers  # query, key and value, attention output, and the second of feed-forward
    assert operators["LinearGeluToBytes"] == operators["AttentionToBytes"] == layers
    assert operators["Gemm"] + operators["FusedGemm"] == len(FLOAT_LAYERS)
    assert operators["EmbedToBytes"] == 1
    assert operators["AddNormToBytes"] == 2 * layers - 1  # the last one is read by the head, in float32
    assert operators["LayerNormalization"] + operators["SkipLayerNormalization"] == 1
    assert operators["QGemm"] == operators["DequantizeLinear"] == operators["MultiHeadAttention"] == 0
    assert operators["QuantizeLinear"] == 1  # the states at the score positions


def test_graphs_are_valid_onnx(model: Path) -> None:
    for file in ("model.fp32.onnx", "model.onnx"):
        graph = onnx.load(model / file)
        onnx.checker.check_model(graph)
        onnx.checker.check_model(joint_twin(read_weights(graph)))


def test_weights_are_read_back_as_they_were(network: ScorerNetwork, run: Path, model: Path) -> None:
    weights = graph_weights(network)
    quantised = quantise(weights, observe(model / "model.fp32.onnx", rows_of(run, CANDIDATES)))
    for each in (weights, quantised):
        graph = packed_graph(each)
        again = read_weights(graph)
        assert (again.layers, again.heads) == (each.layers, each.heads)
        assert again.layer_norm_eps == pytest.approx(each.layer_norm_eps)
        assert again.linears.keys() == each.linears.keys()
        (row,) = rows_of(run, CANDIDATES)
        expected = Session(graph.SerializeToString(), 1).run(row)
        found = Session(packed_graph(again).SerializeToString(), 1).run(row)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_quantised_layers_compute_what_exact_ones_do(network: ScorerNetwork, run: Path, model: Path) -> None:
    weights = graph_weights(network)
    observations = observe(model / "model.fp32.onnx", rows_of(run, CANDIDATES))
    quantised = quantise(weights, observations)
    assert {name for names in observations for name in names.layers} == set(weights.linears) - set(FLOAT_LAYERS)
    for observation in observations:
        for name in observation.layers:
            exact, layer = weights.linears[name], quantised.linears[name]
            assert isinstance(layer, QuantisedLinear)
            read = np.clip(
                np.rint(observation.sample * layer.input_gain / layer.input_scale) + layer.input_zero_point, 0, 255
            )
            inputs = (read - layer.input_zero_point) * layer.input_scale
            outputs = inputs @ (layer.weight * layer.weight_scales) + layer.bias
            expected = observation.sample @ exact.weight + exact.bias
            assert np.abs(outputs - expected).mean() < 0.02 * expected.std()


def test_the_joint_twin_reads_padded_pairs(network: ScorerNetwork, run: Path) -> None:
    """With the attention rule of packed rows switched off, a lone pair is an ordinary pair."""
    joint = session_of(joint_twin(graph_weights(network)))
    rows = [rows_of(run, [candidate])[0] for candidate in CANDIDATES]
    longest = max(len(row.input_ids) for row in rows)
    inputs = {
        name: np.zeros((len(rows), longest), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        inputs["input_ids"][index, :length] = row.input_ids
        inputs["attention_mask"][index, :length] = 1
        inputs["token_type_ids"][index, :length] = row.token_type_ids
    (found,) = joint.run(None, inputs)
    for row, logit in zip(rows, found, strict=True):
        # In one segment all tokens see each other.
        arrays = (row.input_ids, row.position_ids, row.token_type_ids, np.zeros_like(row.segment_ids))
        with torch.inference_mode():
            expected = network(
                *(torch.from_numpy(array)[None] for array in arrays), torch.from_numpy(row.score_positions)
            )
        np.testing.assert_allclose(logit, expected[0], atol=1e-5)


def test_a_model_in_float32(run: Path, data: Path, network: ScorerNetwork, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["export", "--run", str(run), "--dev", str(data), "--out", str(out), "--float32"]
    assert main([*command, "--base-model", "none", "--licence", "MIT"]) == 0
    assert not (out / "model.fp32.onnx").exists()
    assert Parity(**json.loads((out / "config.json").read_text())["parity"]).quantised_difference == 0
    card = (out / "README.md").read_text()
    assert "All weights are float32." in card
    assert "8 bits" not in card
    (row,) = rows_of(run, CANDIDATES)
    expected = network_scores(network, Packer(run / "tokenizer.json"), [(INSTRUCTION, CANDIDATES)], 160)[0]
    np.testing.assert_allclose(sigmoid(Session(out / "model.onnx", 1).run(row)), expected, atol=1e-5)
    again = network_of(out).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in network.state_dict().items())


def test_few_dev_questions_calibrate_no_scores(run: Path, tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data", count=120) / "*_train.jsonl.gz"
    export(run, data, tmp_path / "out", **IDENTITY)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["calibration"] is config["calibration_proof"] is read_config(tmp_path / "out").calibration is None
    assert "they are no calibrated probabilities" in (tmp_path / "out" / "README.md").read_text()


def test_a_network_that_8_bits_do_not_hold_is_refused(network: ScorerNetwork, data: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        broken = ScorerNetwork(network.config)
        broken.load_state_dict(network.state_dict())
        broken.head_output.weight *= 1000  # the least error decides between 0 and 1
    run = write_run(tmp_path / "run", broken)
    with pytest.raises(ModelError, match=r"8 bits don't hold this network.*--float32"):
        export(run, data, tmp_path / "models" / "out", **IDENTITY)
    assert not list((tmp_path / "models").iterdir())


def test_a_damaged_checkpoint_is_refused(network: ScorerNetwork, data: Path, tmp_path: Path) -> None:
    broken = ScorerNetwork(network.config)
    broken.load_state_dict(network.state_dict() | {"head_output.bias": torch.tensor([float("nan")])})
    run = write_run(tmp_path / "run", broken)
    with pytest.raises(ModelError, match="checkpoint is damaged"):
        export(run, data, tmp_path / "models" / "out", **IDENTITY)
    assert not list((tmp_path / "models").iterdir())


def test_parity_by_hand() -> None:
    exact = [np.array([0.9, 0.5], np.float32), np.array([0.2, 0.21], np.float32), np.array([0.3], np.float32)]
    quantised = [np.array([0.4, 0.5], np.float32), np.array([0.21, 0.2], np.float32), np.array([0.3], np.float32)]
    parity = measure_parity([exact[0] + np.float32(0.25)], exact, quantised)
    assert parity.network_difference == 0.25
    assert parity.quantised_difference == pytest.approx((0.5 + 0 + 0.01 + 0.01 + 0) / 5)
    assert (parity.same_pick, parity.questions, parity.clear_questions) == (0.0, 3, 1)
    none_clear = measure_parity([exact[0]], exact, quantised, margin=0.5)
    assert (none_clear.questions, none_clear.clear_questions) == (3, 0)


def test_parity_at_its_limits() -> None:
    parity = Parity(1e-4, 0.015, 0.97, 100, 90)
    check_parity(parity)
    for worse in ({"network_difference": 2e-4}, {"quantised_difference": 0.0151}, {"same_pick": 0.969}):
        with pytest.raises(ModelError):
            check_parity(replace(parity, **worse))


def test_parity_of_scores_that_only_order() -> None:
    parity = Parity(1e-4, 0.05, 0.97, 100, 90)
    check_parity(parity, only_orders=True)
    # 97 % of 99 questions are 96.03 of them: three picks that change are no sign of more than three in a hundred.
    check_parity(replace(parity, same_pick=96 / 99, clear_questions=99), only_orders=True)
    check_parity(replace(parity, same_pick=0.965, clear_questions=2_000), only_orders=True)
    with pytest.raises(ModelError, match=r"at least 96\.2%.*adapt a model in float32"):
        check_parity(replace(parity, same_pick=0.96, clear_questions=2_000), only_orders=True)
    none_clear = replace(parity, same_pick=math.nan, clear_questions=0)
    check_parity(none_clear, only_orders=True)
    with pytest.raises(ModelError):
        check_parity(replace(none_clear, quantised_difference=0.015))
    for worse in ({"network_difference": 2e-4}, {"quantised_difference": 0.0501}, {"same_pick": 0.93}):
        with pytest.raises(ModelError):
            check_parity(replace(parity, **worse), only_orders=True)


def test_only_far_scores_are_clear_where_scores_only_order(network: ScorerNetwork, run: Path, tmp_path: Path) -> None:
    candidates = [*CANDIDATES, "the dog", "the old house", "pasta", "the street"]
    asked = [
        Question("task", None, INSTRUCTION, pair, np.zeros(2), "group", "generation")
        for pair in combinations(candidates, 2)
    ]
    clear = []
    for only_orders in (False, True):
        folder = tmp_path / str(only_orders)
        folder.mkdir()
        write_model(
            folder,
            network,
            run / "tokenizer.json",
            asked,
            asked,
            identity={**IDENTITY, "max_tokens": 160},
            training={"steps": 1},
            origin="",
            only_orders=only_orders,
        )
        clear.append(json.loads((folder / "config.json").read_text())["parity"]["clear_questions"])
    scores = network_scores(network, Packer(run / "tokenizer.json"), [(INSTRUCTION, candidates)], 160)[0]
    margins = np.array([abs(one - other) for one, other in combinations(scores, 2)])
    assert clear == [(margins > 0.02).sum(), (margins > 0.05).sum()]
    assert clear[0] > clear[1]


def test_one_question_proves_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(
        json.dumps(record("one", "t", INSTRUCTION, "dev") | {"references": ["x"], "choices": ["x", "y"]}) + "\n"
    )
    with pytest.raises(InputValueError, match=r"one\.jsonl has 1 questions of split dev: give two at least"):
        export(run, tmp_path / "one.jsonl", tmp_path / "out", **IDENTITY)


def test_a_run_without_dev_figures_has_none_on_its_card(run: Path, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "log.jsonl").write_text('{"step": 2, "loss": 1.5}\n')
    export(folder, data, tmp_path / "out", **IDENTITY)
    assert "## Figures" not in (tmp_path / "out" / "README.md").read_text()


def test_an_existing_folder_is_left_alone(run: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputValueError, match="exists: give --out a new folder"):
        export(run, data, tmp_path, **IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_without_its_log_is_named(run: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    with pytest.raises(InputValueError, match=r"log\.jsonl is missing"):
        export(tmp_path, data, tmp_path / "out", **IDENTITY)


def test_a_changed_card_is_sealed_again(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with (folder / "README.md").open("a") as card:
        card.write("Figures on unseen tasks: none.\n")
    with pytest.raises(ModelError, match=r"README\.md is truncated or altered"):
        check_files(folder, read_config(folder))
    seal(folder)
    check_files(folder, read_config(folder))


def test_command_line(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", "--run", str(run), "--dev", str(data), "--out", str(tmp_path / "out")]
    notes = tmp_path / "notes.md"
    command += ["--base-model", "none", "--licence", "MIT", "--notes", str(notes)]
    notes.write_bytes(b"\xff")
    assert main(command) == 1
    assert f"{notes} can't be read as UTF-8 text" in capsys.readouterr().err
    notes.write_text("## What it learned from\n\nTwo braces: {}.\n")
    assert main(command) == 0
    assert read_config(tmp_path / "out").name == "out"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\n\n## What it learned from\n\nTwo braces: {}.\n\n## Licence" in card
    assert "its maker's to say" not in card
    assert main(command) == 1
    assert "exists: give --out a new folder" in capsys.readouterr().err
