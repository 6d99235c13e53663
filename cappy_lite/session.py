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

from cappy_lite.errors import ModelError
from cappy_lite.packing import PackedRow

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

INPUTS = ("input_ids", "position_ids", "token_type_ids", "segment_ids", "score_positions")
OUTPUT = "logits"

# ONNX Runtime reports what goes wrong by exception as well; only what is fatal for the process may be printed.
_LOG_FATAL = 4

_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"

_open_sessions: WeakSet[InferenceSession] = WeakSet()


def open_session(path: Path, threads: int) -> InferenceSession:
    """The graph at `path`, ready to run packed rows on `threads` threads; it may be run from any number of them.

    Raises:
        ModelError: the file is no ONNX graph, or not one over packed rows.
    """
    session = open_graph(path, threads)
    _check_signature(path, session)
    return session


def open_graph(path: Path, threads: int) -> InferenceSession:
    """The graph at `path`, whatever it reads.

    Raises:
        ModelError: the file is no ONNX graph.
    """
    onnxruntime = import_onnxruntime()
    try:
        session = onnxruntime.InferenceSession(str(path), session_options(threads), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no base of their own
        raise ModelError(f"{path} can't be opened by ONNX Runtime {onnxruntime.__version__}: {error}") from error
    _open_sessions.add(session)
    return cast("InferenceSession", session)


def session_options(threads: int) -> SessionOptions:
    """How a graph is run: on `threads` threads, without a trace between two calls."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Waiting threads sleep: spinning costs the host most of a core between calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The arena keeps the memory of the largest row for good, and rows differ in length, so no pattern repeats.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = _LOG_FATAL
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


def run_row(session: InferenceSession, row: PackedRow) -> npt.NDArray[np.float32]:
    """Logits of the row's candidates: float32 (n,), in the row's order."""
    inputs = {name: getattr(row, name) for name in INPUTS}
    return cast("npt.NDArray[np.float32]", session.run([OUTPUT], inputs)[0])


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


def _check_signature(path: Path, session: InferenceSession) -> None:
    found = {(node.name, node.type) for node in session.get_inputs()}
    expected = {(name, "tensor(int64)") for name in INPUTS}
    if found != expected or (OUTPUT, "tensor(float)") not in {(node.name, node.type) for node in session.get_outputs()}:
        raise ModelError(
            f"{path} doesn't read packed rows: it must read {', '.join(INPUTS)} (int64) and give {OUTPUT} (float32), "
            f"but reads {', '.join(f'{name} {kind}' for name, kind in sorted(found))}: export the model again"
        )


def _keep_inherited_sessions() -> None:
    """Keeps a forked child from destroying its parent's sessions: that would wait for threads which aren't there."""
    for session in _open_sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_keep_inherited_sessions)
