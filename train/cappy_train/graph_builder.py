"""ONNX nodes and constants, as they are added."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data

# ONNX Runtime's own operators.
RUNTIME_DOMAIN = "com.microsoft"

# Weights start at whole cache lines, where vectors are read fastest.
CACHE_LINE_BYTES = 64
# Smaller ones stay in the graph's file.
LEAST_WEIGHT_BYTES = 1024


class GraphBuilder:
    """The parts of a graph. Names are given by the caller; a constant that is named again is the same one."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._constants: set[str] = set()

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        if name not in self._constants:
            self._constants.add(name)
            self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, operator: str, inputs: list[str], *names: str, domain: str = "", **attributes: Any) -> str:
        """Adds a node with outputs of these names, the first of which is its own; returns that."""
        self.nodes.append(helper.make_node(operator, inputs, names, name=names[0], domain=domain, **attributes))
        return names[0]


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Saves a graph with its weights beside it, in the file of its name and ".data".

    ONNX Runtime maps that file into memory instead of copying it: processes share the weights, and read none that they
    don't use. A graph's own file could hold no more than 2 GB.
    """
    weights = path.with_name(f"{path.name}.data")
    weights.unlink(missing_ok=True)  # or new weights would be added to the old
    end = 0
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= LEAST_WEIGHT_BYTES:
            start = -(-end // CACHE_LINE_BYTES) * CACHE_LINE_BYTES
            set_external_data(tensor, weights.name, offset=start)
            end = start + len(tensor.raw_data)
    onnx.save(model, path)
    if end:
        shutil.copymode(path, weights)  # onnx lets nobody else read it
