"""The stage `instances`: rows and templates, or other collections' files, to a file of instances."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import accumulate, count, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cappy_lite.errors import InputValueError
from cappy_train.files import Source, find_files
from cappy_train.instances import SPLITS, Instance, check_output, read_instances, write_instances
from cappy_train.records import size
from cappy_train.rows import Row, is_hugging_face, open_rows
from cappy_train.templates import Nothing, Template, read_templates, render, task_name
from cappy_train.workers import Here, Workers

# Rows that are rendered at a time.
ROWS = 256


@dataclass(slots=True)
class Rendered:
    """How many rows were read and instances written, and for each template why how many rows gave it nothing."""

    rows: int = 0
    instances: int = 0
    nothing: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, other: Rendered) -> None:
        """Counts what another one has counted too."""
        self.rows += other.rows
        self.instances += other.instances
        for name, reasons in other.nothing.items():
            self.nothing[name].update(reasons)

    def __str__(self) -> str:
        lines = [f"{self.rows:,} rows gave {self.instances:,} instances"]
        for name, reasons in sorted(self.nothing.items()):
            why = "; ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common(3))
            lines.append(f"  {name}: nothing of {reasons.total():,} rows: {why}")
        return "\n".join(lines)


def render_instances(
    data: Source,
    templates: Path,
    dataset: str,
    out: Path,
    *,
    subset: str | None = None,
    names: Collection[str] | None = None,
    one_per_row: bool = False,
    seed: int = 0,
    split: str = "train",
    shares: tuple[float, float, float] | None = None,
    longest: int | None = None,
    workers: Workers | None = None,
) -> Rendered:
    """Renders PromptSource templates over the rows of a data set into a file of instances.

    Args:
        data: the rows, see `open_rows`.
        templates: a folder or archive of PromptSource's YAML files, or one file, see `read_templates`.
        dataset, subset: the data set, as the templates call it.
        out: .jsonl, .jsonl.gz or .parquet; written whole or not at all.
        names: the templates to use; None for all.
        one_per_row: of the templates that give an instance of a row, one is drawn at random; else all are used.
        seed: of these draws, and of what templates draw themselves.
        split: the rows' split, after which the instances' is called: train..., dev... or validation..., test...
        shares: of train, dev and test among the rows, in any unit. A row's split is drawn by what it holds and the
            seed, so equal rows, and all instances of a row, have one. None: all are of `split`.
        longest: printed values are cut to so many characters, see `render`.
        workers: what renders, such as a `cluster.Cluster`; None: this process.

    Raises:
        InputValueError: of `data`, `templates` or `out`; or no row gives an instance.
    """
    check_output(out)
    if longest is not None and longest < 4:
        raise InputValueError(f"values can't be cut to {longest} characters, of which three are dots: give 4 or more")
    if shares is not None and not (min(shares) >= 0 and 0 < sum(shares) < math.inf):
        raise InputValueError(f"rows can't be divided by the shares {shares}: give three that are 0 or more, not all 0")
    if not is_hugging_face(data):
        _refuse_overwriting(find_files(data), out)
    job = _Job(
        data,
        tuple(_chosen(read_templates(templates, dataset, subset), names)),
        subset=subset,
        one_per_row=one_per_row,
        seed=seed,
        split=split,
        task=task_name(dataset, subset),
        instance_split=split_of(split),
        shares=shares,
        longest=longest,
    )
    done = Rendered()
    with closing((workers or Here()).map(job.render, job.rows)) as parts:
        write_instances(out, _all(parts, done, out))
    return done


def _all(parts: Iterable[tuple[list[Instance], Rendered]], done: Rendered, out: Path) -> Iterator[Instance]:
    """The instances of all parts; `done` counts them."""
    for instances, rendered in parts:
        done.add(rendered)
        yield from instances
    if not done.instances:
        raise InputValueError(f"no instance to write to {out}: {done}")


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be done with rows; pickled for other machines."""

    data: Source
    templates: tuple[Template, ...]
    _: KW_ONLY
    subset: str | None
    one_per_row: bool
    seed: int
    split: str
    task: str
    instance_split: str
    shares: tuple[float, float, float] | None
    longest: int | None

    def rows(self) -> Iterator[tuple[int, list[Row]]]:
        """The rows of the data set, some at a time, with the number of the first."""
        with open_rows(self.data, subset=self.subset, split=self.split) as rows:
            for start in count(step=ROWS):
                if not (part := list(islice(rows, ROWS))):
                    return
                yield start, part

    def render(self, part: tuple[int, list[Row]]) -> tuple[list[Instance], Rendered]:
        """The instances of some rows."""
        start, rows = part
        done = Rendered(rows=len(rows))
        instances = []
        for number, row in enumerate(rows, start=start):
            split = self.instance_split if self.shares is None else drawn_split(row, self.shares, self.seed)
            order: Sequence[Template] = self.templates
            if self.one_per_row:
                order = random.Random(f"{self.seed}:{number}").sample(order, len(order))
            for template in order:
                id = f"{self.task}:{self.split}:{number}:{template.name}"
                made = render(
                    template,
                    row,
                    id=id,
                    task=self.task,
                    split=split,
                    seed=self.seed,
                    longest=self.longest,
                )
                if isinstance(made, Nothing):
                    done.nothing[template.name][made.reason] += 1
                    continue
                instances.append(made)
                if self.one_per_row:
                    break
        done.instances = len(instances)
        return instances, done


def convert_instances(
    data: Source, out: Path, *, format: str | None = None, split: str | None = None, examples: int = 0
) -> int:
    """Writes the instances of FLAN or Super-NaturalInstructions files, or of instance files, as one file of instances.

    Args:
        data, format, examples: see `read_instances`.
        out: .jsonl, .jsonl.gz or .parquet; written whole or not at all.
        split: the split that they get: train, dev or test; None keeps what the files say, which is train for those of
            other collections.

    Returns:
        How many.

    Raises:
        InputValueError: of `data` or `out`; or there is no instance.
    """
    check_output(out)
    paths = find_files(data)
    _refuse_overwriting(paths, out)
    given = None if split is None else split_of(split)

    def instances(bar: Any) -> Iterator[Instance]:
        instance = None
        for instance in read_instances(paths, format=format, examples=examples, advance=bar.update):
            yield instance if given is None else replace(instance, split=given)
        if instance is None:
            raise InputValueError(f"no instance to write to {out}: the files have none")

    with tqdm(total=size(paths), unit="B", unit_scale=True, desc="instances") as bar:
        return write_instances(out, instances(bar))


def split_of(name: str) -> str:
    """The instances' split for a data set's own name of one: train, dev or test.

    Raises:
        InputValueError: the name begins with none of them.
    """
    for start, split in (("train", "train"), ("dev", "dev"), ("validation", "dev"), ("test", "test")):
        if name.startswith(start):
            return split
    raise InputValueError(f"split is {name!r}: it should begin with train, dev, validation or test")


def drawn_split(row: Row, shares: tuple[float, float, float], seed: int) -> str:
    """The split that a row goes to: the same for the same values in every process."""
    digest = hashlib.sha256(f"{seed} {json.dumps(row, sort_keys=True, default=str)}".encode()).digest()
    drawn = (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # of [0, 1), in which all doubles of this form are exact
    ends = list(accumulate(shares))
    return next(split for split, end in zip(SPLITS, ends, strict=True) if drawn * ends[-1] < end)


def _refuse_overwriting(paths: list[Path], out: Path) -> None:
    if out.exists() and any(out.samefile(path) for path in paths):
        raise InputValueError(f"{out} is also read: give another name for the output")


def _chosen(templates: list[Template], names: Collection[str] | None) -> list[Template]:
    if names is None:
        return templates
    known = {template.name: template for template in templates}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputValueError(f"no template {unknown[0]!r}: give some of {', '.join(map(repr, known))}")
    return [template for template in templates if template.name in names]
