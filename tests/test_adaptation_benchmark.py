"""The benchmark of what adaptation takes, in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_scorer import write_tiny_scorer

from benchmarks import adaptation
from benchmarks.adaptation import CANDIDATES, INSTRUCTION_TOKENS, made_up
from cappy_train.batches import Packer


def test_made_up_instances_have_the_lengths_that_are_told(tmp_path: Path) -> None:
    model = write_tiny_scorer(tmp_path / "tiny")
    packer = Packer(model / "tokenizer.json")
    instances = made_up(5, model)
    assert [len(packer.encode(one.instruction)) for one in instances] == [INSTRUCTION_TOKENS] * 5
    assert {len(packer.encode(text.text)) for one in instances for text in one.candidates} == {16}
    assert {len(one.candidates) for one in instances} == {CANDIDATES}
    assert made_up(5, model) == instances


def test_it_measures_adaptation_and_a_generator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny_scorer(tmp_path / "tiny")
    shape = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 1}
    monkeypatch.setitem(adaptation.GENERATORS, "FLAN-T5-small", shape)
    output = tmp_path / "report.json"
    options = ["--model", str(model), "--instances", "20", "--epochs", "1", "--generators", "FLAN-T5-small"]
    assert adaptation.main([*options, "--steps", "1", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert report["adapted"]["steps"] >= 1
    assert report["adapted"]["seconds"] >= sum(report["adapted"]["stages"].values()) - 0.5
    for measured in (report["adapted"], report["generators"]["FLAN-T5-small"]):
        assert measured["peak_memory_mib"] > 100
    printed = capsys.readouterr().out
    assert "| adapting the scorer |" in printed
    assert "FLAN-T5-small" in printed
