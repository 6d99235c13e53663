"""ONNX Runtime sessions that behave as a guest in someone else's process."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, cast
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from cappy_lite import _operators
from cappy_lite.errors import ModelError
from cappy_lite.packing import PackedRow

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, NodeArg, SessionOptions

FloatArray = npt.NDArray[np.float32]

# What a graph reads of a packed row, int64, by the names of the row's arrays.
INPUTS = ("input_ids", "position_ids", "token_type_ids", "segments", "score_positions", "score_spans")
# Keys and values of an instruction that isn't in the row: float32 (layers, length, 2 * hidden).
CONTEXT = "context"
# Of how many of the row's first tokens a run gives keys and values, int64 (1,): see `kept_outputs`.
KEPT_TOKENS = "kept_tokens"
OUTPUT = "logits"

# ONNX Runtime reports what goes wrong by exception as well; only what is fatal for the process may be printed.
_LOG_FATAL = 4

_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"

_open_sessions: WeakSet[InferenceSession] = WeakSet()


class Session:
    """A graph, in a file or serialised, ready to run packed rows; it may be run from any number of threads.

    threads: how many one run computes on.

    Raises:
        ModelError: it is no ONNX graph, or not one over packed rows.
    """

    def __init__(self, graph: Path | bytes, threads: int) -> None:
        self._session = open_session(graph, threads, packed=True)
        layers, _, width = _check_signature(graph, self._session)[CONTEXT].shape
        self._no_context = np.empty((layers, 0, width), dtype=np.float32)
        self._kept = kept_outputs(layers)

    def run(self, row: PackedRow, context: FloatArray | None = None) -> FloatArray:
        """Logits of the row's candidates: float32 (n,), in the row's order.

        context: keys and values of their instruction if it isn't in the row, (layers, tokens, 2 * hidden).
        """
        (logits,) = self.tensors([OUTPUT], row, context)
        return logits

    def keep(self, row: PackedRow) -> FloatArray:
        """The context that the row's tokens are for other rows: their keys and values, (layers, L, 2 * hidden)."""
        return np.stack(self.tensors(self._kept, row, kept_tokens=len(row.input_ids)))

    def tensors(
        self, names: list[str], row: PackedRow, context: FloatArray | None = None, *, kept_tokens: int = 0
    ) -> list[FloatArray]:
        """The graph's outputs of these names; `kept_tokens`: of how many tokens keys and values may be among them."""
        inputs = {name: getattr(row, name) for name in INPUTS}
        inputs[CONTEXT] = self._no_context if context is None else context
        inputs[KEPT_TOKENS] = np.array([kept_tokens])
        return cast("list[FloatArray]", self._session.run(names, inputs))


def kept_outputs(layers: int) -> list[str]:
    """Names of a graph's outputs with the keys and values of a row's first tokens, float32 (kept, 2 * hidden) each."""
    return [f"layers.{number}.kept" for number in range(layers)]


def open_session(graph: Path | bytes, threads: int, *, packed: bool = False) -> InferenceSession:
    """ONNX Runtime's session of a graph, in a file or serialised.

    packed: whether it is one over packed rows, in which there is nothing to optimise: that takes as long as reading
        it. Their length is bounded, and so is the memory that ONNX Runtime's arena keeps of the longest; malloc would
        give that back to the system and ask for it again many times in a call. Of other graphs nothing is kept.

    Raises:
        ModelError: it is no ONNX graph that this ONNX Runtime runs.
    """
    options = session_options(threads)
    options.enable_cpu_mem_arena = packed
    if packed:
        options.graph_optimization_level = import_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
    return _open(graph, options)


def input_names(graph: Path) -> set[str]:
    """What the graph in a file reads; its weights are hardly looked at.

    Raises:
        ModelError: it is no ONNX graph that this ONNX Runtime runs.
    """
    options = session_options(1)
    options.graph_optimization_level = import_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    return {node.name for node in _open(graph, options).get_inputs()}


def _open(graph: Path | bytes, options: SessionOptions) -> InferenceSession:
    onnxruntime = import_onnxruntime()
    source = graph if isinstance(graph, bytes) else str(graph)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no base of their own
        raise ModelError(
            f"{_named(graph)} can't be opened by ONNX Runtime {onnxruntime.__version__}: {error}"
        ) from error
    _open_sessions.add(session)
    return cast("InferenceSession", session)


def session_options(threads: int) -> SessionOptions:
    """How a graph is run: on `threads` threads, which rest between two calls."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Threads wait for each other awake, which takes a tenth off a call's time, but sleep between two calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Rows differ in length, so no pattern repeats.
    options.enable_mem_pattern = False
    options.log_severity_level = _LOG_FATAL
    options.register_custom_ops_library(_operators.__file__)
    return options


def import_onnxruntime() -> ModuleType:
    """ONNX Runtime without its telemetry, which nothing in this package may start.

    Since 1.29 its official builds write to the user's cache folder and report to Microsoft, from a thread that also
    hangs every forked child at its exit. Only this variable, set when the library is first imported, prevents all that.
    It is taken back at once: the environment is the host's, and the library has made up its mind for the process.
    """
    if "onnxruntime" not in sys.modules and _NO_TELEMETRY not in os.environ:
        os.environ[_NO_TELEMETRY] = "1"
        try:
            import onnxruntime
        finally:
            os.environ.pop(_NO_TELEMETRY, None)  # another thread may have been faster
    import onnxruntime

    # For a library that someone else imported before.
    onnxruntime.disable_telemetry_events()
    return cast("ModuleType", onnxruntime)


def available_cpus() -> int:
    """CPUs that this process may keep busy: its affinity, and no more than its cgroup's quota; at least 1."""
    # macOS and Windows have no affinity call, and no cgroups.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(count, cgroup_cpus())))


def cgroup_cpus(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """The smallest CPU quota of this process' cgroups (version 1 or 2) and of their parents; infinity without one.

    In a container, `membership` often names a path of the host that isn't mounted, while its root is: so all levels are
    tried.
    """
    quotas = [math.inf]
    for line in _read(membership).splitlines():
        _, controllers, group = line.split(":", 2)
        for level in [PurePosixPath(group), *PurePosixPath(group).parents]:
            below = level.relative_to("/")
            if not controllers:
                quotas.append(_quota(_read(root / below / "cpu.max").split()))
            elif "cpu" in controllers.split(","):
                folder = root / "cpu" / below
                quotas.append(_quota([_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]))
    return min(quotas)


def _quota(fields: list[str]) -> float:
    """CPUs, from microseconds of CPU time and the period that they are for; "max", -1 or nothing is no limit."""
    match fields:
        case [quota, period] if quota.isdigit() and period.isdigit():
            return int(quota) / int(period)
    return math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _check_signature(graph: Path | bytes, session: InferenceSession) -> dict[str, NodeArg]:
    """The graph's inputs by name."""
    inputs = {node.name: node for node in session.get_inputs()}
    found = {(node.name, node.type) for node in inputs.values()}
    expected = {(name, "tensor(int64)") for name in (*INPUTS, KEPT_TOKENS)} | {(CONTEXT, "tensor(float)")}
    if found != expected or (OUTPUT, "tensor(float)") not in {(node.name, node.type) for node in session.get_outputs()}:
        raise ModelError(
            f"{_named(graph)} doesn't read packed rows: it must read {', '.join((*INPUTS, KEPT_TOKENS))} (int64) and "
            f"{CONTEXT} (float32) and give {OUTPUT} (float32), but reads "
            f"{', '.join(f'{name} {kind}' for name, kind in sorted(found))}: export the model again"
        )
    return inputs


def _named(graph: Path | bytes) -> str:
    return "the graph" if isinstance(graph, bytes) else str(graph)


def _keep_inherited_sessions() -> None:
    """Keeps a forked child from destroying its parent's sessions: that would wait for threads which aren't there."""
    for session in _open_sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_keep_inherited_sessions)
