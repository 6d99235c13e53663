"""How good a model's picks are, beside those of single systems, simple rules, the generator itself and other models.

The two tables of the Cappy paper (Tan et al., 2023), and what helps to read them, for any model folders over any
instances: what instances have decides which questions they give.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from cappy_lite.arguments import check_list
from cappy_lite.errors import InputValueError, TruncationWarning
from cappy_lite.scorer import Scorer
from cappy_train.baselines import (
    consensus_gains,
    has_likelihoods,
    likelihoods,
    longest,
    overlap,
    self_score_gains,
    system_gains,
)
from cappy_train.best_of import best_of, consensus_best_of, subset_sizes
from cappy_train.embedding import minilm_cosine
from cappy_train.evaluate import (
    RESAMPLES,
    BoolArray,
    FloatArray,
    Question,
    ScoreFunction,
    bootstrap,
    candidate_questions,
    checked_scores,
    choice_questions,
    distance_closed,
    distractor_questions,
    estimate,
    majority_gains,
    oracle_gains,
    picked_gains,
    random_gains,
    recorded_gains,
    recorded_places,
    sample_evenly,
    task_means,
    template_means,
)
from cappy_train.files import Source, folder_written_whole
from cappy_train.instances import Instance, read_instances
from cappy_train.network import packaged_minilm
from cappy_train.reliability import reliability
from cappy_train.report import write_report

SCORING_CHUNK = 64
SELF_SCORES = {"log_likelihood": "self-score, sum", "mean_log_likelihood": "self-score, mean"}


class Method(NamedTuple):
    """What picks a candidate. kind: "model", "system" (a recorded source), "rule" or "bound" (random and oracle)."""

    kind: str
    name: str


RANDOM, ORACLE, CONSENSUS = Method("bound", "random"), Method("bound", "oracle"), Method("rule", "consensus")


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A model that was asked. name: as the report calls it. scores: for each question (candidates,) float64."""

    name: str
    scores: list[FloatArray]


def evaluate(
    models: Sequence[str | Path],
    data: Source,
    out: Path,
    *,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluates models on instances, and writes the folder `out`: report.json, report.md and report.html.

    Instances with choices give a classification table; those with recorded candidates a generation table, with each
    single system; those with neither, picks of a reference among other instances' references. An instance with both
    choices and candidates is in both tables.

    Args:
        models: shipped names or model folders, one at least.
        data: instances, as `read_instances` takes them.
        split: "train", "dev" or "test".
        limit: at most so many questions of each table, spread evenly over tasks.
        seed: of distractors, the bootstrap, and the subsets that consensus is tried on.

    Returns:
        What report.json holds; see docs/training.md.

    Raises:
        InputValueError: `out` exists, the data has no instance of the split or can't be read, or a model's scores
            aren't finite. ModelError: a model is missing or damaged. Nothing is written then.
    """
    if out.exists():
        raise InputValueError(f"{out} exists: give --out a new folder")
    if limit is not None and limit < 1:
        raise InputValueError(f"limit is {limit}: give 1 or more, or leave it out")
    given = [data] if isinstance(data, (str, Path)) else data
    scorers = open_models(models)
    minilm = minilm_cosine(packaged_minilm())
    sections = split_questions(read_instances(data, split=split), seed=seed)
    if not any(sections.values()):
        raise InputValueError(
            f"no instance of split {split!r} makes a question in {', '.join(map(str, given))}: give another --split"
        )
    with folder_written_whole(out) as folder:
        report = {
            "models": [{"name": name, "model": str(model)} for name, model in zip(scorers, models, strict=True)],
            "data": [Path(name).name for name in given],
            "split": split,
            "limit": limit,
            "seed": seed,
            "resamples": RESAMPLES,
            "sections": {
                name: evaluate_section(
                    sample_evenly(questions, len(questions) if limit is None else limit), scorers, minilm, seed=seed
                )
                for name, questions in sections.items()
                if questions
            },
        }
        write_report(folder, report)
    return report


def open_models(models: Sequence[str | Path]) -> dict[str, Scorer]:
    """Scorers by what a report calls them: the model's own name, as far as it tells them apart, else as given.

    Raises:
        InputTypeError: `models` is no list. InputValueError: there are none, or one twice.
        ModelError: one can't be opened.
    """
    if not check_list("models", models, of="names and folders"):
        raise InputValueError("no model is named: give one at least")
    given = [str(model) for model in models]
    if len(set(given)) < len(given):
        raise InputValueError(f"a model is named twice: {', '.join(given)}")
    short = [Path(name).name for name in given]
    names = short if len(set(short)) == len(short) else given
    return {name: Scorer(model) for name, model in zip(names, models, strict=True)}


def split_questions(instances: Iterable[Instance], *, seed: int = 0) -> dict[str, list[Question]]:
    """The questions of each table: "classification", "generation" and "distractors". Some may be empty."""
    read = list(instances)
    return {
        "classification": choice_questions(read),
        "generation": candidate_questions(read),
        "distractors": distractor_questions(
            (one for one in read if one.choices is None and not one.candidates), seed=seed
        ),
    }


def evaluate_section(
    questions: Sequence[Question], scorers: Mapping[str, Scorer], minilm: ScoreFunction, *, seed: int = 0
) -> dict[str, Any]:
    """All that a report tells of some questions of one table: see docs/training.md."""
    models = [
        Evaluated(name, checked_scores(questions, model_scores(scorer, name))) for name, scorer in scorers.items()
    ]
    gains = gains_by_method(questions, models, minilm)
    return {
        **compare(questions, gains, seed=seed),
        "best_of": best_of_curves(questions, models, seed=seed),
        "reliability": {model.name: reliability(questions, model.scores, seed=seed) for model in models},
    }


def model_scores(scorer: Scorer, name: str) -> ScoreFunction:
    """Scores of the runtime's Scorer, some questions at a time. What it cuts is told in one line after the last."""

    def score(pairs: list[tuple[str, tuple[str, ...]]]) -> list[npt.NDArray[np.float32]]:
        scores: list[npt.NDArray[np.float32]] = []
        cuts: list[str] = []
        with tqdm(total=len(pairs), desc=name, unit="question") as progress:
            for start in range(0, len(pairs), SCORING_CHUNK):
                chunk = pairs[start : start + SCORING_CHUNK]
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always", TruncationWarning)
                    scores.extend(scorer.score_many([pair[0] for pair in chunk], [pair[1] for pair in chunk]))
                for warning in caught:
                    if issubclass(warning.category, TruncationWarning):
                        cuts.append(str(warning.message))
                    else:
                        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
                progress.update(len(chunk))
        if cuts:
            warnings.warn(
                f"{name}: {cuts[0]}; and so in {len(cuts)} of {-(-len(pairs) // SCORING_CHUNK)} batches of questions",
                TruncationWarning,
                stacklevel=2,
            )
        return scores

    return score


def gains_by_method(
    questions: Sequence[Question], models: Sequence[Evaluated], minilm: ScoreFunction
) -> dict[Method, FloatArray]:
    """What each method's pick is worth, (n,) float64, NaN where it has no answer; the models come first.

    Systems, self-scores and consensus are for recorded responses, the majority class is for choices.
    """
    gains = {
        Method("model", model.name): np.array(
            [question.gains[scores.argmax()] for question, scores in zip(questions, model.scores, strict=True)]
        )
        for model in models
    }
    if questions[0].recorded:
        gains |= {Method("system", source): row for source, row in system_gains(questions).items()}
        gains |= {
            Method("rule", name): self_score_gains(questions, key)
            for key, name in SELF_SCORES.items()
            if has_likelihoods(questions, key)
        }
        gains[CONSENSUS] = consensus_gains(questions)
    if questions[0].kind == "choice":
        gains[Method("rule", "majority class")] = majority_gains(questions)
    for name, score in {"longest": longest, "word overlap": overlap, "MiniLM cosine": minilm}.items():
        gains[Method("rule", name)] = picked_gains(questions, score)
    return gains | {RANDOM: random_gains(questions), ORACLE: oracle_gains(questions)}


def compare(questions: Sequence[Question], gains: Mapping[Method, FloatArray], *, seed: int = 0) -> dict[str, Any]:
    """Averages of every method with 95 % intervals, and how far the models are ahead of it.

    A method is judged on the questions that it answers, and the models beside it on the same ones: `closed` is how far
    from random to oracle it comes on them, `ahead` how much more a model has on them. `zero_where_missing` counts the
    others as worth 0.

    gains: by method, (n,) float64, NaN where it has no answer; RANDOM and ORACLE among them. Every estimate is
        {value, low, high}.
    """
    tasks = sorted({question.task for question in questions})
    alike: dict[bytes, list[Method]] = {}
    for method, row in gains.items():
        alike.setdefault(np.isnan(row).tobytes(), []).append(method)
    results: dict[Method, dict[str, Any]] = {}
    for methods in alike.values():
        results |= _compare_alike(questions, gains, methods, seed)
    partial = [method for method in gains if results[method]["answered"] < len(questions)]
    if partial:
        averages = _resampled(questions, np.nan_to_num([gains[method] for method in partial]), seed)[1]
        for method, own in zip(partial, averages, strict=True):
            results[method]["zero_where_missing"] = estimate(own)
    return {
        "questions": len(questions),
        "questions_by_task": {task: sum(question.task == task for question in questions) for task in tasks},
        "methods": [{"kind": method.kind, "name": method.name, **results[method]} for method in gains],
    }


def _compare_alike(
    questions: Sequence[Question], gains: Mapping[Method, FloatArray], methods: Sequence[Method], seed: int
) -> dict[Method, dict[str, Any]]:
    """The figures of methods that answer the same questions, on these."""
    answered: BoolArray = ~np.isnan(gains[methods[0]])
    some = [question for question, has_answer in zip(questions, answered, strict=True) if has_answer]
    tasks = sorted({question.task for question in some})
    models = [method for method in gains if method.kind == "model"]
    needed = list(dict.fromkeys([*methods, *models, RANDOM, ORACLE]))
    known = np.stack([gains[one][answered] for one in needed])
    by_task, overall = _resampled(some, known, seed)
    by_template = template_means(some, known)
    samples = dict(zip(needed, by_task, strict=True))
    averages = dict(zip(needed, overall, strict=True))
    return {
        method: {
            "answered": len(some),
            "average": estimate(averages[method]),
            "closed": estimate(distance_closed(averages[method], averages[RANDOM], averages[ORACLE])),
            "ahead": {model.name: estimate(averages[model] - averages[method]) for model in models},
            "tasks": {task: estimate(samples[method][:, at]) for at, task in enumerate(tasks)},
            "templates": {
                task: {template: round(float(means[place]), 5) for template, means in templates.items()}
                for task, templates in by_template.items()
            },
            "ahead_by_task": {
                model.name: {
                    task: estimate(samples[model][:, at] - samples[method][:, at]) for at, task in enumerate(tasks)
                }
                for model in models
            },
        }
        for place, method in enumerate(methods)
    }


def _resampled(questions: Sequence[Question], gains: FloatArray, seed: int) -> tuple[FloatArray, FloatArray]:
    """Means by task, (methods, 1 + resamples, tasks) float64, and over tasks, (methods, 1 + resamples).

    The data go first and then the resamples, so that whatever is computed of these is computed of them too.
    """
    means = task_means(questions, gains)
    tasks, averages = bootstrap(questions, gains, seed=seed)
    by_task = np.moveaxis(np.concatenate([means[None], tasks]), 1, 0)
    return by_task, np.concatenate([means.mean(axis=1)[None], averages]).T


def best_of_curves(
    questions: Sequence[Question], models: Sequence[Evaluated], *, seed: int = 0
) -> dict[str, Any] | None:
    """What the pick among n random recorded responses is worth on average; None where no question has two.

    Of a question with fewer than n responses all are taken. Self-scores are there if every response has one.
    """
    counts = [len(question.recorded) for question in questions]
    if max(counts) < 2:
        return None
    sizes = subset_sizes(counts)
    keys = [key for key in SELF_SCORES if has_likelihoods(questions, key, every=True)]
    rules = [Method("rule", SELF_SCORES[key]) for key in keys]
    methods = [*(Method("model", model.name) for model in models), *rules, CONSENSUS, ORACLE]
    curves = np.empty((len(methods), len(sizes), len(questions)))
    for index, question in enumerate(tqdm(questions, desc="best of n", unit="question")):
        places, gains = recorded_places(question), recorded_gains(question)
        curves[:, :, index] = [
            *(best_of(gains, model.scores[index][places], sizes) for model in models),
            *(best_of(gains, likelihoods(question, key), sizes) for key in keys),
            consensus_best_of([response.text for response in question.recorded], gains, sizes, seed=seed + index),
            best_of(gains, gains, sizes),
        ]
    samples = _resampled(questions, curves.reshape(-1, len(questions)), seed)[1]
    return {
        "sizes": sizes,
        "questions_with_so_many": [sum(count >= size for count in counts) for size in sizes],
        "curves": [
            {"kind": method.kind, "name": method.name, "values": [estimate(own) for own in by_size]}
            for method, by_size in zip(methods, samples.reshape(len(methods), len(sizes), -1), strict=True)
        ],
    }
