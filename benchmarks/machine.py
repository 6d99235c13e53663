"""What a measurement ran on and how much memory it takes, for benchmark reports."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path


def describe_machine(*packages: str) -> dict[str, str | int | None]:
    """The processor, the CPUs that this process may use, the system, and versions of Python and of these packages.

    A package that is not installed has None for its version.
    """
    return {
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    } | {package: _version(package) for package in packages}


def memory_mib(name: str) -> float:
    """What Linux says of this process: VmRSS, what is resident, or VmHWM, the most that ever was."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {name}")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux alone; platform.processor() is often empty there
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
