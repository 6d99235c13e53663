"""A trial of quantisation-aware training: the same weights, trained a little more with and without its roundings.

    python -m benchmarks.quantisation.training --data FOLDER --out FOLDER [--model NAME|FOLDER | --run RUN] [--steps N]

Two runs read the same batches at the same rate. One has inputs and weights of its linear layers rounded as the 8-bit
graph rounds them, with the scales that the quantiser gives the weights at the start; gradients pass a rounding as if it
weren't there. Both are then quantised as in export, and their 8-bit graphs compared on dev. Markdown table on stdout,
progress on stderr; --out gets both runs' folders, which `benchmarks.quantisation --run` and export read.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.markdown import renew, start, table
from benchmarks.quantisation.measures import dev_figures, difference, open_graph, rows_of, score_all
from benchmarks.quantisation.report import SETS, DevFigure, Difference, dev_figure
from benchmarks.quantisation.sources import SUPERNI, T0, Source, dev_sets, of_model, of_run, split
from cappy_lite.models import GRAPH_FILE, TOKENIZER_FILE
from cappy_lite.packing import PackedRow
from cappy_train.batches import Batch, Packer, collate, padded
from cappy_train.evaluate import Question, questions
from cappy_train.export import FLOAT_GRAPH_FILE
from cappy_train.graph import GraphWeights, QuantisedLinear, graph_weights, packed_graph, scorer_network
from cappy_train.graph_builder import save_graph
from cappy_train.instances import read_instances
from cappy_train.network import ScorerNetwork
from cappy_train.objective import objective
from cappy_train.quantise import WEIGHT_LIMIT, observe, quantise
from cappy_train.training import CHECKPOINT

START = start("benchmarks.quantisation.training")
SEED = 0
STEP_TOKENS = 4096
# So many fit the processor's caches better than a step's.
BATCH_TOKENS = 2048
# Longer rows are passed over: their attention would take most of the time.
MAX_TOKENS = 256
WARMUP = 0.05
LOSSES = {"cross_entropy": 1.0, "listwise": 1.0}
TEMPERATURE = 0.2
PLAIN, AWARE = "without roundings", "with roundings"


class Run(TypedDict):
    """One of the runs. difference: of its 8-bit graph's scores from those of its own float32 one.

    dev, dev_float32: by set; differences are from the 8-bit graph of the run without roundings.
    """

    name: str
    seconds: float
    loss: float
    difference: Difference
    dev: dict[str, DevFigure]
    dev_float32: dict[str, DevFigure]


class Report(TypedDict):
    benchmark: str
    weights: str
    steps: int
    learning_rate: float
    questions: dict[str, int]
    runs: list[Run]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help=f"a folder with {SUPERNI} and {T0}")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets the runs' folders")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default="cappy-mini", help="a shipped model's name or a model folder")
    source.add_argument("--run", type=Path, help="a training run's folder")
    parser.add_argument("--steps", type=int, default=150, help=f"of {STEP_TOKENS:,} tokens (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="the peak (%(default)s)")
    parser.add_argument("--questions", type=int, default=400, metavar="N", help="of each dev set (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="renew the table in this Markdown file")
    arguments = parser.parse_args(argv)

    torch.set_num_threads(arguments.threads)
    from_where = of_run(arguments.run) if arguments.run else of_model(arguments.model)
    trial = Trial.of(from_where, arguments.data, arguments.questions, arguments.threads)
    batches = training_batches(trial.packer, arguments.data, arguments.steps)
    runs = []
    for name, wrapped in ((PLAIN, False), (AWARE, True)):
        network = scorer_network(from_where.weights)
        trained = rounding_copy(network, trial.quantised(from_where.weights)) if wrapped else network
        begun = time.perf_counter()
        loss = train(trained, batches, arguments.learning_rate)
        seconds = time.perf_counter() - begun
        save_run(network, from_where.tokenizer, arguments.out / name.replace(" ", "-"))
        runs.append((name, seconds, loss, graph_weights(network)))
    report = trial.report(runs, from_where.described, arguments.steps, arguments.learning_rate)
    print(tables(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.docs:
        renew(arguments.docs, START, tables(report))


# Training


def training_batches(packer: Packer, data: Path, steps: int) -> list[list[Batch]]:
    """Each step's batches: rows of questions over the training splits, their candidates' gains as labels."""
    drawing = random.Random(SEED)
    instances = [instance for name in (SUPERNI, T0) for instance in read_instances(data / name, split="train")]
    # A row has more than 50 tokens on average, and many are passed over.
    sample = drawing.sample(instances, min(len(instances), steps * STEP_TOKENS // 25))
    asked = questions(sample, seed=SEED)
    drawing.shuffle(asked)
    return list(tqdm(batched(packer, asked, steps), "batches", steps, unit="step"))


def batched(packer: Packer, asked: Sequence[Question], steps: int) -> list[list[Batch]]:
    """Questions in their order, as many as fill a step's batches; those of a step are sorted by length.

    Raises:
        ValueError: there are too few.
    """
    steps_of_rows: list[list[tuple[PackedRow, Question]]] = [[]]
    tokens = 0
    for question in asked:
        candidates = [packer.encode(candidate) for candidate in question.candidates]
        row = next(packer.pack(packer.encode(question.instruction), candidates, MAX_TOKENS))
        length = padded(len(row.input_ids))
        if length > MAX_TOKENS:
            continue
        if tokens + length > STEP_TOKENS:
            if len(steps_of_rows) == steps:
                return [step_batches(rows) for rows in steps_of_rows]
            steps_of_rows.append([])
            tokens = 0
        steps_of_rows[-1].append((row, question))
        tokens += length
    raise ValueError(f"the data have {len(steps_of_rows) - 1} steps of {STEP_TOKENS} tokens: give --steps as many")


def step_batches(rows: list[tuple[PackedRow, Question]]) -> list[Batch]:
    """A step's rows in batches of about BATCH_TOKENS, padding included; rows of like length together."""
    rows = sorted(rows, key=lambda item: len(item[0].input_ids))
    parts: list[list[tuple[PackedRow, Question]]] = [[]]
    for item in rows:
        if parts[-1] and (len(parts[-1]) + 1) * padded(len(item[0].input_ids)) > BATCH_TOKENS:
            parts.append([])
        parts[-1].append(item)
    return [
        collate(
            [row for row, _ in part],
            [question.gains[row.candidate_indices] for row, question in part],
            padded(len(part[-1][0].input_ids)),
            max(len(row.candidate_indices) for row, _ in part),
        )
        for part in parts
    ]


def train(network: nn.Module, batches: Sequence[Sequence[Batch]], peak: float) -> float:
    """Trains in place, in bfloat16 but for weights; returns the mean loss of the last tenth of the steps."""
    for name, weight in network.named_parameters():
        weight.requires_grad_(name != "word_embeddings.weight")
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    losses = []
    for step, parts in enumerate(tqdm(batches, "training", unit="step")):
        done = (step + 1) / len(batches)
        for group in optimizer.param_groups:
            group["lr"] = peak * min(done / WARMUP, (1 - step / len(batches)) / (1 - WARMUP), 1.0)
        rows = sum(len(batch.labels) for batch in parts)
        total = 0.0
        for batch in parts:
            with torch.autocast("cpu", torch.bfloat16):
                logits = batch.logits(network)
            loss = objective(logits, batch.labels, LOSSES, temperature=TEMPERATURE) * (len(batch.labels) / rows)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


class RoundedLinear(nn.Module):
    """A linear layer, or several beside each other, computed as in 8 bits; its weights are those of `linear`."""

    def __init__(self, linear: nn.Linear, parts: Sequence[QuantisedLinear]) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.parts = parts
        self.sizes = [len(part.bias) for part in parts]

    def forward(self, states: Tensor, outputs: slice = slice(None)) -> Tensor:
        weights, biases = self.weight.split(self.sizes), self.bias.split(self.sizes)
        products = [rounded_product(states, *each) for each in zip(weights, biases, self.parts, strict=True)]
        return torch.cat(products, dim=-1)[..., outputs]


def rounded_product(states: Tensor, weight: Tensor, bias: Tensor, part: QuantisedLinear) -> Tensor:
    """states @ weight.T + bias, by codes of up to 255, which bfloat16 holds exactly. weight: (out, in)."""
    gain, zero_point = torch.from_numpy(part.code_gain), float(part.input_zero_point)
    codes = straight_through(states.float() * gain).clamp(-zero_point, 255 - zero_point)
    # What an input channel is multiplied by, its weights take back.
    scaled = weight / gain
    scales = scaled.detach().abs().amax(dim=1, keepdim=True) / WEIGHT_LIMIT
    products = F.linear(codes, straight_through(scaled / scales))
    return products * scales.T + bias


def straight_through(values: Tensor) -> Tensor:
    """Rounded values, with the gradient of the values themselves (Bengio et al., 2013)."""
    return values + (values.round() - values).detach()


def rounding_copy(network: ScorerNetwork, quantised: GraphWeights) -> ScorerNetwork:
    """The network with roundings in its layers' linear parts; it shares all weights with `network`."""
    memo = {id(weight): weight for weight in network.parameters()}
    copy = deepcopy(network, memo)
    for number, layer in enumerate(copy.layers):
        for name in ("query_key_value", "attention_output", "intermediate", "output"):
            parts = ("query", "key_value") if name == "query_key_value" else (name,)
            linears = (quantised.linears[f"layers.{number}.{part}"] for part in parts)
            rounded = [linear for linear in linears if isinstance(linear, QuantisedLinear)]
            setattr(layer, name, RoundedLinear(getattr(layer, name), rounded))
    return copy


def save_run(network: ScorerNetwork, tokenizer: Path, folder: Path) -> None:
    """What of a run `trained_network` reads, and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"sizes": network.config.to_dict(), "network": network.state_dict()}, folder / CHECKPOINT)
    shutil.copyfile(tokenizer, folder / TOKENIZER_FILE)


# Measuring


@dataclass(frozen=True)
class Trial:
    """What both runs are measured on."""

    packer: Packer
    calibrating: Sequence[PackedRow]
    asked: Mapping[str, Sequence[Question]]
    max_tokens: int
    threads: int

    @staticmethod
    def of(source: Source, data: Path, count: int, threads: int) -> Trial:
        packer = Packer(source.tokenizer)
        calibrating, asked = split(dev_sets(data), count)
        rows = [row for question in rows_of(packer, calibrating, source.max_tokens) for row in question]
        return Trial(packer, rows, asked, source.max_tokens, threads)

    def quantised(self, weights: GraphWeights) -> GraphWeights:
        """As export quantises them."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / FLOAT_GRAPH_FILE
            onnx.save(packed_graph(weights), path)
            return quantise(weights, observe(path, self.calibrating))

    def scores(self, weights: GraphWeights, name: str) -> dict[str, list[np.ndarray]]:
        """Of each set's questions."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / GRAPH_FILE
            save_graph(packed_graph(weights), path)
            run = open_graph(path, self.threads, own=True)
            return {
                kind: score_all(run, rows_of(self.packer, members, self.max_tokens), name)
                for kind, members in self.asked.items()
            }

    def report(
        self, runs: Sequence[tuple[str, float, float, GraphWeights]], described: str, steps: int, learning_rate: float
    ) -> Report:
        scored = {}
        for name, *_, weights in runs:
            scored[name] = self.scores(self.quantised(weights), name)
            scored[f"{name}, float32"] = self.scores(weights, name)
        figures = {
            kind: dev_figures(members, {name: own[kind] for name, own in scored.items()}, PLAIN)
            for kind, members in self.asked.items()
        }
        return {
            "benchmark": "quantisation-aware training",
            "weights": described,
            "steps": steps,
            "learning_rate": learning_rate,
            "questions": {kind: len(members) for kind, members in self.asked.items()},
            "runs": [
                {
                    "name": name,
                    "seconds": seconds,
                    "loss": loss,
                    "difference": difference(flat(scored[name]), flat(scored[f"{name}, float32"])),
                    "dev": {kind: own[name] for kind, own in figures.items()},
                    "dev_float32": {kind: own[f"{name}, float32"] for kind, own in figures.items()},
                }
                for name, seconds, loss, _ in runs
            ],
        }


def flat(scores: Mapping[str, Sequence[np.ndarray]]) -> list[np.ndarray]:
    return [one for members in scores.values() for one in members]


def tables(report: Report) -> str:
    """The runs in Markdown."""
    asked = ", ".join(f"{count} of {SETS[kind]}" for kind, count in report["questions"].items())
    head = ["trained", "graph", "mean difference", *(SETS[kind] for kind in report["questions"])]
    rows = []
    for run in report["runs"]:
        off = f"{run['difference']['mean']:.4f}"
        rows.append([run["name"], "8 bits", off, *(dev_figure(one) for one in run["dev"].values())])
        rows.append([run["name"], "float32", "", *(dev_figure(one) for one in run["dev_float32"].values())])
    return "\n\n".join(
        [
            f"{report['steps']} steps of {STEP_TOKENS:,} tokens, peak rate {report['learning_rate']:g}; weights at the "
            f"start: {report['weights']}; dev questions: {asked}. Differences of scores are from the run's own float32 "
            f"graph, those of figures in points from the 8-bit graph of the run {PLAIN}, with 95 % intervals of a "
            "paired bootstrap over tasks.",
            table(head, rows),
        ]
    )


if __name__ == "__main__":
    main()
