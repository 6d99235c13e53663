"""Texts of a network's own sort: pairs of an instruction and an answer, from a file of instances."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cappy_lite.errors import InputValueError
from cappy_train.instances import Instance, read_instances

Texts = tuple[str, str]

# Some hundreds of pairs: with twice as many, scales hardly move.
MOST_INSTANCES = 192
LEAST_INSTANCES = 16
ANSWERS = 2
# One instance in this many proves the scales that the others gave.
HELD_OUT_STEP = 4


@dataclass(frozen=True, slots=True)
class Calibration:
    """Pairs that fixed scales are taken from, and pairs of other instances that show how well they hold."""

    pairs: list[Texts]
    held_out: list[Texts]


def read_calibration(path: Path, *, seed: int = 0) -> Calibration:
    """Pairs of some instances of a file, drawn from all of it: references, choices and candidates alike.

    Raises:
        InputValueError: the file can't be read as `read_instances` does, or it has fewer than LEAST_INSTANCES.
    """
    drawing = random.Random(seed)
    instances = _sample(read_instances(path), drawing)
    if len(instances) < LEAST_INSTANCES:
        raise InputValueError(
            f"{path} has {len(instances)} instances, and scales that hold for other texts take {LEAST_INSTANCES} at "
            "least: give a file with more"
        )
    calibration = Calibration([], [])
    for number, instance in enumerate(instances):
        candidates = (candidate.text for candidate in instance.candidates)
        answers = list(dict.fromkeys([*instance.references, *(instance.choices or ()), *candidates]))
        chosen = drawing.sample(answers, min(ANSWERS, len(answers)))
        part = calibration.pairs if (number + 1) % HELD_OUT_STEP else calibration.held_out
        part.extend((instance.instruction, answer) for answer in chosen)
    return calibration


def _sample(instances: Iterable[Instance], drawing: random.Random) -> list[Instance]:
    """Up to MOST_INSTANCES, each as likely as any other."""
    kept: list[Instance] = []
    for number, instance in enumerate(instances):
        if number < MOST_INSTANCES:
            kept.append(instance)
        elif (place := drawing.randrange(number + 1)) < MOST_INSTANCES:
            kept[place] = instance
    return kept
