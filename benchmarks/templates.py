"""Whether PromptSource's real templates load and render here, and as T0's published training data has them.

    python -m benchmarks.templates --templates ARCHIVE [--rows FOLDER] [--instances FILE] [--output FILE]

ARCHIVE holds PromptSource's YAML files. Every file of it is read. The templates of the Cappy paper's data sets are
rendered over a few made-up rows, and over the first rows of rows_<data set>.jsonl.gz in FOLDER, where there are such.
Of FILE, instances that others rendered (T0's, of sets whose rows are a text and a label), each is taken apart into its
template's text and the row's, and rendered again from that row: the share is told that has the same text, answer and
choices.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.command import parser_with_output, write_output
from benchmarks.machine import describe_machine
from benchmarks.markdown import table
from benchmarks.paper_rows import ROWS
from cappy_lite.errors import InputValueError
from cappy_train.instances import Instance, read_instances
from cappy_train.paper import HELD_OUT, TRAINING
from cappy_train.records import read_records
from cappy_train.templates import Nothing, Template, parse_templates, read_collection, render, task_name

MARK = "\ue000"  # stands for a row's text; no template has it
ROWS_READ = 200
TEXT_AND_LABEL = ("ag_news", "imdb", "rotten_tomatoes", "yelp_review_full")


def load_all(collection: dict[str, bytes]) -> tuple[dict[str, list[Template]], dict[str, str]]:
    """The templates of every file that is one, and why others aren't."""
    loaded: dict[str, list[Template]] = {}
    failed: dict[str, str] = {}
    for name, content in tqdm(collection.items(), desc="files", leave=False):
        try:
            loaded[name] = parse_templates(content, name)
        except InputValueError as error:
            failed[name] = str(error)
    return loaded, failed


def render_set(templates: list[Template], rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """How many templates give an instance of some row, and why the others give none."""
    why: dict[str, str] = {}
    made = 0
    for template in templates:
        results = [render(template, row, id=f"{name}:{at}", task=name) for at, row in enumerate(rows)]
        made += sum(isinstance(result, Instance) for result in results)
        reasons = Counter(result.reason for result in results if isinstance(result, Nothing))
        if reasons.total() == len(rows):
            why[template.name] = reasons.most_common(1)[0][0]
    return {
        "templates": len(templates),
        "rendering": len(templates) - len(why),
        "rows": len(rows),
        "instances": made,
    } | {"nothing": why}


def rows_of(name: str, folder: Path | None) -> list[dict[str, Any]]:
    path = folder / f"rows_{name}.jsonl.gz" if folder else None
    real = [record.value for record in islice(read_records([path]), ROWS_READ)] if path and path.exists() else []
    return real + ROWS[name]


def same_rendering(instance: Instance, template: Template) -> bool:
    """Whether the template gives this instance again, of the row (text, label) that it must have come of."""
    assert instance.choices is not None
    for label in range(len(instance.choices)):
        marked = render(template, {"text": MARK, "label": label}, id="", task=instance.task)
        if not isinstance(marked, Instance) or marked.references != instance.references:
            continue
        before, _, after = marked.instruction.partition(MARK)
        text = instance.instruction.removeprefix(before).removesuffix(after)
        made = render(template, {"text": text, "label": label}, id="", task=instance.task)
        if isinstance(made, Instance) and (made.instruction, made.references, made.choices) == (
            instance.instruction,
            instance.references,
            instance.choices,
        ):
            return instance.instruction.startswith(before) and instance.instruction.endswith(after)
    return False


def compare(path: Path, loaded: dict[str, list[Template]]) -> dict[str, Any]:
    """Of the instances of sets of texts and labels, by template: how many ours gives too, and how many there are."""
    known = {(task, template.name): template for task in TEXT_AND_LABEL for template in loaded[task]}
    counts: dict[str, dict[str, list[int]]] = {task: {} for task in TEXT_AND_LABEL}
    for instance in read_instances(path):
        if instance.task in counts:
            name = (instance.template or "").strip()  # PromptSource's own names end in spaces here and there
            template = known.get((instance.task, name))
            count = counts[instance.task].setdefault(name, [0, 0])
            count[0] += template is not None and same_rendering(instance, template)
            count[1] += 1
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_with_output(__doc__)
    parser.add_argument(
        "--templates", type=Path, required=True, metavar="ARCHIVE", help="archive or folder of templates"
    )
    parser.add_argument("--rows", type=Path, metavar="FOLDER", help="folder with rows_<data set>.jsonl.gz")
    parser.add_argument("--instances", type=Path, metavar="FILE", help="instances of T0's training data")
    arguments = parser.parse_args(argv)
    began = time.perf_counter()
    collection = read_collection(arguments.templates)
    loaded, failed = load_all(collection)
    report: dict[str, Any] = {
        "files": len(collection),
        "files_loaded": len(loaded),
        "failed": failed,
        "templates": sum(map(len, loaded.values())),
    }
    names = {"/".join(filter(None, entry[:2])): use for use, sets in _uses() for entry in sets}
    report["missing"] = sorted(names.keys() - loaded.keys())
    report["sets"] = {
        name: {"use": use} | render_set(loaded[name], rows_of(name, arguments.rows), task_name(name))
        for name, use in names.items()
        if name in loaded
    }
    if arguments.instances:
        report["rendered_by_others"] = compare(arguments.instances, loaded)
    report |= {"seconds": round(time.perf_counter() - began, 1), "machine": describe_machine("cappy-lite", "jinja2")}
    print(as_text(report))
    write_output(arguments.output, report)
    ok = not failed and not report["missing"] and all(entry["instances"] for entry in report["sets"].values())
    return 0 if ok else 1


def _uses() -> list[tuple[str, Sequence[tuple[str, str | None, str | None]]]]:
    return [("train", TRAINING), ("held out", HELD_OUT)]


def as_text(report: dict[str, Any]) -> str:
    lines = [
        f"{report['files_loaded']} of {report['files']} files load, with {report['templates']:,} templates",
        *(f"  {name}: {error}" for name, error in report["failed"].items()),
        *(f"  {name}: not in the collection" for name in report["missing"]),
        "",
        table(
            ["data set", "use", "templates", "of them render", "rows", "instances"],
            [
                [name, entry["use"], *(str(entry[key]) for key in ("templates", "rendering", "rows", "instances"))]
                for name, entry in report["sets"].items()
            ],
        ),
        "",
        "templates that give no instance of any row:",
        *(
            f"  {name}, {template}: {reason}"
            for name, entry in report["sets"].items()
            for template, reason in entry["nothing"].items()
        ),
    ]
    for task, counts in report.get("rendered_by_others", {}).items():
        same, total = (sum(count[at] for count in counts.values()) for at in (0, 1))
        lines += ["", f"{task}: {same:,} of {total:,} instances are rendered the same"]
        lines += [f"  {name}: {same:,} of {total:,}" for name, (same, total) in counts.items() if same < total]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
