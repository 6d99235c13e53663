"""The network of ModernBERT's build as an ONNX graph over packed rows: inputs and outputs are those of BERT's build.

Keys leave the graph turned by their positions, so that they serve as a context as they are. In 8 bits linear layers are
this project's own operators; attention, which has a window in most layers, is always in float32.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

import onnx
from onnx import TensorProto, helper

from cappy_lite.errors import InputValueError
from cappy_lite.session import CONTEXT, KEPT_TOKENS
from cappy_train.graph import (
    OWN_DOMAIN,
    GraphWeights,
    PackedBuilder,
    QuantisedLinear,
    States,
    graph_weights,
    network_weights,
    read_weights,
)
from cappy_train.graph_builder import RUNTIME_DOMAIN
from cappy_train.modern_network import ModernConfig, ModernNetwork, frequencies

# Where a graph says what its network's sizes are.
SIZES = "sizes"


@dataclass(frozen=True, slots=True)
class ModernWeights(GraphWeights):
    """The network's weights, and its sizes."""

    config: ModernConfig


def modern_weights(network: ModernNetwork) -> ModernWeights:
    """The weights of a network, in float32."""
    weights = graph_weights(network)
    return ModernWeights(**{each.name: getattr(weights, each.name) for each in fields(weights)}, config=network.config)


def modern_graph(weights: ModernWeights) -> onnx.ModelProto:
    """The graph over one packed row, as `graph.packed_graph` describes it."""
    builder = ModernBuilder(weights)
    builder.build()
    return builder.model()


def is_modern(graph: onnx.ModelProto) -> bool:
    """Whether `modern_graph` made it."""
    return any(each.key == SIZES for each in graph.metadata_props)


def modern_network(graph: onnx.ModelProto) -> ModernNetwork:
    """The network of a graph that `modern_graph` made, in float32.

    Raises:
        InputValueError: the graph is in 8 bits, whose roundings are corrected by biases that the network hasn't.
    """
    weights = read_weights(graph)
    if any(isinstance(linear, QuantisedLinear) for linear in weights.linears.values()):
        raise InputValueError(
            "a network of ModernBERT's build can't be read from 8 bits: put its model.fp32.onnx beside"
        )
    (sizes,) = (each.value for each in graph.metadata_props if each.key == SIZES)
    network = ModernNetwork.of_sizes(json.loads(sizes))
    arrays = network_weights(weights)
    network.load_state_dict({name: arrays[name] for name in network.state_dict()})
    return network.eval()


class ModernBuilder(PackedBuilder):
    """Adds nodes and constants layer by layer, from token ids to logits of a packed row's candidates."""

    weights: ModernWeights

    def model(self) -> onnx.ModelProto:
        model = super().model()
        helper.set_model_props(model, {SIZES: json.dumps(self.weights.config.to_dict())})
        return model

    def begin(self) -> None:
        super().begin()
        config = self.weights.config
        numbers = self.node("Cast", ["position_ids"], "positions", to=TensorProto.FLOAT)
        column = self.node("Unsqueeze", [numbers, self.constant("columns", [1])], "position_column")
        for theta in sorted(set(config.thetas)):
            name = f"rotation.{theta}"
            own = frequencies(config.hidden // config.heads, theta).numpy()
            self.node("Mul", [column, self.constant(f"{name}.frequencies", own)], name)
            self.node("Cos", [name], f"{name}.cos")
            self.node("Sin", [name], f"{name}.sin")

    def embedded(self) -> States:
        tables = [self.embedding(kind) for kind in self.weights.embeddings]
        return States(self.normed(self.node("Add", tables, "embeddings"), "embedding_norm"))

    def layer(self, number: int, states: States) -> States:
        """The layer's output; of the last one, at the score positions alone, and normalised for the head."""
        layer, last = f"layers.{number}", number == self.weights.layers - 1
        window, rotation = self.weights.config.windows[number], f"rotation.{self.weights.config.thetas[number]}"
        read = self.normed(states.numbers, f"{layer}.attention_norm") if number else states.numbers
        asking = coded = self.coded(read, f"{layer}.key_value")
        key, value = self.halves(self.linear(f"{layer}.key_value", coded), f"{layer}.key", f"{layer}.value")
        key_value = self.node("Concat", [self.turned(key, rotation), value], f"{layer}.turned_key_value", axis=1)
        # Where there is a window all tokens must ask, since it is told by their places.
        early = last and window is None
        if early:
            asking = self.coded(self.scored(read, f"{layer}.asking"), f"{layer}.query")
        query = self.turned(self.linear(f"{layer}.query", asking), rotation, at_scores=early)
        spans = "score_spans" if early else "spans"
        context = self.node(
            "Attention",
            [query, key_value, CONTEXT, KEPT_TOKENS, "segments", spans],
            *(f"{layer}.context", f"{layer}.kept"),
            domain=OWN_DOMAIN,
            heads=self.weights.heads,
            layer=number,
            window=window or 0,
        )
        total = states.numbers
        if last:
            total = self.scored(total, f"{layer}.scored")
            context = context if early else self.scored(context, f"{layer}.scored_context")
        total = self.plus(total, context, f"{layer}.attention_output")
        read = self.normed(total, f"{layer}.feed_forward_norm")
        wide = self.linear(f"{layer}.intermediate", self.coded(read, f"{layer}.intermediate"))
        value, gate = self.halves(wide, f"{layer}.ungated", f"{layer}.gate")
        gated = self.node("Mul", [self.node("Gelu", [value], f"{layer}.gelu"), gate], f"{layer}.gated")
        total = self.plus(total, gated, f"{layer}.output")
        return States(self.normed(total, "final_norm") if last else total)

    def normed(self, states: str, name: str) -> str:
        inputs = [states, *self.norm_constants(name)]
        return self.node("LayerNormalization", inputs, name, epsilon=self.weights.layer_norm_eps)

    def plus(self, total: str, read: str, name: str) -> str:
        """What a linear layer makes of what it reads, added to the states."""
        return self.node("Add", [total, self.linear(name, self.coded(read, name))], f"{name}.sum")

    def halves(self, states: str, *names: str) -> tuple[str, str]:
        self.node("Split", [states], *names, axis=1, num_outputs=2)
        first, second = names
        return first, second

    def scored(self, states: str, name: str) -> str:
        """What is at the score positions."""
        return self.node("Gather", [states, "score_positions"], name, axis=0)

    def turned(self, states: str, rotation: str, *, at_scores: bool = False) -> str:
        """Queries or keys turned by their tokens' positions; of all tokens, or of those at the score positions."""
        angles = [f"{rotation}.cos", f"{rotation}.sin"]
        if at_scores:
            angles = [self.scored(name, f"{name}.scored") for name in angles]
        # One row whose first token is the first of the angles.
        axis, begin = self.constant("rows", [0]), self.constant("begin", [0])
        row = self.node("Unsqueeze", [states, axis], f"{states}.row")
        turned = self.node("RotaryEmbedding", [row, begin, *angles], f"{states}.turned_row", domain=RUNTIME_DOMAIN)
        return self.node("Squeeze", [turned, axis], f"{states}.turned")
