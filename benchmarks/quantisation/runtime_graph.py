"""The scorer over packed rows by ONNX Runtime's operators alone, and what its own ways to quantise make of that.

This is the graph that one would write without operators of one's own: attention is over all pairs of a row's tokens,
under a mask that is computed from the row's segments.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from cappy_lite.packing import PackedRow
from cappy_lite.session import OUTPUT
from cappy_train.graph import GraphWeights, JointBuilder
from cappy_train.graph_builder import RUNTIME_DOMAIN
from cappy_train.quantise import FLOAT_LAYERS

# What the graph reads of a packed row, int64.
INPUTS = ("input_ids", "position_ids", "token_type_ids", "segments", "score_positions")


def runtime_graph(weights: GraphWeights) -> onnx.ModelProto:
    """The graph over one packed row: inputs as INPUTS, output `logits`, float32 (n,).

    Linear layers are nodes of their names: Gemms in float32, QGemms in 8 bits.
    """
    builder = RuntimeBuilder(weights)
    builder.build()
    return builder.model()


class RuntimeBuilder(JointBuilder):
    """The joint twin's body over a row's tokens, under the row's mask."""

    def model(self) -> onnx.ModelProto:
        shapes: dict[str, list[str | int]] = {name: ["tokens"] for name in INPUTS}
        shapes |= {"segments": ["segments", 4], "score_positions": ["candidates"]}
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in shapes.items()]
        return self.finished(inputs, [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["candidates"])])

    def begin(self) -> None:
        hidden = self.weights.hidden
        self.constant("batch_shape", [1, -1, hidden])
        self.constant("flat_shape", [-1, hidden])
        visible = self.visible()
        rows = self.node("Gather", [visible, "score_positions"], "visible_to_score", axis=0)
        batch = self.constant("batch_axes", [0, 1])
        self.bias(self.node("Unsqueeze", [visible, batch], "visible_batch"), "attention_bias")
        self.bias(self.node("Unsqueeze", [rows, batch], "visible_to_score_batch"), "score_bias")

    def visible(self) -> str:
        """Which token sees which: its own segment's, and those of that segment's context; (tokens, tokens)."""
        zero, one = self.constant("zero", 0), self.constant("one_int", 1)
        length = self.node("Squeeze", [self.node("Shape", ["input_ids"], "shape")], "length")
        places = self.node("Range", [zero, length, one], "places")
        column = self.node("Unsqueeze", [places, self.constant("last_axis", [1])], "places_column")
        ends = self.node("Gather", ["segments", one], "ends", axis=1)
        passed = self.node("Cast", [self.node("LessOrEqual", [ends, column], "after")], "passed", to=TensorProto.INT64)
        number = self.node("ReduceSum", [passed, "last_axis"], "segment_of", keepdims=0)
        bounds = [f"bounds.{part}" for part in ("start", "end", "context_start", "context_end")]
        self.node("Split", [self.node("Gather", ["segments", number], "own", axis=0)], *bounds, axis=1, num_outputs=4)
        spans = []
        for name, start, end in (("own_span", *bounds[:2]), ("context_span", *bounds[2:])):
            after = self.node("GreaterOrEqual", ["places", start], f"{name}.after")
            before = self.node("Less", ["places", end], f"{name}.before")
            spans.append(self.node("And", [after, before], name))
        return self.node("Or", spans, "visible")


def static_by_runtime(model: onnx.ModelProto, rows: Sequence[PackedRow]) -> onnx.ModelProto:
    """ONNX Runtime's static quantisation of `runtime_graph`, as QDQ, with a scale a column.

    Ranges are from the least to the greatest of the calibrating rows. Its other calibrations, such as percentiles,
    take rows of one length alone.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, rows: Iterable[PackedRow]) -> None:
            self._rows = iter(rows)

        def get_next(self) -> dict[str, npt.NDArray[np.int64]] | None:
            row = next(self._rows, None)
            return None if row is None else row_inputs(row)

    typed = _apart(model)
    with _quietly(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_static(
            typed,
            path,
            Reader(rows),
            op_types_to_quantize=["Gemm"],
            nodes_to_exclude=list(FLOAT_LAYERS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # What comes out stays in float32, as in all other schemes here.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        return onnx.load(path)


def dynamic_by_runtime(model: onnx.ModelProto) -> onnx.ModelProto:
    """ONNX Runtime's dynamic quantisation of `runtime_graph`: inputs have a scale over all that the row holds."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quietly(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=[f"{name}_MatMul" for name in FLOAT_LAYERS],  # as it renames them,
            per_channel=True,
            weight_type=QuantType.QInt8,
            # It doesn't know what operators of ONNX Runtime's own give.
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )
        return onnx.load(path)


def in_blocks(model: onnx.ModelProto, bits: int, block: int) -> onnx.ModelProto:
    """`runtime_graph` with weights that have a scale for every `block` inputs of a column, by MatMulNBits.

    accuracy_level 4: inputs are read in 8 bits, with a scale for every block of a token's, which is its own affair.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    arrays = {each.name: each for each in changed.graph.initializer}
    for node in products(changed):
        states, name, bias = node.input
        weight = numpy_helper.to_array(arrays[name])
        codes, scales = blocks(weight, bits, block)
        changed.graph.initializer.remove(arrays[name])
        changed.graph.initializer.append(numpy_helper.from_array(codes, name))
        changed.graph.initializer.append(numpy_helper.from_array(scales, f"{name}.scales"))
        inner, columns = weight.shape
        sizes = {"K": inner, "N": columns, "bits": bits, "block_size": block, "accuracy_level": 4}
        inputs = [states, name, f"{name}.scales", "", "", bias]
        node.CopyFrom(helper.make_node("MatMulNBits", inputs, node.output, node.name, domain=RUNTIME_DOMAIN, **sizes))
    return changed


def blocks(
    weight: npt.NDArray[np.float32], bits: int, block: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Weights (in, out) as MatMulNBits reads them: codes (out, in / block, bytes) and scales (out * in / block,).

    A code is a weight in units of its block's scale, plus 2 ** (bits - 1); the lower four bits come first.
    """
    inner, columns = weight.shape
    parts = weight.T.reshape(columns, inner // block, block)
    middle = 2 ** (bits - 1)
    scales = np.maximum(np.abs(parts).max(axis=2, keepdims=True), 1e-12) / (middle - 1)
    codes = (np.rint(parts / scales) + middle).astype(np.uint8)
    if bits == 4:
        codes = codes[..., ::2] | codes[..., 1::2] << 4
    return codes, scales.reshape(-1).astype(np.float32)


def products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The linear layers in float32, but for those of the head."""
    return [node for node in model.graph.node if node.op_type == "Gemm" and node.name not in FLOAT_LAYERS]


def row_inputs(row: PackedRow) -> dict[str, npt.NDArray[np.int64]]:
    return {name: getattr(row, name) for name in INPUTS}


def _apart(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with a copy of what linear layers read, of a stated type.

    `quantize_static` rounds a tensor for all its readers, the residual sums too, and only what it knows to be float32.
    ONNX Runtime takes the copies out again.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    copies: dict[str, str] = {}
    for node in products(changed):
        copies.setdefault(node.input[0], f"{node.input[0]}.copy")
        node.input[0] = copies[node.input[0]]
    nodes = list(changed.graph.node)
    for states, copy in copies.items():
        producer = next(at for at, node in enumerate(nodes) if states in node.output)
        nodes.insert(producer + 1, helper.make_node("Identity", [states], [copy], copy))
        changed.graph.value_info.append(helper.make_tensor_value_info(copy, TensorProto.FLOAT, None))
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    return changed


@contextmanager
def _quietly() -> Iterator[None]:
    """Without onnxruntime's advice to prepare the graph, which is as it should be."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
