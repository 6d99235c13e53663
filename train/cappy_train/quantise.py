"""8-bit weights and activations for the graph, with scales that are fixed beforehand: static quantisation.

A scale taken from what a row happens to hold would make a candidate's score depend on its neighbours. The scales here
come from what the linear layers read in calibrating rows. The channels of a layer's input differ in range by a hundred
times; each is divided by a factor that its weights are multiplied by, as in SmoothQuant (Xiao et al., 2023), so that
one scale serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from tqdm import tqdm

from cappy_lite.packing import PackedRow
from cappy_lite.session import Session, available_cpus
from cappy_train.graph import GraphWeights, Linear, QuantisedLinear, QuantisedTable

FloatArray = npt.NDArray[np.float32]

# The head costs next to nothing, and its errors would go straight into the score.
FLOAT_LAYERS = ("head_dense", "head_output")
# SmoothQuant's alpha: how much of its inputs' range a channel's weights take over. Between 0.65 and 0.8 a trained
# network's layers err least, and two to four times less than without factors where a normalisation or GELU feeds them.
SMOOTHING = 0.75
# 7 bits: x86 CPUs without VNNI add two products in 16 bits, and 2 * 255 * 63 still fits. With 8 bits such a CPU would
# silently give other scores than newer ones do.
WEIGHT_LIMIT = 63
# Input vectors that a calibrating row contributes to the sample.
VECTORS_PER_ROW = 24


@dataclass(frozen=True, slots=True)
class Observation:
    """What some linear layers read in calibrating rows, all of them the same.

    low, high: (in,); each channel's range over all vectors. sample: (vectors, in).
    """

    layers: tuple[str, ...]
    low: FloatArray
    high: FloatArray
    sample: FloatArray


def observe(graph: Path, rows: Sequence[PackedRow], *, seed: int = 0) -> list[Observation]:
    """What the linear layers of a float32 graph in a file, of `packed_graph`, read when it runs the rows."""
    model = onnx.load(graph, load_external_data=False)
    readers: dict[str, tuple[str, ...]] = {}
    for node in model.graph.node:
        if node.op_type == "Gemm" and node.name not in FLOAT_LAYERS:
            readers[node.input[0]] = (*readers.get(node.input[0], ()), node.name)
    model.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in readers)
    watched = graph.with_name(f"watched.{graph.name}")  # beside its weights, which may be more than memory holds twice
    try:
        watched.write_bytes(model.SerializeToString())
        session = Session(watched, available_cpus())
    finally:
        watched.unlink(missing_ok=True)
    rng = np.random.default_rng(seed)
    lows: dict[str, list[FloatArray]] = {tensor: [] for tensor in readers}
    highs: dict[str, list[FloatArray]] = {tensor: [] for tensor in readers}
    samples: dict[str, list[FloatArray]] = {tensor: [] for tensor in readers}
    for row in tqdm(rows, "calibration", unit="row"):
        values = session.tensors(list(readers), row)
        for tensor, vectors in zip(readers, values, strict=True):
            lows[tensor].append(vectors.min(axis=0))
            highs[tensor].append(vectors.max(axis=0))
            samples[tensor].append(vectors[rng.permutation(len(vectors))[:VECTORS_PER_ROW]])
    return [
        Observation(
            layers, np.min(lows[tensor], axis=0), np.max(highs[tensor], axis=0), np.concatenate(samples[tensor])
        )
        for tensor, layers in readers.items()
    ]


def quantise(
    weights: GraphWeights,
    observations: Sequence[Observation],
    *,
    smoothing: float | None = SMOOTHING,
    weight_limit: int = WEIGHT_LIMIT,
) -> GraphWeights:
    """The weights in 8 bits: embeddings, and the linear layers that were observed.

    smoothing: SmoothQuant's alpha, 0..1; None leaves the channels' ranges as they are.
    weight_limit: the largest weight of a column, in units of its scale; at most 127.
    """
    quantised: dict[str, QuantisedLinear] = {}
    for observation in observations:
        exact = [linear for name in observation.layers if isinstance(linear := weights.linears[name], Linear)]
        quantised |= zip(
            observation.layers, quantised_linears(exact, observation, smoothing, weight_limit), strict=True
        )
    tables = {
        kind: quantised_table(table) for kind, table in weights.embeddings.items() if isinstance(table, np.ndarray)
    }
    return replace(weights, linears={**weights.linears, **quantised}, embeddings=tables)


def quantised_linears(
    linears: Sequence[Linear], observation: Observation, smoothing: float | None, weight_limit: int
) -> list[QuantisedLinear]:
    """Linear layers that read the same input, and so share how it is read."""
    factors = np.ones_like(observation.low) if smoothing is None else _factors(linears, observation, smoothing)
    low = min(0.0, float((observation.low / factors).min()))
    high = max(0.0, float((observation.high / factors).max()))
    scale = np.float32((high - low) / 255)
    zero_point = np.rint(-low / scale)
    inputs = np.clip(np.rint(observation.sample / factors / scale) + zero_point, 0, 255) - zero_point
    quantised = []
    for linear in linears:
        weight = linear.weight * factors[:, None]
        weight_scales = np.abs(weight).max(axis=0) / weight_limit
        integers = np.rint(weight / weight_scales)
        # What rounding shifts in the mean, the bias takes back.
        drift = (observation.sample @ linear.weight - inputs @ integers * weight_scales * scale).mean(axis=0)
        quantised.append(
            QuantisedLinear(
                weight=integers.astype(np.int8),
                weight_scales=weight_scales.astype(np.float32),
                bias=(linear.bias + drift).astype(np.float32),
                input_gain=(1 / factors).astype(np.float32),
                input_scale=scale,
                input_zero_point=np.uint8(zero_point),
            )
        )
    return quantised


def _factors(linears: Sequence[Linear], observation: Observation, smoothing: float) -> FloatArray:
    """What each channel of the input is divided by, (in,)."""
    ranges = np.maximum(np.maximum(-observation.low, observation.high), 1e-6)
    weight_ranges = np.max([np.abs(linear.weight).max(axis=1) for linear in linears], axis=0)
    factors: FloatArray = ranges**smoothing / np.maximum(weight_ranges, 1e-6) ** (1 - smoothing)
    return factors


def quantised_table(table: FloatArray) -> QuantisedTable:
    """The table with a scale for each row, whose largest value is 127."""
    scales = (np.abs(table).max(axis=1, keepdims=True) / 127).astype(np.float32)
    scales[scales == 0] = 1  # a row of zeros, as of RoBERTa's padding
    return QuantisedTable(np.rint(table / scales).astype(np.int8), scales)
