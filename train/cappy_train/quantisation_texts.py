"""Texts that the scales of 8 bits are measured on: pairs of an instruction and an answer, from a file of instances."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cappy_lite.errors import InputValueError
from cappy_train.instances import Instance, read_instances

T = TypeVar("T")
TextPair = tuple[str, str]

# Some hundreds of pairs: with twice as many, scales hardly move.
MOST_INSTANCES = 192
LEAST_INSTANCES = 16
ANSWERS = 2
# One instance in this many proves the scales that the others gave.
HELD_OUT_STEP = 4


@dataclass(frozen=True, slots=True)
class QuantisationTexts:
    """Pairs that fixed scales are taken from, and pairs of other instances that show how well they hold."""

    pairs: list[TextPair]
    held_out: list[TextPair]


def read_quantisation_texts(path: Path, *, seed: int = 0) -> QuantisationTexts:
    """Pairs of some instances of a file, drawn from all of it: references, choices and candidates alike.

    Raises:
        InputValueError: the file can't be read as `read_instances` does, or it has fewer than LEAST_INSTANCES.
    """
    return draw_quantisation_texts((_answered(instance) for instance in read_instances(path)), str(path), seed=seed)


def draw_quantisation_texts(
    asked: Iterable[tuple[str, Sequence[str]]], name: str, *, seed: int = 0
) -> QuantisationTexts:
    """Pairs of some instructions, drawn from all of them, with some of the answers of each.

    Args:
        asked: instructions, each with its answers.
        name: of what has them, for the error.

    Raises:
        InputValueError: these are fewer than LEAST_INSTANCES.
    """
    drawing = random.Random(seed)
    sample = _sample(asked, drawing)
    if len(sample) < LEAST_INSTANCES:
        raise InputValueError(
            f"{name} has {len(sample)} instances, and scales that hold for other texts take {LEAST_INSTANCES} at "
            "least: give a file with more"
        )
    texts = QuantisationTexts([], [])
    for number, (instruction, answers) in enumerate(sample):
        chosen = drawing.sample(answers, min(ANSWERS, len(answers)))
        part = texts.pairs if (number + 1) % HELD_OUT_STEP else texts.held_out
        part.extend((instruction, answer) for answer in chosen)
    return texts


def _answered(instance: Instance) -> tuple[str, list[str]]:
    candidates = (candidate.text for candidate in instance.candidates)
    return instance.instruction, list(dict.fromkeys([*instance.references, *(instance.choices or ()), *candidates]))


def _sample(items: Iterable[T], drawing: random.Random) -> list[T]:
    """Up to MOST_INSTANCES, each as likely as any other."""
    kept: list[T] = []
    for number, item in enumerate(items):
        if number < MOST_INSTANCES:
            kept.append(item)
        elif (place := drawing.randrange(number + 1)) < MOST_INSTANCES:
            kept[place] = item
    return kept
