"""A model folder of the scorer's own network, as an export makes it, small and with random weights."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from tiny_model import WORDS
from tiny_training import POSITIONS, write_tiny_bert

from cappy_train.evaluate import Question
from cappy_train.export import write_model
from cappy_train.network import from_bert


def write_tiny_scorer(folder: Path, *, seed: int = 0) -> Path:
    """Writes the folder and returns it. Scores mean nothing, and differ enough for 8 bits to keep their order."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as bert:
        network = from_bert(write_tiny_bert(Path(bert)))
        torch.nn.init.normal_(network.head_dense.weight, std=0.3)
        torch.nn.init.normal_(network.head_output.weight, std=0.2)
        rng = random.Random(seed)
        asked = [_question(rng) for _ in range(300)]
        write_model(
            folder,
            network.eval(),
            Path(bert) / "tokenizer.json",
            asked[:20],
            asked[20:],
            identity={"name": "tiny", "base_model": "random weights", "licence": "MIT", "max_tokens": POSITIONS},
            training={"steps": 0},
            origin="Not at all.",
        )
    return folder


def _question(rng: random.Random) -> Question:
    instruction, *candidates = (" ".join(rng.choices(WORDS, k=rng.randint(2, 12))) for _ in range(5))
    return Question("task", None, instruction, tuple(candidates), np.zeros(4), "group", "generation")
