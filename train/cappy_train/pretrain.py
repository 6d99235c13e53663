"""Continual pre-training: a BERT checkpoint becomes a scorer by regression on responses of every quality.

Reads top to bottom: instances, examples, token rows, batches, steps. What a step reads follows from the settings and
the step's number alone, so a run that was killed goes on from its checkpoint as if it had not been.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from array import array
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cappy_lite.errors import InputValueError
from cappy_train.batches import Batch, Packer, TokenRow, network_scores, plan
from cappy_train.evaluate import dev_questions, evaluate_dev
from cappy_train.network import NetworkConfig, ScorerNetwork, from_bert
from cappy_train.regression import examples, training_instances

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run does; part of its checkpoint, since a run can only go on as it began.

    steps: optimizer steps; None for one pass over the data.
    batch_tokens: tokens of a batch, padding included; a CPU is fastest while a batch fits its cache.
    batches_per_step: batches whose gradients make one step.
    short, long, long_share: bounds on the tokens of a pair, and the share of rows under the longer one.
    learning_rate, warmup: the peak, reached after this share of the steps; then it falls in a line to zero.
    listwise: weight of the listwise loss beside the pointwise one.
    temperature: of the listwise loss' target.
    """

    seed: int = 0
    steps: int | None = None
    batch_tokens: int = 4096
    batches_per_step: int = 2
    short: int = 288
    long: int = 512
    long_share: float = 0.15
    learning_rate: float = 3e-4
    warmup: float = 0.05
    weight_decay: float = 0.01
    listwise: float = 1.0
    temperature: float = 0.2
    checkpoint_every: int = 200
    evaluate_every: int = 1000

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise InputValueError(f"steps must be at least 1, or None for one pass over the data, not {self.steps}")


def pretrain(data: Path, base: Path, out: Path, settings: Settings) -> ScorerNetwork:
    """Trains a scorer; `out` then holds checkpoint.pt, tokenizer.json and log.jsonl (losses, speed, dev figures).

    Args:
        data: folder with the training files that `regression.training_instances` names.
        base: folder of the BERT checkpoint to start from, with its tokenizer.json.
        out: folder of the run; where it holds a checkpoint of the same settings, the run goes on from there.

    Raises:
        InputValueError: a file is missing or damaged, or `out` holds a run of other settings.
    """
    torch.manual_seed(settings.seed)
    network = from_bert(base)
    if not (base / "tokenizer.json").is_file():
        raise InputValueError(f"{base / 'tokenizer.json'} is missing: save the checkpoint's tokenizer there")
    packer = Packer(base / "tokenizer.json")
    instances = training_instances(data, seed=settings.seed)
    made = tqdm(examples(instances, seed=settings.seed), "examples", len(instances), unit="row")
    rows = packer.token_rows(
        made, short=settings.short, long=settings.long, long_share=settings.long_share, seed=settings.seed
    )
    dev = dev_questions(data)

    out.mkdir(parents=True, exist_ok=True)
    run = Run(network, rows, settings, out)
    run.resume()
    # Only now is it sure that `out` is not another run's.
    shutil.copyfile(base / "tokenizer.json", out / "tokenizer.json")
    meter = Meter()
    with tqdm(total=run.steps, initial=run.step, desc="steps", unit="step") as bar:
        for step_batches in run.remaining_steps():
            for numbers in step_batches:
                batch = packer.batch([rows[number] for number in numbers])
                meter.add(batch, run.add_gradients(batch))
            run.update()
            bar.update()
            bar.set_postfix_str(meter.summary())
            at_end = run.step == run.steps
            if run.step % settings.evaluate_every == 0 or at_end:
                figures = evaluate_dev(dev, lambda pairs: network_scores(run.working, packer, pairs, settings.long))
                bar.write(run.log(figures))
            if run.step % settings.checkpoint_every == 0 or at_end:
                bar.write(run.log(meter.figures()))
                run.save()
                meter = Meter()
    return run.network


class Run:
    """The state of a training run: what a step changes, and what a checkpoint keeps.

    The encoder works in bfloat16 on a copy of the weights; the weights themselves, and AdamW's moments, are float32.
    Word embeddings stay as they are: words that the data lacks keep their place among those that it has.
    """

    def __init__(self, network: ScorerNetwork, rows: Sequence[TokenRow], settings: Settings, out: Path) -> None:
        self.network = network
        self.settings = settings
        self.out = out
        self.step = 0
        self._rows = rows
        self._data = digest(rows)
        self._per_epoch = len(self._epoch(0))
        if not self._per_epoch:
            raise InputValueError(
                f"{len(rows)} rows of data don't fill one step of {settings.batches_per_step} batches of "
                f"{settings.batch_tokens} tokens: give more data"
            )
        self.steps = settings.steps or self._per_epoch
        network.word_embeddings.requires_grad_(False)
        self.working = working_copy(network)
        self._pairs = [
            (weight, copy)
            for weight, copy in zip(network.parameters(), self.working.parameters(), strict=True)
            if weight.requires_grad
        ]
        decayed = [weight for weight, _ in self._pairs if weight.ndim > 1]
        plain = [weight for weight, _ in self._pairs if weight.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            fused=True,
        )

    def remaining_steps(self) -> Iterator[list[list[int]]]:
        """For each step still to do, its batches as numbers of rows."""
        while self.step < self.steps:
            epoch, done = divmod(self.step, self._per_epoch)
            yield from self._epoch(epoch)[done : done + self.steps - self.step]

    def _epoch(self, epoch: int) -> list[list[list[int]]]:
        batches = plan(self._rows, self.settings.batch_tokens, seed=self.settings.seed + epoch)
        size = self.settings.batches_per_step
        return [batches[start : start + size] for start in range(0, len(batches) - size + 1, size)]

    def add_gradients(self, batch: Batch) -> Tensor:
        """Adds a batch's gradients to those of the step; returns its loss."""
        loss = scorer_loss(batch.logits(self.working), batch.labels, self.settings)
        (loss / self.settings.batches_per_step).backward()
        for weight, copy in self._pairs:
            assert copy.grad is not None
            if weight.grad is None:
                weight.grad = copy.grad.to(torch.float32, copy=True)
            else:
                weight.grad += copy.grad
            copy.grad = None
        return loss.detach()

    def update(self) -> None:
        """One step of AdamW with the gradients added up."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.settings)
        torch.nn.utils.clip_grad_norm_([weight for weight, _ in self._pairs], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for weight, copy in self._pairs:
                copy.copy_(weight)
        self.step += 1

    def log(self, figures: dict[str, float]) -> str:
        """Appends figures to the run's log, and returns the line."""
        line = json.dumps({"step": self.step, **{name: round(value, 5) for name, value in figures.items()}})
        with (self.out / LOG).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        return line

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        state = {
            "settings": asdict(self.settings),
            "sizes": self.network.config.to_dict(),
            "step": self.step,
            "data": self._data,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        temporary = self.out / f"{CHECKPOINT}.part"
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.out / CHECKPOINT)

    def resume(self) -> None:
        """Goes on from the checkpoint in the run's folder, if there is one."""
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if (state["settings"], state["data"]) != (asdict(self.settings), self._data):
            raise InputValueError(f"{path} is of a run with other settings or data: give --out another folder")
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.working.load_state_dict(self.network.state_dict())


def digest(rows: Sequence[TokenRow]) -> str:
    """A fingerprint of training data: two runs with the same one read the same tokens and labels."""
    told = hashlib.sha256()
    for row in rows:
        for ids in (row.instruction, *row.responses):
            told.update(len(ids).to_bytes(4, "little") + array("i", ids).tobytes())
        told.update(array("d", [row.max_tokens, *row.labels]).tobytes())
    return told.hexdigest()


def trained_network(run: Path) -> ScorerNetwork:
    """The network of a run's last checkpoint, in float32.

    Raises:
        InputValueError: the folder has no checkpoint.
    """
    path = run / CHECKPOINT
    if not path.exists():
        raise InputValueError(f"{path} is missing: give the --out folder of a training run")
    state = torch.load(path, weights_only=True)
    network = ScorerNetwork(NetworkConfig(**state["sizes"]))
    network.load_state_dict(state["network"])
    return network.eval()


class Meter:
    """Means and speed since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._losses: list[Tensor] = []
        self._pairs = self._tokens = 0

    def add(self, batch: Batch, loss: Tensor) -> None:
        self._losses.append(loss)
        self._pairs += int((~batch.labels.isnan()).sum())
        self._tokens += int((batch.segment_ids >= 0).sum())

    def figures(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._start
        return {
            "loss": float(torch.stack(self._losses).mean()),
            "pairs_per_second": self._pairs / seconds,
            "tokens_per_second": self._tokens / seconds,
        }

    def summary(self) -> str:
        figures = self.figures()
        return (
            f"loss {figures['loss']:.3f}, {figures['pairs_per_second']:.0f} pairs/s, "
            f"{figures['tokens_per_second']:.0f} tokens/s"
        )


def scorer_loss(logits: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    """Pointwise cross-entropy of each score with its label, and listwise cross-entropy over the candidates of a row.

    The pointwise part makes scores comparable between instructions, the listwise part makes the best candidate win. Its
    target is a softmax of label / temperature, its prediction one of the logits.

    logits, labels: (B, K) float32; labels are NaN in places without a candidate.
    """
    present = ~labels.isnan()
    target = labels.nan_to_num()
    pointwise = F.binary_cross_entropy_with_logits(logits[present], target[present])
    absent = ~present
    target_share = (target / settings.temperature).masked_fill(absent, float("-inf")).softmax(-1)
    log_share = logits.masked_fill(absent, float("-inf")).log_softmax(-1).masked_fill(absent, 0.0)
    listwise = -(target_share * log_share).sum(-1).mean()
    return pointwise + settings.listwise * listwise


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Up in a line over the warm-up's share of the steps, then down in a line to zero."""
    done = (step + 1) / steps
    return settings.learning_rate * min(done / settings.warmup, (1 - step / steps) / (1 - settings.warmup), 1.0)


def working_copy(network: ScorerNetwork) -> ScorerNetwork:
    """The network with its encoder in bfloat16; the head stays float32, whose steps are fine enough for a logit."""
    copy = deepcopy(network).to(torch.bfloat16)
    copy.precision = torch.bfloat16
    copy.head_dense.to(torch.float32)
    copy.head_output.to(torch.float32)
    return copy
