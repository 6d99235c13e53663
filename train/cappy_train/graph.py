"""The scorer network as an ONNX graph, in float32 or in 8 bits: node by node, so that nothing in it is there by chance.

The graph reads one packed row (see `cappy_lite.packing`). Its body doesn't know the attention rule, which comes in as a
bias from the few nodes of its front; so `joint_twin` can put another front before the same body.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from cappy_lite.session import INPUTS, OUTPUT
from cappy_train.network import ScorerNetwork

FloatArray = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]

# Gelu is an operator of its own since opset 20; ONNX Runtime reads that since 1.17.
OPSET = 20
IR_VERSION = 9
# ONNX Runtime's own operators: its MultiHeadAttention takes a third off the time of a long row, for it keeps one copy
# of the attention logits where plain operators write three. With one bias for all heads it is there since 1.20.
RUNTIME_DOMAIN = "com.microsoft"
# Names of nodes and constants of a graph's front begin so.
FRONT = "front."
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
    graph = _Graph()
    _packed_front(graph, hidden=_hidden(weights))
    _body(graph, weights)
    shapes = {name: ["candidates" if name == "score_positions" else "tokens"] for name in INPUTS}
    return graph.model(shapes, ["candidates"])


def joint_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same weights, at the same precision, read as an ordinary cross-encoder: each pair on its own, padded.

    Made from a packed graph, for comparing the time that both take; its scores mean little, for the network was trained
    with another attention rule. int64 inputs `input_ids`, `attention_mask` (1, then 0 for padding) and
    `token_type_ids`, all (B, L); output `logits`, float32 (B,), read at each pair's last token.
    """
    graph = _Graph()
    (table,) = (each for each in model.graph.initializer if each.name == "word_embeddings.table")
    _joint_front(graph, hidden=table.dims[1])
    graph.nodes += [node for node in model.graph.node if not node.name.startswith(FRONT)]
    graph.initializers += [each for each in model.graph.initializer if not each.name.startswith(FRONT)]
    shapes = {name: ["pairs", "tokens"] for name in ("input_ids", "attention_mask", "token_type_ids")}
    return graph.model(shapes, ["pairs"])


class _Graph:
    """Nodes and constants, as they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, operator: str, inputs: list[str], name: str, *, domain: str = "", **attributes: Any) -> str:
        """Adds a node with one output, which has the node's name; returns that."""
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def model(self, inputs: Mapping[str, list[str]], output_shape: list[str]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "scorer",
            [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, output_shape)],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(RUNTIME_DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="cappy_train")


def _packed_front(graph: _Graph, *, hidden: int) -> None:
    """The attention rule of packed rows: a query sees its instruction, segment 0, and its own segment."""
    keys = graph.node("Unsqueeze", ["segment_ids", graph.constant("front.first", [0])], "front.keys")
    queries = graph.node("Unsqueeze", ["segment_ids", graph.constant("front.second", [1])], "front.queries")
    in_instruction = graph.node("Equal", [keys, graph.constant("front.instruction", 0)], "front.in_instruction")
    in_own_segment = graph.node("Equal", [keys, queries], "front.in_own_segment")
    visible = graph.node("Or", [in_instruction, in_own_segment], "front.visible")
    for_heads = graph.node("Unsqueeze", [visible, graph.constant("front.outer", [0, 1])], "front.visible_for_heads")
    bias = _bias(graph, for_heads, "front.bias")
    graph.node("Gather", [bias, "score_positions"], "front.score_bias", axis=2)
    graph.constant("front.batch_shape", [1, -1, hidden])


def _joint_front(graph: _Graph, *, hidden: int) -> None:
    """A query sees every token of its pair; what padding sees doesn't matter, but it must see something."""
    shape = graph.node("Shape", ["input_ids"], "front.shape")
    pairs = graph.node("Slice", [shape, graph.constant("front.0", [0]), graph.constant("front.1", [1])], "front.pairs")
    graph.node("Concat", [pairs, graph.constant("front.states", [-1, hidden])], "front.batch_shape", axis=0)
    zero, one = graph.constant("front.zero", 0), graph.constant("front.one", 1)
    length = graph.node("Gather", [shape, one], "front.length", axis=0)
    graph.node("Range", [zero, length, one], "position_ids")
    row = graph.node("Range", [zero, graph.node("Squeeze", [pairs], "front.pair_count"), one], "front.row")
    own_length = graph.node("ReduceSum", ["attention_mask", "front.1"], "front.own_length", keepdims=0)
    last = graph.node("Sub", [own_length, one], "front.last")
    graph.node("Add", [graph.node("Mul", [row, length], "front.row_start"), last], "score_positions")

    keys = graph.node("Unsqueeze", ["attention_mask", graph.constant("front.key_axes", [1, 2])], "front.keys")
    queries = graph.node("Unsqueeze", ["attention_mask", graph.constant("front.query_axes", [1, 3])], "front.queries")
    _bias(graph, graph.node("GreaterOrEqual", [keys, queries], "front.visible"), "front.bias")
    _bias(graph, graph.node("Equal", [keys, one], "front.visible_to_score"), "front.score_bias")


def _bias(graph: _Graph, visible: str, name: str) -> str:
    """What is added to attention logits: 0 where a key is visible, else -inf; (B or 1, 1, queries, keys)."""
    shown = graph.constant(f"{name}.shown", np.float32(0))
    hidden = graph.constant(f"{name}.hidden", np.float32(-np.inf))
    return graph.node("Where", [visible, shown, hidden], name)


def _body(graph: _Graph, weights: GraphWeights) -> None:
    """From token ids to logits. States are (tokens of all rows, hidden), but for the attention."""
    for kind, ids in EMBEDDING_INPUTS.items():
        _embedding(graph, weights.embeddings[kind], ids, kind)
    states = graph.node("Add", ["word_embeddings", "position_embeddings"], "placed_embeddings")
    states = graph.node("Add", [states, "token_type_embeddings"], "embeddings")
    states = _norm(graph, weights, states, "embedding_norm")
    graph.constant("flat_shape", [-1, _hidden(weights)])
    states = graph.node("Reshape", [states, "flat_shape"], "states")
    for number in range(weights.layers - 1):
        states = _layer(graph, weights, f"layers.{number}", states, states, "front.bias")
    # Of the last layer's states only those at the score positions are read.
    read = graph.node("Gather", [states, "score_positions"], "states_to_score", axis=0)
    read = _layer(graph, weights, f"layers.{weights.layers - 1}", read, states, "front.score_bias")
    dense = graph.node("Tanh", [_linear(graph, weights, "head_dense", read)], "head")
    output = _linear(graph, weights, "head_output", dense)
    graph.node("Reshape", [output, graph.constant("logits_shape", [-1])], OUTPUT)


def _layer(graph: _Graph, weights: GraphWeights, name: str, states: str, seen: str, bias: str) -> str:
    """One layer for the tokens of `states`, which attend to the tokens of `seen`."""
    inputs = {"query": states, "key": seen, "value": seen}
    batches = [
        graph.node(
            "Reshape", [_linear(graph, weights, f"{name}.{part}", source), "front.batch_shape"], f"{name}.{part}.batch"
        )
        for part, source in inputs.items()
    ]
    context = graph.node(
        "MultiHeadAttention",
        [*batches, "", "", bias],
        f"{name}.context",
        domain=RUNTIME_DOMAIN,
        num_heads=weights.heads,
    )
    context = graph.node("Reshape", [context, "flat_shape"], f"{name}.context.flat")
    attended = _linear(graph, weights, f"{name}.attention_output", context)
    states = graph.node("Add", [states, attended], f"{name}.attention_sum")
    states = _norm(graph, weights, states, f"{name}.attention_norm")
    hidden = graph.node("Gelu", [_linear(graph, weights, f"{name}.intermediate", states)], f"{name}.gelu")
    states = graph.node("Add", [states, _linear(graph, weights, f"{name}.output", hidden)], f"{name}.output_sum")
    return _norm(graph, weights, states, f"{name}.output_norm")


def _embedding(graph: _Graph, table: FloatArray | QuantisedTable, ids: str, name: str) -> str:
    if isinstance(table, np.ndarray):
        return graph.node("Gather", [graph.constant(f"{name}.table", table), ids], name)
    rows = graph.node("Gather", [graph.constant(f"{name}.table", table.table), ids], f"{name}.rows")
    scales = graph.node("Gather", [graph.constant(f"{name}.scales", table.scales), ids], f"{name}.row_scales")
    values = graph.node("Cast", [rows], f"{name}.values", to=TensorProto.FLOAT)
    return graph.node("Mul", [values, scales], name)


def _norm(graph: _Graph, weights: GraphWeights, states: str, name: str) -> str:
    norm = weights.norms[name]
    constants = [graph.constant(f"{name}.gain", norm.gain), graph.constant(f"{name}.bias", norm.bias)]
    return graph.node("LayerNormalization", [states, *constants], name, epsilon=weights.layer_norm_eps)


def _linear(graph: _Graph, weights: GraphWeights, name: str, states: str) -> str:
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


def _quantised_input(graph: _Graph, states: str, linear: QuantisedLinear) -> str:
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


def _dequantised(graph: _Graph, name: str, values: npt.NDArray[Any], scales: FloatArray, *, axis: int) -> str:
    """Constants kept as integers. Without zero points, 0 as they are, ONNX Runtime wouldn't make integer products."""
    constants = [
        graph.constant(name, values),
        graph.constant(f"{name}.scales", scales),
        graph.constant(f"{name}.zero_points", np.zeros_like(scales, dtype=values.dtype)),
    ]
    return graph.node("DequantizeLinear", constants, f"{name}.dequantised", axis=axis)


def _hidden(weights: GraphWeights) -> int:
    return len(weights.norms["embedding_norm"].gain)
