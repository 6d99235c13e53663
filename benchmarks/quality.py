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

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from benchmarks.machine import describe_machine
from cappy_lite import Scorer
from cappy_train.evaluate import (
    RESAMPLES,
    FloatArray,
    Question,
    ScoreFunction,
    bootstrap,
    choice_questions,
    distance_closed,
    distractor_questions,
    longest,
    majority_gains,
    oracle_gains,
    picked_gains,
    random_gains,
    sample_evenly,
    task_means,
)
from cappy_train.instances import read_instances
from cappy_train.neighbours import rouge_words
from cappy_train.network import from_bert, packaged_minilm

SEED = 0
# What all-MiniLM-L6-v2 was published to read (its sentence_bert_config.json).
MINILM_TOKENS = 256
EMBEDDING_BATCH = 32
SCORING_CHUNK = 64

RULES = {
    "t0_heldout": "choices in their order, the reference is right; resampled by example, over all its templates",
    "superni_test": (
        f"the first reference beside 7 distractors, first references of the task's other instances: of the 4 most "
        f"similar inputs (Dice coefficient of their word sets) and of 3 random ones; candidates shuffled; seed {SEED}"
    ),
}
BASELINES = """\
random    the expected gain of a pick at random
longest   the candidate with the most characters
majority  the place in the list of choices that is right most often in this very test set, per template
          (where choices are fixed: the most frequent class)
overlap   the largest share of the candidate's distinct Rouge words that occur in the instruction
minilm    the largest cosine of all-MiniLM-L6-v2's mean-pooled embeddings of instruction and candidate
oracle    the best candidate
Of equal scores the first candidate is picked. 95 % intervals: percentiles of a bootstrap over examples within tasks."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with t0_heldout and superni_test .jsonl.gz")
    parser.add_argument("--model", default="cappy-mini", help="a shipped model's name or a model folder")
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    parser.add_argument("--limit", type=int, help="questions of each set, spread over tasks; all where not given")
    arguments = parser.parse_args(argv)

    model, minilm = model_scores(arguments.model), minilm_cosine(packaged_minilm())
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
        gains = gains_by_method(questions, model, minilm)
        report["sets"][name] = {"rule": RULES[name], **compare(questions, gains)}
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


def gains_by_method(
    questions: Sequence[Question], model: ScoreFunction, minilm: ScoreFunction
) -> dict[str, FloatArray]:
    """What each method's pick is worth, (n,) by name, the model first; the majority class for choices alone."""
    gains = {"model": picked_gains(questions, model), "random": random_gains(questions)}
    if questions[0].kind == "choice":
        gains["majority"] = majority_gains(questions)
    for name, score in {"longest": longest, "overlap": overlap, "minilm": minilm}.items():
        gains[name] = picked_gains(questions, score)
    return gains | {"oracle": oracle_gains(questions)}


def compare(questions: Sequence[Question], gains: Mapping[str, FloatArray]) -> dict[str, Any]:
    """Averages of every method with 95 % intervals, and how far the first method is ahead of each other one.

    gains: by method, (n,) float64; "random" and "oracle" among them. Every estimate is {value, low, high}.
    """
    stacked = np.stack(list(gains.values()))
    # The estimate goes first, so that whatever is computed of the resamples is computed of it too.
    samples = np.concatenate([task_means(questions, stacked)[None], bootstrap(questions, stacked, seed=SEED)])
    tasks = sorted({question.task for question in questions})
    by_method = dict(zip(gains, np.moveaxis(samples, 1, 0), strict=True))
    averages = {name: by_task.mean(axis=1) for name, by_task in by_method.items()}
    first = next(iter(gains))
    return {
        "questions": len(questions),
        "questions_by_task": {task: sum(question.task == task for question in questions) for task in tasks},
        "methods": {
            name: {
                "average": _estimate(averages[name]),
                "closed": _estimate(distance_closed(averages[name], averages["random"], averages["oracle"])),
                f"{first}_ahead": _estimate(averages[first] - averages[name]),
                "tasks": {task: _estimate(by_method[name][:, index]) for index, task in enumerate(tasks)},
                f"{first}_ahead_by_task": {
                    task: _estimate(by_method[first][:, index] - by_method[name][:, index])
                    for index, task in enumerate(tasks)
                },
            }
            for name in gains
        },
    }


def _estimate(samples: FloatArray) -> dict[str, float]:
    low, high = np.percentile(samples[1:], [2.5, 97.5])
    return {"value": round(float(samples[0]), 5), "low": round(float(low), 5), "high": round(float(high), 5)}


def table(result: Mapping[str, Any]) -> str:
    """A set's results in per cent: tasks, averages, distance closed and the first method's lead, with intervals."""
    methods = result["methods"]
    first = next(iter(methods))
    rows = [["task", "n", *methods]]
    for task, count in result["questions_by_task"].items():
        rows.append([task, str(count), *(f"{100 * method['tasks'][task]['value']:.1f}" for method in methods.values())])
    labels = {"average": "average", "closed": "closed, random to oracle", f"{first}_ahead": f"{first} ahead by"}
    for key, label in labels.items():
        estimates = [method[key] for method in methods.values()]
        rows.append([label, str(result["questions"]), *(f"{100 * estimate['value']:.1f}" for estimate in estimates)])
        rows.append(["", "", *(f"{100 * estimate['low']:.1f}..{100 * estimate['high']:.1f}" for estimate in estimates)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-6], rule, *lines[-6:]])


def model_scores(model: str) -> ScoreFunction:
    """Scores of the runtime's Scorer."""
    scorer = Scorer(model)

    def score(pairs: list[tuple[str, tuple[str, ...]]]) -> list[npt.NDArray[np.float32]]:
        scores: list[npt.NDArray[np.float32]] = []
        with tqdm(total=len(pairs), desc="model", unit="question") as progress:
            for start in range(0, len(pairs), SCORING_CHUNK):
                chunk = pairs[start : start + SCORING_CHUNK]
                scores.extend(scorer.score_many([pair[0] for pair in chunk], [pair[1] for pair in chunk]))
                progress.update(len(chunk))
        return scores

    return score


def overlap(pairs: list[tuple[str, tuple[str, ...]]]) -> list[FloatArray]:
    """The share of each candidate's distinct Rouge words that occur in the instruction; 0 where it has none."""
    scores = []
    for instruction, candidates in pairs:
        known = rouge_words(instruction)
        words = [rouge_words(text) for text in candidates]
        scores.append(np.array([len(own & known) / max(len(own), 1) for own in words]))
    return scores


def minilm_cosine(folder: Path) -> ScoreFunction:
    """Cosines of the embeddings of instruction and candidate, by the BERT in `folder`: the unmodified all-MiniLM-L6-v2.

    As the model was published: the last states of all tokens, [CLS] and [SEP] too, are averaged, over MINILM_TOKENS
    tokens at most.
    """

    def score(pairs: list[tuple[str, tuple[str, ...]]]) -> list[FloatArray]:
        texts = sorted({text for instruction, candidates in pairs for text in (instruction, *candidates)})
        row = {text: index for index, text in enumerate(texts)}
        embeddings = embed(folder, texts)
        return [
            embeddings[[row[text] for text in candidates]] @ embeddings[row[instruction]]
            for instruction, candidates in pairs
        ]

    return score


def embed(folder: Path, texts: Sequence[str]) -> FloatArray:
    """Mean-pooled embeddings of length 1, (n, hidden) float64."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MINILM_TOKENS)
    rows = [torch.tensor(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    network = from_bert(folder).eval()
    means: list[Tensor] = []
    with torch.inference_mode(), tqdm(total=len(rows), desc="minilm", unit="text") as progress:
        for start in range(0, len(rows), EMBEDDING_BATCH):
            batch = [rows[index] for index in order[start : start + EMBEDDING_BATCH]]
            ids = pad_sequence(batch, batch_first=True)
            positions = torch.arange(ids.shape[1]).expand_as(ids)
            lengths = torch.tensor([[len(row)] for row in batch])
            real = positions < lengths
            # One segment a text: the network's attention is then BERT's own. Padding is segment -1.
            states = network.encode(ids, positions, torch.zeros_like(ids), real.long() - 1)
            means.extend((states * real[:, :, None]).sum(dim=1) / lengths)
            progress.update(len(batch))
    embeddings: FloatArray = np.empty((len(rows), network.config.hidden))
    embeddings[order] = torch.stack(means).double().numpy()
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings


if __name__ == "__main__":
    main()
