"""The extension modules; everything else is in pyproject.toml.

SANITIZE=1 builds it with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import os
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# One wheel for CPython 3.11 and newer; free-threaded builds have no limited API and get their own.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]
sanitize = SANITIZE if os.environ.get("SANITIZE") == "1" else []


def extension(name: str, sources: list[str], folder: str) -> Extension:
    """A module of its own source and all C files of a folder."""
    files = Path(folder)
    return Extension(
        f"cappy_lite.{name}",
        sources=[*sources, *sorted(map(str, files.glob("*.c")))],
        depends=sorted(map(str, [*files.glob("*.h"), *files.glob("*.inc")])),
        include_dirs=[folder],
        define_macros=[("Py_LIMITED_API", "0x030B0000")] if LIMITED_API else [],
        py_limited_api=LIMITED_API,
        # Contracted sums would round otherwise on one processor than on another.
        extra_compile_args=["-std=c11", "-O3", "-g", "-fvisibility=hidden", "-ffp-contract=off", *sanitize],
        extra_link_args=sanitize,
    )


kernel = extension("_kernel", ["cappy_lite/_kernel.pyx"], "csrc")
operators = extension("_operators", ["cappy_lite/_operators.c"], "csrc/operators")

setup(
    ext_modules=cythonize(
        [kernel, operators],
        build_dir="build",
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "freethreading_compatible": True,
        },
    ),
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
