"""Who attends to whom, as nodes of an ONNX graph: in packed rows, and in ordinary padded pairs.

Either rule has nodes at the graph's start and nodes in each layer, between its query, key and value and its context.
They all have names that tell them from the rest of the graph, so that one rule can stand in for the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from cappy_lite.session import OUTPUT

# Gelu is an operator of its own since opset 20; ONNX Runtime reads that since 1.17.
OPSET = 20
IR_VERSION = 9
# ONNX Runtime's own operators: its MultiHeadAttention, with one bias for all heads since 1.20, keeps one copy of the
# attention logits where plain operators write several. It serves where no visible key changes its place.
RUNTIME_DOMAIN = "com.microsoft"
# Names of the nodes and constants that follow from the attention rule begin so.
RULE = "rule."


class GraphBuilder:
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

    def split(self, states: str, lengths: str, name: str) -> tuple[str, str]:
        """Adds a node that splits along the first axis; returns its two outputs."""
        parts = (f"{name}.0", f"{name}.1")
        self.nodes.append(helper.make_node("Split", [states, lengths], parts, name=name, axis=0))
        return parts

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


def packed_rule(graph: GraphBuilder, *, heads: int, hidden: int) -> None:
    """What a candidate's tokens see: the instruction, segment 0, which comes first, and their own segment."""
    instruction, first = graph.constant("rule.instruction", 0), graph.constant("rule.first", [0])
    of_instruction = graph.node("Equal", ["segment_ids", instruction], "rule.of_instruction")
    counted = graph.node("Cast", [of_instruction], "rule.counted", to=TensorProto.INT64)
    length = graph.node("ReduceSum", [counted, first], "rule.instruction_length", keepdims=1)
    row_length = graph.node("Shape", ["segment_ids"], "rule.row_length")
    rest = graph.node("Sub", [row_length, length], "rule.candidates_length")
    graph.node("Concat", [length, rest], "rule.lengths", axis=0)

    own = graph.node("Slice", ["segment_ids", length, row_length], "rule.candidate_segments")
    queries = graph.node("Unsqueeze", [own, graph.constant("rule.second", [1])], "rule.queries")
    keys = graph.node("Unsqueeze", ["segment_ids", first], "rule.keys")
    in_instruction = graph.node("Equal", [keys, instruction], "rule.in_instruction")
    visible = graph.node("Or", [in_instruction, graph.node("Equal", [keys, queries], "rule.in_own")], "rule.visible")
    for_heads = graph.node("Unsqueeze", [visible, graph.constant("rule.outer", [0, 1])], "rule.visible_for_heads")
    bias = _bias(graph, for_heads, "rule.bias")
    places = graph.node("Sub", ["score_positions", length], "rule.score_places")
    graph.node("Gather", [bias, places], "rule.score_bias", axis=2)
    graph.constant("rule.batch_shape", [1, -1, hidden])
    graph.constant("rule.head_shape", [1, -1, heads, hidden // heads])
    graph.constant("rule.scale", np.float32((hidden // heads) ** -0.5))
    graph.constant("rule.keys_axis", [-1])


def packed_attention(graph: GraphBuilder, layer: str, heads: int, *, last: bool) -> None:
    """The instruction attends to itself on its own, and so doesn't know of the candidates; these attend steadily.

    In the last layer there are queries for the score positions alone.
    """
    query, key, value = f"{layer}.query", f"{layer}.key", f"{layer}.value"
    if last:
        _steady_attention(graph, [query, key, value], f"{layer}.context", bias="rule.score_bias")
        return
    (own_query, rest), (own_key, _), (own_value, _) = (
        graph.split(states, "rule.lengths", f"rule.{states}") for states in (query, key, value)
    )
    contexts = [
        _attention(graph, [own_query, own_key, own_value], heads, f"rule.{layer}.instruction"),
        _steady_attention(graph, [rest, key, value], f"rule.{layer}.candidates", bias="rule.bias"),
    ]
    graph.node("Concat", contexts, f"{layer}.context", axis=0)


def joint_rule(graph: GraphBuilder, *, hidden: int) -> None:
    """A query sees every token of its pair; what padding sees doesn't matter, but it must see something."""
    shape = graph.node("Shape", ["input_ids"], "rule.shape")
    pairs = graph.node("Slice", [shape, graph.constant("rule.0", [0]), graph.constant("rule.1", [1])], "rule.pairs")
    graph.node("Concat", [pairs, graph.constant("rule.states", [-1, hidden])], "rule.batch_shape", axis=0)
    zero, one = graph.constant("rule.zero", 0), graph.constant("rule.one", 1)
    length = graph.node("Gather", [shape, one], "rule.length", axis=0)
    graph.node("Range", [zero, length, one], "position_ids")
    row = graph.node("Range", [zero, graph.node("Squeeze", [pairs], "rule.pair_count"), one], "rule.row")
    own_length = graph.node("ReduceSum", ["attention_mask", "rule.1"], "rule.own_length", keepdims=0)
    last = graph.node("Sub", [own_length, one], "rule.last")
    graph.node("Add", [graph.node("Mul", [row, length], "rule.row_start"), last], "score_positions")

    keys = graph.node("Unsqueeze", ["attention_mask", graph.constant("rule.key_axes", [1, 2])], "rule.keys")
    queries = graph.node("Unsqueeze", ["attention_mask", graph.constant("rule.query_axes", [1, 3])], "rule.queries")
    _bias(graph, graph.node("GreaterOrEqual", [keys, queries], "rule.visible"), "rule.bias")
    _bias(graph, graph.node("Equal", [keys, one], "rule.visible_to_score"), "rule.score_bias")


def joint_attention(graph: GraphBuilder, layer: str, heads: int, *, last: bool) -> None:
    """All tokens of a pair attend to all; in the last layer there is one query a pair."""
    operands = [f"{layer}.query", f"{layer}.key", f"{layer}.value"]
    _attention(graph, operands, heads, f"{layer}.context", bias="rule.score_bias" if last else "rule.bias")


def belongs_to_rule(name: str) -> bool:
    """Whether a node or constant comes of the functions above."""
    return name.startswith(RULE) or name.endswith(".context")


def _attention(graph: GraphBuilder, operands: list[str], heads: int, name: str, *, bias: str = "") -> str:
    """What queries gather from values by their keys; all three, and the result, are (tokens of all rows, hidden)."""
    rule = RULE + name.removeprefix(RULE)
    batches = [
        graph.node("Reshape", [states, "rule.batch_shape"], f"{rule}.{part}")
        for part, states in zip(("query", "key", "value"), operands, strict=True)
    ]
    context = graph.node(
        "MultiHeadAttention", [*batches, "", "", bias], f"{rule}.batch", domain=RUNTIME_DOMAIN, num_heads=heads
    )
    return graph.node("Reshape", [context, "flat_shape"], name)


def _steady_attention(graph: GraphBuilder, operands: list[str], name: str, *, bias: str) -> str:
    """As `_attention`, for one row, and the same to the last bit wherever in the row the visible keys stand.

    Where they stand decides in which order float32 adds up what they give. The sums would differ in their last bit, an
    8-bit rounding after them would now and then go the other way, and a score would move by up to 0.006. Added up in
    float64 and then rounded to float32 they are equal.
    """
    rule = RULE + name.removeprefix(RULE)
    query, key, value = (
        graph.node(
            "Transpose",
            [graph.node("Reshape", [states, "rule.head_shape"], f"{rule}.{part}_heads")],
            f"{rule}.{part}",
            perm=[0, 2, 3, 1] if part == "key" else [0, 2, 1, 3],
        )
        for part, states in zip(("query", "key", "value"), operands, strict=True)
    )
    scaled = graph.node("Mul", [query, "rule.scale"], f"{rule}.scaled")
    logits = graph.node("Add", [graph.node("MatMul", [scaled, key], f"{rule}.products"), bias], f"{rule}.logits")
    greatest = graph.node("ReduceMax", [logits, "rule.keys_axis"], f"{rule}.greatest", keepdims=1)
    exponentials = graph.node("Exp", [graph.node("Sub", [logits, greatest], f"{rule}.below")], f"{rule}.exponentials")
    weights = graph.node("Cast", [exponentials], f"{rule}.weights", to=TensorProto.DOUBLE)
    exact_value = graph.node("Cast", [value], f"{rule}.exact_value", to=TensorProto.DOUBLE)
    weighted = graph.node("MatMul", [weights, exact_value], f"{rule}.weighted")
    total = graph.node("ReduceSum", [weights, "rule.keys_axis"], f"{rule}.total", keepdims=1)
    mean = graph.node("Div", [weighted, total], f"{rule}.mean")
    rounded = graph.node("Cast", [mean], f"{rule}.rounded", to=TensorProto.FLOAT)
    in_order = graph.node("Transpose", [rounded], f"{rule}.in_order", perm=[0, 2, 1, 3])
    return graph.node("Reshape", [in_order, "flat_shape"], name)


def _bias(graph: GraphBuilder, visible: str, name: str) -> str:
    """What is added to attention logits: 0 where a key is visible, else -inf; (B or 1, 1, queries, keys)."""
    shown = graph.constant(f"{name}.shown", np.float32(0))
    hidden = graph.constant(f"{name}.hidden", np.float32(-np.inf))
    return graph.node("Where", [visible, shown, hidden], name)
