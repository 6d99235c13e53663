"""A model folder becomes a network again, to go on training from: the reverse of an export."""

from __future__ import annotations

from pathlib import Path

import onnx

from cappy_lite.errors import InputValueError, ModelError
from cappy_lite.models import GRAPH_FILE, check_files, read_config
from cappy_train.batches import SPECIAL_TOKENS
from cappy_train.export import FLOAT_GRAPH_FILE
from cappy_train.network import PackedNetwork
from cappy_train.shared_builds import network_in


def network_of(folder: Path) -> PackedNetwork:
    """The network of a model folder, in float32.

    Its weights are those of the float32 twin (model.fp32.onnx) where that lies in the folder, else the 8-bit ones
    times their scales: then its scores are the graph's but for the rounding of what layers read. (Of ModernBERT's build
    only the float32 ones.)

    Args:
        folder: a model folder of graph `shared`, with a sigmoid for its score, such as an export made.

    Raises:
        InputValueError: the model is of another kind, or of ModernBERT's build and in 8 bits alone.
        ModelError: a file is missing or damaged.
    """
    config = read_config(folder)
    if config.graph != "shared" or config.score_activation != "sigmoid":
        raise InputValueError(
            f"{folder} holds a model of graph {config.graph} and activation {config.score_activation}, and only those "
            "of graph shared and activation sigmoid, which cappy-train export makes, can be trained further: give "
            "cappy-mini, or another such model"
        )
    if (config.cls_token, config.sep_token) not in SPECIAL_TOKENS:
        raise InputValueError(
            f"{folder} has the special tokens {config.cls_token} and {config.sep_token}: give a model "
            f"with {' or '.join(' and '.join(pair) for pair in SPECIAL_TOKENS)}"
        )
    check_files(folder, config)
    exact = folder / FLOAT_GRAPH_FILE
    path = exact if exact.exists() else folder / GRAPH_FILE
    try:
        return network_in(onnx.load(path))
    except InputValueError as error:
        raise InputValueError(f"{folder}: {error}") from error
    except Exception as error:  # of protobuf, of onnx, of a graph that isn't ours: of many kinds
        raise ModelError(
            f"{path} holds no graph that cappy-train export made ({error}): export the model again"
        ) from error


def in_float32(folder: Path) -> bool:
    """Whether the graph of a model folder that an export made has float32 weights, rather than 8 bits."""
    graph = onnx.load(folder / GRAPH_FILE, load_external_data=False)
    return any(node.op_type == "Gemm" and node.name == "layers.0.query" for node in graph.graph.node)
