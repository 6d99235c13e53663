"""Adaptation: a scorer learns a task from the task's own examples and a language model's candidates for them.

The language model's weights aren't needed, and where candidates are recorded neither is the model (as the Cappy paper
adapts a scorer to a frozen LLM, Tan et al., 2023, section 3.4). Reads top to bottom: examples, labels, training with
early stopping on examples held out, export, report.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cappy_lite.errors import InputValueError
from cappy_lite.models import TOKENIZER_FILE, canonical, model_folder, read_config
from cappy_lite.scorer import Scorer
from cappy_train.annotate import CHOICE
from cappy_train.baselines import consensus_gains, has_likelihoods, self_score_gains, system_gains
from cappy_train.batches import LabelledRow, Packer
from cappy_train.card import ADAPTED
from cappy_train.evaluate import (
    FloatArray,
    Question,
    candidate_questions,
    example,
    oracle_gains,
    picked_gains,
    random_gains,
    sample_evenly,
    task_means,
)
from cappy_train.evaluation import CONSENSUS, ORACLE, RANDOM, SELF_SCORES, Method, compare, model_scores
from cappy_train.export import CONFIG_FILE, FLOAT_GRAPH_FILE, training_figures, write_model
from cappy_train.files import Source, find_files, folder_written_whole
from cappy_train.instances import Candidate, Instance, read_instances
from cappy_train.network import PackedNetwork
from cappy_train.read_back import in_float32, network_of
from cappy_train.report import percent
from cappy_train.shards import file_digest, write_json
from cappy_train.streaming import ListedRows, draw_responses
from cappy_train.trainable import network_scores
from cappy_train.training import Settings, train, trained_network

if TYPE_CHECKING:  # nothing of it is loaded where candidates are recorded
    from cappy_train.sampling import Sampler

# Examples of split train that are held out where the data has no split dev: this share, and at most so many.
HELD_OUT_SHARE = 0.2
MOST_HELD_OUT = 500
# Questions of split test that the report is of.
MOST_TESTED = 2000
# Questions that calibrate the 8 bits, and that prove them.
CALIBRATING = 128
CHECKED = 384
# Passes over the examples, or more where these would be few steps.
EPOCHS = 3
LEAST_STEPS = 30
# Half of pre-training's: examples are few, and a step takes several batches, since a CPU computes each on one thread.
BATCH_TOKENS = 2048
WARMUP = 0.1
# Picks are what counts: the best candidate of an instance against its others, and no scores for their own sake.
LOSSES = {"listwise": 1.0}
TEMPERATURE = 0.1
# Instances whose candidates are labelled at a time.
LABELLED_TOGETHER = 1024
# Evaluations on the held-out part: so many an epoch, and at most so many steps apart.
EVALUATIONS_PER_EPOCH = 2
MOST_STEPS_APART = 200
# Training ends after so many evaluations without a better one.
PATIENCE = 4
CHECKPOINT_STEPS = 25
# Rows whose lengths tell how many steps an epoch has.
MEASURED_ROWS = 256
# Tasks that a model card names.
NAMED_TASKS = 4

PLAN, SAMPLED = "plan.json", "sampled"
REPORT, REPORT_TABLE = "adaptation.json", "adaptation.md"
BEFORE, AFTER = Method("model", "before"), Method("model", "after")


def adapt(
    data: Source,
    out: Path,
    *,
    model: str | Path = "cappy-mini",
    run: Path | None = None,
    sampler: Sampler | None = None,
    epochs: float | None = None,
    learning_rate: float = 5e-5,
    seed: int = 0,
) -> dict[str, Any]:
    """Adapts a model to the tasks of some instances; `out` is then a model folder, with a report beside the model.

    It trains on the split train, and stops early by the picks on the split dev, or on a part of train that is held out
    if there is no dev. If no step is better there than the start, `out` is a copy of the model it started from. A split
    test is for the report alone. An instance's choices are candidates too, beside recorded ones.

    Everything on the way is in `run`, so the same call goes on where it was killed.

    Args:
        data: files of instances, as `read_instances` takes them, with candidates, or choices, or to be sampled.
        out: the model folder to write; it must not exist.
        model: what to start from: a shipped model's name, or a model folder of graph `shared`.
        run: folder for checkpoints and sampled candidates; None: `out` with .run after its name.
        sampler: a language model that gives every instance candidates first; None: candidates are recorded.
        epochs: the most passes over the examples; None: 3, and more where these are few steps.
        learning_rate: the peak.
        seed: of all that is drawn at random.

    Returns:
        The report, as in `out`/adaptation.json; see docs/training.md.

    Raises:
        InputValueError: `out` exists; the model is of another kind; the data can't be read, has no instances to train
            on or hold out, or no candidates; or `run` was begun with something else; and what `sample` raises.
        ModelError: the model is damaged, or 8 bits don't hold the adapted one.
    """
    if out.exists():
        raise InputValueError(f"{out} exists: give --out a new folder")
    if not 0 <= seed < 2**63:
        raise InputValueError(f"seed is {seed}: give a number from 0 to 2**63 - 1")
    start = model_folder(canonical(model))
    network = network_of(start)
    run = run or out.with_name(f"{out.name}.run")
    files = find_files(data)
    _keep_plan(run, {"model": file_digest(start / CONFIG_FILE), "seed": seed, "sampled": sampler is not None})
    clock = Clock()
    if sampler is not None:
        from cappy_train.sampling import sample

        files = sample(files, run / SAMPLED, sampler).paths()
        clock.ends("sampling")
    examples = read_examples(files, seed=seed)
    held_out = sample_evenly(pick_questions(examples.held_out), MOST_HELD_OUT)
    clock.ends("labels")

    packer, rows = Packer(start / TOKENIZER_FILE), ListedRows(examples.rows)
    settings = fitting_settings(
        examples.rows, packer, network.max_tokens, epochs=epochs, learning_rate=learning_rate, seed=seed
    )
    before = mean_gain(held_out, network, packer)
    train(network, rows, start / TOKENIZER_FILE, run, settings, dev=held_out)
    trained = trained_network(run)
    after = mean_gain(held_out, trained, packer)
    figures = {"steps": training_figures(run)["steps"], "held_out_dev_before": before, "held_out_dev_after": after}
    clock.ends("training")

    with folder_written_whole(out) as folder:
        if after > before:
            identity = _identity(start, out.resolve().name, network.max_tokens)
            _write_adapted(
                folder,
                trained,
                start / TOKENIZER_FILE,
                examples.rows,
                held_out,
                identity,
                figures,
                float32=in_float32(start),
            )
        else:
            _copy_model(start, folder)
        clock.ends("export")
        asked = {"held out": held_out, "test": sample_evenly(pick_questions(examples.test), MOST_TESTED)}
        report: dict[str, Any] = {
            "model": str(model),
            "data": [path.name for path in find_files(data)],
            "kept_start": not after > before,
            "training": figures,
            "settings": asdict(settings),
            "instances": examples.counts(),
            "picks": {
                part: compare(questions, adaptation_gains(questions, Scorer(start), Scorer(folder)), seed=seed)
                for part, questions in asked.items()
                if questions
            },
        }
        clock.ends("report")
        report |= {"seconds": clock.seconds, "peak_memory_mib": round(peak_memory_mib(), 1)}
        write_json(folder / REPORT, report)
        (folder / REPORT_TABLE).write_text(markdown(report), encoding="utf-8")
    return report


@dataclass(frozen=True, slots=True)
class Examples:
    """The instances of some files by their use. Those without any candidate or choice are left out.

    rows: to train on, of split train: candidates and choices, labelled by what a pick of them is worth.
    held_out: what training is stopped by.
    held_out_of: the split that they are of: dev, or train if the data has no dev.
    test: those of split test.
    left_out: how many had neither candidates nor choices.
    alike: how many of split train have candidates that are all worth the same, and so teach no choice between them.
    """

    rows: list[LabelledRow]
    held_out: list[Instance]
    held_out_of: str
    test: list[Instance]
    left_out: int
    alike: int

    def counts(self) -> dict[str, int | str]:
        return {
            "train": len(self.rows),
            "candidates all alike": self.alike,
            "held out": len(self.held_out),
            "held out of": self.held_out_of,
            "test": len(self.test),
            "without candidates": self.left_out,
        }


def read_examples(files: Sequence[Path], *, seed: int) -> Examples:
    """Reads instances, and labels those to train on.

    Where there are none of split dev, those of some examples of split train are held out: HELD_OUT_SHARE, at most
    MOST_HELD_OUT. Which ones follows from the seed and their ids, and all renderings of an example go together.

    Raises:
        InputValueError: there are none to train on or to hold out, or none has candidates that differ in worth.
    """
    held_out: list[Instance] = []
    test: list[Instance] = []
    places, left_out = set(), 0
    for instance in read_instances(files):
        if not (instance.candidates or instance.choices):
            left_out += 1
        elif instance.split == "train":
            places.add(_place(instance, seed))
        else:
            (held_out if instance.split == "dev" else test).append(instance)
    named = ", ".join(map(str, files))
    if not places and not held_out and not test:
        raise InputValueError(
            f"{named}: no instance has candidates or choices to learn from: sample some (--generator, --api), or give "
            "instances with recorded candidates"
        )
    if not places:
        raise InputValueError(
            f"{named}: no instance of split train has candidates or choices, and adaptation learns from those: give "
            "the examples to learn from the split train"
        )
    split, limit = "dev", -1
    if not held_out:
        if len(places) < 2:
            raise InputValueError(f"{named}: one example can't be both learned from and held out: give two at least")
        split, count = "train", min(max(round(HELD_OUT_SHARE * len(places)), 1), MOST_HELD_OUT)
        limit = sorted(places)[count - 1]
        held_out = [one for one in _to_learn(files) if _place(one, seed) <= limit]
    labelled = list(labelled_rows(one for one in _to_learn(files) if _place(one, seed) > limit))
    rows = [row for row in labelled if min(row.labels) < max(row.labels)]
    if not rows:
        raise InputValueError(
            f"{named}: in no instance of split train do candidates differ in what they are worth: give more of them, "
            "or other candidates"
        )
    return Examples(rows, held_out, split, test, left_out, len(labelled) - len(rows))


def _to_learn(files: Sequence[Path]) -> Iterator[Instance]:
    instances = read_instances(files, split="train")
    return (instance for instance in instances if instance.candidates or instance.choices)


def labelled_rows(instances: Iterable[Instance]) -> Iterator[LabelledRow]:
    """A row an instance: its distinct candidates and choices, each with the gain of a pick of it."""
    remaining = iter(instances)
    while block := list(islice(remaining, LABELLED_TOGETHER)):
        for question in pick_questions(block):
            yield LabelledRow(question.instruction, question.candidates, tuple(question.gains.tolist()))


def _place(instance: Instance, seed: int) -> int:
    """A number by which the instance's example is drawn: 64 bits, the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{seed} {example(instance)}".encode()).digest()[:8], "big")


def pick_questions(instances: Iterable[Instance]) -> list[Question]:
    """A question for every instance, over its candidates and its choices together; see `candidate_questions`.

    Choices that no candidate equals are among the question's recorded responses, with the source CHOICE.
    """
    return candidate_questions(with_choices(instance) for instance in instances)


def with_choices(instance: Instance) -> Instance:
    """The instance with its choices behind its candidates."""
    given = {candidate.text for candidate in instance.candidates}
    added = (Candidate(choice, CHOICE) for choice in instance.choices or () if choice not in given)
    return replace(instance, candidates=(*instance.candidates, *added))


def fitting_settings(
    rows: Sequence[LabelledRow],
    packer: Packer,
    max_tokens: int,
    *,
    epochs: float | None,
    learning_rate: float,
    seed: int,
) -> Settings:
    """Settings for some rows: how often to evaluate, and how long to train, depends on how many tokens there are."""
    settings = Settings(
        seed=seed,
        batch_tokens=BATCH_TOKENS,
        short=max_tokens,
        long=max_tokens,
        losses=LOSSES,
        temperature=TEMPERATURE,
        learning_rate=learning_rate,
        warmup=WARMUP,
        checkpoint_every=CHECKPOINT_STEPS,
        patience=PATIENCE,
    )
    rng = random.Random(seed)
    sample = rng.sample(rows, min(MEASURED_ROWS, len(rows)))
    kept = [draw_responses(row, settings.responses, rng) for row in sample]
    lengths = [row.length for row in packer.token_rows(kept, [max_tokens] * len(kept))]
    step_tokens = settings.batch_tokens * settings.batches_per_step
    per_epoch = max(1.0, len(rows) * sum(lengths) / len(lengths) / step_tokens)
    every = max(1, min(round(per_epoch / EVALUATIONS_PER_EPOCH), MOST_STEPS_APART))
    return replace(settings, epochs=epochs or max(EPOCHS, LEAST_STEPS / per_epoch), evaluate_every=every)


def mean_gain(questions: Sequence[Question], network: PackedNetwork, packer: Packer) -> float:
    """What the network's picks are worth, averaged over tasks; computed in bfloat16, as training computes it."""
    precision, network.precision = network.precision, torch.bfloat16
    picked = picked_gains(questions, lambda pairs: network_scores(network, packer, pairs, network.max_tokens))
    network.precision = precision
    return float(task_means(questions, picked).mean())


def adaptation_gains(questions: Sequence[Question], before: Scorer, after: Scorer) -> dict[Method, FloatArray]:
    """What each method's pick is worth, (n,) float64, NaN where it has none: both models, and what they stand beside.

    Single systems, self-scores and consensus are of recorded candidates alone, and not of choices.
    """
    recorded = [
        replace(question, recorded=tuple(one for one in question.recorded if one.source != CHOICE))
        for question in questions
    ]
    gains = {
        BEFORE: picked_gains(questions, model_scores(before, BEFORE.name)),
        AFTER: picked_gains(questions, model_scores(after, AFTER.name)),
    }
    gains |= {Method("system", source): own for source, own in system_gains(recorded).items()}
    gains |= {
        Method("rule", name): self_score_gains(recorded, key)
        for key, name in SELF_SCORES.items()
        if has_likelihoods(recorded, key)
    }
    if any(question.recorded for question in recorded):
        gains[CONSENSUS] = np.full(len(questions), np.nan)
        known = [number for number, question in enumerate(recorded) if question.recorded]
        gains[CONSENSUS][known] = consensus_gains([recorded[number] for number in known])
    return gains | {RANDOM: random_gains(questions), ORACLE: oracle_gains(questions)}


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people: a table for each part."""
    counts, training = report["instances"], report["training"]
    lines = [
        f"# Adaptation of {report['model']}",
        f"Learned from {counts['train']:,} instances, {counts['held out']:,} of split {counts['held out of']} held out",
    ]
    if report["kept_start"]:
        lines.append(
            "**No step was better on the held-out part than the start: the result is the model it started from.**"
        )
    for part, compared in report["picks"].items():
        lines += [f"## {part.capitalize()}: {compared['questions']:,} questions", NOTES[part], _table(compared)]
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in report["seconds"].items())
    lines.append(f"{training['steps']:,} steps. {seconds}. Peak memory {report['peak_memory_mib']:,.0f} MiB.")
    return "\n\n".join(lines) + "\n"


NOTES = {
    "held out": "Training stopped by these picks, so the model after it looks better here than it is. What a pick is "
    "worth, in %: for instances with choices 100 if right, else the best Porter-stemmed Rouge-L F-measure over the "
    "references; averages over tasks; 95 % bootstrap intervals, [n/a] where a task has a single example.",
    "test": "Nothing was chosen by these.",
}


def _table(compared: Mapping[str, Any]) -> str:
    rows = ["| pick | worth | of the way from random to oracle | after is ahead by |", "| --- | --- | --- | --- |"]
    for method in compared["methods"]:
        missing = compared["questions"] - method["answered"]
        name = method["name"] + (f" (none for {missing:,})" if missing else "")
        ahead = method["ahead"][AFTER.name]
        rows.append(f"| {name} | {percent(method['average'])} | {percent(method['closed'])} | {percent(ahead)} |")
    return "\n".join(rows)


def peak_memory_mib() -> float:
    """The most memory that this process ever had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Clock:
    """Seconds by stage, of this process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def ends(self, stage: str) -> None:
        """The stage ends now; it began where the one before ended."""
        now = time.perf_counter()
        self.seconds[stage], self._last = round(now - self._last, 1), now


def _keep_plan(run: Path, plan: Mapping[str, object]) -> None:
    """Notes in the run's folder what it was begun with, or compares it.

    Raises:
        InputValueError: it was begun with something else, or can't be written.
    """
    path = run / PLAN
    if not path.exists():
        write_json(path, plan)
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    for key, value in plan.items():
        if begun.get(key) != value:
            raise InputValueError(
                f"{run} was begun with other settings: {key} was {begun.get(key)!r}, and is {value!r} now: give what "
                "it was begun with, or another --run"
            )


def _write_adapted(
    folder: Path,
    network: PackedNetwork,
    tokenizer: Path,
    rows: Sequence[LabelledRow],
    held_out: Sequence[Question],
    identity: Mapping[str, object],
    figures: Mapping[str, float],
    *,
    float32: bool,
) -> None:
    """The model folder of the adapted network; rows that it learned from calibrate, the held-out questions prove."""
    learned = [
        Question("", None, row.instruction, row.responses, np.array(row.labels), "", "generation")
        for row in rows[: CALIBRATING + CHECKED]
    ]
    tasks = sorted({question.task for question in held_out})
    others = f" and {len(tasks) - NAMED_TASKS} more tasks" if len(tasks) > NAMED_TASKS else ""
    write_model(
        folder,
        network,
        tokenizer,
        learned[:CALIBRATING],
        [*held_out, *learned[CALIBRATING:]][:CHECKED],
        identity=identity,
        training=figures,
        origin=ADAPTED.format(
            candidates=sum(len(row.responses) for row in rows),
            instances=len(rows),
            tasks=", ".join(tasks[:NAMED_TASKS]) + others,
        ),
        only_orders=True,
        float32=float32,
    )


def _identity(start: Path, name: str, max_tokens: int) -> dict[str, object]:
    config = read_config(start)
    return {
        "name": name,
        "base_model": f"{config.name}, which started from {config.base_model}",
        "licence": config.licence,
        "max_tokens": max_tokens,
    }


def _copy_model(start: Path, folder: Path) -> None:
    for name in (CONFIG_FILE, *read_config(start).files):
        shutil.copyfile(start / name, folder / name)
    if (start / FLOAT_GRAPH_FILE).exists():  # to be trained further
        shutil.copyfile(start / FLOAT_GRAPH_FILE, folder / FLOAT_GRAPH_FILE)
