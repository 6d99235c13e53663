"""Where float32 weights come from, and the questions that calibrate their quantisation and measure it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from cappy_lite.models import GRAPH_FILE, TOKENIZER_FILE, canonical, model_folder, read_config
from cappy_train.evaluate import Question, sample_evenly
from cappy_train.export import CALIBRATION_STEP
from cappy_train.graph import GraphWeights, QuantisedLinear, float_weights, graph_weights, read_weights
from cappy_train.pretrain import trained_network


@dataclass(frozen=True)
class Source:
    """Float32 weights, and where they are from, in words."""

    name: str
    described: str
    weights: GraphWeights
    tokenizer: Path

    @property
    def max_tokens(self) -> int:
        return len(self.weights.embeddings["position_embeddings"])


def of_run(run: Path) -> Source:
    """The float32 weights of a training run."""
    weights = graph_weights(trained_network(run))
    return Source(run.name, "a training run's, in float32", weights, run / TOKENIZER_FILE)


def of_model(model: str) -> Source:
    """A model folder's weights in float32."""
    folder = model_folder(canonical(model))
    weights = read_weights(onnx.load(folder / GRAPH_FILE))
    name = read_config(folder).name
    quantised = any(isinstance(linear, QuantisedLinear) for linear in weights.linears.values())
    described = f"{name}'s, read back from its 8 bits" if quantised else f"{name}'s"
    return Source(name, described, float_weights(weights), folder / TOKENIZER_FILE)


def split(sets: Mapping[str, Sequence[Question]], questions: int) -> tuple[list[Question], dict[str, list[Question]]]:
    """The questions that calibrate, as in export, and so many of the others of each set."""
    numbers = iter(range(sum(map(len, sets.values()))))
    calibrating: list[Question] = []
    others: dict[str, list[Question]] = {name: [] for name in sets}
    for name, members in sets.items():
        for question in members:
            (others[name] if next(numbers) % CALIBRATION_STEP else calibrating).append(question)
    return calibrating, {name: sample_evenly(members, questions) for name, members in others.items()}
