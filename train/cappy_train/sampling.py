"""Sampling: instances get candidates, responses that a language model gives, and are written in Parquet shards.

The decodings are those of the Cappy paper (Tan et al., 2023): beam search once, and four samples each of plain
sampling, temperature 0.9, top-k 40 (Fan et al., 2018) and nucleus 0.95 (Holtzman et al., 2020).
"""

from __future__ import annotations

import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from importlib import metadata
from itertools import count, islice
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from cappy_lite.arguments import check_count
from cappy_lite.errors import InputValueError
from cappy_train.files import Source, find_files
from cappy_train.instances import Candidate, Instance, arrow_schema, arrow_table, read_instances, writable
from cappy_train.shards import Plan, Shard, ShardFiles, Shards, input_digests, open_writer
from cappy_train.workers import Here, Workers

SHARD_INSTANCES = 256
MAX_NEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Decoding:
    """How some responses to an instruction are chosen.

    source: the name that the candidates get.
    samples: how many are drawn, each by itself.
    temperature: what logits are divided by.
    top_k: draw among so many likeliest tokens; None: among all.
    top_p: draw among the likeliest tokens that have so much probability together, 0 to 1; None: among all.
    beams: the width of a beam search, which draws nothing and gives one response; 1: none.
    """

    source: str
    samples: int = 4
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    beams: int = 1

    def __post_init__(self) -> None:
        for name in ("samples", "beams"):
            check_count(name, getattr(self, name))
        if self.top_k is not None:
            check_count("top_k", self.top_k)
        if not 0 < self.temperature < float("inf"):
            raise InputValueError(f"temperature is {self.temperature}: give a number above 0")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputValueError(f"top_p is {self.top_p}: give a number above 0, at most 1")
        if self.beams > 1 and (self.samples, self.temperature, self.top_k, self.top_p) != (1, 1.0, None, None):
            raise InputValueError("a beam search has one sample, and neither temperature nor top_k nor top_p")


PAPER = (
    Decoding("beam", samples=1, beams=4),
    Decoding("sampling"),
    Decoding("temperature", temperature=0.9),
    Decoding("top-k", top_k=40),
    Decoding("nucleus", top_p=0.95),
)


@dataclass(frozen=True, slots=True)
class Sampled:
    """What some instances got.

    candidates: of each instance, in the order of the decodings.
    counts: any numbers, summed up over all instances in the end.
    notes: lines that name what went wrong with single instances.
    """

    candidates: list[list[Candidate]]
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


# Told how many instances are done, and how many tokens they got, since it was last called.
Advance = Callable[[int, int], object]


def no_advance(instances: int, tokens: int) -> None:
    """An `Advance` for whom nobody waits."""


class Sampler(Protocol):
    """A model that gives responses: `local_models.LocalModel` or `web_models.WebModel`."""

    @property
    def plan(self) -> Plan:
        """Which model it is and how it samples: all that its responses depend on, as JSON has it."""

    def job(self, folder: Path) -> AbstractContextManager[None]:
        """In this block, `folder` may keep what was paid for and mustn't be lost with the process."""

    def sample(self, instances: Sequence[Instance], *, advance: Advance = no_advance) -> Sampled:
        """Candidates for some instances; the same instances get the same ones."""


def sample(
    data: Source,
    out: Path,
    sampler: Sampler,
    *,
    split: str | None = None,
    limit: int | None = None,
    shard_instances: int = SHARD_INSTANCES,
    workers: Workers | None = None,
) -> Shards:
    """Writes instances with a model's responses behind their own candidates, as Parquet shards of `arrow_schema`.

    It goes on where an earlier call with the same inputs and model was interrupted, a shard being the least that is
    kept of a local model's work, and an answer of a web model's.

    Args:
        data: files of instances, as `read_instances` takes them. They are checked as a whole before the first response.
        out: folder for the shards; a new or an empty one, or one that this began.
        sampler: the model.
        split: "train", "dev" or "test": its instances alone; None: all.
        limit: so many instances alone, drawn at random and spread evenly over tasks; None: all.
        shard_instances: instances a shard: they are in memory together.
        workers: what samples, such as a `cluster.Cluster` with actors, for a sampler that can be pickled; None: this
            process.

    Raises:
        InputValueError: an input is missing or holds what is no valid instance; `out` has something else, is locked,
            or can't be written; or the sampler has an error of its own.
    """
    shard_instances = check_count("shard_instances", shard_instances)
    chosen = _Chosen(find_files(data), split, None if limit is None else check_count("limit", limit))
    total = chosen.count
    with open_writer(out, _plan(chosen, sampler, shard_instances)) as writer:
        if writer.finished:
            return Shards(out)
        done = sum(min(shard_instances, total - number * shard_instances) for number in writer.done)
        job = _Job(chosen, shard_instances, writer.files, writer.done, sampler)
        with sampler.job(out), _Progress(total, done) as progress:
            work = job.sample_block if workers else partial(job.sample_block, advance=progress.advance)
            with closing((workers or Here()).map(work, job.blocks)) as shards:
                for shard in shards:
                    writer.add(shard)
                    if workers:  # which tell of nothing before
                        progress.advance(sum(shard.row_groups), 0)
        return writer.finish(-(-total // shard_instances))


class _Chosen:
    """The instances that get responses; all of them are read once when it is made, which finds bad ones.

    count: how many they are.
    """

    def __init__(self, paths: Sequence[Path], split: str | None, limit: int | None) -> None:
        self.paths, self.split, self.limit = paths, split, limit
        self._last: dict[str, int] = {}
        all_read = writable(read_instances(paths, split=split))
        if limit is None:
            self.count = sum(1 for _ in all_read)
        else:
            # The ids with the least digests are as good as drawn at random; eight bytes each.
            digests: dict[str, array[int]] = defaultdict(lambda: array("Q"))
            for instance in all_read:
                digests[instance.task].append(_digest(instance))
            shares = allotted({task: len(own) for task, own in digests.items()}, limit)
            self._last = {task: sorted(digests[task])[share - 1] for task, share in shares.items() if share}
            self.count = sum(shares.values())

    def read(self) -> Iterator[Instance]:
        for instance in read_instances(self.paths, split=self.split):
            if self.limit is None or _digest(instance) <= self._last.get(instance.task, -1):
                yield instance


def allotted(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """So many in all, as evenly over tasks as what each has allows."""
    shares: dict[str, int] = {}
    for done, task in enumerate(sorted(counts, key=lambda task: (counts[task], task))):
        shares[task] = min(counts[task], (total - sum(shares.values())) // (len(counts) - done))
    return shares


def _digest(instance: Instance) -> int:
    return int.from_bytes(blake2b(instance.id.encode(), digest_size=8).digest())


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be done with blocks of instances, and where to; pickled for other machines."""

    chosen: _Chosen
    size: int
    files: ShardFiles
    done: frozenset[int]
    sampler: Sampler

    def blocks(self) -> Iterator[tuple[int, list[Instance]]]:
        """The blocks of instances that have no shard yet, with their numbers."""
        remaining = self.chosen.read()
        for number in count():
            if not (block := list(islice(remaining, self.size))):
                return
            if number not in self.done:
                yield number, block

    def sample_block(self, item: tuple[int, list[Instance]], advance: Advance = no_advance) -> Shard:
        """The shard of a block."""
        number, block = item
        sampled = self.sampler.sample(block, advance=advance)
        instances = [
            replace(instance, candidates=(*instance.candidates, *candidates))
            for instance, candidates in zip(block, sampled.candidates, strict=True)
        ]
        counts = {"instances": len(block), "sampled": sum(map(len, sampled.candidates))} | sampled.counts
        return self.files.write(number, [arrow_table(instances)], arrow_schema(), counts=counts, notes=sampled.notes)


def _plan(chosen: _Chosen, sampler: Sampler, shard_instances: int) -> Plan:
    return {
        "stage": "sample",
        # Another version may give other bytes.
        "versions": {package: metadata.version(package) for package in ("cappy-lite", "pyarrow")},
        "settings": {"split": chosen.split, "limit": chosen.limit, "shard_instances": shard_instances},
        "model": sampler.plan,
        "inputs": input_digests(chosen.paths),
    }


class _Progress:
    """A bar of instances, with tokens a second beside it."""

    def __init__(self, total: int, done: int) -> None:
        self._bar = tqdm(desc="sampling", unit=" instances", total=total, initial=done, disable=None)
        self._begun, self._tokens = time.monotonic(), 0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, instances: int, tokens: int) -> None:
        self._tokens += tokens
        rate = self._tokens / max(time.monotonic() - self._begun, 1e-9)
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._bar.update(instances)
