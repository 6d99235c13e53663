"""A model folder becomes a network again, with the scores that the folder's graph gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_joint import write_tiny_joint
from tiny_scorer import write_tiny_scorer

from cappy_lite import Scorer
from cappy_lite.activations import ScoreCalibration, sigmoid
from cappy_lite.errors import InputValueError, ModelError
from cappy_lite.models import model_folder
from cappy_train.batches import Packer
from cappy_train.evaluate import Question
from cappy_train.export import graph_logits
from cappy_train.graph import graph_weights, packed_graph
from cappy_train.network import ScorerNetwork, packaged_minilm
from cappy_train.read_back import network_of
from cappy_train.shared_builds import from_saved
from cappy_train.trainable import network_scores

QUESTIONS = [
    ("put the word together: dog runs", ("the dog runs on the street", "a cat", "snow", "the child eats pasta")),
    ("Is the film good or bad? " * 9, ("good", "bad", "the film is old and the water is blue " * 4)),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scorer(tmp_path_factory.mktemp("models") / "tiny")


def scores_of(network: ScorerNetwork, folder: Path) -> np.ndarray:
    scores = network_scores(network, Packer(folder / "tokenizer.json"), QUESTIONS, network.config.positions)
    return np.concatenate(scores)


def runtime_scores(folder: Path) -> np.ndarray:
    scorer = Scorer(folder, threads=1)
    return np.concatenate([scorer.score(instruction, candidates) for instruction, candidates in QUESTIONS])


def write_without_calibration(folder: Path) -> None:
    """Has the runtime give the network's own scores, of a model that an export may have calibrated."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"calibration": None}))


def exported_scores(network: ScorerNetwork, folder: Path, graph: Path) -> np.ndarray:
    onnx.save(packed_graph(graph_weights(network)), graph)
    asked = [Question("task", None, *one, np.zeros(len(one[1])), "group", "generation") for one in QUESTIONS]
    return sigmoid(
        np.concatenate(graph_logits(graph, Packer(folder / "tokenizer.json"), asked, network.config.positions))
    )


def test_the_float32_twin_gives_every_weight(model: Path, tmp_path: Path) -> None:
    network = network_of(model)
    exact = onnx.load(model / "model.fp32.onnx")
    again = packed_graph(graph_weights(network))
    weights = [{each.name: each.raw_data for each in graph.graph.initializer} for graph in (exact, again)]
    assert weights[0] == weights[1]
    assert not network.training


def test_its_sizes_are_those_of_the_encoder_that_it_was_trained_from() -> None:
    """So it has a mean with that encoder, and with what was trained from either."""
    assert network_of(model_folder("cappy-mini")).sizes() == from_saved(packaged_minilm()).sizes()


@pytest.mark.parametrize("name", ["tiny", "cappy-mini"])
def test_eight_bits_give_the_graphs_scores(name: str, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model if name == "tiny" else model_folder(name), folder)
    (folder / "model.fp32.onnx").unlink(missing_ok=True)
    network = network_of(folder)
    scores = scores_of(network, folder)
    assert scores.std() > 0.02
    write_without_calibration(folder)
    difference = np.abs(scores - runtime_scores(folder))
    assert difference.mean() < 0.015
    assert 0 < difference.max() < 0.05
    np.testing.assert_allclose(exported_scores(network, folder, tmp_path / "graph.onnx"), scores, atol=1e-5)


def test_a_calibrated_model_gives_its_networks_own_logits(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    knots = {"logits": [-0.5, 0.0, 0.5], "calibrated": [-4.0, -3.5, 0.5]}
    (folder / "config.json").write_text(json.dumps(config | {"calibration": knots}))
    network = network_of(folder)
    for name, weight in network_of(model).state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], weight, rtol=0, atol=0)
    scores = scores_of(network, folder)
    np.testing.assert_array_equal(scores, scores_of(network_of(model), model))
    calibrated = sigmoid(ScoreCalibration(**knots)(np.log(scores / (1 - scores))))
    assert np.abs(calibrated - scores).min() > 0.05
    assert np.abs(calibrated - runtime_scores(folder)).mean() < 0.015


def test_it_can_be_trained(model: Path) -> None:
    network = network_of(model)
    assert all(weight.dtype == torch.float32 and weight.requires_grad for weight in network.parameters())


def test_a_joint_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputValueError, match=r"graph joint .* give cappy-mini"):
        network_of(write_tiny_joint(tmp_path / "joint"))


def test_a_damaged_model_is_refused(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match="truncated or altered"):
        network_of(folder)
    shutil.copyfile(model / "model.onnx", folder / "model.onnx")
    (folder / "model.fp32.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match="export the model again"):
        network_of(folder)
