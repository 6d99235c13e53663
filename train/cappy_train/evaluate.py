"""Evaluation: questions built from instances, the picks of a scorer, and how good they are, with intervals.

A question is an instruction with candidates to choose between, each worth a gain: for choices 1 if right, else 0; for
open generation the Porter-stemmed Rouge-L F-measure, best over the references. A scorer picks its best candidate.
Averages are as in T0: over the questions of a template, then over a task's templates, then over tasks.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cappy_lite.errors import InputValueError
from cappy_lite.rouge import rouge_l_pairs
from cappy_train.files import Source
from cappy_train.instances import Candidate, Instance, read_instances
from cappy_train.neighbours import dice_rows, normal, rouge_words, varying_parts

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.intp]
# Scores for (instruction, candidates) pairs, one array a pair in their order; higher is better.
ScoreFunction = Callable[[list[tuple[str, tuple[str, ...]]]], Sequence[npt.ArrayLike]]

SIMILAR = 4
RESAMPLES = 2000
DEV_QUESTIONS = 1200
# Draws of groups that are held at a time: 64 MB.
DRAWS = 1 << 23


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """An instruction with candidates to choose between.

    gains: (n,) float64, 0..1; what picking each candidate is worth.
    group: the underlying example; questions of one group are not independent and are resampled together.
    kind: "choice" or "generation".
    recorded: of a question over recorded responses these, with their sources, in the instance's order and with
        repetitions; their distinct texts are the candidates. Else empty.
    """

    task: str
    template: str | None
    instruction: str
    candidates: tuple[str, ...]
    gains: FloatArray
    group: str
    kind: str
    recorded: tuple[Candidate, ...] = ()


def questions(instances: Iterable[Instance], *, seed: int = 0) -> list[Question]:
    """A question for every instance that one can be made of: over its choices, else its candidates, else distractors.

    `choice_questions` of the instances with choices; then `candidate_questions` of those with recorded candidates and
    without choices; then `distractor_questions` of all others, with `seed`. Each part is ordered as its function does.
    """
    kinds: dict[str, list[Instance]] = {"choices": [], "candidates": [], "neither": []}
    for instance in instances:
        has_choices, has_candidates = instance.choices is not None, bool(instance.candidates)
        kinds["choices" if has_choices else "candidates" if has_candidates else "neither"].append(instance)
    return [
        *choice_questions(kinds["choices"]),
        *candidate_questions(kinds["candidates"]),
        *distractor_questions(kinds["neither"], seed=seed),
    ]


def choice_questions(instances: Iterable[Instance]) -> list[Question]:
    """A question for every instance with choices: its choices in their order, 1 for references and 0 for others."""
    return [
        Question(
            task=instance.task,
            template=instance.template,
            instruction=instance.instruction,
            candidates=instance.choices,
            gains=np.array([choice in instance.references for choice in instance.choices], dtype=np.float64),
            group=example(instance),
            kind="choice",
        )
        for instance in instances
        if instance.choices is not None
    ]


def candidate_questions(instances: Iterable[Instance]) -> list[Question]:
    """A question for every instance with recorded candidates: their distinct texts, in the order of the instance.

    A candidate gains 1 if it is a reference but for case and spaces. Any other one gains 0 where the instance has
    choices (an exact match), else its best Porter-stemmed Rouge-L F-measure over the references, as in `annotate`.
    """
    asked = [(instance, _distinct_texts(instance)) for instance in instances if instance.candidates]
    gains = _rouge_gains(asked)
    for (instance, texts), gain in zip(asked, gains, strict=True):
        right = {normal(reference) for reference in instance.references}
        exact = np.array([normal(text) in right for text in texts])
        gain[:] = np.where(exact, 1.0, 0.0 if instance.choices is not None else gain)
    return [
        Question(
            task=instance.task,
            template=instance.template,
            instruction=instance.instruction,
            candidates=texts,
            gains=gain,
            group=example(instance),
            kind="generation",
            recorded=instance.candidates,
        )
        for (instance, texts), gain in zip(asked, gains, strict=True)
    ]


def distractor_questions(instances: Iterable[Instance], *, distractors: int = 7, seed: int = 0) -> list[Question]:
    """For every instance its first reference beside first references of other instances of its task and template.

    Four distractors (SIMILAR) are of the most similar instances, the others of random ones. Similarity is the Dice
    coefficient of the sets of Rouge words of two inputs; an input is what follows the beginning that all instructions
    of the task and template share. Candidates are distinct, and no distractor equals a reference, case and white space
    aside. Instances with the very same instruction give no distractors: their answers would be right. There may be
    fewer distractors where a task has few answers. Left out are instances without any distractor, or whose first
    reference has no Rouge word to measure.

    The random instances and the order of the candidates depend on `seed` and on ids alone, not on the instances' order.
    """
    pools: dict[tuple[str, str], list[Instance]] = defaultdict(list)
    for instance in instances:
        pools[instance.task, instance.template or ""].append(instance)
    asked: list[tuple[Instance, tuple[str, ...]]] = []
    for key in sorted(pools):
        pool = sorted(pools[key], key=lambda instance: instance.id)
        similarities = dice_rows(varying_parts([instance.instruction for instance in pool]))
        for instance, similarity in zip(pool, similarities, strict=True):
            rng = np.random.default_rng(_hash(seed, instance.id))
            taken = [instance.references[0]]
            nearest = np.argsort(-similarity, kind="stable")
            _take(taken, instance, (pool[other] for other in nearest), 1 + min(SIMILAR, distractors))
            _take(taken, instance, (pool[other] for other in rng.permutation(len(pool))), 1 + distractors)
            if len(taken) > 1 and rouge_words(instance.references[0]):
                asked.append((instance, tuple(taken[position] for position in rng.permutation(len(taken)))))
    return [
        Question(instance.task, instance.template, instance.instruction, texts, gain, example(instance), "generation")
        for (instance, texts), gain in zip(asked, _rouge_gains(asked), strict=True)
    ]


def picked_gains(questions: Sequence[Question], score: ScoreFunction) -> FloatArray:
    """(n,) float64: what the pick of each question is worth; of equal scores the first candidate is picked.

    Raises:
        InputValueError: the scores don't fit the candidates, or are not finite.
    """
    scored = checked_scores(questions, score)
    return np.array([question.gains[scores.argmax()] for question, scores in zip(questions, scored, strict=True)])


def checked_scores(questions: Sequence[Question], score: ScoreFunction) -> list[FloatArray]:
    """For each question (candidates,) float64, the scores of its candidates.

    Raises:
        InputValueError: the scores don't fit the candidates, or are not finite.
    """
    scored = score([(question.instruction, question.candidates) for question in questions])
    if len(scored) != len(questions):
        raise InputValueError(f"score gave {len(scored)} arrays for {len(questions)} questions: give one a question")
    checked = [np.asarray(scores, dtype=np.float64) for scores in scored]
    for question, values in zip(questions, checked, strict=True):
        if values.shape != question.gains.shape or not np.isfinite(values).all():
            raise InputValueError(
                f"score gave {values} for {len(question.candidates)} candidates of {question.group}: "
                "give one finite number a candidate"
            )
    return checked


def recorded_gains(question: Question) -> FloatArray:
    """(n,) float64: the gain of each recorded response, repetitions included; without any, of each candidate."""
    return question.gains[recorded_places(question)] if question.recorded else question.gains


def recorded_places(question: Question) -> IntArray:
    """For each recorded response the place of its text among the candidates."""
    places = {text: place for place, text in enumerate(question.candidates)}
    return np.array([places[response.text] for response in question.recorded], dtype=np.intp)


def random_gains(questions: Sequence[Question]) -> FloatArray:
    """(n,) float64: the expected gain of a pick at random; a response recorded twice is twice as likely."""
    return np.array([recorded_gains(question).mean() for question in questions])


def oracle_gains(questions: Sequence[Question]) -> FloatArray:
    """(n,) float64: the gain of the best pick."""
    return np.array([question.gains.max() for question in questions])


def majority_gains(questions: Sequence[Question]) -> FloatArray:
    """(n,) float64: gains of always picking the place in the list of choices that is right most often.

    Counted on these very questions, per task and template. Where a template's choices are fixed, that is its most
    frequent class.
    """
    longest_list = max((len(question.gains) for question in questions), default=0)
    right: dict[tuple[str, str | None], FloatArray] = defaultdict(lambda: np.zeros(longest_list))
    for question in questions:
        right[question.task, question.template][: len(question.gains)] += question.gains
    places = [right[question.task, question.template][: len(question.gains)].argmax() for question in questions]
    return np.array([question.gains[place] for question, place in zip(questions, places, strict=True)])


def distance_closed(picked: npt.ArrayLike, random: npt.ArrayLike, oracle: npt.ArrayLike) -> FloatArray:
    """How far from a random pick (0) to the best one (1) average gains come; 0 where these are equal, NaN of NaN."""
    gained, possible = np.subtract(picked, random), np.subtract(oracle, random)
    return np.divide(gained, possible, out=np.zeros(np.shape(gained)), where=~(possible <= 0))


def task_means(questions: Sequence[Question], gains: FloatArray) -> FloatArray:
    """Means over the questions of a template and then over a task's templates, tasks in sorted order.

    gains: (..., n) float64, the last axis by question. Returns (..., tasks) float64.
    """
    task_of, _, weights = _weights(questions)
    members = [task_of == task for task in range(task_of.max() + 1)]
    return np.stack([gains[..., member] @ weights[member] for member in members], axis=-1)


def template_means(questions: Sequence[Question], gains: FloatArray) -> dict[str, dict[str, FloatArray]]:
    """Means over the questions of each template, by task and template, of the tasks that have several.

    gains: (..., n) float64, the last axis by question. Each mean is (...,) float64; the template of no name is "".
    """
    members: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, question in enumerate(questions):
        members[question.task][question.template or ""].append(index)
    return {
        task: {template: gains[..., own].mean(axis=-1) for template, own in sorted(templates.items())}
        for task, templates in sorted(members.items())
        if len(templates) > 1
    }


class Resamples(NamedTuple):
    """Means of resampled questions. tasks: (resamples, methods, tasks) float64. averages: (resamples, methods)."""

    tasks: FloatArray
    averages: FloatArray


def bootstrap(
    questions: Sequence[Question], gains: FloatArray, *, seed: int = 0, resamples: int = RESAMPLES
) -> Resamples:
    """`task_means` of resampled questions, and their averages; gains: (methods, n) float64.

    Groups are drawn with replacement within each task, all methods on the same draws, so that differences are paired.
    A mean over a template's questions is taken to first order: each question adds its weighted deviation from its
    template's mean as often as its group is drawn. That stays defined where a draw misses a template. Templates that
    have one question are taken as one, within a task.

    A task of one group is NaN: resampling can't tell how its mean would vary. The averages have such
    tasks too: see `_lone_sums`.
    """
    task_of, template_of, weights = _weights(questions)
    lone = np.bincount(template_of)[template_of] == 1
    cell_of = np.unique(np.where(lone, -1 - task_of, template_of), return_inverse=True)[1]
    sizes = np.bincount(cell_of)
    cell_means = np.stack([np.bincount(cell_of, row) / sizes for row in gains])
    group_of, task_of_group = _groups(questions, task_of)
    deviations = _group_sums(group_of, (gains - cell_means[:, cell_of]) * weights)
    group_means = _group_sums(group_of, gains * weights) / np.bincount(group_of, weights)[:, None]

    rng = np.random.default_rng(seed)
    means = task_means(questions, gains)
    tasks = means + _sums_by_task(task_of_group, deviations, resamples, rng)
    totals = np.nansum(tasks, axis=2) + _lone_sums(task_of_group, group_means, resamples, rng)
    return Resamples(tasks, totals / means.shape[1])


def resampled_sums(
    questions: Sequence[Question], values: FloatArray, *, seed: int = 0, resamples: int = RESAMPLES
) -> FloatArray:
    """Sums over resampled questions of all tasks, as (resamples, rows) float64; values: (rows, n) float64.

    Groups are drawn with replacement within each task, as many as it has, all rows on the same draws; for tasks of one
    group see `_lone_sums`. NaN where there is one group in all.
    """
    group_of, task_of_group = _groups(questions, _weights(questions)[0])
    by_group = _group_sums(group_of, values)
    rng = np.random.default_rng(seed)
    sums = np.nansum(_sums_by_task(task_of_group, by_group, resamples, rng), axis=2)
    return sums + _lone_sums(task_of_group, by_group, resamples, rng)


def _groups(questions: Sequence[Question], task_of: IntArray) -> tuple[IntArray, IntArray]:
    """Each question's group, numbered over all tasks, and each group's task."""
    named = [f"{task}\0{question.group}" for task, question in zip(task_of, questions, strict=True)]
    firsts, group_of = np.unique(named, return_index=True, return_inverse=True)[1:]
    return group_of, task_of[firsts]


def _group_sums(group_of: IntArray, values: FloatArray) -> FloatArray:
    """(groups, rows) float64; values: (rows, n) by question."""
    return np.stack([np.bincount(group_of, row) for row in values], axis=1)


def _sums_by_task(task_of_group: IntArray, values: FloatArray, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Sums over each task's groups, drawn with replacement, (resamples, rows, tasks); NaN for a task of one group.

    Every draw of one group would be the same, as if nothing about it were uncertain. values: (groups, rows).
    """
    counts = np.bincount(task_of_group)
    sums = np.full((resamples, values.shape[1], len(counts)), np.nan)
    for task in np.flatnonzero(counts > 1):
        sums[:, :, task] = _drawn_sums(values[task_of_group == task], counts[task], resamples, rng)
    return sums


def _lone_sums(task_of_group: IntArray, values: FloatArray, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Sums over groups that are alone in their tasks, as if each were drawn among all of these; (resamples, rows).

    How far these tasks differ then counts as spread too, so this errs on the wide side: see collapsed strata in Wolter,
    Introduction to Variance Estimation, 2nd ed., 2007, chapter 2. A group that is the only one alone moves as a draw
    among all groups does; NaN if there is no other at all. values: (groups, rows).
    """
    alone = np.bincount(task_of_group)[task_of_group] == 1
    count = int(alone.sum())
    if count == 0:
        return np.zeros((resamples, values.shape[1]))
    if len(values) == 1:
        return np.full((resamples, values.shape[1]), np.nan)
    pool = values[alone] if count > 1 else values
    return values[alone].sum(axis=0) + _drawn_sums(pool - pool.mean(axis=0), count, resamples, rng)


def _drawn_sums(values: FloatArray, count: int, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Sums over `count` groups drawn with replacement, (resamples, rows) float64; values: (groups, rows)."""
    sums = np.empty((resamples, values.shape[1]))
    step = max(DRAWS // len(values), 1)
    for start in range(0, resamples, step):
        part = sums[start : start + step]
        part[:] = rng.multinomial(count, np.full(len(values), 1 / len(values)), size=len(part)) @ values
    return sums


def estimate(samples: FloatArray) -> dict[str, float | None]:
    """{value, low, high} of a figure and of its resamples, (1 + resamples,): the 95 % interval of their percentiles.

    low and high are None where resamples are NaN: see `bootstrap`.
    """
    figures = samples[0], *np.percentile(samples[1:], [2.5, 97.5])
    return {
        # + 0, so that there is no -0.0.
        name: None if np.isnan(figure) else round(float(figure), 5) + 0
        for name, figure in zip(("value", "low", "high"), figures, strict=True)
    }


def dev_questions(source: Source) -> list[Question]:
    """Questions of the instances of split dev in files, by which training runs are compared and exports checked.

    At most DEV_QUESTIONS of each kind, which keeps an evaluation short: evenly over tasks, the same in each run.

    Raises:
        InputValueError: there are none.
    """
    asked = questions(read_instances(source, split="dev"))
    if not asked:
        raise InputValueError(f"{source}: no question can be made of it: give instances whose split is dev")
    by_kind = ([question for question in asked if question.kind == kind] for kind in ("choice", "generation"))
    return [question for members in by_kind for question in sample_evenly(members, DEV_QUESTIONS)]


def dev_figures(questions: Sequence[Question], score: ScoreFunction) -> dict[str, float]:
    """The few numbers that training follows.

    dev_gain: what a pick is worth, averaged over tasks; the higher the better.
    choice_dev_accuracy, and beside it choice_dev_random and choice_dev_majority: of the questions of that kind.
    generation_dev_closed: how far the picks come from random ones (0) to the best (1).
    """
    picked = picked_gains(questions, score)
    numbers = {"dev_gain": float(task_means(questions, picked).mean())}
    for kind in ("choice", "generation"):
        members = [index for index, question in enumerate(questions) if question.kind == kind]
        if not members:
            continue
        own = [questions[index] for index in members]
        gain, random, oracle, majority = (
            float(task_means(own, gains).mean())
            for gains in (picked[members], random_gains(own), oracle_gains(own), majority_gains(own))
        )
        if kind == "choice":
            numbers |= {"choice_dev_accuracy": gain, "choice_dev_random": random, "choice_dev_majority": majority}
        else:
            numbers["generation_dev_closed"] = float(distance_closed(gain, random, oracle))
    return numbers


def sample_evenly(questions: Sequence[Question], count: int, *, seed: int = 0) -> list[Question]:
    """`count` of the questions, or all, spread evenly over tasks; which ones depends on seed and questions alone."""
    by_task: dict[str, list[tuple[int, Question]]] = defaultdict(list)
    for question in questions:
        key = _hash(seed, f"{question.group} {question.template} {question.instruction}")
        by_task[question.task].append((key, question))
    ranked = [
        (rank, key, question)
        for members in by_task.values()
        for rank, (key, question) in enumerate(sorted(members, key=lambda member: member[0]))
    ]
    return [question for _, _, question in sorted(ranked, key=lambda item: item[:2])[:count]]


def task_weights(questions: Sequence[Question]) -> FloatArray:
    """(n,) float64: each question's weight in the mean of its task, as in `task_means`; those of a task add up to 1."""
    return _weights(questions)[2]


def _weights(questions: Sequence[Question]) -> tuple[IntArray, IntArray, FloatArray]:
    """Each question's task, its template (numbers in sorted order), and its weight in the mean of its task."""
    if not questions:
        raise InputValueError("questions is empty: give one at least (are the file and the split the right ones?)")
    task_of = np.unique([question.task for question in questions], return_inverse=True)[1]
    named = [f"{question.task}\0{question.template}" for question in questions]
    firsts, template_of, sizes = np.unique(named, return_index=True, return_inverse=True, return_counts=True)[1:]
    templates = np.bincount(task_of[firsts])
    return task_of, template_of, 1 / (sizes[template_of] * templates[task_of])


def _rouge_gains(asked: Sequence[tuple[Instance, tuple[str, ...]]]) -> list[FloatArray]:
    """For each instance the best stemmed Rouge-L F-measure of each of its texts over its references."""
    predictions = [text for _, texts in asked for text in texts]
    references = [instance.references for instance, texts in asked for _ in texts]
    gains = rouge_l_pairs(predictions, references, stem=True)[:, 2]
    return np.split(gains, np.cumsum([len(texts) for _, texts in asked]))[:-1]


def _distinct_texts(instance: Instance) -> tuple[str, ...]:
    return tuple(dict.fromkeys(candidate.text for candidate in instance.candidates))


def example(instance: Instance) -> str:
    """The id without the template's name where that ends it, as in ids of one example rendered by several templates."""
    slug = re.sub(r"\W+", "_", instance.template or "").strip("_")
    return instance.id.removesuffix(f":{slug}")


def _take(taken: list[str], instance: Instance, others: Iterable[Instance], count: int) -> None:
    """Adds first references of `others` to `taken` until it has `count`, none twice and none that is right."""
    known = {normal(text) for text in (*taken, *instance.references)}
    for other in others:
        if len(taken) == count:
            return
        answer = other.references[0]
        if other.instruction != instance.instruction and normal(answer) not in known:
            known.add(normal(answer))
            taken.append(answer)


def _hash(seed: int, name: str) -> int:
    """A 64-bit number that is the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big")
