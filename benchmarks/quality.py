"""How good a model's picks are on tasks that training never saw, beside simple baselines.

    python -m benchmarks.quality --data FOLDER [--model NAME|FOLDER] [--json FILE] [--limit N]

t0_heldout (test split): choose between a task's choices; accuracy, averaged over a task's templates, then over tasks.
superni_test (test split): choose the first reference among 7 distractors; Porter-stemmed Rouge-L F-measure of the pick.
Tables on stdout, then everything as one JSON line, which comes last; progress on stderr.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from cappy_train.embedding import minilm_cosine
from cappy_train.evaluate import (
    RESAMPLES,
    Question,
    checked_scores,
    choice_questions,
    distractor_questions,
    sample_evenly,
)
from cappy_train.evaluation import Evaluated, compare, gains_by_method, model_scores, open_models
from cappy_train.instances import read_instances
from cappy_train.network import packaged_minilm

SEED = 0

RULES = {
    "t0_heldout": "choices in their order, the reference is right; resampled by example, over all its templates",
    "superni_test": (
        f"the first reference beside 7 distractors, first references of the task's other instances: of the 4 most "
        f"similar inputs (Dice coefficient of their word sets) and of 3 random ones; candidates shuffled; seed {SEED}"
    ),
}
BASELINES = """\
random          the expected gain of a pick at random
longest         the candidate with the most characters
majority class  the place in the list of choices that is right most often in this very test set, per template
                (where choices are fixed: the most frequent class)
word overlap    the largest share of the candidate's distinct Rouge words that occur in the instruction
MiniLM cosine   the largest cosine of all-MiniLM-L6-v2's mean-pooled embeddings of instruction and candidate
oracle          the best candidate
Of equal scores the first candidate is picked. 95 % intervals: percentiles of a bootstrap over examples within tasks."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with t0_heldout and superni_test .jsonl.gz")
    parser.add_argument("--model", default="cappy-mini", help="a shipped model's name or a model folder")
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    parser.add_argument("--limit", type=int, help="questions of each set, spread over tasks; all where not given")
    arguments = parser.parse_args(argv)

    ((model, scorer),) = open_models([arguments.model]).items()
    minilm = minilm_cosine(packaged_minilm())
    report: dict[str, Any] = {
        "benchmark": "quality",
        "model": arguments.model,
        "limit": arguments.limit,
        "seeds": {"distractors": SEED, "bootstrap": SEED},
        "resamples": RESAMPLES,
        "machine": describe_machine("cappy-lite", "numpy", "onnxruntime", "tokenizers", "torch"),
        "sets": {},
    }
    for name, questions in held_out_questions(arguments.data, arguments.limit).items():
        evaluated = Evaluated(model, checked_scores(questions, model_scores(scorer, model)))
        gains = gains_by_method(questions, [evaluated], minilm)
        report["sets"][name] = {"rule": RULES[name], **compare(questions, gains, seed=SEED)}
        print(f"\n{name}: {len(questions)} questions; {RULES[name]}\n\n{table(report['sets'][name])}")
    print(f"\n{BASELINES}\n")
    line = json.dumps(report, ensure_ascii=False)
    if arguments.json:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)


def held_out_questions(data: Path, limit: int | None) -> dict[str, list[Question]]:
    """The questions of both sets, in the order of the report."""
    sets = {
        "t0_heldout": choice_questions(read_instances(data / "t0_heldout.jsonl.gz", split="test")),
        "superni_test": distractor_questions(
            read_instances(data / "superni_test.jsonl.gz", split="test"), distractors=7, seed=SEED
        ),
    }
    return {
        name: sample_evenly(questions, len(questions) if limit is None else limit) for name, questions in sets.items()
    }


def table(result: Mapping[str, Any]) -> str:
    """A set's results in per cent: tasks, averages, distance closed and the model's lead, with intervals."""
    methods = result["methods"]
    model = methods[0]["name"]
    rows = [["task", "n", *(method["name"] for method in methods)]]
    for task, count in result["questions_by_task"].items():
        rows.append([task, str(count), *(f"{100 * method['tasks'][task]['value']:.1f}" for method in methods)])
    for label, estimates in (
        ("average", [method["average"] for method in methods]),
        ("closed, random to oracle", [method["closed"] for method in methods]),
        (f"{model} ahead by", [method["ahead"][model] for method in methods]),
    ):
        rows.append([label, str(result["questions"]), *(f"{100 * estimate['value']:.1f}" for estimate in estimates)])
        rows.append(["", "", *map(interval, estimates)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-6], rule, *lines[-6:]])


def interval(estimate: Mapping[str, float | None]) -> str:
    """In per cent; n/a where there is none."""
    low, high = estimate["low"], estimate["high"]
    return "n/a" if low is None or high is None else f"{100 * low:.1f}..{100 * high:.1f}"


if __name__ == "__main__":
    main()
