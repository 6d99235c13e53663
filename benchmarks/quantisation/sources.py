"""Where float32 weights come from, and the questions that calibrate their quantisation and measure it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from cappy_lite.models import GRAPH_FILE, TOKENIZER_FILE, canonical, model_folder, read_config
from cappy_train.default_data import DEV_INSTRUCTION_CHARACTERS, one_sided
from cappy_train.evaluate import Question, choice_questions, distractor_questions, sample_evenly
from cappy_train.export import CALIBRATION_STEP
from cappy_train.graph import GraphWeights, QuantisedLinear, float_weights, graph_weights, read_weights
from cappy_train.instances import read_instances
from cappy_train.training import trained_network

# The files whose instances are read, of splits train and dev; and at most so many questions of a set.
SUPERNI, T0 = "superni_train.jsonl.gz", "t0_train.jsonl.gz"
MOST_QUESTIONS = {"superni": 1200, "t0_choice": 1200, "t0_generation": 600}


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


def dev_sets(data: Path) -> dict[str, list[Question]]:
    """Questions of dev splits in a folder: the same each time, and evenly over tasks.

    superni: distractor questions. t0_choice: choices, without the sets of which a constant answer is right.
    t0_generation: distractor questions of open generation.

    Raises:
        InputValueError: a file is missing or damaged.
    """
    t0 = [one for one in read_instances(data / T0, split="dev") if len(one.instruction) <= DEV_INSTRUCTION_CHARACTERS]
    sets = {
        "superni": distractor_questions(read_instances(data / SUPERNI, split="dev")),
        "t0_choice": choice_questions(one for one in t0 if not one_sided(one)),
        "t0_generation": distractor_questions(one for one in t0 if one.choices is None),
    }
    return {name: sample_evenly(members, MOST_QUESTIONS[name]) for name, members in sets.items()}


def split(sets: Mapping[str, Sequence[Question]], questions: int) -> tuple[list[Question], dict[str, list[Question]]]:
    """The questions that calibrate, as in export, and so many of the others of each set."""
    numbers = iter(range(sum(map(len, sets.values()))))
    calibrating: list[Question] = []
    others: dict[str, list[Question]] = {name: [] for name in sets}
    for name, members in sets.items():
        for question in members:
            (others[name] if next(numbers) % CALIBRATION_STEP else calibrating).append(question)
    return calibrating, {name: sample_evenly(members, questions) for name, members in others.items()}
