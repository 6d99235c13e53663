from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import rounds, training


def write_instances(path: Path) -> Path:
    records = [
        {"id": str(number), "task": "t", "instruction": f"Say {number}.", "references": [f"It is {number}!", "No"]}
        | {"candidates": [{"text": f"Its {number}", "source": "s"}] * (number % 2), "choices": None, "split": "dev"}
        for number in range(30)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("given", [True, False])
def test_the_command_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    monkeypatch.setattr(training, "MADE_UP", 20)
    written = tmp_path / "training.json"
    options = ["--data", str(write_instances(tmp_path / "in.jsonl"))] if given else []
    assert training.main([*options, "--pairs", "900", "--rounds", "2", "--output", str(written)]) == 0
    report = json.loads(written.read_text())
    assert report["data"] == ("in.jsonl" if given else "made up")
    assert 500 < report["pairs"] < 1000
    assert report["counts"]["candidates"] > 100
    assert "1" in report["rates"]
    assert {"cpus", "numpy", "pyarrow", "processor"} <= set(report)
    assert "| threads | pairs/s |" in capsys.readouterr().out


def test_a_difference_from_rouge_score_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        training, "check_equal", lambda ours, theirs, where: rounds.check_equal(ours, theirs + 1, where)
    )
    with pytest.raises(SystemExit, match="DIFFERENT: score"):
        training.main(["--data", str(write_instances(tmp_path / "in.jsonl")), "--pairs", "200", "--rounds", "1"])
