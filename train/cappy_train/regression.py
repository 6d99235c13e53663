"""Regression data: instructions with responses of every quality, each labelled 0 to 1.

Labels are those of the Cappy paper (Tan et al., 2023): with choices 1 for the right one and 0 for others; in open
generation 1 for references and, for any other response, its best Porter-stemmed Rouge-L F-measure over the references.
Responses come without a language model: answers of like and of other instances, spans of the instruction, and damaged
references.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cappy_lite.errors import InputValueError
from cappy_lite.rouge import rouge_l_pairs
from cappy_train.instances import Instance, read_instances
from cappy_train.neighbours import dice_similarity, normal, varying_parts
from cappy_train.templates import read_templates, render

# Data sets whose instances t0_train lacks or has with one label; rendered here from balanced rows.
ROW_DATASETS = ("rotten_tomatoes", "trec")
ROWS_PER_DATASET = 4000
# At most so many responses a row; beyond that a row grows longer without telling much more.
MAX_RESPONSES = 10
# Longer responses are cut, and labelled as cut: a few summaries would otherwise fill the batches.
MAX_RESPONSE_WORDS = 100


@dataclass(frozen=True, slots=True)
class Example:
    """One row of regression data: an instruction, and responses with their labels (0..1)."""

    task: str
    instruction: str
    responses: tuple[str, ...]
    labels: tuple[float, ...]


def training_instances(data: Path, *, seed: int) -> list[Instance]:
    """The instances to train on, from the files of `data`: t0_train, superni_train, and rendered rows.

    Left out are non-commercial licences, answers that are one-sided in their template, and repeated instructions,
    whose references are united.
    """
    t0 = read_instances(data / "t0_train.jsonl.gz", split="train")
    superni = read_instances(data / "superni_train.jsonl.gz", split="train")
    commercial = [instance for instance in superni if "NC" not in (instance.licence or "")]
    rendered = [
        instance for dataset in ROW_DATASETS for instance in rendered_rows(data, dataset, ROWS_PER_DATASET, seed=seed)
    ]
    return balanced([*merged([*t0, *commercial]), *rendered], seed=seed)


def rendered_rows(data: Path, dataset: str, count: int, *, seed: int) -> list[Instance]:
    """`count` rows of a data set, as many of each label, each rendered by a template drawn at random."""
    path = data / f"rows_{dataset}.jsonl.gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputValueError(f"{path} can't be read as JSON Lines in gzip: {error}") from error
    templates = read_templates(data / "promptsource_templates.tar.gz", dataset)
    rng = random.Random(f"{seed}:{dataset}")
    rng.shuffle(rows)
    by_label: dict[int, list[tuple[int, dict[str, object]]]] = defaultdict(list)
    for number, row in enumerate(rows):
        by_label[row.get("label", row.get("coarse_label"))].append((number, row))
    instances = []
    for members in by_label.values():
        for number, row in members[: count // len(by_label)]:
            options = [render(template, row, id=f"{dataset}:{number}", task=dataset) for template in templates]
            applicable = [option for option in options if isinstance(option, Instance)]
            if applicable:
                instances.append(rng.choice(applicable))
    return instances


def merged(instances: Iterable[Instance]) -> list[Instance]:
    """Instances with equal task, template and instruction as one.

    In open generation it has all their references: each is a right answer. With choices the last one stands.
    """
    kept: dict[tuple[str, str | None, str], Instance] = {}
    for instance in instances:
        key = (instance.task, instance.template, instance.instruction)
        if key in kept and instance.choices is None:
            references = tuple(dict.fromkeys([*kept[key].references, *instance.references]))
            kept[key] = replace(kept[key], references=references)
        else:
            kept[key] = instance
    return list(kept.values())


def balanced(instances: Sequence[Instance], *, seed: int) -> list[Instance]:
    """Instances whose fixed choices are each right about as often: none more than twice as often as the median one.

    A template of which all instances offer the same choices is balanced by leaving some out (all, where more than half
    of its choices are never right); a scorer could learn its constant answer otherwise.
    """
    groups: dict[tuple[str, str | None], list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[instance.task, instance.template].append(instance)
    kept: list[Instance] = []
    for key, group in groups.items():
        choices = group[0].choices
        if choices is None or any(instance.choices != choices for instance in group):
            kept += group
            continue
        right = Counter(instance.references[0] for instance in group)
        counts = sorted(right[choice] for choice in choices)
        limit = 2 * counts[(len(counts) - 1) // 2]
        seen: Counter[str] = Counter()
        for instance in random.Random(f"{seed}:{key}").sample(group, len(group)):
            seen[instance.references[0]] += 1
            if seen[instance.references[0]] <= limit:
                kept.append(instance)
    return kept


def examples(instances: Sequence[Instance], *, seed: int) -> Iterator[Example]:
    """One example an instance, in groups by task and template; the same for the same seed, whatever the process."""
    pools: dict[tuple[str, str], list[Instance]] = defaultdict(list)
    for instance in instances:
        pools[instance.task, instance.template or ""].append(instance)
    everyone = [instance for instance in instances if instance.choices is None]
    for pool in pools.values():
        open_ended = [instance for instance in pool if instance.choices is None]
        yield from (_choice_example(instance, seed) for instance in pool if instance.choices is not None)
        if open_ended:
            yield from _generation_examples(open_ended, everyone, seed)


def _choice_example(instance: Instance, seed: int) -> Example:
    assert instance.choices is not None
    rng = random.Random(f"{seed}:{instance.id}:{instance.template}")
    wrong = list(dict.fromkeys(choice for choice in instance.choices if choice not in instance.references))
    responses = [*instance.references, *rng.sample(wrong, min(len(wrong), MAX_RESPONSES - len(instance.references)))]
    rng.shuffle(responses)
    labels = tuple(float(response in instance.references) for response in responses)
    return Example(instance.task, instance.instruction, tuple(responses), labels)


def _generation_examples(pool: Sequence[Instance], everyone: Sequence[Instance], seed: int) -> Iterator[Example]:
    similarity = dice_similarity(varying_parts([instance.instruction for instance in pool]))
    np.fill_diagonal(similarity, -1)
    drawn: list[tuple[str, ...]] = []
    for index, instance in enumerate(pool):
        rng = random.Random(f"{seed}:{instance.id}")
        like = [pool[other] for other in np.argsort(-similarity[index], kind="stable")[:12] if other != index]
        drawn.append(_responses(instance, like, pool, everyone, rng))
    references = [[_cut(text) for text in instance.references] for instance in pool]
    pairs = [(text, own) for responses, own in zip(drawn, references, strict=True) for text in responses]
    fmeasures = rouge_l_pairs([text for text, _ in pairs], [own for _, own in pairs], stem=True)[:, 2]
    by_instance = np.split(fmeasures, np.cumsum([len(responses) for responses in drawn])[:-1])
    for instance, responses, own, labels in zip(pool, drawn, references, by_instance, strict=True):
        right = {normal(text) for text in own}
        # Rouge-L has no word to compare in an answer such as "+": a reference is right all the same.
        exact = tuple(
            1.0 if normal(text) in right else float(label) for text, label in zip(responses, labels, strict=True)
        )
        yield Example(instance.task, instance.instruction, responses, exact)


def _responses(
    instance: Instance,
    like: Sequence[Instance],
    pool: Sequence[Instance],
    everyone: Sequence[Instance],
    rng: random.Random,
) -> tuple[str, ...]:
    """Right, nearly right and wrong responses to an instance in random order, no two alike; one reference at least."""
    right = rng.sample(instance.references, min(len(instance.references), rng.choice((1, 1, 2))))
    others = [rng.choice(other.references) for other in rng.sample(like, min(len(like), rng.randint(2, 5)))]
    others += [rng.choice(rng.choice(pool).references) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.4:
        others.append(rng.choice(rng.choice(everyone).references))
    if rng.random() < 0.6:
        others.append(_span(instance.instruction, len(right[0].split()), rng))
    for _ in range(rng.choice((0, 1, 1, 2))):
        others.append(damage(rng.choice(right), others[0], rng))
    responses = [*right, *others[: MAX_RESPONSES - len(right)]]
    rng.shuffle(responses)
    distinct = {normal(text): text for text in map(_cut, responses) if text}
    return tuple(distinct.values())


def damage(text: str, other: str, rng: random.Random) -> str:
    """A text with a fault: words dropped, cut off, swapped, replaced by words of `other`, or a number changed."""
    words = text.split()
    if not words:
        return other
    faults: list[Callable[[list[str], list[str], random.Random], None]] = [_put_in]
    if len(words) > 2:
        faults += [_drop, _cut_off, _swap]
    if any(word.isdecimal() for word in words):
        faults += [_miscount, _miscount]
    rng.choice(faults)(words, other.split() or words, rng)
    return " ".join(words)


def _put_in(words: list[str], other: list[str], rng: random.Random) -> None:
    for _ in range(1 + len(words) // 6):
        words[rng.randrange(len(words))] = rng.choice(other)


def _drop(words: list[str], other: list[str], rng: random.Random) -> None:
    for _ in range(1 + len(words) // 5):
        del words[rng.randrange(len(words))]


def _cut_off(words: list[str], other: list[str], rng: random.Random) -> None:
    del words[rng.randrange(1, len(words)) :]


def _swap(words: list[str], other: list[str], rng: random.Random) -> None:
    first, second = rng.sample(range(len(words)), 2)
    words[first], words[second] = words[second], words[first]


def _miscount(words: list[str], other: list[str], rng: random.Random) -> None:
    place = rng.choice([at for at, word in enumerate(words) if word.isdecimal()])
    number = int(words[place])
    words[place] = str(rng.choice([number + 1, max(number - 1, 0), number * 2, number + 10, number * 10]))


def _span(text: str, length: int, rng: random.Random) -> str:
    """So many consecutive words of a text, or about so many."""
    words = text.split()
    length = max(1, length + rng.randint(-1, 1))
    start = rng.randrange(max(1, len(words) - length + 1))
    return " ".join(words[start : start + length])


def _cut(text: str) -> str:
    words = text.split(" ", MAX_RESPONSE_WORDS)
    return " ".join(words[:MAX_RESPONSE_WORDS])
