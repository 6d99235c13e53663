from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_training import write_tiny_bert

from benchmarks import corpus, sampling


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short instructions, and threads as they were before."""
    monkeypatch.setattr(sampling, "DECODER_LAYERS", 1)
    monkeypatch.setattr(sampling, "INSTRUCTION_WORDS", (2, 6))
    monkeypatch.setattr(sampling, "MAX_NEW_TOKENS", 8)
    monkeypatch.setattr(corpus, "SYNTHETIC_VOCABULARY", 100)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_command_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, written = tmp_path / "bert", tmp_path / "sampling.json"
    base.mkdir()
    write_tiny_bert(base)
    arguments = ["--base", str(base), "--instances", "3", "--rounds", "2", "--threads", "1", "--output", str(written)]
    assert sampling.main(arguments) == 0
    report = json.loads(written.read_text())
    assert set(report["models"]) == {"seq2seq", "causal"}
    for measured in report["models"].values():
        assert measured["responses"] == 3 * 17
        assert set(measured["rates"]) == {"ours", "ours, float32", "plain"}
        assert all(1 < tokens <= 64 for tokens in measured["tokens_a_response"].values())
        assert set(measured["ratios"]) == {"ours, float32", "plain"}
    assert {"cpus", "torch", "transformers", "processor", "threads"} <= set(report)
    assert "| seq2seq | plain |" in capsys.readouterr().out


def test_a_different_response_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_bert(tmp_path)
    respond = sampling.Plain.respond
    monkeypatch.setattr(sampling.Plain, "respond", lambda *given: respond(*given)[:, :0])
    with pytest.raises(SystemExit, match="DIFFERENT: seq2seq, instance 0"):
        sampling.main(["--base", str(tmp_path), "--instances", "1", "--rounds", "1"])
