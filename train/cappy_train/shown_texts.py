"""The texts that instances' instructions show, and what is asked about them in instances of their own."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from cappy_train.instances import Instance
from cappy_train.neighbours import BLOCK_INSTANCES, varying_parts

# Texts whose sentences stand in no order, or say little: shuffled stories, and who went where (bAbI).
NO_TEXTS = re.compile("_ordering_|_babi_")


def followed_by(
    instances: Iterable[Instance], questions_of: Callable[[Sequence[Instance]], Mapping[str, Instance]]
) -> Iterator[Instance]:
    """The instances in their order, each followed by its question if it has one.

    questions_of: the questions on a block of instances, by the ids of those that they follow.
    """
    remaining = iter(instances)
    while block := list(islice(remaining, BLOCK_INSTANCES)):
        questions = questions_of(block)
        for instance in block:
            yield instance
            if instance.id in questions:
                yield questions[instance.id]


def shown_paragraphs(block: Iterable[Instance]) -> Iterator[tuple[Instance, tuple[str, ...]]]:
    """Instances of split train, those of a task and template together, each with the sentences of its text.

    That is the longest paragraph of its instruction, less what all of the task and template begin with. Those of
    NO_TEXTS are passed over.
    """
    pools: dict[tuple[str, str | None], list[Instance]] = defaultdict(list)
    for instance in block:
        if instance.split == "train" and not NO_TEXTS.search(instance.task):
            pools[instance.task, instance.template].append(instance)
    for pool in pools.values():
        parts = varying_parts([instance.instruction for instance in pool])
        yield from zip(pool, map(longest_paragraph, parts), strict=True)


def longest_paragraph(text: str) -> tuple[str, ...]:
    """The sentences of the line that has the most."""
    lines = (tuple(re.split(r"(?<=[.!?])\s+(?=[A-Z\"'])", line.strip())) for line in text.splitlines())
    return max(lines, key=len, default=())
