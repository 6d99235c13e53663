"""What picks owe to anything but the answer: length, letter case, white space, full stops, texts that answer nothing.

    python -m benchmarks.robustness --data FILE ... [--model NAME|FOLDER] [--split SPLIT] [--limit N] [--output FILE]

Questions with choices, and apart from them those of a reference among distractors. Recorded candidates are passed over:
they are right by degrees. The figures that have a bar come first in each table:

pairs      how often a right candidate scores above a wrong one: over all, and where the wrong one is longer
change     how often another candidate is picked when case, outer white space or a final full stop changes
intruder   how often a text that is no answer scores above every right candidate

Tables on stdout; JSON with everything in --output; progress on stderr. The same data give the same figures.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import parser_with_output, write_output
from benchmarks.machine import describe_machine
from benchmarks.markdown import table
from cappy_lite.scorer import Scorer
from cappy_train.evaluate import (
    RESAMPLES,
    FloatArray,
    Question,
    ScoreFunction,
    checked_scores,
    estimate,
    questions,
    resampled_sums,
    sample_evenly,
)
from cappy_train.evaluation import model_scores
from cappy_train.instances import SPLITS, Instance, read_instances
from cappy_train.neighbours import normal
from cappy_train.reliability import correlations, moments, ranks
from cappy_train.report import decimals, percent

SEED = 0
KINDS = {"generation": "a reference among distractors", "choice": "choices"}
# Bars: the share of pairs lost where the wrong one is longer, of picks that change, of questions that an intruder wins.
MOST_LOST, MOST_CHANGED, MOST_WON = 0.03, 0.02, 0.01
# A question with fewer candidates has no correlation of its own.
LEAST_RANKED = 3
SENTENCE_WORDS = 5
REPETITIONS = 3, 10
EMPTY_LOOKING = ("", " ", ".", "-", "N/A", "none")
OUTER_SPACE = " \n\t "

# Names of figures, and of what a question adds to them.
PICKS = "right picks"
WRONG_LONGEST, RIGHT_LONGEST = f"{PICKS} where a wrong one is longest", f"{PICKS} where a right one is longest"
PAIRS = "pairs in order"
LONGER, NOT_LONGER = f"{PAIRS} where the wrong one is longer", f"{PAIRS} where it is not longer"
RANKS, POOLED = "length, by ranks in a question", "length, over all candidates"
SCORE_RANKS, GAIN_RANKS = f"{RANKS}: with score", f"{RANKS}: with gain"
SCORE_POOLED, GAIN_POOLED = f"{POOLED}: with score", f"{POOLED}: with gain"
COPY, EMPTY = "intruder wins: a copy of the instruction", "intruder wins: a text that looks empty"
REPEATED, UNRELATED = "intruder wins: a word repeated", "intruder wins: an unrelated sentence"
INTRUDERS = (COPY, EMPTY, REPEATED, UNRELATED)
AS_IT_IS = "as it is"


@dataclass(frozen=True, slots=True)
class View:
    """An instruction and candidates: a question's own, or with something changed."""

    instruction: str
    candidates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """questions: how many it is over. samples: of the data, then of resamples, (1 + resamples,); NaN where undefined.

    unit: "share" or "correlation". at_most: its bar, if it has one.
    """

    name: str
    unit: str
    questions: int
    samples: FloatArray
    at_most: float | None = None


def in_upper_case(view: View, rng: random.Random) -> View:
    return replace(view, candidates=tuple(text.upper() for text in view.candidates))


def in_lower_case(view: View, rng: random.Random) -> View:
    return replace(view, candidates=tuple(text.lower() for text in view.candidates))


def instruction_in_lower_case(view: View, rng: random.Random) -> View:
    return replace(view, instruction=view.instruction.lower())


def in_outer_space(view: View, rng: random.Random) -> View:
    return View(spaced(view.instruction), tuple(map(spaced, view.candidates)))


def stops_on_all(view: View, rng: random.Random) -> View:
    return replace(view, candidates=tuple(map(with_stop, view.candidates)))


def stops_off_all(view: View, rng: random.Random) -> View:
    return replace(view, candidates=tuple(text.rstrip(".") or text for text in view.candidates))


def stop_on_one(view: View, rng: random.Random) -> View:
    texts = list(view.candidates)
    if places := [place for place, text in enumerate(texts) if with_stop(text) != text]:
        drawn = rng.choice(places)
        texts[drawn] = with_stop(texts[drawn])
    return replace(view, candidates=tuple(texts))


def spaced(text: str) -> str:
    return f"{OUTER_SPACE}{text}{OUTER_SPACE}"


def with_stop(text: str) -> str:
    """With a full stop if it ends in a letter or a digit: behind another sign it would be a fault."""
    return f"{text}." if text[-1:].isalnum() else text


CHANGES: dict[str, Callable[[View, random.Random], View]] = {
    "pick changes: candidates in upper case": in_upper_case,
    "pick changes: candidates in lower case": in_lower_case,
    "pick changes: instruction in lower case": instruction_in_lower_case,
    "pick changes: white space around all texts": in_outer_space,
    "pick changes: a final full stop on all candidates": stops_on_all,
    "pick changes: no final full stop on any candidate": stops_off_all,
    "pick changes: a final full stop on one candidate": stop_on_one,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_with_output(__doc__)
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="instances, in any of their formats")
    parser.add_argument("--model", default="cappy-mini", help="a shipped model's name or a model folder")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: %(default)s")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="questions of each kind, spread over tasks; default: all"
    )
    arguments = parser.parse_args(argv)
    if arguments.limit is not None and arguments.limit < 1:
        parser.error(f"--limit is {arguments.limit}: give 1 or more, or leave it out")

    instances = [replace(one, candidates=()) for one in read_instances(arguments.data, split=arguments.split)]
    asked = [question for question in questions(instances, seed=SEED) if np.ptp(question.gains) > 0]
    if not asked:
        parser.error(f"no instance of split {arguments.split!r} makes a question: give another --split")
    sentences = sentences_by_task(instances)
    score = model_scores(Scorer(arguments.model), Path(arguments.model).name)
    report: dict[str, Any] = {
        "benchmark": "robustness",
        "model": arguments.model,
        "data": [Path(name).name for name in arguments.data],
        "split": arguments.split,
        "limit": arguments.limit,
        "seed": SEED,
        "resamples": RESAMPLES,
        "machine": describe_machine("cappy-lite", "numpy", "onnxruntime", "tokenizers"),
        "kinds": {},
    }
    for kind in dict.fromkeys(question.kind for question in asked):
        some = [question for question in asked if question.kind == kind]
        some = sample_evenly(some, len(some) if arguments.limit is None else arguments.limit)
        figures = [record(figure) for figure in measure(some, sentences, score)]
        tasks = len({question.task for question in some})
        report["kinds"][kind] = {"questions": len(some), "tasks": tasks, "figures": figures}
        about = f"{', '.join(report['data'])}, split {arguments.split}: {len(some):,} questions of {tasks} tasks"
        print(f"\n{about}, {KINDS[kind]}\n\n{shown(figures)}")
        sys.stdout.flush()
    write_output(arguments.output, report)
    return 0


def sentences_by_task(instances: Iterable[Instance]) -> dict[str, list[str]]:
    """References of SENTENCE_WORDS words at least, by task, in an order that depends on nothing but them."""
    found: dict[str, set[str]] = defaultdict(set)
    for instance in instances:
        for text in instance.references:
            if len(text.split()) >= SENTENCE_WORDS:
                found[instance.task].add(text)
    return {task: sorted(found[task]) for task in sorted(found)}


def measure(
    questions: Sequence[Question], sentences: Mapping[str, Sequence[str]], score: ScoreFunction
) -> list[Figure]:
    """All figures of some questions; those that have a bar come first.

    A candidate is right if none of its question gains more.

    Args:
        questions: one at least, each with a wrong candidate too.
        sentences: by task, what unrelated sentences are drawn from.
        score: must score a text by its instruction and itself alone, as a Scorer does.
    """
    views = [ways_to_put(question, sentences) for question in questions]
    scored = score_views(views, score)
    by_question = [
        length_values(question, scores[AS_IT_IS]) | change_values(own, scores) | intruder_values(question, scores)
        for question, own, scores in zip(questions, views, scored, strict=True)
    ]
    rows = {name: np.array([values[name] for values in by_question]) for name in by_question[0]}
    samples = mean_samples(questions, np.stack(list(rows.values())))
    figures = {
        name: Figure(
            name, "correlation" if name in (SCORE_RANKS, GAIN_RANKS) else "share", int(np.isfinite(row).sum()), own
        )
        for (name, row), own in zip(rows.items(), samples, strict=True)
    }
    figures |= pooled_correlations(questions, [scores[AS_IT_IS] for scores in scored])

    def less(name: str, minuend: str, subtrahend: str) -> Figure:
        first, second = figures[minuend], figures[subtrahend]
        return Figure(name, first.unit, min(first.questions, second.questions), first.samples - second.samples)

    return [
        replace(less("pairs in order, lost where the wrong one is longer", PAIRS, LONGER), at_most=MOST_LOST),
        *(replace(figures[name], at_most=MOST_CHANGED) for name in CHANGES),
        *(replace(figures[name], at_most=MOST_WON) for name in INTRUDERS),
        *(figures[name] for name in (PICKS, WRONG_LONGEST, RIGHT_LONGEST, PAIRS, LONGER, NOT_LONGER)),
        less(f"{PAIRS}, longer less not longer", LONGER, NOT_LONGER),
        figures[SCORE_RANKS],
        figures[GAIN_RANKS],
        less(f"{RANKS}: score less gain (bias)", SCORE_RANKS, GAIN_RANKS),
        figures[SCORE_POOLED],
        figures[GAIN_POOLED],
        less(f"{POOLED}: score less gain (bias)", SCORE_POOLED, GAIN_POOLED),
    ]


def ways_to_put(question: Question, sentences: Mapping[str, Sequence[str]]) -> dict[str, View]:
    """A question as it is, with each change, and the intruders of each kind; what is drawn depends on it and SEED."""
    rng = random.Random(f"{SEED}:{question.group}:{question.template}:{question.instruction}")
    own = View(question.instruction, question.candidates)
    changed = {name: change(own, rng) for name, change in CHANGES.items()}
    return {AS_IT_IS: own} | changed | draw_intruders(question, sentences, rng)


def draw_intruders(question: Question, sentences: Mapping[str, Sequence[str]], rng: random.Random) -> dict[str, View]:
    """Texts that are no answers, by kind; none that is a candidate but for case, spaces and a final full stop.

    The sentence is of another task than the question; without another there is none.
    """
    words = question.instruction.split()
    others = [task for task in sentences if task != question.task]
    texts: dict[str, Sequence[str]] = {
        COPY: [question.instruction],
        EMPTY: EMPTY_LOOKING,
        REPEATED: [" ".join([rng.choice(words)] * rng.randint(*REPETITIONS))] if words else [],
        UNRELATED: [rng.choice(sentences[rng.choice(others)])] if others else [],
    }
    known = {plain(text) for text in question.candidates}
    return {
        kind: View(question.instruction, tuple(text for text in some if plain(text) not in known))
        for kind, some in texts.items()
    }


def plain(text: str) -> str:
    return normal(text).removesuffix(".")


def score_views(views: Sequence[Mapping[str, View]], score: ScoreFunction) -> list[dict[str, FloatArray]]:
    """For each question the scores of each view's candidates, (candidates,).

    An instruction is read once for all the views that have it, and of equal texts one is scored.
    """
    texts: dict[str, dict[str, None]] = {}
    for own in views:
        for view in own.values():
            texts.setdefault(view.instruction, {}).update(dict.fromkeys(view.candidates))
    asked = [
        Question("", None, instruction, tuple(some), np.zeros(len(some)), instruction, "")
        for instruction, some in texts.items()
    ]
    known = {
        question.instruction: dict(zip(question.candidates, scores.tolist(), strict=True))
        for question, scores in zip(asked, checked_scores(asked, score), strict=True)
    }
    return [
        {name: np.array([known[view.instruction][text] for text in view.candidates]) for name, view in own.items()}
        for own in views
    ]


def length_values(question: Question, scores: FloatArray) -> dict[str, float]:
    """What a question adds to the figures of picks, pairs and rank correlations; NaN where it has nothing to add."""
    right = question.gains == question.gains.max()
    length = np.array([len(text) for text in question.candidates], dtype=np.float64)
    hit = float(right[scores.argmax()])
    longest_right, longest_wrong = length[right].max(), length[~right].max()
    margins = np.subtract.outer(scores[right], scores[~right])
    in_order = (1 + np.sign(margins)) / 2
    longer = np.less.outer(length[right], length[~right])
    ranked = len(scores) >= LEAST_RANKED and min(map(np.ptp, (length, scores))) > 0
    return {
        PICKS: hit,
        WRONG_LONGEST: hit if longest_wrong > longest_right else np.nan,
        RIGHT_LONGEST: hit if longest_right > longest_wrong else np.nan,
        PAIRS: float(in_order.mean()),
        LONGER: mean_of(in_order[longer]),
        NOT_LONGER: mean_of(in_order[~longer]),
        SCORE_RANKS: rank_correlation(length, scores) if ranked else np.nan,
        GAIN_RANKS: rank_correlation(length, question.gains) if ranked else np.nan,
    }


def mean_of(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else np.nan


def rank_correlation(a: FloatArray, b: FloatArray) -> float:
    """Spearman's."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def change_values(views: Mapping[str, View], scores: Mapping[str, FloatArray]) -> dict[str, float]:
    """By change: 1 if the candidate of another place is picked, 0 if not, NaN if the change left all as it was."""
    pick = scores[AS_IT_IS].argmax()
    return {
        name: np.nan if views[name] == views[AS_IT_IS] else float(scores[name].argmax() != pick) for name in CHANGES
    }


def intruder_values(question: Question, scores: Mapping[str, FloatArray]) -> dict[str, float]:
    """By kind of intruder: 1 if one scores above all right candidates, 0 if none does, NaN if there is none."""
    best = scores[AS_IT_IS][question.gains == question.gains.max()].max()
    return {kind: float(scores[kind].max() > best) if len(scores[kind]) else np.nan for kind in INTRUDERS}


def mean_samples(questions: Sequence[Question], rows: FloatArray) -> FloatArray:
    """The mean of each row over the questions where it isn't NaN, of the data and then of resamples.

    rows: (n, questions). Returns (n, 1 + resamples).
    """
    known = np.isfinite(rows)
    totals, counts = np.split(sum_samples(questions, np.concatenate([np.where(known, rows, 0), known])), 2)
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)


def sum_samples(questions: Sequence[Question], rows: FloatArray) -> FloatArray:
    """Sums over all questions, of the data and then of resamples. rows: (n, questions). Returns (n, 1 + resamples)."""
    return np.concatenate([rows.sum(axis=1)[None], resampled_sums(questions, rows, seed=SEED)]).T


def pooled_correlations(questions: Sequence[Question], scores: Sequence[FloatArray]) -> dict[str, Figure]:
    """Pearson's correlations over the candidates of all questions: log(1 + characters) with score and with gain."""
    sizes = [len(own) for own in scores]
    length = np.log1p([len(text) for question in questions for text in question.candidates])
    gain = np.concatenate([question.gains for question in questions])
    values = [np.ones(len(length)), *moments(length, np.concatenate(scores)), *moments(length, gain)]
    owners = np.repeat(np.arange(len(questions)), sizes)
    sums = sum_samples(questions, np.stack([np.bincount(owners, row) for row in values]))
    undefined = np.full(sums.shape[1], np.nan)
    found = {SCORE_POOLED: sums[1:6], GAIN_POOLED: sums[6:]}
    pooled = {name: correlations(sums[0], own.T) for name, own in found.items()}
    return {
        name: Figure(name, "correlation", len(questions), undefined if samples is None else samples)
        for name, samples in pooled.items()
    }


def record(figure: Figure) -> dict[str, Any]:
    """For JSON; whether a bar holds is told by the value, not by its interval."""
    found = estimate(figure.samples)
    value, bar = found["value"], figure.at_most
    holds = None if value is None or bar is None else value <= bar
    return {
        "name": figure.name,
        "unit": figure.unit,
        "questions": figure.questions,
        **found,
        "at_most": bar,
        "holds": holds,
    }


def shown(records: Sequence[Mapping[str, Any]]) -> str:
    """A table: shares in %, correlations as they are."""
    rows = []
    for one in records:
        show = percent if one["unit"] == "share" else decimals
        bar = "" if one["at_most"] is None else f"{100 * one['at_most']:.0f}"
        holds = {None: "", True: "yes", False: "no"}[one["holds"]]
        rows.append([one["name"], f"{one['questions']:,}", "n/a" if one["value"] is None else show(one), bar, holds])
    return table(["figure (shares in %)", "questions", "value", "at most", "holds"], rows)


if __name__ == "__main__":
    sys.exit(main())
