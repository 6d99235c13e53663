"""The package as installed: what an import loads, who imports whom, what is shipped."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path

import cappy_lite

RUNTIME_DEPENDENCIES = {"numpy", "onnxruntime", "tokenizers"}


def modules_loaded_by(statement: str, folder: Path) -> set[str]:
    """Top-level modules that a new interpreter, started away from the sources, has loaded after the statement."""
    program = f"import sys; {statement}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def imported_packages(source: Path) -> Iterator[str]:
    """Top-level names of everything that a file imports, at its top or deeper."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: say {node.module} by its full name"
            yield str(node.module).partition(".")[0]


def test_import_is_light(tmp_path: Path) -> None:
    loaded = modules_loaded_by("import cappy_lite", tmp_path)
    assert "cappy_lite" in loaded
    assert not loaded & {"onnxruntime", "tokenizers", "torch", "tqdm", "cappy_train"}


def test_rouge_needs_no_model(tmp_path: Path) -> None:
    loaded = modules_loaded_by("import cappy_lite; cappy_lite.rouge_l('a', 'b')", tmp_path)
    assert not loaded & {"onnxruntime", "tokenizers", "torch", "nltk", "rouge_score"}


def test_runtime_imports_its_dependencies_alone() -> None:
    folder = Path(cappy_lite.__file__).parent
    imported = {
        (source.name, package)
        for source in [*folder.rglob("*.py"), *folder.rglob("*.pyi")]
        for package in imported_packages(source)
        if package not in sys.stdlib_module_names
    }
    assert {package for _, package in imported} <= RUNTIME_DEPENDENCIES | {"cappy_lite"}, sorted(imported)


def test_metadata_is_what_the_design_promises() -> None:
    distribution = metadata.distribution("cappy-lite")
    requirements = [text for text in distribution.requires or [] if "extra ==" not in text]
    required = {re.match(r"[\w-]+", text)[0] for text in requirements}  # type: ignore[index]
    assert required == RUNTIME_DEPENDENCIES
    assert distribution.metadata["License-Expression"] == "Apache-2.0"
    scripts = {entry.name: entry.value for entry in distribution.entry_points if entry.group == "console_scripts"}
    assert scripts == {"cappy-lite": "cappy_lite.cli:main", "cappy-train": "cappy_train.cli:main"}


def test_typing_information_is_shipped() -> None:
    files = resources.files("cappy_lite")
    assert files.joinpath("py.typed").is_file()
    assert files.joinpath("_kernel.pyi").is_file()
