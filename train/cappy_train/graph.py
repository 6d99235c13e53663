"""The scorer network as an ONNX graph, in float32 or in 8 bits: node by node, so that nothing in it is there by chance.

The graph reads one packed row (see `cappy_lite.packing`); `joint_twin` makes one that reads padded pairs of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from cappy_lite.session import INPUTS, OUTPUT
from cappy_train.attention_rules import (
    GraphBuilder,
    belongs_to_rule,
    joint_attention,
    joint_rule,
    packed_attention,
    packed_rule,
)
from cappy_train.network import ScorerNetwork

FloatArray = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]

EMBEDDING_INPUTS = {
    "word_embeddings": "input_ids",
    "position_embeddings": "position_ids",
    "token_type_embeddings": "token_type_ids",
}


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x @ weight + bias. weight: (in, out); bias: (out,)."""

    weight: FloatArray
    bias: FloatArray


@dataclass(frozen=True, slots=True)
class QuantisedLinear:
    """A linear layer whose product is of unsigned 8-bit inputs and signed 8-bit weights.

    weight: (in, out), in units of the column's scale. weight_scales, bias: (out,).
    input_gain: (in,). input_scale, input_zero_point: an input x is read as round(x * gain / scale) + zero point, cut to
        0..255. All are fixed, so what else is in a row can't change how an input is read.
    """

    weight: Int8Array
    weight_scales: FloatArray
    bias: FloatArray
    input_gain: FloatArray
    input_scale: np.float32
    input_zero_point: np.uint8


@dataclass(frozen=True, slots=True)
class QuantisedTable:
    """An embedding in 8 bits. table: (rows, hidden), in units of the row's scale. scales: (rows, 1)."""

    table: Int8Array
    scales: FloatArray


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer normalisation's gain and bias, (hidden,)."""

    gain: FloatArray
    bias: FloatArray


@dataclass(frozen=True, slots=True)
class GraphWeights:
    """The network's weights by the names that nodes carry, such as `layers.0.query`, `layers.0.attention_norm`."""

    layers: int
    heads: int
    layer_norm_eps: float
    embeddings: Mapping[str, FloatArray | QuantisedTable]
    linears: Mapping[str, Linear | QuantisedLinear]
    norms: Mapping[str, Norm]


def graph_weights(network: ScorerNetwork) -> GraphWeights:
    """The weights of a network, in float32."""
    arrays = {name: weight.detach().float().numpy() for name, weight in network.named_parameters()}
    linears: dict[str, Linear | QuantisedLinear] = {}
    norms = {}
    for name in (name.removesuffix(".bias") for name in arrays if name.endswith(".bias")):
        weight, bias = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
        if weight.ndim == 1:
            norms[name] = Norm(weight, bias)
        elif name.endswith(".query_key_value"):
            layer = name.removesuffix("query_key_value")
            parts = zip(("query", "key", "value"), np.split(weight, 3), np.split(bias, 3), strict=True)
            linears |= {f"{layer}{part}": Linear(own.T, own_bias) for part, own, own_bias in parts}
        else:
            linears[name] = Linear(weight.T, bias)
    config = network.config
    embeddings = {kind: arrays[f"{kind}.weight"] for kind in EMBEDDING_INPUTS}
    return GraphWeights(config.layers, config.heads, config.layer_norm_eps, embeddings, linears, norms)


def packed_graph(weights: GraphWeights) -> onnx.ModelProto:
    """The graph over one packed row: int64 inputs as PackedRow's arrays, output `logits`, float32 (n,).

    Nodes of linear layers are Gemms named as the layers. In 8 bits their inputs and weights pass through pairs of
    QuantizeLinear and DequantizeLinear, which ONNX Runtime turns into integer products (QGemm).
    """
    graph = GraphBuilder()
    packed_rule(graph, heads=weights.heads, hidden=len(weights.norms["embedding_norm"].gain))
    _body(graph, weights)
    shapes = {name: ["candidates" if name == "score_positions" else "tokens"] for name in INPUTS}
    return graph.model(shapes, ["candidates"])


def joint_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same weights, at the same precision, read as an ordinary cross-encoder: each pair on its own, padded.

    Made from a packed graph, for comparing the time that both take; its scores mean little, for the network was trained
    with another attention rule. int64 inputs `input_ids`, `attention_mask` (1, then 0 for padding) and
    `token_type_ids`, all (B, L); output `logits`, float32 (B,), read at each pair's last token.
    """
    graph = GraphBuilder()
    heads = next(
        attribute.i for node in model.graph.node for attribute in node.attribute if attribute.name == "num_heads"
    )
    (norm,) = (each for each in model.graph.initializer if each.name == "embedding_norm.gain")
    joint_rule(graph, hidden=norm.dims[0])
    body = [node for node in model.graph.node if not belongs_to_rule(node.name)]
    layers = [node.name.removesuffix(".value") for node in body if node.name.endswith(".value")]
    for node in body:
        graph.nodes.append(node)
        if node.name.endswith(".value"):
            layer = node.name.removesuffix(".value")
            joint_attention(graph, layer, heads, last=layer == layers[-1])
    graph.initializers += [each for each in model.graph.initializer if not belongs_to_rule(each.name)]
    shapes = {name: ["pairs", "tokens"] for name in ("input_ids", "attention_mask", "token_type_ids")}
    return graph.model(shapes, ["pairs"])


def _body(graph: GraphBuilder, weights: GraphWeights) -> None:
    """From token ids to logits. States are (tokens of all rows, hidden), but for the attention."""
    for kind, ids in EMBEDDING_INPUTS.items():
        _embedding(graph, weights.embeddings[kind], ids, kind)
    states = graph.node("Add", ["word_embeddings", "position_embeddings"], "placed_embeddings")
    states = graph.node("Add", [states, "token_type_embeddings"], "embeddings")
    states = _norm(graph, weights, states, "embedding_norm")
    graph.constant("flat_shape", [-1, len(weights.norms["embedding_norm"].gain)])
    states = graph.node("Reshape", [states, "flat_shape"], "states")
    for number in range(weights.layers):
        states = _layer(graph, weights, number, states)
    dense = graph.node("Tanh", [_linear(graph, weights, "head_dense", states)], "head")
    output = _linear(graph, weights, "head_output", dense)
    graph.node("Reshape", [output, graph.constant("logits_shape", [-1])], OUTPUT)


def _layer(graph: GraphBuilder, weights: GraphWeights, number: int, states: str) -> str:
    """The layer's output; of the last one, at the score positions alone, for no other is read."""
    layer, last = f"layers.{number}", number == weights.layers - 1
    seen = states
    if last:
        states = graph.node("Gather", [states, "score_positions"], "states_to_score", axis=0)
    for part, source in {"query": states, "key": seen, "value": seen}.items():
        _linear(graph, weights, f"{layer}.{part}", source)
    packed_attention(graph, layer, weights.heads, last=last)
    attended = _linear(graph, weights, f"{layer}.attention_output", f"{layer}.context")
    states = graph.node("Add", [states, attended], f"{layer}.attention_sum")
    states = _norm(graph, weights, states, f"{layer}.attention_norm")
    hidden = graph.node("Gelu", [_linear(graph, weights, f"{layer}.intermediate", states)], f"{layer}.gelu")
    states = graph.node("Add", [states, _linear(graph, weights, f"{layer}.output", hidden)], f"{layer}.output_sum")
    return _norm(graph, weights, states, f"{layer}.output_norm")


def _embedding(graph: GraphBuilder, table: FloatArray | QuantisedTable, ids: str, name: str) -> str:
    if isinstance(table, np.ndarray):
        return graph.node("Gather", [graph.constant(f"{name}.table", table), ids], name)
    rows = graph.node("Gather", [graph.constant(f"{name}.table", table.table), ids], f"{name}.rows")
    scales = graph.node("Gather", [graph.constant(f"{name}.scales", table.scales), ids], f"{name}.row_scales")
    values = graph.node("Cast", [rows], f"{name}.values", to=TensorProto.FLOAT)
    return graph.node("Mul", [values, scales], name)


def _norm(graph: GraphBuilder, weights: GraphWeights, states: str, name: str) -> str:
    norm = weights.norms[name]
    constants = [graph.constant(f"{name}.gain", norm.gain), graph.constant(f"{name}.bias", norm.bias)]
    return graph.node("LayerNormalization", [states, *constants], name, epsilon=weights.layer_norm_eps)


def _linear(graph: GraphBuilder, weights: GraphWeights, name: str, states: str) -> str:
    linear = weights.linears[name]
    if isinstance(linear, Linear):
        constants = [graph.constant(f"{name}.weight", linear.weight), graph.constant(f"{name}.bias", linear.bias)]
        return graph.node("Gemm", [states, *constants], name)
    bias_scales = linear.input_scale * linear.weight_scales
    bias = np.rint(linear.bias / bias_scales).astype(np.int32)
    operands = [
        _quantised_input(graph, states, linear),
        _dequantised(graph, f"{name}.weight", linear.weight, linear.weight_scales, axis=1),
        _dequantised(graph, f"{name}.bias", bias, bias_scales, axis=0),
    ]
    return graph.node("Gemm", operands, name)


def _quantised_input(graph: GraphBuilder, states: str, linear: QuantisedLinear) -> str:
    """`states` as 8 bits hold them. Layers that read the same states share their scale, and these nodes."""
    name = f"{states}.dequantised"
    if not any(node.name == name for node in graph.nodes):
        constants = [
            graph.constant(f"{states}.input_scale", linear.input_scale),
            graph.constant(f"{states}.input_zero_point", linear.input_zero_point),
        ]
        scaled = graph.node(
            "Mul", [states, graph.constant(f"{states}.input_gain", linear.input_gain)], f"{states}.scaled"
        )
        quantised = graph.node("QuantizeLinear", [scaled, *constants], f"{states}.quantised")
        graph.node("DequantizeLinear", [quantised, *constants], name)
    return name


def _dequantised(graph: GraphBuilder, name: str, values: npt.NDArray[Any], scales: FloatArray, *, axis: int) -> str:
    """Constants kept as integers. Without zero points, 0 as they are, ONNX Runtime wouldn't make integer products."""
    constants = [
        graph.constant(name, values),
        graph.constant(f"{name}.scales", scales),
        graph.constant(f"{name}.zero_points", np.zeros_like(scales, dtype=values.dtype)),
    ]
    return graph.node("DequantizeLinear", constants, f"{name}.dequantised", axis=axis)
