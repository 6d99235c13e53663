"""The default model's instances: what is taken from a folder of data sets, and what is left out."""

from __future__ import annotations

import gzip
import json
import random
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cappy_lite.errors import InputValueError
from cappy_train.duplicates import near_duplicates, read_items
from cappy_train.instances import Instance, read_instances
from cappy_train.templates import read_templates, render

# Data sets whose instances t0_train lacks or has with one label; rendered here from balanced rows.
ROW_DATASETS = ("rotten_tomatoes", "trec")
ROWS_PER_DATASET = 4000
# At most so many instances of a task of instruction_induction: nearly half of that file are sums and numerals.
INDUCTION_PER_TASK = 600
# But all of these, which ask for the meaning of what they show: few tasks do.
INDUCTION_WHOLE = frozenset({"sentence_similarity", "sentiment"})
# Never trained on, since the paper's held-out tasks are to stay unseen: tasks made of natural-language-inference sets,
# of COPA, Winograd schemas (task647_answer_generation too), Winogrande, HellaSwag and WiC, in whatever form.
HELD_OUT = re.compile(
    "entail|snli|mnli|scitail|sick|abductivenli|copa|plausible_result|cause_and_effect|winogrande|wsc|xlwic"
    "|word_in_context|hellaswag|task647_"
)
# t0_train's dev splits of these have one label, or almost, so a constant answer is right there: they tell nothing of a
# scorer.
ONE_SIDED = frozenset({"ag_news", "dbpedia_14", "imdb", "rotten_tomatoes", "wiki_qa", "qasc is_correct"})
# Longer instructions are left out of the dev split, which keeps an evaluation short.
DEV_INSTRUCTION_CHARACTERS = 4000


def default_instances(data: Path, *, seed: int) -> tuple[list[Instance], Counter[str]]:
    """The default model's instances, of the splits train and dev, tasks together; and how many near-duplicates went.

    Training: t0_train, superni_train, instruction_induction, and rendered rows. Left out are non-commercial licences,
    the tasks of HELD_OUT, near-duplicates of test items (see `duplicates`; counted by the test set), answers that are
    one-sided in their template, and repeated instructions, whose references are united. Dev: t0_train and
    superni_train, without the sets in ONE_SIDED.

    Args:
        data: folder with t0_train.jsonl.gz, superni_train.jsonl.gz, instruction_induction.jsonl.gz,
            rows_rotten_tomatoes.jsonl.gz, rows_trec.jsonl.gz, promptsource_templates.tar.gz, and the test sets.
        seed: of all that is drawn at random.

    Raises:
        InputValueError: a file is missing or damaged.
    """
    items = read_items(data)
    t0 = list(read_instances(data / "t0_train.jsonl.gz"))
    superni = list(read_instances(data / "superni_train.jsonl.gz"))
    induction = at_most(
        INDUCTION_PER_TASK,
        read_instances(data / "instruction_induction.jsonl.gz", split="train"),
        whole=INDUCTION_WHOLE,
        seed=seed,
    )
    allowed = [
        instance
        for instance in [*t0, *superni, *induction]
        if instance.split == "train" and "NC" not in (instance.licence or "") and not HELD_OUT.search(instance.task)
    ]
    rendered = [
        instance for dataset in ROW_DATASETS for instance in rendered_rows(data, dataset, ROWS_PER_DATASET, seed=seed)
    ]
    dev = [
        instance
        for instance in [*t0, *superni]
        if instance.split == "dev"
        and len(instance.instruction) <= DEV_INSTRUCTION_CHARACTERS
        and not (instance.choices and one_sided(instance))
    ]
    train = [*merged(allowed), *rendered]
    removed = near_duplicates(train, items)
    kept = balanced([instance for instance in train if instance.id not in removed], seed=seed)
    return [*kept, *dev], Counter(item.test_set for item in removed.values())


def at_most(count: int, instances: Iterable[Instance], *, whole: Collection[str], seed: int) -> list[Instance]:
    """`count` instances of each task, drawn at random, or all; all of the tasks in `whole`."""
    by_task: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        by_task[instance.task].append(instance)
    return [
        instance
        for task, members in by_task.items()
        for instance in random.Random(f"{seed}:{task}").sample(
            members, len(members) if task in whole else min(count, len(members))
        )
    ]


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
            # None has the template's name in its id: one a row is kept.
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


def one_sided(instance: Instance) -> bool:
    """Whether a constant answer is right in t0_train's dev split of the instance's set: see ONE_SIDED."""
    form = (instance.template or "").rsplit("_", 1)[0]
    return instance.task in ONE_SIDED or f"{instance.task} {form}" in ONE_SIDED
