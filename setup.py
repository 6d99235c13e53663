"""The extension module; everything else is in pyproject.toml.

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

kernel = Extension(
    "cappy_lite._kernel",
    sources=["cappy_lite/_kernel.pyx", *sorted(map(str, Path("csrc").glob("*.c")))],
    depends=sorted(map(str, Path("csrc").glob("*.h"))),
    include_dirs=["csrc"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")] if LIMITED_API else [],
    py_limited_api=LIMITED_API,
    extra_compile_args=["-std=c11", "-O3", "-g0", "-fvisibility=hidden", *sanitize],
    extra_link_args=sanitize,
)

setup(
    ext_modules=cythonize(
        [kernel],
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
