"""8-bit weights and activations for a joint graph, without data to calibrate: each token has a scale of its own.

A linear layer reads a token's vector in units of a 127th of its largest value, so that what a token is read as depends
on neither its neighbours nor on other pairs. One scale for all tokens of a run, as in ONNX Runtime's dynamic
quantisation, would let them move each other's scores; fixed scales, as in `cappy_train.quantise`, are faster, but need
texts of the network's own sort, and a network of BERT's build.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from cappy_train.graph_builder import RUNTIME_DOMAIN, GraphBuilder, save_graph
from cappy_train.quantise import WEIGHT_LIMIT

FloatArray = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]

# Values of a vector lie this far from the middle at most.
MIDDLE, REACH = 128, 127
# Of what is divided by: a padding token's embedding is all 0.
LEAST = np.float32(1e-12)
# Weights of an encoder's layers have the layer's number in their names. What follows the layers stays in float32: it
# takes next to no time, and errors there go straight into the score.
IN_LAYERS = re.compile(r"\.\d+\.")


def quantise_graph(path: Path) -> None:
    """Rounds the float32 graph in a file, of `export_graph`, to 8 bits, in place.

    These are the linear layers of the encoder's layers, by 7-bit weights with a scale a column, and the word
    embeddings, with a scale a row.
    """
    model = onnx.load(path, load_external_data=False)
    graph = _QuantisedGraph(model.graph, path.parent)
    for node in model.graph.node:
        graph.add(node)
    read = {name for node in graph.nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    for tensor in kept:
        if uses_external_data(tensor):
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    quantised = helper.make_graph(
        graph.nodes, model.graph.name, model.graph.input, model.graph.output, [*kept, *graph.initializers]
    )
    model.graph.CopyFrom(quantised)
    save_graph(model, path)


class _QuantisedGraph(GraphBuilder):
    """Nodes of a float32 graph, as they are or in 8 bits."""

    def __init__(self, exact: GraphProto, folder: Path) -> None:
        super().__init__()
        self._folder = str(folder)
        self._weights = {tensor.name: tensor for tensor in exact.initializer}
        self._makers = {node.output[0]: node for node in exact.node}
        # What depends on the texts. The rest, such as what DeBERTa's layers make of their relative positions, is
        # computed once, when the graph is opened; but by operators of float32 alone.
        self._varying = {value.name for value in exact.input}
        self._done: set[str] = set()  # names of weights and of vectors that have been quantised
        self.constant("axis", np.array([1]))
        self.constant("least", LEAST)
        self.constant("reach", np.float32(REACH))
        self.constant("middle", np.uint8(MIDDLE))
        self.constant("one", np.float32(1))
        self.constant("zero", np.float32(0))

    def add(self, node: NodeProto) -> None:
        vectors = node.input[0] if node.input else ""
        if self._varying.intersection(node.input):
            self._varying.update(node.output)
        if node.op_type == "Gemm" and vectors in self._varying and IN_LAYERS.search(node.input[1]):
            self._linear(*node.input, output=node.output[0])
        elif node.op_type == "Gather" and vectors in self._weights and node.input[1] == "input_ids":
            self._embedding(*node.input, output=node.output[0])
        else:
            self.nodes.append(node)

    def _linear(self, vectors: str, weight: str, bias: str = "zero", *, output: str) -> None:
        read = self._read(vectors)
        if weight not in self._done:
            self._done.add(weight)
            values, scales = _rounded(self._values(weight), WEIGHT_LIMIT, axis=0)
            self.constant(f"{weight}.integers", values)
            self.constant(f"{weight}.scales", scales)
        operands = [f"{read}.integers", f"{weight}.integers", "one", f"{weight}.scales", "middle"]
        products = self.node("MatMulIntegerToFloat", operands, f"{output}.products", domain=RUNTIME_DOMAIN)
        scaled = self.node("Mul", [products, f"{read}.columns"], f"{output}.scaled")
        self.node("Add", [scaled, bias], output)

    def _read(self, vectors: str) -> str:
        """Quantises vectors, (M, in), unless another layer has read the same ones; returns the name of the result."""
        maker = self._makers.get(vectors)
        name = maker.input[0] if maker is not None and maker.op_type == "Reshape" else vectors
        if name not in self._done:
            self._done.add(name)
            sizes = self.node("Abs", [vectors], f"{name}.sizes")
            largest = self.node("ReduceMax", [sizes, "axis"], f"{name}.largest", keepdims=0)
            positive = self.node("Max", [largest, "least"], f"{name}.positive")
            scales = self.node("Div", [positive, "reach"], f"{name}.scales")
            count = self.node("Shape", [scales], f"{name}.count")
            value = helper.make_tensor("value", TensorProto.UINT8, [1], [MIDDLE])
            middles = self.node("ConstantOfShape", [count], f"{name}.middles", value=value)
            self.node("QuantizeLinear", [vectors, scales, middles], f"{name}.integers", axis=0)
            self.node("Unsqueeze", [scales, "axis"], f"{name}.columns")
        return name

    def _embedding(self, table: str, ids: str, *, output: str) -> None:
        values, scales = _rounded(self._values(table), REACH, axis=1)
        rows = self.node("Gather", [self.constant(f"{table}.integers", values), ids], f"{output}.integers")
        row_scales = self.node("Gather", [self.constant(f"{table}.scales", scales[:, None]), ids], f"{output}.scales")
        floats = self.node("Cast", [rows], f"{output}.floats", to=TensorProto.FLOAT)
        self.node("Mul", [floats, row_scales], output)

    def _values(self, weight: str) -> FloatArray:
        """One at a time: float32 weights can be larger than the memory that is left."""
        return numpy_helper.to_array(self._weights[weight], self._folder)


def _rounded(values: FloatArray, limit: int, *, axis: int) -> tuple[Int8Array, FloatArray]:
    """Integers up to `limit`, and what they are in units of, one for all values along the axis."""
    scales = np.maximum(np.abs(values).max(axis=axis), LEAST) / np.float32(limit)
    return np.rint(values / np.expand_dims(scales, axis)).astype(np.int8), scales
