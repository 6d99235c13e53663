"""The least time that ONNX Runtime could take: the matrix multiplications that the tokens need, and nothing else.

Each token is multiplied once: the instruction's are shared, nothing is padded, and in the last layer, as in the head,
only what the scores are read from is computed beyond keys and values. Linear layers are tried at each precision that
ONNX Runtime has kernels for; the attention's products are of states alone, which stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.corpus import SEED
from benchmarks.scorer.sizes import Size
from cappy_lite.session import import_onnxruntime
from cappy_train.graph import GraphWeights

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Product:
    """`batch` products of (rows, inner) by (inner, columns). linear: the latter is weights, and batch is 1."""

    batch: int
    rows: int
    inner: int
    columns: int
    linear: bool = False

    @property
    def multiplications(self) -> int:
        return self.batch * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class Network:
    """Sizes of an encoder."""

    layers: int
    heads: int
    hidden: int
    feed_forward: int

    @staticmethod
    def of(weights: GraphWeights) -> Network:
        hidden, feed_forward = weights.linears["layers.0.intermediate"].weight.shape
        return Network(weights.layers, weights.heads, hidden, feed_forward)


def products(network: Network, size: Size) -> list[Product]:
    """What scoring these tokens multiplies, special tokens included."""
    head = size.instruction + 2  # [CLS] and [SEP]
    own = np.array(size.candidates) + 1  # [SEP]
    return [
        *[product for _ in range(network.layers - 1) for product in layer(network, head, own)],
        *last_layer(network, head, own),
        Product(1, len(own), network.hidden, network.hidden, linear=True),
        Product(1, len(own), network.hidden, 1, linear=True),
    ]


def layer(network: Network, head: int, own: npt.NDArray[np.int64]) -> list[Product]:
    """All tokens see the instruction's; a candidate's see their own as well."""
    tokens = head + int(own.sum())
    return [
        Product(1, tokens, network.hidden, 3 * network.hidden, linear=True),
        *attention(network, tokens, head),
        *own_attention(network, mean_length(own), len(own), mean_length(own)),
        *after_attention(network, tokens),
    ]


def last_layer(network: Network, head: int, own: npt.NDArray[np.int64]) -> list[Product]:
    """A query for each candidate, and keys and values for all tokens."""
    tokens = head + int(own.sum())
    return [
        Product(1, tokens, network.hidden, 2 * network.hidden, linear=True),
        Product(1, len(own), network.hidden, network.hidden, linear=True),
        *attention(network, len(own), head),
        *own_attention(network, 1, len(own), round(own.mean())),
        *after_attention(network, len(own)),
    ]


def attention(network: Network, queries: int, keys: int) -> list[Product]:
    """Queries by keys, and what comes of it by values, in each head."""
    width = network.hidden // network.heads
    return [Product(network.heads, queries, width, keys), Product(network.heads, queries, keys, width)]


def own_attention(network: Network, queries: int, candidates: int, keys: int) -> list[Product]:
    width, batch = network.hidden // network.heads, network.heads * candidates
    return [Product(batch, queries, width, keys), Product(batch, queries, keys, width)]


def after_attention(network: Network, tokens: int) -> list[Product]:
    return [
        Product(1, tokens, network.hidden, network.hidden, linear=True),
        Product(1, tokens, network.hidden, network.feed_forward, linear=True),
        Product(1, tokens, network.feed_forward, network.hidden, linear=True),
    ]


def mean_length(own: npt.NDArray[np.int64]) -> int:
    """The length at which equally long candidates would need as many products among themselves."""
    return round(float(np.mean(own.astype(np.float64) ** 2)) ** 0.5)


class FloorGraph:
    """A graph of products, each by itself: what comes of one is not read."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._linear, self._input_type = KINDS[kind]
        self._random = np.random.default_rng(SEED)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: dict[str, Array] = {}

    def add(self, product: Product) -> None:
        name = f"product{len(self._nodes)}"
        if product.linear:
            states = self._input((product.rows, product.inner), self._input_type)
            node = self._linear(self, states, (product.inner, product.columns), name)
        else:
            states = self._input((product.batch, product.rows, product.inner), np.float32)
            # Its own, or ONNX Runtime would see that products are the same, and do one.
            other = self._input((product.batch, product.inner, product.columns), np.float32, f"{name}.")
            node = helper.make_node("MatMul", [states, other], [name], name)
        self._nodes.append(node)
        self._last = product

    def constant(self, name: str, value: Array) -> str:
        self._constants.append(numpy_helper.from_array(value, name))
        return name

    def weights(self, name: str, shape: tuple[int, int], dtype: npt.DTypeLike) -> str:
        # Seven bits, as the shipped model has.
        return self.constant(name, self._random.integers(-63, 64, shape).astype(dtype))

    def _input(self, shape: tuple[int, ...], dtype: npt.DTypeLike, owner: str = "") -> str:
        """An input of this shape, shared by all products that read one like it, unless it has an owner."""
        kind = np.dtype(dtype)
        name = f"{owner}{kind.name}_{'x'.join(map(str, shape))}"
        if name not in self._inputs:
            self._inputs[name] = self._random.integers(0, 256, shape).astype(kind)
        return name

    def _output(self) -> onnx.ValueInfoProto:
        """What comes of the last product, a linear layer."""
        node, product = self._nodes[-1], self._last
        kind = TensorProto.INT32 if node.op_type == "MatMulInteger" else TensorProto.FLOAT
        return helper.make_tensor_value_info(node.output[0], kind, [product.rows, product.columns])

    def inputs(self) -> Mapping[str, Array]:
        return self._inputs

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes,
            f"floor in {self._kind}",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for name, value in self._inputs.items()
            ],
            # All others are read by nobody; ONNX Runtime computes them all the same, and takes their memory back.
            [self._output()],
            self._constants,
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def _integer_product(graph: FloorGraph, states: str, shape: tuple[int, int], name: str) -> onnx.NodeProto:
    return helper.make_node("MatMulInteger", [states, graph.weights(f"{name}.weight", shape, np.int8)], [name], name)


def _scaled_product(graph: FloorGraph, states: str, shape: tuple[int, int], name: str) -> onnx.NodeProto:
    operands = [
        states,
        graph.constant(f"{name}.input_scale", np.float32(0.01)),
        graph.constant(f"{name}.input_zero_point", np.uint8(128)),
        graph.weights(f"{name}.weight", shape, np.int8),
        graph.constant(f"{name}.scales", np.full(shape[1], 0.01, np.float32)),
        graph.constant(f"{name}.zero_points", np.zeros(shape[1], np.int8)),
        graph.constant(f"{name}.bias", np.zeros(shape[1], np.int32)),
    ]
    return helper.make_node("QGemm", operands, [name], name, domain="com.microsoft")


def _float_product(graph: FloorGraph, states: str, shape: tuple[int, int], name: str) -> onnx.NodeProto:
    return helper.make_node("MatMul", [states, graph.weights(f"{name}.weight", shape, np.float32)], [name], name)


Linear = Callable[[FloorGraph, str, tuple[int, int], str], onnx.NodeProto]
# How a linear layer is multiplied, and what its input is.
KINDS: Mapping[str, tuple[Linear, npt.DTypeLike]] = {
    "MatMulInteger": (_integer_product, np.uint8),
    "QGemm": (_scaled_product, np.uint8),
    "float32": (_float_product, np.float32),
}


def open_floor(multiplied: Sequence[Product], kind: str, threads: int) -> Callable[[], object]:
    """A call that does these products, in a session with ONNX Runtime's own options: they are the fastest alone."""
    graph = FloorGraph(kind)
    for product in multiplied:
        graph.add(product)
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        graph.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = graph.inputs()
    return lambda: session.run(None, inputs)
