"""Near-duplicates: training data that hold the text of a test item, found by runs of words that both have.

Measured in word 8-grams, as for PaLM (Chowdhery et al. 2022, "Dataset Contamination", where an item counts from 70 % of
them; Brown et al. 2020, appendix C, take 13-grams for GPT-3); but only in those of an item's own text: what its task
and template say in every instruction tells nothing of the item.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby, islice, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from cappy_train.instances import Instance, read_instances
from cappy_train.neighbours import normal

# What the evaluations report on. Of t0_heldout every split, since nothing of its tasks is trained on.
TEST_SETS = (
    "superni_test",
    "t0_heldout",
    "commongen",
    "gsm8k_candidates",
    "bbh_candidates",
    "instruction_induction",
)
WHOLLY_TEST = frozenset({"t0_heldout"})
# Words of an n-gram; runs of fewer own words are sought as a whole, if they have at least SHORTEST.
WORDS, SHORTEST = 8, 4
# The share of an item's n-grams that makes a near-duplicate. Of the default data's pairs that hold less, most share
# stock phrases of statistics, or are the same arithmetic problem with other numbers; nearly all that hold more are the
# same text.
SHARE = 0.5
# Words in a row that more than half of the instructions of a task and template have are its own, not an item's.
SHARED_WORDS = 3
# Training instances that are compared at a time, which bounds memory.
BLOCK_INSTANCES = 2048

# Hashes are polynomials of the words' digests in this odd number, modulo 2**64; they are looked up by their first bits
# at first, and so many are the rest.
FACTOR, REST_BITS = 0x9E3779B97F4A7C15, 40

Words = tuple[str, ...]
Hashes = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Item:
    """A test item, the name of its set, and its own text: the words between what its task and template always say."""

    test_set: str
    instance: Instance
    own: tuple[Words, ...]

    @property
    def short(self) -> bool:
        """Whether the own text has no n-gram of WORDS words."""
        return all(len(run) < WORDS for run in self.own)

    def grams(self) -> set[Words]:
        """The distinct n-grams of the own text; where that is short, its runs of at least SHORTEST words."""
        if self.short:
            return {run for run in self.own if len(run) >= SHORTEST}
        return {run[at : at + WORDS] for run in self.own for at in range(len(run) - WORDS + 1)}


def read_items(data: Path) -> list[Item]:
    """The test items of all TEST_SETS, in the order of the files.

    Args:
        data: folder with `<name>.jsonl.gz` for each of TEST_SETS.

    Raises:
        InputValueError: a file is missing or damaged.
    """
    return [
        item
        for name in TEST_SETS
        for item in items_of(name, read_instances(data / f"{name}.jsonl.gz"))
        if name in WHOLLY_TEST or item.instance.split == "test"
    ]


def items_of(name: str, instances: Iterable[Instance]) -> list[Item]:
    """A set's instances of all splits as items; all of a task and template together tell what is an item's own."""
    groups: dict[tuple[str, str | None], list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[instance.task, instance.template].append(instance)
    return [
        Item(name, instance, own)
        for group in groups.values()
        for instance, own in zip(group, own_texts([instance.instruction for instance in group]), strict=True)
    ]


def own_texts(instructions: Sequence[str]) -> list[tuple[Words, ...]]:
    """Of each instruction of a task and template the runs of words that are its own.

    Those are the words outside of any SHARED_WORDS in a row that more than half of the instructions have.
    """
    edge = [""] * (SHARED_WORDS - 1)  # so that one word that they all begin or end with is shared too
    texts = [[*edge, *words(instruction), *edge] for instruction in instructions]
    holders = Counter(gram for text in texts for gram in set(_grams(text, SHARED_WORDS)))
    found: list[tuple[Words, ...]] = []
    for text in texts:
        shared = [not word for word in text]
        for at, gram in enumerate(_grams(text, SHARED_WORDS)):
            if 2 * holders[gram] > len(texts):
                shared[at : at + SHARED_WORDS] = [True] * SHARED_WORDS
        runs = groupby(zip(text, shared, strict=True), lambda pair: pair[1])
        found.append(tuple(tuple(word for word, _ in run) for is_shared, run in runs if not is_shared))
    return found


def words(text: str) -> list[str]:
    """The words of a text in order: runs of letters and digits of any script, in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def _grams(text: Sequence[str], length: int) -> Iterator[Words]:
    return zip(*(islice(text, start, None) for start in range(length)), strict=False)


def near_duplicates(instances: Sequence[Instance], items: Sequence[Item]) -> dict[str, Item]:
    """The instances that are near-duplicates of a test item, by id, each with the item that it has most of.

    An instance is one if its instruction is the item's (but for case and spaces), or if its instruction and references
    hold at least SHARE of the item's distinct n-grams of WORDS words. Of an item whose own text has no such n-gram they
    must hold all runs of SHORTEST words or more; fewer words tell nothing. The answers don't count: the same text with
    another question is one too.
    """
    same = {normal(item.instance.instruction): item for item in reversed(items)}
    index = _Index(items)
    found: dict[str, Item] = {}
    with tqdm(total=len(instances), desc="near-duplicates", disable=None) as bar:
        for start in range(0, len(instances), BLOCK_INSTANCES):
            block = instances[start : start + BLOCK_INSTANCES]
            for instance, shares in zip(block, index.shares(block), strict=True):
                if equal := same.get(normal(instance.instruction)):
                    found[instance.id] = equal
                    continue
                enough = [at for at, share in shares.items() if share >= (1 if items[at].short else SHARE)]
                if enough:
                    found[instance.id] = items[max(enough, key=shares.__getitem__)]  # of equal shares the first
            bar.update(len(block))
    return found


class _Index:
    """The n-grams of test items, as hashes of 64 bits, and the items that have them."""

    def __init__(self, items: Sequence[Item]) -> None:
        grams = [item.grams() for item in items]
        self._digests = {word: _digest(word) for word in {word for own in grams for gram in own for word in gram}}
        self._lengths = {len(gram) for own in grams for gram in own}
        self._sizes = np.array([len(own) for own in grams], np.intp)
        hashes = np.array([self._hash(gram) for own in grams for gram in own], np.uint64)
        owners = np.repeat(np.arange(len(items)), self._sizes)
        order = np.lexsort((owners, hashes))
        self._owners = owners[order]
        self._hashes, starts = np.unique(hashes[order], return_index=True)
        self._places = np.append(starts, len(owners))
        # Which first bits there are among the hashes: most of what is looked up is nowhere.
        self._beginnings = np.zeros(1 << (64 - REST_BITS), bool)
        self._beginnings[self._hashes >> REST_BITS] = True

    def _hash(self, gram: Words) -> int:
        value = 0
        for word in gram:
            value = (value * FACTOR + self._digests[word]) % 2**64
        return value

    def shares(self, instances: Sequence[Instance]) -> list[dict[int, float]]:
        """Of each instance, by the place of each item that it has n-grams of: the share of the item's n-grams."""
        digests: list[int] = []
        numbers: list[int] = []
        for number, instance in enumerate(instances):
            before = len(digests)
            for text in (instance.instruction, *instance.references):
                digests += [self._digests.get(word, UNKNOWN) for word in words(text)]
                digests.append(UNKNOWN)  # so that no n-gram goes on from one text into the next
            numbers += [number] * (len(digests) - before)
        holders, grams = self._found(np.array(digests, np.uint64), np.array(numbers))
        bounds = np.searchsorted(holders, np.arange(len(instances) + 1))
        shares: list[dict[int, float]] = []
        for start, end in pairwise(bounds):
            owners = [self._owners[self._places[gram] : self._places[gram + 1]] for gram in grams[start:end]]
            places, counts = np.unique(np.concatenate([np.empty(0, np.intp), *owners]), return_counts=True)
            shares.append(dict(zip(places.tolist(), (counts / self._sizes[places]).tolist(), strict=True)))
        return shares

    def _found(self, digests: Hashes, numbers: Integers) -> tuple[Integers, Integers]:
        """Instances by their numbers and the known n-grams that they have, each pair once, in order."""
        pairs = []
        hashes = np.zeros(len(digests), np.uint64)
        for length in range(1, WORDS + 1):
            # From the hash of so many words, less one, to that of so many from the same place on.
            hashes = hashes[: len(digests) - length + 1] * np.uint64(FACTOR) + digests[length - 1 :]
            if length in self._lengths:
                at = np.flatnonzero(self._beginnings[hashes >> REST_BITS])
                grams = np.searchsorted(self._hashes, hashes[at], side="right") - 1
                known = self._hashes[grams] == hashes[at]
                pairs.append(np.stack([numbers[at[known]], grams[known]]))
        distinct = np.unique(np.concatenate([np.empty((2, 0), np.intp), *pairs], axis=1), axis=1)
        return distinct[0], distinct[1]


def _digest(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest())


# Of words that no item has. It isn't 0, which would add nothing to a hash.
UNKNOWN = _digest("")
