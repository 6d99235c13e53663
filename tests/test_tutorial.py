"""The tutorial: every block of the page, in order, as it stands, against a web API on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from tiny_api import KEY, MODEL, Api, serving
from tiny_generators import write_generator

from cappy_train.instances import Instance, parse_instance, read_instances

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, FORMATS = DOCS / "tutorial.md", DOCS / "formats.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serving(write_generator(tmp_path / "llama", "llama", max_tokens=300)) as server:
        yield server


def run(kind: str, block: str, folder: Path, variables: dict[str, str]) -> str:
    """What a block prints; of one that fails the test shows all."""
    command = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[kind]
    done = subprocess.run([*command, block], cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_block_runs_as_printed(api: Api, tmp_path: Path) -> None:
    (_, install), (_, exported), *blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert install == "pip install 'cappy-lite[train]'\n"  # which the tests' environment has
    names = re.findall(r"^export (\w+)=\S+  +# ", exported, re.MULTILINE)
    assert len(names) == len(exported.splitlines()) == 3
    proxies = {f"{name}_PROXY" for name in ("HTTP", "HTTPS", "ALL")}
    variables = {name: value for name, value in os.environ.items() if name.upper() not in proxies}
    variables |= zip(names, (api.url, KEY, MODEL), strict=True)  # the page's are of an API that isn't here
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    folder = tmp_path / "work"
    folder.mkdir()
    printed = [run(kind, block, folder, variables) for kind, block in blocks]
    _, head, _, adapted, evaluated, picked, streamed = printed

    instances = list(read_instances(folder / "examples.jsonl"))
    assert json.loads(head)["instruction"] == instances[0].instruction
    splits = Counter(instance.split for instance in instances)
    assert splits.total() == 48
    assert min(splits.values()) >= 5
    assert all(len(one.candidates) == 6 for one in read_instances(folder / "sampled" / "shard-000000.parquet"))

    assert adapted.count("| after |") == 2 * 2  # two tables, printed and shown
    report = json.loads((folder / "models" / "support" / "adaptation.json").read_text(encoding="utf-8"))
    assert list(report["picks"]) == ["held out", "test"]
    named = {method["name"] for method in report["picks"]["test"]["methods"]}
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in named if not re.search(rf"`{name.partition(',')[0]}`", page)] == []
    assert "| support |" in evaluated
    assert (folder / "reports" / "support" / "report.html").exists()

    formats = FORMATS.read_text(encoding="utf-8")
    for written in ("sampled/manifest.json", "models/support/adaptation.json", "reports/support/report.json"):
        assert [
            key for key in json.loads((folder / written).read_text(encoding="utf-8")) if f'"{key}"' not in formats
        ] == []

    asked = {instruction for instruction, *_ in api.answered}
    for request, text in (("the printer is very slow today", picked), ("I was billed twice for our router", streamed)):
        (own,) = (one for one in instances if one.instruction.endswith(f"\n\n{request}"))
        assert own.instruction in asked  # the programs ask as the examples did, to the letter
        assert text.strip()
    assert api.answered[next(one for one in asked if one.endswith("slow today") and "the printer" in one), 0.9, 1.0] > 2


def test_the_instance_that_formats_shows_is_one() -> None:
    text = FORMATS.read_text(encoding="utf-8")
    shown = text[text.index('    {"id"') : text.index("| key | type |")]
    instance = parse_instance(json.loads(shown))
    assert [(one.source, one.log_likelihood) for one in instance.candidates] == [("nucleus", -9.31), ("human", None)]
    for field in fields(Instance):
        assert f"| {field.name} |" in text
