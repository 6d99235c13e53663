from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_training import write_tiny_bert

from benchmarks import corpus, pretraining
from cappy_train.annotate import annotate
from cappy_train.network import from_bert


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few and short rows; and threads as they were before."""
    monkeypatch.setattr(pretraining, "WINDOW", 60)
    monkeypatch.setattr(pretraining, "INSTRUCTION_WORDS", (2, 6))
    monkeypatch.setattr(pretraining, "CANDIDATE_WORDS", (1, 3))
    monkeypatch.setattr(pretraining, "SQUARES", (64,))
    monkeypatch.setattr(corpus, "SYNTHETIC_VOCABULARY", 100)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


def write_pairs(folder: Path) -> Path:
    candidates = [{"text": f"the dog runs {'and runs ' * number}", "source": "s"} for number in range(6)]
    records = [
        {"id": str(number), "task": "t", "instruction": f"put the word {'dog ' * (number % 9)}together {number}"}
        | {
            "references": ["the dog eats"],
            "choices": None,
            "split": "train",
            "candidates": candidates[: 1 + number % 6],
        }
        for number in range(60)
    ]
    path = folder / "instances.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return annotate([path], folder / "pairs").folder


@pytest.mark.parametrize("given", [True, False])
def test_the_command_measures(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: bool) -> None:
    written = tmp_path / "pretraining.json"
    options = ["--data", str(write_pairs(tmp_path))] if given else []
    common = ["--base", str(base), "--tokens", "512", "--batches", "4", "--rounds", "2", "--threads", "1"]
    assert pretraining.main([*options, *common, "--output", str(written)]) == 0
    report = json.loads(written.read_text())
    assert report["data"] == ("pairs" if given else "made up")
    assert 4 <= report["rows"] <= 60
    assert report["tokens"] < report["tokens_with_padding"] <= report["tokens_with_padding_unsorted"]
    loops = {"ours", "plain", "plain, unsorted"}
    assert set(report["rates"]) == set(report["shares"]) == loops
    assert all(0 < share < 1 for share in report["shares"].values())
    assert report["flops_a_token"]["ours"] < report["flops_a_token"]["plain"]
    assert {"cpus", "torch", "processor", "threads"} <= set(report)
    assert "| loop | tokens/s |" in capsys.readouterr().out


def test_a_different_network_ends_it(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "TOLERANCE", -1.0)
    with pytest.raises(SystemExit, match="DIFFERENT: logits"):
        pretraining.main(["--base", str(base), "--tokens", "512", "--batches", "2", "--rounds", "1"])


def test_operations_are_counted_by_hand(base: Path) -> None:
    """A row of 8 tokens: an instruction of 4, candidates of 3 and 1; the tiny network has 2 layers."""
    config = from_bert(base).config
    packer = pretraining.Packer(base / "tokenizer.json")
    row = pretraining.TokenRow([5, 6], ([7, 8], []), (1.0, 0.0), 150, 8)
    batch = packer.batch([row])
    hidden, wide = config.hidden, config.feed_forward
    linear = 4 * hidden**2 + 2 * hidden * wide
    seen = 4 * 4 + 3 * 7 + 1 * 5
    first = 8 * linear + 2 * hidden * seen
    last = 8 * 2 * hidden**2 + 2 * (2 * hidden**2 + 2 * hidden * wide) + 2 * hidden * (7 + 5)
    assert pretraining.flops_a_token(config, [batch], last_whole=False) == 6 * (first + last) / 8
    assert pretraining.flops_a_token(config, [batch], last_whole=True) == 6 * 2 * first / 8
