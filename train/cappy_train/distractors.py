"""Responses without a language model: instances get candidates of every quality, for `annotate` to label.

They are of these sources:
- neighbour: answers of the most similar instances of the task and template;
- task: answers of any other ones of the task and template;
- random: with choices, an answer of any instance without; without choices, `annotate` adds such a one itself;
- span: consecutive words of the instruction, as many as a reference has, or about;
- damaged: a reference with a fault;
- probe: what is no answer: texts that look empty, the instruction itself, or one word repeated.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cappy_lite.errors import InputValueError
from cappy_train.annotate import PROBE
from cappy_train.claims import with_claims
from cappy_train.cloze import with_cloze_questions
from cappy_train.default_data import default_instances
from cappy_train.files import Source, find_files
from cappy_train.instances import Candidate, Instance, check_output, read_instances, write_instances
from cappy_train.neighbours import BLOCK_INSTANCES, dice_similarity, normal, varying_parts
from cappy_train.records import size
from cappy_train.verification import with_verifications

# Neighbours are sought among so many instances of one task and template at a time.
POOL_INSTANCES = 1024
# Neighbours are drawn among so many of the most similar instances.
NEAREST = 12
# The share of instances with a probe of each kind, with a random answer beside choices, and with a span.
PROBED, RANDOM, SPANNED = 0.35, 0.4, 0.6
# Texts that look like nothing, which people and language models send as answers all the same.
EMPTY_LOOKING = ("", " ", ".", "-", "...", "?", "N/A", "n/a", "none", "null", "\n", '""', "[]", "1.", "Answer:")
# A copied instruction has so many words at most: a longer one would fill a row.
COPIED_WORDS = 300


def write_distractors(data: Source, out: Path, *, seed: int = 0) -> int:
    """Writes a file of the instances in files, those of split train with distractors; returns how many.

    Args:
        data: files of instances, as `read_instances` takes them.
        out: the file to write: .jsonl, .jsonl.gz or .parquet.
        seed: of all that is drawn at random.

    Raises:
        InputValueError: a file is missing or damaged, or `out` is one of them or can't be written.
    """
    check_output(out)
    files = find_files(data)
    if out.exists() and any(out.samefile(path) for path in files):
        raise InputValueError(f"{out} is one of the inputs: give --out another name")
    with tqdm(total=size(files), desc="distractors", unit="B", unit_scale=True, disable=None) as bar:
        return write_instances(out, with_distractors(read_instances(data, advance=bar.update), seed=seed))


def write_default_data(
    folder: Path, out: Path, *, seed: int = 0, hold_out: str | None = None
) -> tuple[int, Counter[str]]:
    """Writes a file of the default model's instances (see `default_data`).

    They have distractors, and among them stand questions about texts (see `cloze`), about claims, and about answers
    (see `verification`).

    Args:
        folder, out: the folder of data sets, and the file to write: .jsonl, .jsonl.gz or .parquet.
        seed: of all that is drawn at random.
        hold_out: the group of tasks whose questions become split dev and of which nothing is in split train.

    Returns:
        How many, and how many others were near-duplicates of test items and left out, by test set.

    Raises:
        InputValueError: a file of the folder is missing or damaged, there is no such group, or `out` can't be written.
    """
    check_output(out)
    instances, removed = default_instances(folder, seed=seed, hold_out=hold_out)
    asked = list(with_claims(with_cloze_questions(instances, seed=seed), seed=seed))
    with tqdm(with_distractors(asked, seed=seed), "distractors", len(asked), disable=None) as made:
        return write_instances(out, with_verifications(made, seed=seed)), removed


def with_distractors(instances: Iterable[Instance], *, seed: int) -> Iterator[Instance]:
    """The instances in their order; those of split train have distractors after the candidates that they had.

    Others pass as they are: evaluation makes its own. What an instance gets depends on the seed, its id, and the
    instances of its block (BLOCK_INSTANCES in their order) alone: sort them by task, so that tasks stand together.
    """
    remaining = iter(instances)
    while block := list(islice(remaining, BLOCK_INSTANCES)):
        yield from _block_with_distractors(block, seed)


def _block_with_distractors(block: Sequence[Instance], seed: int) -> Iterator[Instance]:
    open_ended = [instance for instance in block if instance.split == "train" and instance.choices is None]
    pools: dict[tuple[str, str | None], list[Instance]] = defaultdict(list)
    for instance in open_ended:
        pools[instance.task, instance.template].append(instance)
    added: dict[str, list[Candidate]] = {}
    for members in pools.values():
        for start in range(0, len(members), POOL_INSTANCES):
            added |= _for_pool(members[start : start + POOL_INSTANCES], seed)
    for instance in block:
        if instance.split != "train":
            yield instance
            continue
        rng = random.Random(f"{seed}:{instance.id}:common")
        if instance.choices is None:
            found = added[instance.id]
        else:
            chosen = rng.choice(open_ended) if open_ended and rng.random() < RANDOM else None
            found = [] if chosen is None else [Candidate(rng.choice(chosen.references), "random")]
        found = [*found, *_probes(instance, rng)]
        yield replace(instance, candidates=(*instance.candidates, *_new(instance, found)))


def _for_pool(pool: Sequence[Instance], seed: int) -> dict[str, list[Candidate]]:
    """For instances of one task and template without choices, by id: neighbours', others', a span, damaged texts."""
    similarity = dice_similarity(varying_parts([instance.instruction for instance in pool]))
    np.fill_diagonal(similarity, -1)
    found = {}
    for index, instance in enumerate(pool):
        rng = random.Random(f"{seed}:{instance.id}")
        nearest = [pool[other] for other in np.argsort(-similarity[index], kind="stable")[:NEAREST]]
        found[instance.id] = _distractors(instance, nearest, pool, rng)
    return found


def _distractors(
    instance: Instance, nearest: Sequence[Instance], pool: Sequence[Instance], rng: random.Random
) -> list[Candidate]:
    drawn = [("neighbour", other) for other in rng.sample(nearest, min(len(nearest), rng.randint(2, 5)))]
    drawn += [("task", other) for other in rng.sample(pool, min(len(pool), rng.randint(1, 3)))]
    found = [
        Candidate(rng.choice(other.references), source)
        for source, other in drawn
        # An answer to the same instruction is right, whatever Rouge-L says.
        if other.instruction != instance.instruction
    ]
    reference = rng.choice(instance.references)
    if rng.random() < SPANNED:
        found.append(Candidate(_span(instance.instruction, len(reference.split()), rng), "span"))
    words_of = found[0].text if found else instance.instruction
    damaged = [damage(rng.choice(instance.references), words_of, rng) for _ in range(rng.choice((0, 1, 1, 2)))]
    return [*found, *(Candidate(text, "damaged") for text in damaged)]


def _probes(instance: Instance, rng: random.Random) -> list[Candidate]:
    words = instance.instruction.split(" ")
    repeated = [rng.choice(instance.instruction.split() or [""])] * rng.randint(2, 12)
    texts = (rng.choice(EMPTY_LOOKING), " ".join(words[:COPIED_WORDS]), " ".join(repeated))
    return [Candidate(text, PROBE) for text in texts if rng.random() < PROBED]


def _new(instance: Instance, found: Iterable[Candidate]) -> Iterator[Candidate]:
    """What an instance hasn't already, case and spaces aside; of equal ones the first."""
    texts = (*instance.references, *(instance.choices or ()), *(candidate.text for candidate in instance.candidates))
    known = {normal(text) for text in texts}
    for candidate in found:
        if normal(candidate.text) not in known:
            known.add(normal(candidate.text))
            yield candidate


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
