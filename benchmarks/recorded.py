"""Adaptation to recorded outputs of real systems: what a pick is worth before and after, beside every single system.

    python -m benchmarks.recorded --data FOLDER [--only NAME ...] [--folder FOLDER] [--output FILE]

FOLDER has these files of instances with recorded candidates, as JSON Lines in gzip:

commongen          a sentence from concepts, by four systems (test: by more); its dev split is divided in two
bbh_candidates     BIG-Bench Hard by Codex, with and without chain of thought; task by task too. One model learns its
                   27 tasks: one alone has some 150 examples, and in most of them both answers are right or both wrong
gsm8k_candidates   grade-school mathematics by four models; learned from which solutions are right, judged by that

Each is adapted to by its train split, stopped by its dev split, and reported on its test split, which chooses nothing.
Tables on stdout; JSON with everything in --output. Models and checkpoints stay in --folder, and a run goes on there.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import parser_with_output, write_output
from benchmarks.machine import describe_machine
from benchmarks.markdown import table
from cappy_lite.models import canonical, model_folder
from cappy_lite.scorer import Scorer
from cappy_train.adapt import adapt, adaptation_gains, pick_questions
from cappy_train.annotate import CHOICE
from cappy_train.evaluate import FloatArray, Question, candidate_questions
from cappy_train.evaluation import Method, compare
from cappy_train.instances import Instance, read_instances, write_instances
from cappy_train.neighbours import normal
from cappy_train.report import percent

# The share of commongen's dev split that stays dev; the rest is trained on.
DEV_SHARE = 0.2
VOTE = Method("rule", "vote")
# Systems with answers to fewer of the questions have no line in a table; they are in the JSON.
LEAST_ANSWERED = 0.5


@dataclass(frozen=True, slots=True)
class Task:
    """A data set and how it is adapted to.

    learned: from its instances of the splits train and dev to those that adaptation reads.
    asked: from those of split test to questions, by what their candidates are judged by and drawn from.
    answer: what of a text is its answer, for the vote.
    epochs: passes over the data; few, where they are long.
    """

    file: str
    learned: Callable[[Iterable[Instance]], Iterable[Instance]]
    asked: Callable[[Sequence[Instance]], dict[str, list[Question]]]
    answer: Callable[[str], str]
    epochs: float


def divided(instances: Iterable[Instance]) -> Iterable[Instance]:
    """Dev instances as train and dev, by a digest of their ids."""
    for instance in instances:
        share = int.from_bytes(sha256(instance.id.encode()).digest()[:8], "big") / 2**64
        yield replace(instance, split="dev" if share < DEV_SHARE else "train")


def by_right_answers(instances: Iterable[Instance], answer: Callable[[str], str]) -> Iterator[Instance]:
    """Instances whose candidates are choices, of which those with a reference's answer are right.

    Left out are those without a right candidate.
    """
    for instance in instances:
        answers = {answer(reference) for reference in instance.references}
        texts = tuple(dict.fromkeys(candidate.text for candidate in instance.candidates))
        if right := tuple(text for text in texts if answer(text) in answers):
            yield replace(instance, references=right, choices=texts)


def solutions(instances: Iterable[Instance]) -> Iterator[Instance]:
    return by_right_answers(instances, final_answer)


def exact(instances: Iterable[Instance]) -> Iterator[Instance]:
    """Instances that are right or wrong: those without choices get their candidates as such."""
    for instance in instances:
        if instance.choices is None:
            yield from by_right_answers([instance], normal)
        else:
            yield instance


def final_answer(solution: str) -> str:
    """What stands on the last line that begins with A:, a number without commas and dollar signs; or nothing."""
    lines = [line for line in solution.split("\n") if line.startswith("A:")]
    answer = lines[-1].removeprefix("A:").strip().replace(",", "").replace("$", "") if lines else ""
    try:
        return str(float(answer))
    except ValueError:
        return answer


def by_rouge(instances: Sequence[Instance]) -> dict[str, list[Question]]:
    return {"Rouge-L": pick_questions(instances)}


def by_rouge_and_answer(instances: Sequence[Instance]) -> dict[str, list[Question]]:
    asked = pick_questions(instances)
    return {"Rouge-L": asked, "accuracy": judged_by_answer(asked, instances, final_answer)}


def with_and_without_choices(instances: Sequence[Instance]) -> dict[str, list[Question]]:
    recorded = [instance for instance in instances if instance.candidates]
    return {
        "accuracy among recorded answers": judged_by_answer(candidate_questions(recorded), recorded, normal),
        "accuracy among recorded answers and choices": judged_by_answer(pick_questions(instances), instances, normal),
    }


def judged_by_answer(
    questions: Iterable[Question], instances: Iterable[Instance], answer: Callable[[str], str]
) -> list[Question]:
    """The questions of some instances, in which a candidate is worth 1 if it has a reference's answer, else 0."""
    judged = []
    for question, instance in zip(questions, instances, strict=True):
        right = {answer(reference) for reference in instance.references}
        gains = np.array([answer(candidate) in right for candidate in question.candidates], dtype=np.float64)
        judged.append(replace(question, gains=gains))
    return judged


TASKS = {
    "commongen": Task("commongen.jsonl.gz", divided, by_rouge, normal, 3),
    "bbh": Task("bbh_candidates.jsonl.gz", exact, with_and_without_choices, normal, 1),
    "gsm8k": Task("gsm8k_candidates.jsonl.gz", solutions, by_rouge_and_answer, final_answer, 2),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_with_output(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="folder with the files")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS), help="these data sets alone")
    parser.add_argument("--model", default="cappy-mini", help="what to start from (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="for models and checkpoints (default: a temporary folder)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report: dict[str, Any] = {"model": arguments.model, "sets": {}}
        for name in arguments.only:
            report["sets"][name] = measure(name, arguments.data / TASKS[name].file, folder, arguments.model)
            for measured, compared in report["sets"][name]["test"].items():
                print(f"\n{name}, {measured}, {compared['questions']:,} test questions\n\n{shown(compared)}")
                if len(compared["questions_by_task"]) > 1:
                    print(f"\nIts tasks:\n\n{shown_by_task(compared)}")
                sys.stdout.flush()
            machine = describe_machine("cappy-lite", "torch", "onnxruntime")
            write_output(arguments.output, report | {"machine": machine})
    return 0


def measure(name: str, path: Path, folder: Path, model: str) -> dict[str, Any]:
    """Adapts a model to a data set, and compares its picks on the test split."""
    task, out = TASKS[name], folder / name
    if not out.exists():
        learned = folder / f"{name}.jsonl.gz"
        write_instances(learned, task.learned(one for one in read_instances(path) if one.split != "test"))
        adapt(learned, out, model=model, epochs=task.epochs)
    models = Scorer(model_folder(canonical(model))), Scorer(out)
    instances = [one for one in read_instances(path, split="test") if one.candidates or one.choices]
    return {
        "adaptation": json.loads((out / "adaptation.json").read_text(encoding="utf-8")),
        "test": {
            measured: compare(
                questions, adaptation_gains(questions, *models) | {VOTE: vote_gains(questions, task.answer)}
            )
            for measured, questions in task.asked(instances).items()
        },
    }


def vote_gains(questions: Sequence[Question], answer: Callable[[str], str]) -> FloatArray:
    """(n,) float64: the gain of the first recorded candidate that has the commonest answer (self-consistency).

    Of equally common answers the first counts; NaN where nothing is recorded but choices.
    """
    gains = np.full(len(questions), np.nan)
    for number, question in enumerate(questions):
        texts = [response.text for response in question.recorded if response.source != CHOICE]
        if texts:
            answers = [answer(text) for text in texts]
            winner = Counter(answers).most_common(1)[0][0]
            gains[number] = question.gains[question.candidates.index(texts[answers.index(winner)])]
    return gains


def shown(compared: Mapping[str, Any]) -> str:
    """Every method's worth in %, none counted as 0, and how far the adapted model is ahead of it where it has any."""
    rows = []
    for method in often_answering(compared):
        worth = method.get("zero_where_missing", method["average"])
        estimates = (worth, method["closed"], method["ahead"]["after"])
        rows.append([method["name"], *map(percent, estimates)])
    return table(["pick", "worth", "of the way from random to oracle", "after is ahead by"], rows)


def shown_by_task(compared: Mapping[str, Any]) -> str:
    """Every method's worth in % on each task, of the questions that it answers."""
    methods = often_answering(compared)
    rows = []
    for task, count in compared["questions_by_task"].items():
        worths = (method["tasks"].get(task) for method in methods)
        rows.append([f"{task} ({count})", *("" if worth is None else percent(worth) for worth in worths)])
    return table(["task (test questions)", *(method["name"] for method in methods)], rows)


def often_answering(compared: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [one for one in compared["methods"] if one["answered"] >= LEAST_ANSWERED * compared["questions"]]


if __name__ == "__main__":
    sys.exit(main())
