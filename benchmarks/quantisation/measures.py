"""What is measured of a scheme: time, how far scores are from float32's, picks on dev, and steadiness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.corpus import SEED, synthetic_corpus
from benchmarks.quantisation.report import DevFigure, Difference, Steadiness
from benchmarks.quantisation.runtime_graph import row_inputs
from benchmarks.rounds import median_and_range
from benchmarks.scorer.side_by_side import turns
from benchmarks.scorer.sizes import Size, draw, open_tokenizer
from cappy_lite.activations import sigmoid
from cappy_lite.packing import LONGEST_ROW_TOKENS, PackedRow, pack
from cappy_lite.session import OUTPUT, Session, import_onnxruntime, session_options
from cappy_train.batches import Packer
from cappy_train.evaluate import (
    RESAMPLES,
    Question,
    distance_closed,
    oracle_gains,
    picked_gains,
    random_gains,
    task_means,
)
from cappy_train.export import CLEAR_MARGIN, packed_rows

FloatArray = npt.NDArray[np.float32]
Logits = Callable[[PackedRow], FloatArray]

# That texts for timing are cut from.
WORDS = 20_000


def open_graph(path: Path, threads: int, *, own: bool) -> Logits:
    """A graph in a file as a function of rows, run as it is fastest: ours as the runtime does, others optimised."""
    if own:
        return Session(path, threads).run
    session = import_onnxruntime().InferenceSession(
        str(path), session_options(threads), providers=["CPUExecutionProvider"]
    )
    return lambda row: session.run([OUTPUT], row_inputs(row))[0]


def timing_row(tokenizer: Path, size: Size) -> PackedRow:
    """The row in which the runtime would read made-up texts of these lengths."""
    folder = tokenizer.parent
    instruction, candidates = draw(synthetic_corpus(WORDS), open_tokenizer(folder), size)
    packer = Packer(tokenizer)
    (row,) = pack(
        packer.encode(instruction),
        [packer.encode(candidate) for candidate in candidates],
        cls_id=packer.cls_id,
        sep_id=packer.sep_id,
        max_tokens=LONGEST_ROW_TOKENS,
        row_tokens=LONGEST_ROW_TOKENS,
    )
    return row


def times(opened: Mapping[str, Logits], reference: str, row: PackedRow, seconds: float) -> dict[str, dict[str, object]]:
    """Milliseconds of a row by graph, and how many times the reference's; in turns, medians and ranges of rounds."""
    calls = [lambda run=run: run(row) for run in opened.values()]
    rates = dict(zip(opened, turns(calls, 1, seconds), strict=True))
    return {
        name: {
            "milliseconds": 1e3 / float(np.median(rate)),
            "times": median_and_range(rates[reference] / rate),
            "rounds": len(rate),
        }
        for name, rate in rates.items()
    }


def score_all(run: Logits, rows: Sequence[Sequence[PackedRow]], name: str) -> list[FloatArray]:
    """Scores of each question's candidates, in their order; `rows` are the questions'."""
    scores = []
    for question in tqdm(rows, name, unit="question", leave=False):
        logits = np.empty(sum(len(row.candidate_indices) for row in question), dtype=np.float32)
        for row in question:
            logits[row.candidate_indices] = run(row)
        scores.append(sigmoid(logits))
    return scores


def difference(scores: Sequence[FloatArray], exact: Sequence[FloatArray]) -> Difference:
    """How far scores are from float32's, and how many of the clear questions keep their best candidate."""
    off = np.abs(np.concatenate(scores) - np.concatenate(exact))
    same = [
        one.argmax() == other.argmax()
        for one, other in zip(scores, exact, strict=True)
        if len(other) > 1 and np.subtract(*np.sort(other)[:-3:-1]) > CLEAR_MARGIN
    ]
    return {
        "mean": float(off.mean()),
        "largest": float(off.max()),
        "same_pick": float(np.mean(same)) if same else float("nan"),
        "clear": len(same),
    }


def dev_figures(
    questions: Sequence[Question], scores: Mapping[str, Sequence[FloatArray]], reference: str
) -> dict[str, DevFigure]:
    """A set's figure by scheme, and its difference from the reference's with a 95 % interval of the paired bootstrap.

    The figure: accuracy on choices, else how far from a random pick to the best one. Tasks are drawn with replacement,
    whole: of many a set has a question or two, which say nothing of the spread within a task.
    """
    picked = [picked_gains(questions, lambda _, own=own: own) for own in scores.values()]
    gains = np.stack([random_gains(questions), oracle_gains(questions), *picked])
    by_task = task_means(questions, gains)
    tasks = by_task.shape[1]
    draws = np.random.default_rng(SEED).multinomial(tasks, np.full(tasks, 1 / tasks), size=RESAMPLES) / tasks
    # The estimate goes first, so that whatever is computed of the resamples is computed of it too.
    samples = np.concatenate([by_task.mean(axis=1)[None], draws @ by_task.T])
    figures = {
        name: own if questions[0].kind == "choice" else distance_closed(own, samples[:, 0], samples[:, 1])
        for name, own in zip(scores, samples.T[2:], strict=True)
    }
    return {name: _paired(own, figures[reference]) for name, own in figures.items()}


def _paired(samples: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> DevFigure:
    ahead = samples - reference
    low, high = np.percentile(ahead[1:], [2.5, 97.5])
    return {"value": float(samples[0]), "difference": [float(ahead[0]), float(low), float(high)]}


def steadiness(
    run: Logits, packer: Packer, questions: Sequence[Question], together: Sequence[FloatArray], max_tokens: int
) -> Steadiness:
    """How candidates' scores alone compare with those beside the others of their question."""
    moves: list[float] = []
    for question, beside in zip(questions, together, strict=True):
        instruction = packer.encode(question.instruction)
        for candidate, score in zip(question.candidates, beside, strict=True):
            (row,) = packer.pack(instruction, [packer.encode(candidate)], max_tokens)
            moves.append(abs(float(sigmoid(run(row))[0]) - float(score)))
    return {"candidates": len(moves), "moved": float(np.mean(np.array(moves) > 0)), "largest": max(moves)}


def rows_of(packer: Packer, questions: Sequence[Question], max_tokens: int) -> list[list[PackedRow]]:
    return [packed_rows(packer, question, max_tokens) for question in questions]
