from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import kernel_equality


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    records = [
        {
            "id": f"t:{number}",
            "task": "t",
            "template": None,
            "instruction": "Write.",
            "references": ["The skiers ski down.", "Someone skis \u212am \ud800."],
            "candidates": [{"text": text, "source": "s"} for text in ("A skier skied down", "")],
            "choices": None,
            "split": "test",
        }
        for number in range(3)
    ]
    path = tmp_path / "instances.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_counts_what_it_compared(instances: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kernel_equality.main(["--data", str(instances)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "equal: 12 pairs, not stemmed"
    assert lines[3] == "equal: 6 candidates with all references, stemmed"
    assert json.loads(lines[-1])["pairs"] == 12


def test_last_bit_matters(instances: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    exact = kernel_equality.rouge_l_pairs

    def one_bit_off(predictions: list[str], references: list[tuple[str, ...]], *, stem: bool) -> np.ndarray:
        return np.nextafter(exact(predictions, references, stem=stem), 2.0)

    monkeypatch.setattr(kernel_equality, "rouge_l_pairs", one_bit_off)
    assert kernel_equality.main(["--data", str(instances)]) == 1
    assert "DIFFERENT: 'A skier skied down' against ('The skiers ski down.',)" in capsys.readouterr().out
