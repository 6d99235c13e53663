"""The stage `instances`: rows and templates, or other collections' files, to a file of instances."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cappy_lite.errors import InputValueError
from cappy_train.files import Source, find_files
from cappy_train.instances import Instance, check_output, read_instances, write_instances
from cappy_train.records import size
from cappy_train.rows import is_hugging_face, open_rows
from cappy_train.templates import Nothing, Template, read_templates, render, task_name


@dataclass(slots=True)
class Rendered:
    """How many rows were read and instances written, and for each template why how many rows gave it nothing."""

    rows: int = 0
    instances: int = 0
    nothing: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

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
    longest: int | None = None,
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
        longest: printed values are cut to so many characters, see `render`.

    Raises:
        InputValueError: of `data`, `templates` or `out`; or no row gives an instance.
    """
    check_output(out)
    if longest is not None and longest < 4:
        raise InputValueError(f"values can't be cut to {longest} characters, of which three are dots: give 4 or more")
    if not is_hugging_face(data):
        _refuse_overwriting(find_files(data), out)
    chosen = _chosen(read_templates(templates, dataset, subset), names)
    instance_split, task = split_of(split), task_name(dataset, subset)
    done = Rendered()

    def instances(rows: Iterator[dict[str, Any]]) -> Iterator[Instance]:
        for number, row in enumerate(rows):
            done.rows += 1
            order: Sequence[Template] = chosen
            if one_per_row:
                order = random.Random(f"{seed}:{number}").sample(chosen, len(chosen))
            for template in order:
                id = f"{task}:{split}:{number}:{template.name}"
                made = render(template, row, id=id, task=task, split=instance_split, seed=seed, longest=longest)
                if isinstance(made, Nothing):
                    done.nothing[template.name][made.reason] += 1
                    continue
                done.instances += 1
                yield made
                if one_per_row:
                    break
        if not done.instances:
            raise InputValueError(f"no instance to write to {out}: {done}")

    with open_rows(data, subset=subset, split=split) as rows:
        write_instances(out, instances(rows))
    return done


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
