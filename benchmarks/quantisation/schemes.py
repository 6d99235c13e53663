"""The schemes that are compared, each as the graph that it makes of a scorer's float32 weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from benchmarks.quantisation.runtime_graph import dynamic_by_runtime, in_blocks, runtime_graph, static_by_runtime
from cappy_lite.packing import PackedRow
from cappy_lite.session import CONTEXT, KEPT_TOKENS
from cappy_train.graph import OWN_DOMAIN, GraphWeights, Linear, PackedBuilder, States, packed_graph
from cappy_train.quantise import Observation, quantise

# The share of what a channel held in calibrating rows that a clipped range leaves out at either end.
CLIPPED = 0.001


@dataclass(frozen=True)
class Material:
    """What schemes work on.

    weights: in float32. observations: what linear layers read in the calibrating rows.
    """

    weights: GraphWeights
    observations: Sequence[Observation]
    rows: Sequence[PackedRow]


@dataclass(frozen=True)
class Scheme:
    """A way to quantise.

    own: whether the graph has operators of this project, and so nothing for ONNX Runtime to optimise.
    same_time: it differs from the shipped scheme in numbers alone, and takes as long.
    """

    name: str
    make: Callable[[Material], onnx.ModelProto]
    own: bool = True
    same_time: bool = False


FLOAT32, SHIPPED = "float32", "shipped"


def shipped(material: Material) -> GraphWeights:
    return quantise(material.weights, material.observations)


def clipped(observation: Observation) -> Observation:
    """With ranges that leave out the sample's least and greatest values, channel by channel."""
    low, high = np.quantile(observation.sample, [CLIPPED, 1 - CLIPPED], axis=0).astype(np.float32)
    return replace(observation, low=low, high=high)


def left_in_float32(material: Material, belongs: Callable[[str], bool]) -> GraphWeights:
    """The shipped scheme, but for the linear layers of some names."""
    weights = shipped(material)
    linears = {
        name: material.weights.linears[name] if belongs(name) else linear for name, linear in weights.linears.items()
    }
    return replace(weights, linears=linears)


def in_last_layer(weights: GraphWeights) -> Callable[[str], bool]:
    return lambda name: name.startswith(f"layers.{weights.layers - 1}.")


class MixedBuilder(PackedBuilder):
    """A graph whose 8-bit linear layers stand beside parts in float32.

    float_attention: attention computes in float32, though its output is read in 8 bits.
    """

    def __init__(self, weights: GraphWeights, *, float_attention: bool = False) -> None:
        super().__init__(weights)
        self.float_attention = float_attention

    def attention(self, layer: str, number: int, *, last: bool) -> States:
        if not self.float_attention:
            return super().attention(layer, number, last=last)
        spans = "score_spans" if last else "spans"
        context = self.node(
            "Attention",
            [f"{layer}.query", f"{layer}.key_value", CONTEXT, KEPT_TOKENS, "segments", spans],
            *(f"{layer}.context", f"{layer}.kept"),
            domain=OWN_DOMAIN,
            heads=self.weights.heads,
            layer=number,
        )
        return self.coded(context, f"{layer}.attention_output")

    def intermediate(self, layer: str, states: States) -> States:
        if not isinstance(self.weights.linears[f"{layer}.output"], Linear):
            return super().intermediate(layer, states)
        return States(self.node("Gelu", [self.linear(f"{layer}.intermediate", states)], f"{layer}.gelu"))


def mixed(weights: GraphWeights, *, float_attention: bool = False) -> onnx.ModelProto:
    builder = MixedBuilder(weights, float_attention=float_attention)
    builder.build()
    return builder.model()


def with_embeddings_of(weights: GraphWeights, others: GraphWeights) -> GraphWeights:
    return replace(weights, embeddings=others.embeddings)


def for_runtime(material: Material) -> onnx.ModelProto:
    """What ONNX Runtime's ways to quantise start from; embeddings as shipped, so that sizes can be compared."""
    return runtime_graph(with_embeddings_of(material.weights, shipped(material)))


def smoothed(smoothing: float | None) -> Callable[[Material], onnx.ModelProto]:
    return lambda one: packed_graph(quantise(one.weights, one.observations, smoothing=smoothing))


def blockwise(bits: int, block: int) -> Scheme:
    return Scheme(
        f"{bits} bits in blocks of {block} (MatMulNBits)",
        lambda one: in_blocks(for_runtime(one), bits, block),
        own=False,
    )


def schemes(blocks: Iterable[int] = (32, 128)) -> list[Scheme]:
    """All of them, those that the others are compared with first. blocks: sizes that divide all layers' inputs."""
    return [
        Scheme(FLOAT32, lambda one: packed_graph(one.weights)),
        Scheme(SHIPPED, lambda one: packed_graph(shipped(one))),
        Scheme("no smoothing", smoothed(None), same_time=True),
        Scheme("alpha 0", smoothed(0), same_time=True),
        Scheme("alpha 0.5", smoothed(0.5), same_time=True),
        Scheme("alpha 0.9", smoothed(0.9), same_time=True),
        Scheme(
            "input ranges clipped at 99.9 %",
            lambda one: packed_graph(quantise(one.weights, [clipped(each) for each in one.observations])),
            same_time=True,
        ),
        Scheme(
            "8-bit weights",
            lambda one: packed_graph(quantise(one.weights, one.observations, weight_limit=127)),
            same_time=True,
        ),
        Scheme("embeddings in float32", lambda one: packed_graph(with_embeddings_of(shipped(one), one.weights))),
        Scheme("attention in float32", lambda one: mixed(shipped(one), float_attention=True)),
        Scheme("last layer in float32", lambda one: mixed(left_in_float32(one, in_last_layer(one.weights)))),
        Scheme(
            "feed-forward outputs in float32",
            lambda one: mixed(left_in_float32(one, lambda name: name.endswith(".output"))),
        ),
        Scheme("ONNX Runtime: float32", lambda one: runtime_graph(one.weights), own=False),
        Scheme("ONNX Runtime: the shipped numbers", lambda one: runtime_graph(shipped(one)), own=False),
        Scheme("ONNX Runtime: static (QDQ)", lambda one: static_by_runtime(for_runtime(one), one.rows), own=False),
        Scheme("ONNX Runtime: dynamic", lambda one: dynamic_by_runtime(for_runtime(one)), own=False),
        *(blockwise(bits, block) for bits in (8, 4) for block in blocks),
    ]
