"""ONNX nodes and constants, as they are added."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

# ONNX Runtime's own operators.
RUNTIME_DOMAIN = "com.microsoft"


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
