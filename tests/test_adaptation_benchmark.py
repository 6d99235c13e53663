"""The benchmark of what adaptation takes, in miniature."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_scorer import write_tiny_scorer

from benchmarks.adaptation import CANDIDATES, INSTRUCTION_TOKENS, adapted, fine_tuned, in_own_process, made_up, shown
from cappy_train.batches import Packer


def test_made_up_instances_have_the_lengths_that_are_told(tmp_path: Path) -> None:
    model = write_tiny_scorer(tmp_path / "tiny")
    packer = Packer(model / "tokenizer.json")
    instances = made_up(5, model)
    assert [len(packer.encode(one.instruction)) for one in instances] == [INSTRUCTION_TOKENS] * 5
    assert {len(packer.encode(text.text)) for one in instances for text in one.candidates} == {16}
    assert {len(one.candidates) for one in instances} == {CANDIDATES}
    assert made_up(5, model) == instances


def test_it_measures_adaptation_and_a_generator(tmp_path: Path) -> None:
    model = write_tiny_scorer(tmp_path / "tiny")
    own = adapted(20, str(model), 1.0)
    assert own["steps"] >= 1
    assert own["seconds"] >= sum(own["stages"].values()) - 0.5
    generator = fine_tuned({"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 1}, 20, steps=1)
    assert generator["seconds"] == pytest.approx(20 / 8 * generator["seconds_a_step"], abs=0.1)
    assert min(own["peak_memory_mib"], generator["peak_memory_mib"]) > 100
    printed = shown({"epochs": 1.0, "adapted": own, "generators": {"FLAN-T5-small": generator}})
    assert "| adapting the scorer |" in printed
    assert "FLAN-T5-small" in printed


def test_each_is_measured_in_a_process_of_its_own() -> None:
    assert in_own_process(os.getpid) != os.getpid()
