"""Of which build a shared-instruction network is: BERT's or ModernBERT's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from cappy_train.graph import GraphWeights, float_weights, graph_weights, packed_graph, read_weights, scorer_network
from cappy_train.modern_graph import ModernWeights, is_modern, modern_graph, modern_network, modern_weights
from cappy_train.modern_network import MODEL_TYPE, ModernNetwork, from_modern_bert
from cappy_train.network import PackedNetwork, ScorerNetwork, from_bert


def kind_of(sizes: Mapping[str, Any]) -> type[PackedNetwork]:
    """The kind of network whose `sizes` these are."""
    return ModernNetwork if sizes.get("build") == ModernNetwork.build else ScorerNetwork


def from_saved(folder: Path) -> PackedNetwork:
    """A network with the encoder weights of a checkpoint that transformers saved, and a fresh head.

    Raises:
        InputValueError: a file is missing or damaged, or the checkpoint is of another build.
    """
    return from_modern_bert(folder) if _is_modern_bert(folder) else from_bert(folder)


def shared_weights(network: PackedNetwork) -> GraphWeights:
    """A network's weights as those of a graph, in float32."""
    return modern_weights(network) if isinstance(network, ModernNetwork) else graph_weights(network)


def shared_graph(weights: GraphWeights) -> onnx.ModelProto:
    """The graph over packed rows with these weights: see `graph.packed_graph`."""
    return modern_graph(weights) if isinstance(weights, ModernWeights) else packed_graph(weights)


def network_in(graph: onnx.ModelProto) -> PackedNetwork:
    """The network of a graph that `shared_graph` made, in float32.

    Raises:
        InputValueError: it is of ModernBERT's build and in 8 bits.
    """
    return modern_network(graph) if is_modern(graph) else scorer_network(float_weights(read_weights(graph)))


def _is_modern_bert(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # `from_bert` says what is wrong
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE
