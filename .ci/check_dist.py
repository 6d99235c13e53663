"""Fails unless a folder holds one sdist and one wheel with the contents, the tag and the size that they should have."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

MOST_BYTES = 35_000_000
WHEEL_TAG = "-cp311-abi3-"
IN_WHEEL = {
    *(f"cappy_lite/{name}" for name in ("__init__.py", "py.typed", "_kernel.abi3.so", "_kernel.pyi", "_kernel_py.py")),
    "cappy_lite/_operators.abi3.so",
    *(f"cappy_lite/models/cappy-mini/{name}" for name in ("config.json", "model.onnx", "tokenizer.json", "README.md")),
    "cappy_train/cli.py",
}
IN_SDIST = {
    *("LICENSE", "CHANGELOG.md", "README.md", "pyproject.toml", "setup.py", "cappy_lite/_kernel.pyx"),
    *(
        "csrc/cappy.h",
        "csrc/rouge.c",
        "csrc/operators/attention.inc",
        "tests/fuzz/fuzz_kernel.c",
        "tests/conftest.py",
        "benchmarks/kernel_equality.py",
        "train/cappy_train/cli.py",
        "train/default_model",
        "train/default_model.md",
    ),
    *(name for name in IN_WHEEL if not name.endswith((".so", "cli.py"))),
}
SOURCES = (".pyx", ".c", ".h", ".inc")


def main(folder: Path) -> None:
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    problems = [
        *(f"the wheel lacks {name}" for name in sorted(IN_WHEEL - in_wheel)),
        *(f"the sdist lacks {name}" for name in sorted(IN_SDIST - in_sdist)),
        *(f"the wheel has {name}" for name in sorted(in_wheel) if name.endswith(SOURCES)),
        *(f"the sdist has {name}" for name in sorted(in_sdist) if name.endswith((".so", ".pyc", "/_kernel.c"))),
    ]
    if WHEEL_TAG not in wheel.name:
        problems.append(f"{wheel.name} is not tagged {WHEEL_TAG}")
    if wheel.stat().st_size >= MOST_BYTES:
        problems.append(f"{wheel.name} has {wheel.stat().st_size:,} bytes; at most {MOST_BYTES:,} are allowed")
    if problems:
        sys.exit("\n".join(problems))
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes; {sdist.name}: {sdist.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
