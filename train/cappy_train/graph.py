"""The scorer network as an ONNX graph, in float32 or in 8 bits: node by node, so that nothing in it is there by chance.

The graph reads one packed row (see `cappy_lite.packing`), mostly by this project's own operators (csrc/operators), of
the domain "cappy". `joint_twin` makes a graph of ONNX Runtime's operators alone that reads padded pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from cappy_lite.session import CONTEXT, INPUTS, KEPT_TOKENS, OUTPUT, kept_outputs
from cappy_train.graph_builder import RUNTIME_DOMAIN, GraphBuilder
from cappy_train.network import NetworkConfig, PackedNetwork, ScorerNetwork

FloatArray = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]

# Gelu is an operator of its own since opset 20; ONNX Runtime reads that since 1.17.
OPSET = 20
IR_VERSION = 9
OWN_DOMAIN = "cappy"

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

    @property
    def code_gain(self) -> FloatArray:
        """What an input is multiplied by before it is rounded, (in,)."""
        gain: FloatArray = self.input_gain / self.input_scale
        return gain


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

    @property
    def hidden(self) -> int:
        return len(self.norms["embedding_norm"].gain)


def graph_weights(network: PackedNetwork) -> GraphWeights:
    """The weights of a network, in float32; biases that it hasn't are zeros."""
    arrays = {name: weight.detach().float().numpy() for name, weight in network.named_parameters()}
    hidden = network.config.hidden
    embeddings: dict[str, FloatArray | QuantisedTable] = {}
    linears: dict[str, Linear | QuantisedLinear] = {}
    norms = {}
    for name in (name.removesuffix(".weight") for name in arrays if name.endswith(".weight")):
        weight = arrays[f"{name}.weight"]
        bias = arrays.get(f"{name}.bias", np.zeros(len(weight), np.float32))
        if name in EMBEDDING_INPUTS:
            embeddings[name] = weight
        elif weight.ndim == 1:
            norms[name] = Norm(weight, bias)
        elif name.endswith(".query_key_value"):
            layer = name.removesuffix("query_key_value")
            linears[f"{layer}query"] = Linear(weight[:hidden].T, bias[:hidden])
            linears[f"{layer}key_value"] = Linear(weight[hidden:].T, bias[hidden:])
        else:
            linears[name] = Linear(weight.T, bias)
    config = network.config
    return GraphWeights(config.layers, config.heads, config.layer_norm_eps, embeddings, linears, norms)


def network_weights(weights: GraphWeights) -> dict[str, Tensor]:
    """The network's weights by its own names: what `graph_weights` takes apart, put together again.

    weights: in float32, as `float_weights` gives them.
    """
    arrays = {f"{kind}.weight": np.asarray(table) for kind, table in weights.embeddings.items()}
    for name, norm in weights.norms.items():
        arrays |= {f"{name}.weight": norm.gain, f"{name}.bias": norm.bias}
    for name, linear in weights.linears.items():
        if name.endswith(".key_value"):
            continue
        weight, bias = np.asarray(linear.weight, dtype=np.float32), linear.bias
        if name.endswith(".query"):
            layer = name.removesuffix("query")
            others = weights.linears[f"{layer}key_value"]
            weight, bias = np.hstack([weight, others.weight]), np.concatenate([bias, others.bias])
            name = f"{layer}query_key_value"
        arrays |= {f"{name}.weight": weight.T, f"{name}.bias": bias}
    return {name: torch.from_numpy(np.array(array, np.float32)) for name, array in arrays.items()}


def scorer_network(weights: GraphWeights) -> ScorerNetwork:
    """The network of BERT's build with such weights, in float32, as `float_weights` gives them."""
    arrays = network_weights(weights)
    config = NetworkConfig(
        vocabulary=len(arrays["word_embeddings.weight"]),
        hidden=weights.hidden,
        layers=weights.layers,
        heads=weights.heads,
        feed_forward=len(weights.linears["layers.0.intermediate"].bias),
        positions=len(arrays["position_embeddings.weight"]),
        layer_norm_eps=weights.layer_norm_eps,
    )
    network = ScorerNetwork(config)
    network.load_state_dict(arrays)
    return network.eval()


def packed_graph(weights: GraphWeights) -> onnx.ModelProto:
    """The graph over one packed row: int64 inputs as PackedRow's arrays, output `logits`, float32 (n,).

    It also reads `context`, float32 (layers, length, 2 * hidden): keys and values of an instruction that isn't in the
    row, or none (length = 0). They are what outputs `layers.0.kept` and so on gave when it was: those of the row's
    first `kept_tokens` tokens, int64 (1,), for ONNX Runtime holds an output to the end of a run even if nobody asks.

    Linear layers are nodes of their names: Gemms in float32, this project's own operators in 8 bits.
    """
    builder = PackedBuilder(weights)
    builder.build()
    return builder.model()


def joint_twin(weights: GraphWeights) -> onnx.ModelProto:
    """The same weights, at the same precision, read as an ordinary cross-encoder: each pair on its own, padded.

    For comparing the time that both take; its scores mean little, for the network was trained with another attention
    rule. int64 inputs `input_ids`, `attention_mask` (1, then 0 for padding) and `token_type_ids`, all (B, L); output
    `logits`, float32 (B,), read at each pair's last token. All operators are ONNX Runtime's.
    """
    builder = JointBuilder(weights)
    builder.build()
    return builder.model()


def read_weights(graph: onnx.ModelProto) -> GraphWeights:
    """The weights of a graph over packed rows, at its own precision (8-bit inputs' scales in the weights')."""
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.graph.initializer}
    nodes = {node.name: node for node in graph.graph.node}
    producers = {output: node for node in graph.graph.node for output in node.output}

    def codes_of(codes: str) -> tuple[FloatArray, np.uint8]:
        """What a number was multiplied by before it was rounded, and the zero point."""
        producer = producers[codes]
        scaled = producers[producer.input[0]] if producer.op_type == "QuantizeLinear" else producer
        gain = arrays[scaled.input[1 if scaled.op_type == "Mul" else -2]]
        return gain, np.uint8(arrays[producer.input[-1]])

    linears: dict[str, Linear | QuantisedLinear] = {}
    for name, node in nodes.items():
        if node.op_type == "Gemm":
            linears[name] = Linear(arrays[f"{name}.weight"], arrays[f"{name}.bias"])
        elif node.op_type in ("Linear", "LinearGeluToBytes"):
            gain, zero_point = codes_of(node.input[0])
            weight = unpacked(arrays[f"{name}.weight"])
            scales = arrays[f"{name}.scales"]
            sums = arrays[f"{name}.bias"] + np.int32(zero_point) * weight.sum(axis=0, dtype=np.int32)
            bias = (sums * scales).astype(np.float32)
            linears[name] = QuantisedLinear(weight, scales, bias, gain, np.float32(1), zero_point)
    norms = {name: Norm(arrays[f"{name}.gain"], arrays[f"{name}.bias"]) for name in nodes if f"{name}.gain" in arrays}
    embeddings: dict[str, FloatArray | QuantisedTable] = {}
    for kind in (kind for kind in EMBEDDING_INPUTS if f"{kind}.table" in arrays):
        table = arrays[f"{kind}.table"]
        embeddings[kind] = QuantisedTable(table, arrays[f"{kind}.scales"]) if table.dtype == np.int8 else table
    attributes = {each.name: helper.get_attribute_value(each) for each in nodes["layers.0.context"].attribute}
    (rounded,) = (each.f for each in nodes["embedding_norm"].attribute if each.name == "epsilon")
    # ONNX keeps it in float32, where 1e-12 is another number: the shortest one of that value is what the network had.
    epsilon = float(str(np.float32(rounded)))
    layers = sum(name.endswith(".context") for name in nodes)
    return GraphWeights(layers, attributes["heads"], epsilon, embeddings, linears, norms)


def float_weights(weights: GraphWeights) -> GraphWeights:
    """The same weights in float32: what the layers compute but for the rounding of their inputs."""
    linears: dict[str, Linear | QuantisedLinear] = {}
    for name, linear in weights.linears.items():
        if isinstance(linear, QuantisedLinear):
            exact = linear.input_gain[:, None] * linear.weight * linear.weight_scales
            linears[name] = Linear(exact.astype(np.float32), linear.bias)
        else:
            linears[name] = linear
    embeddings: dict[str, FloatArray | QuantisedTable] = {
        kind: table.table * table.scales if isinstance(table, QuantisedTable) else table
        for kind, table in weights.embeddings.items()
    }
    return replace(weights, linears=linears, embeddings=embeddings)


def packed(weight: Int8Array) -> Int8Array:
    """Weights (in, out) as the operator reads them: (out / 16, in / 4, 64), 4 of the inputs' for each of 16 outputs."""
    inner, columns = weight.shape
    return weight.reshape(inner // 4, 4, columns // 16, 16).transpose(2, 0, 3, 1).reshape(columns // 16, inner // 4, 64)


def unpacked(weight: Int8Array) -> Int8Array:
    """Weights (in, out), from what `packed` made of them."""
    tiles, steps, _ = weight.shape
    return weight.reshape(tiles, steps, 16, 4).transpose(1, 3, 0, 2).reshape(4 * steps, 16 * tiles)


@dataclass(frozen=True, slots=True)
class States:
    """A name of states as numbers, (tokens, hidden), and of the same in the 8 bits that linear layers read, or ""."""

    numbers: str
    codes: str = ""


class PackedBuilder(GraphBuilder):
    """Adds nodes and constants layer by layer, from token ids to logits of a packed row's candidates."""

    def __init__(self, weights: GraphWeights) -> None:
        super().__init__()
        self.weights = weights

    def model(self) -> onnx.ModelProto:
        width = 2 * self.weights.hidden
        shapes: dict[str, list[str | int]] = {name: ["tokens"] for name in INPUTS}
        shapes |= {"segments": ["segments", 4], "score_spans": ["segments", 2], "score_positions": ["candidates"]}
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in shapes.items()]
        inputs.append(helper.make_tensor_value_info(CONTEXT, TensorProto.FLOAT, [self.weights.layers, "length", width]))
        inputs.append(helper.make_tensor_value_info(KEPT_TOKENS, TensorProto.INT64, [1]))
        outputs = [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["candidates"])]
        outputs += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["kept", width])
            for name in kept_outputs(self.weights.layers)
        ]
        return self.finished(inputs, outputs)

    def finished(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "scorer", inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        opsets += [helper.make_opsetid(domain, 1) for domain in (RUNTIME_DOMAIN, OWN_DOMAIN)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="cappy_train")

    def build(self) -> None:
        self.begin()
        states = self.embedded()
        for number in range(self.weights.layers):
            states = self.layer(number, states)
        dense = self.node("Tanh", [self.linear("head_dense", states)], "head")
        output = self.linear("head_output", States(dense))
        self.node("Reshape", [output, self.constant("logits_shape", [-1])], OUTPUT)

    def begin(self) -> None:
        self.node("Gather", ["segments", self.constant("own_places", [0, 1])], "spans", axis=1)

    def layer(self, number: int, states: States) -> States:
        """The layer's output; of the last one, at the score positions alone, for no other is read."""
        layer, last = f"layers.{number}", number == self.weights.layers - 1
        self.linear(f"{layer}.key_value", states)
        if last:
            states = self.picked(states)
            states = self.coded(states.numbers, f"{layer}.query")
        self.linear(f"{layer}.query", states)
        context = self.attention(layer, number, last=last)
        attended = self.linear(f"{layer}.attention_output", context)
        states = self.add_norm(states.numbers, attended, f"{layer}.attention_norm", reader=f"{layer}.intermediate")
        hidden = self.intermediate(layer, states)
        output = self.linear(f"{layer}.output", hidden)
        reader = "head_dense" if last else f"layers.{number + 1}.key_value"
        return self.add_norm(states.numbers, output, f"{layer}.output_norm", reader=reader)

    def picked(self, states: States) -> States:
        return States(self.node("Gather", [states.numbers, "score_positions"], "states_to_score", axis=0))

    def embedded(self) -> States:
        """The sum of the embeddings, normalised."""
        name, reader = "embedding_norm", "layers.0.key_value"
        tables = {kind: each for kind, each in self.weights.embeddings.items() if isinstance(each, QuantisedTable)}
        if len(tables) < len(EMBEDDING_INPUTS) or isinstance(self.weights.linears[reader], Linear):
            return self.sum_of_embeddings(name, reader)
        inputs = list(EMBEDDING_INPUTS.values())
        for kind in EMBEDDING_INPUTS:
            inputs.append(self.constant(f"{kind}.table", tables[kind].table))
            inputs.append(self.constant(f"{kind}.scales", tables[kind].scales))
        inputs += [*self.norm_constants(name), *self.code_constants(reader)]
        names, epsilon = (name, f"{name}.codes"), self.weights.layer_norm_eps
        return States(self.node("EmbedToBytes", inputs, *names, domain=OWN_DOMAIN, epsilon=epsilon), names[1])

    def sum_of_embeddings(self, name: str, reader: str) -> States:
        tables = [self.embedding(kind) for kind in EMBEDDING_INPUTS]
        return self.add_norm(self.node("Add", tables[:2], "placed_embeddings"), tables[2], name, reader=reader)

    def embedding(self, kind: str) -> str:
        table, ids = self.weights.embeddings[kind], EMBEDDING_INPUTS[kind]
        if isinstance(table, np.ndarray):
            return self.node("Gather", [self.constant(f"{kind}.table", table), ids], kind)
        rows = self.node("Gather", [self.constant(f"{kind}.table", table.table), ids], f"{kind}.rows")
        scales = self.node("Gather", [self.constant(f"{kind}.scales", table.scales), ids], f"{kind}.row_scales")
        values = self.node("Cast", [rows], f"{kind}.values", to=TensorProto.FLOAT)
        return self.node("Mul", [values, scales], kind)

    def linear(self, name: str, states: States) -> str:
        linear = self.weights.linears[name]
        if isinstance(linear, QuantisedLinear):
            return self.node("Linear", self.quantised_operands(name, linear, states), name, domain=OWN_DOMAIN)
        constants = [self.constant(f"{name}.weight", linear.weight), self.constant(f"{name}.bias", linear.bias)]
        return self.node("Gemm", [states.numbers, *constants], name)

    def quantised_operands(self, name: str, linear: QuantisedLinear, states: States) -> list[str]:
        scales = linear.input_scale * linear.weight_scales
        # The sums are of codes; what their zero point adds is known beforehand.
        surplus = np.int32(linear.input_zero_point) * linear.weight.sum(axis=0, dtype=np.int32)
        return [
            states.codes,
            self.constant(f"{name}.weight", packed(linear.weight)),
            self.constant(f"{name}.scales", scales),
            self.constant(f"{name}.bias", np.rint(linear.bias / scales).astype(np.int32) - surplus),
        ]

    def norm_constants(self, name: str) -> list[str]:
        norm = self.weights.norms[name]
        return [self.constant(f"{name}.gain", norm.gain), self.constant(f"{name}.bias", norm.bias)]

    def code_constants(self, reader: str) -> list[str]:
        """How the linear layer `reader` has its input in 8 bits: gain and zero point; nothing if it reads numbers."""
        linear = self.weights.linears[reader]
        if isinstance(linear, Linear):
            return []
        gain = self.constant(f"{reader}.input_gain", linear.code_gain)
        return [gain, self.constant(f"{reader}.input_zero_point", linear.input_zero_point)]

    def coded(self, states: str, reader: str) -> States:
        """The states with the 8 bits that `reader` reads."""
        constants = self.code_constants(reader)
        if not constants:
            return States(states)
        scaled = self.node("Mul", [states, constants[0]], f"{reader}.scaled_input")
        one = self.constant("one", np.float32(1))
        return States(states, self.node("QuantizeLinear", [scaled, one, constants[1]], f"{reader}.input"))

    def add_norm(self, states: str, added: str, name: str, *, reader: str) -> States:
        inputs, constants = self.norm_constants(name), self.code_constants(reader)
        epsilon = self.weights.layer_norm_eps
        if not constants:
            total = self.node("Add", [states, added], f"{name}.sum")
            return States(self.node("LayerNormalization", [total, *inputs], name, epsilon=epsilon))
        inputs = [states, added, *inputs, *constants]
        names = (name, f"{name}.codes")
        return States(self.node("AddNormToBytes", inputs, *names, domain=OWN_DOMAIN, epsilon=epsilon), names[1])

    def intermediate(self, layer: str, states: States) -> States:
        """The wide linear layer and what follows it, its GELU."""
        name = f"{layer}.intermediate"
        linear = self.weights.linears[name]
        if isinstance(linear, Linear):
            return States(self.node("Gelu", [self.linear(name, states)], f"{layer}.gelu"))
        operands = [*self.quantised_operands(name, linear, states), *self.code_constants(f"{layer}.output")]
        return States("", self.node("LinearGeluToBytes", operands, name, domain=OWN_DOMAIN))

    def attention(self, layer: str, number: int, *, last: bool) -> States:
        spans = "score_spans" if last else "spans"
        inputs = [f"{layer}.query", f"{layer}.key_value", CONTEXT, KEPT_TOKENS, "segments", spans]
        constants = self.code_constants(f"{layer}.attention_output")
        operator = "AttentionToBytes" if constants else "Attention"
        context = self.node(
            operator,
            [*inputs, *constants],
            *(f"{layer}.context", f"{layer}.kept"),
            domain=OWN_DOMAIN,
            heads=self.weights.heads,
            layer=number,
        )
        return States("", context) if constants else States(context)


class JointBuilder(PackedBuilder):
    """The same body around an attention in which all tokens of a pair see each other, and plain operators."""

    def model(self) -> onnx.ModelProto:
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["pairs", "tokens"]) for name in names]
        return self.finished(inputs, [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["pairs"])])

    def begin(self) -> None:
        hidden = self.weights.hidden
        shape = self.node("Shape", ["input_ids"], "shape")
        pairs = self.node("Slice", [shape, self.constant("at_0", [0]), self.constant("at_1", [1])], "pairs")
        self.node("Concat", [pairs, self.constant("states_shape", [-1, hidden])], "batch_shape", axis=0)
        self.constant("flat_shape", [-1, hidden])
        zero, one = self.constant("zero", 0), self.constant("one_int", 1)
        length = self.node("Gather", [shape, one], "length", axis=0)
        self.node("Range", [zero, length, one], "position_ids")
        row = self.node("Range", [zero, self.node("Squeeze", [pairs], "pair_count"), one], "row")
        own_length = self.node("ReduceSum", ["attention_mask", "at_1"], "own_length", keepdims=0)
        last = self.node("Sub", [own_length, one], "last")
        self.node("Add", [self.node("Mul", [row, length], "row_start"), last], "score_positions")
        # A query sees every token of its pair; what padding sees doesn't matter, but it must see something.
        keys = self.node("Unsqueeze", ["attention_mask", self.constant("key_axes", [1, 2])], "keys")
        queries = self.node("Unsqueeze", ["attention_mask", self.constant("query_axes", [1, 3])], "queries")
        self.bias(self.node("GreaterOrEqual", [keys, queries], "visible"), "attention_bias")
        self.bias(self.node("Equal", [keys, one], "visible_to_score"), "score_bias")

    def bias(self, visible: str, name: str) -> None:
        """What is added to attention logits: 0 where a key is visible, else -inf; (pairs, 1, queries, keys)."""
        shown, hidden = self.constant("shown", np.float32(0)), self.constant("hidden", np.float32(-np.inf))
        self.node("Where", [visible, shown, hidden], name)

    def embedded(self) -> States:
        return self.sum_of_embeddings("embedding_norm", "layers.0.key_value")

    def add_norm(self, states: str, added: str, name: str, *, reader: str) -> States:
        inputs = self.norm_constants(name)
        total = self.node("Add", [states, added], f"{name}.sum")
        output = self.node("LayerNormalization", [total, *inputs], name, epsilon=self.weights.layer_norm_eps)
        if name == "embedding_norm":
            output = self.node("Reshape", [output, "flat_shape"], "states")
        return self.coded(output, reader)

    def linear(self, name: str, states: States) -> str:
        linear = self.weights.linears[name]
        if isinstance(linear, Linear):
            return super().linear(name, states)
        operands = [
            states.codes,
            self.constant(f"{name}.input_scale", linear.input_scale),
            self.constant(f"{name}.input_zero_point", linear.input_zero_point),
            self.constant(f"{name}.weight", linear.weight),
            self.constant(f"{name}.weight_scales", linear.weight_scales),
            self.constant(f"{name}.weight_zero_points", np.zeros(linear.weight.shape[1], dtype=np.int8)),
            self.constant(
                f"{name}.bias", np.rint(linear.bias / (linear.input_scale * linear.weight_scales)).astype(np.int32)
            ),
        ]
        return self.node("QGemm", operands, name, domain=RUNTIME_DOMAIN)

    def intermediate(self, layer: str, states: States) -> States:
        hidden = self.node("Gelu", [self.linear(f"{layer}.intermediate", states)], f"{layer}.gelu")
        return self.coded(hidden, f"{layer}.output")

    def attention(self, layer: str, number: int, *, last: bool) -> States:
        parts = (f"{layer}.key", f"{layer}.value")
        self.node("Split", [f"{layer}.key_value"], *parts, axis=1, num_outputs=2)
        batches = [
            self.node("Reshape", [states, "batch_shape"], f"{states}_batch") for states in (f"{layer}.query", *parts)
        ]
        bias = "score_bias" if last else "attention_bias"
        context = self.node(
            "MultiHeadAttention",
            [*batches, "", "", bias],
            f"{layer}.context_batch",
            domain=RUNTIME_DOMAIN,
            num_heads=self.weights.heads,
        )
        flat = self.node("Reshape", [context, "flat_shape"], f"{layer}.context")
        return self.coded(flat, f"{layer}.attention_output")
