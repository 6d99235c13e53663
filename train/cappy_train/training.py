"""The training loop: any network of `trainable.TrainableNetwork`'s kinds, any rows, one device or many.

`train` is all that others call: pre-training gives it the rows of shards (`streaming.ShardRows`), adaptation those that
it has in memory (`streaming.ListedRows`). What a step reads follows from the settings and the place in the stream of
rows that the step before left, so a run that was killed goes on from its checkpoint to the same weights, bit for bit.

Several processes, started by `accelerate launch` or `torchrun`, share each step's batches; accelerate finds how from
what started them: DDP, FSDP, torch_xla. Every process plans the same batches and packs its own, so a step has the same
batches however many processes there are. Weights are float32 everywhere, and the network computes in bfloat16 by itself
(`precision`), so neither does its arithmetic depend on that.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from tqdm import tqdm

from cappy_lite.errors import InputValueError
from cappy_lite.models import TOKENIZER_FILE
from cappy_lite.packing import INSTRUCTION_FLOOR, SPECIAL_TOKENS
from cappy_train.evaluate import Question, dev_figures
from cappy_train.files import written_whole
from cappy_train.network import PackedNetwork
from cappy_train.objective import check_losses, objective
from cappy_train.shared_builds import kind_of
from cappy_train.streaming import Place, Reading, Rows, ahead, packed_by_processes, planned_batches
from cappy_train.trainable import TextBatch, TextPacker, TrainableNetwork, network_scores
from cappy_train.workers import one_thread_an_operation

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
# Batches that are made while others are computed on.
BATCHES_AHEAD = 8
PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
MAX_GRADIENT_NORM = 1.0

Weights = dict[str, Tensor]
Network = TypeVar("Network", bound=TrainableNetwork)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run does; part of its checkpoint, since a run can only go on as it began.

    seed: of the order of the data, of what is drawn from it, and of a new head.
    epochs, steps: how long to train: passes over the data, or, if that is given, optimizer steps.
    batch_tokens: tokens of a batch, padding included; a CPU is fastest while a batch fits its cache.
    batches_per_step: batches whose gradients make one step, over all processes.
    responses: the most that a row keeps.
    short, long, long_share: bounds on the tokens of a pair, and the share of rows under the longer one.
    losses: weights of the losses, by their names in `objective.LOSSES`.
    temperature: of the listwise loss' target.
    learning_rate, warmup: the peak, reached after this share of the run; then it falls in a line to zero.
    layer_decay: a layer's learning rate is this times that of the next one; 1: all have the same.
    average: how much of a moving average of the weights each step keeps, such as 0.999; the average is then the run's
        result. 0: no average.
    precision: "bfloat16" or "float32": what the encoder computes in.
    recompute: compute states again in the backward pass rather than keep them: less memory, a third slower.
    checkpoint_every, evaluate_every: in steps.
    patience: stop after so many evaluations without a better one, and take the weights of the best; None: don't.
    """

    seed: int = 0
    epochs: float = 1.0
    steps: int | None = None
    batch_tokens: int = 4096
    batches_per_step: int = 2
    responses: int = 16
    short: int = 288
    long: int = 512
    long_share: float = 0.15
    losses: dict[str, float] = field(default_factory=lambda: {"cross_entropy": 1.0, "listwise": 1.0})
    temperature: float = 0.2
    learning_rate: float = 3e-4
    warmup: float = 0.05
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    average: float = 0.0
    precision: str = "bfloat16"
    recompute: bool = False
    checkpoint_every: int = 200
    evaluate_every: int = 1000
    patience: int | None = None

    def __post_init__(self) -> None:
        check_losses(self.losses)
        least = SPECIAL_TOKENS + INSTRUCTION_FLOOR + 1
        for name, right, fix in (
            ("epochs", self.epochs > 0, "above 0"),
            ("steps", self.steps is None or self.steps >= 1, "at least 1, or None for `epochs` passes over the data"),
            ("batch_tokens", self.batch_tokens >= 1, "at least 1"),
            ("batches_per_step", self.batches_per_step >= 1, "at least 1"),
            ("responses", self.responses >= 2, "at least 2"),
            ("short", least <= self.short <= self.long, f"from {least} to long"),
            ("long_share", 0 <= self.long_share <= 1, "from 0 to 1"),
            ("temperature", self.temperature > 0, "above 0"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("warmup", 0 < self.warmup < 1, "between 0 and 1"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0, up to 1"),
            ("average", 0 <= self.average < 1, "from 0, below 1"),
            ("precision", self.precision in PRECISIONS, " or ".join(PRECISIONS)),
            ("checkpoint_every", self.checkpoint_every >= 1, "at least 1"),
            ("evaluate_every", self.evaluate_every >= 1, "at least 1"),
            ("patience", self.patience is None or self.patience >= 1, "at least 1, or None"),
        ):
            if not right:
                raise InputValueError(f"{name} is {getattr(self, name)!r}: it should be {fix}")


def train(
    network: TrainableNetwork,
    rows: Rows,
    tokenizer: Path,
    out: Path,
    settings: Settings,
    *,
    dev: Sequence[Question] = (),
) -> None:
    """Trains a network, which is changed; `trained_network(out)` is the run's result.

    `out` then holds checkpoint.pt, tokenizer.json and log.jsonl (losses, speed, dev figures). In each of several
    processes the arguments must be the same, the network's weights included.

    Args:
        network: what to start from.
        rows: what to train on.
        tokenizer: the network's tokenizer.json.
        out: folder of the run; where it holds a checkpoint of the same settings and rows, the run goes on from there.
        dev: questions for the figures that the log has, and for early stopping.

    Raises:
        InputValueError: a setting doesn't fit the network or the processes, `out` holds another run or can't be
            written, rows can't be read, or the loss is no longer a number.
    """
    packer = network.packer(tokenizer)
    if settings.long > network.max_tokens:
        raise InputValueError(f"long is {settings.long}: this network reads {network.max_tokens} tokens at most")
    if settings.short < packer.least_tokens:
        raise InputValueError(f"short is {settings.short}: this network's pairs take {packer.least_tokens} at least")
    if settings.patience is not None and not dev:
        raise InputValueError("patience needs dev questions: without them nothing tells when to stop")
    run = _Run(network, rows, packer, out, settings, dev)
    run.resume()
    if run.is_main:
        # Only now is it sure that `out` is not another run's.
        with written_whole(out / TOKENIZER_FILE) as part:
            shutil.copyfile(tokenizer, part)
    run.go_on()


class _Run:
    """The state of a run: what a step changes, and what a checkpoint keeps."""

    def __init__(
        self,
        network: TrainableNetwork,
        rows: Rows,
        packer: TextPacker,
        out: Path,
        settings: Settings,
        dev: Sequence[Question],
    ) -> None:
        self.settings, self.out = settings, out
        self._rows, self._packer, self._dev = rows, packer, dev
        self._kind, self._sizes = type(network), network.sizes()
        # Without a device it would take processes on CPUs for so many runs of their own.
        self._accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self.is_main: bool = self._accelerator.is_main_process
        if settings.batches_per_step % self._accelerator.num_processes:
            raise InputValueError(
                f"batches_per_step is {settings.batches_per_step}: give a multiple of the "
                f"{self._accelerator.num_processes} processes, which share a step's batches"
            )
        self.step, self._place, self._epochs = 0, Place(), 0.0
        self._best: dict[str, Any] | None = None
        network.precision = PRECISIONS[settings.precision]
        network.recompute = settings.recompute
        # Words that the data lacks keep their place among those that it has.
        network.words().requires_grad_(False)
        self._scales, groups = parameter_groups(network, settings)
        fused = self._accelerator.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=fused)
        self._network: nn.Module
        self._network, self._optimizer = self._accelerator.prepare(network, optimizer)
        self._trained = [weight for weight in self._network.parameters() if weight.requires_grad]
        self._average = [weight.detach().clone() for weight in self._trained] if settings.average else []

    @property
    def done(self) -> float:
        """The share of the run that is done."""
        steps = self.settings.steps
        return min(1.0, self.step / steps if steps else self._epochs / self.settings.epochs)

    @property
    def over(self) -> bool:
        out_of_patience = self._best is not None and self._best["evaluations_since"] == self.settings.patience
        return self.done >= 1 or out_of_patience

    def go_on(self) -> None:
        """Trains to the end."""
        meter = Meter()
        layout = "{desc}: {percentage:5.1f}%|{bar}| {elapsed}<{remaining}{postfix}"
        with (
            closing(self._batches()) as stream,
            tqdm(total=1.0, initial=self.done, bar_format=layout, disable=None if self.is_main else True) as bar,
        ):
            while not self.over:
                self._take(list(islice(stream, self.settings.batches_per_step)), meter)
                bar.set_description_str(f"step {self.step:,}", refresh=False)
                bar.set_postfix_str(meter.summary(), refresh=False)
                bar.update(self.done - bar.n)
                if self._dev and (self.step % self.settings.evaluate_every == 0 or self.done >= 1):
                    self._log(self._evaluate(), bar)
                if self.step % self.settings.checkpoint_every == 0 or self.over:
                    self._log(meter.figures(), bar)
                    self.save()
                    meter = Meter()

    def _batches(self) -> Generator[tuple[TextBatch | None, Place, float], None, None]:
        """From where the run is: this process' batches (None: another's), the place after each, and the epochs read."""
        settings, place = self.settings, self._place
        reading = Reading(
            seed=settings.seed,
            responses=settings.responses,
            batch_tokens=settings.batch_tokens,
            short=settings.short,
            long=settings.long,
            long_share=settings.long_share,
        )
        processes, own = self._accelerator.num_processes, self._accelerator.process_index
        if processes == 1 and self._accelerator.device.type == "cuda":
            return ahead(packed_by_processes(self._rows, self._packer, reading, place), BATCHES_AHEAD)

        def packed() -> Iterator[tuple[TextBatch | None, Place, float]]:
            for number, planned in enumerate(planned_batches(self._rows, self._packer, reading, place)):
                batch = self._packer.batch(planned.rows) if number % processes == own else None
                yield batch, planned.after, planned.epochs

        return ahead(packed(), BATCHES_AHEAD)

    def _take(self, batches: Sequence[tuple[TextBatch | None, Place, float]], meter: Meter) -> None:
        """One step with a step's batches."""
        settings, accelerator, before = self.settings, self._accelerator, self.done
        own = [batch for batch, _, _ in batches if batch is not None]
        alone_on_cpu = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
        losses = gradients_on_threads(self._loss, own, self._trained) if alone_on_cpu else self._one_by_one(own)
        for batch in own:
            meter.count(batch)
        loss = accelerator.reduce(torch.stack(losses).mean(), "mean")
        norm = accelerator.clip_grad_norm_(self._trained, MAX_GRADIENT_NORM)
        self._check(float(loss), float(norm))
        _, self._place, self._epochs = batches[-1]
        self.step += 1
        rate = learning_rate(before, self.done, settings)
        for scale, group in zip(self._scales, self._optimizer.param_groups, strict=True):
            group["lr"] = rate * scale
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._average:
            with torch.no_grad():
                for average, weight in zip(self._average, self._trained, strict=True):
                    average.lerp_(weight, 1 - settings.average)
        meter.losses.append(float(loss))

    def _one_by_one(self, batches: Sequence[TextBatch]) -> list[Tensor]:
        """The same as `gradients_on_threads`, by accelerate."""
        losses = []
        for number, batch in enumerate(batches, start=1):
            # Gradients are summed up over the processes with the last one.
            with self._accelerator.no_sync(self._network) if number < len(batches) else nullcontext():
                loss = self._loss(batch.to(self._accelerator.device))
                self._accelerator.backward(loss / len(batches))
            losses.append(loss.detach())
        return losses

    def _loss(self, batch: TextBatch) -> Tensor:
        settings = self.settings
        return objective(batch.logits(self._network), batch.labels, settings.losses, temperature=settings.temperature)

    def _check(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise InputValueError(
            f"step {self.step + 1}: the loss is {loss}, its gradient's norm {norm}. The last checkpoint is sound; try "
            "a lower learning rate, a longer warm-up, or precision float32, with another --out"
        )

    def _evaluate(self) -> dict[str, float]:
        """Figures over the dev questions; keeps the weights if they are the best so far."""
        weights = self._averaged() if self._average else self._weights()
        figures: list[dict[str, float]] = [{}]
        if self.is_main:
            network = network_of(self._kind, self._sizes, weights).to(self._accelerator.device)
            network.precision = PRECISIONS[self.settings.precision]
            figures = [
                dev_figures(self._dev, lambda pairs: network_scores(network, self._packer, pairs, self.settings.long))
            ]
        broadcast_object_list(figures)
        if self.settings.patience is not None:
            if self._best is None or figures[0]["dev_gain"] > self._best["gain"]:
                kept = {name: weight.clone() for name, weight in weights.items()}
                self._best = {"gain": figures[0]["dev_gain"], "weights": kept, "evaluations_since": 0}
            else:
                self._best["evaluations_since"] += 1
        return figures[0]

    def _weights(self) -> Weights:
        """The network's weights, in the main process; every process must call it."""
        return cast(Weights, get_model_state_dict(self._network, options=_WHOLE))

    def _averaged(self) -> Weights:
        """The same of the average."""
        with self._average_in_place():
            # They may be the very tensors, whose values go back.
            return {name: weight.clone() for name, weight in self._weights().items()}

    @contextmanager
    def _average_in_place(self) -> Iterator[None]:
        """The network has the average for its weights within the block; what it is set to there becomes the average."""
        self._swap_average()
        try:
            yield
        finally:
            self._swap_average()

    @torch.no_grad()
    def _swap_average(self) -> None:
        for average, weight in zip(self._average, self._trained, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        average = self._averaged() if self._average else None
        weights, optimizer = get_state_dict(self._network, self._optimizer.optimizer, options=_WHOLE)
        if not self.is_main:
            return
        state = {
            "settings": asdict(self.settings),
            "graph": self._kind.graph,
            "sizes": self._sizes,
            "data": self._rows.fingerprint,
            "step": self.step,
            "place": asdict(self._place),
            "epochs": self._epochs,
            "network": weights,
            "average": average,
            "best": self._best,
            "optimizer": optimizer,
        }
        with written_whole(self.out / CHECKPOINT) as part:
            try:
                torch.save(state, part)
            except RuntimeError as error:  # PyTorch's, of a full disk
                raise OSError(str(error)) from error

    def resume(self) -> None:
        """Goes on from the checkpoint in the run's folder, if there is one."""
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        state = read_checkpoint(path)
        ours = {
            "graph": self._kind.graph,
            **asdict(self.settings),
            "data": self._rows.fingerprint,
            "sizes": self._sizes,
        }
        theirs = {"graph": graph_of(state), **state["settings"], "data": state["data"], "sizes": state["sizes"]}
        for name in [*ours, *theirs]:
            if ours.get(name) != theirs.get(name):
                raise InputValueError(
                    f"{path} is of a run with other settings or data: {name} was {theirs.get(name)!r}, and is "
                    f"{ours.get(name)!r} now: give what it began with, or another --out"
                )
        if self._average:
            with self._average_in_place():
                set_model_state_dict(self._network, state["average"], options=_WHOLE)
        set_state_dict(
            self._network,
            self._optimizer.optimizer,
            model_state_dict=state["network"],
            optim_state_dict=state["optimizer"],
            options=_WHOLE,
        )
        self.step, self._place, self._epochs = state["step"], Place(**state["place"]), state["epochs"]
        self._best = state["best"]
        if self.is_main:
            self._forget_later_lines()

    def _log(self, figures: dict[str, float], bar: tqdm[NoReturn]) -> None:
        """Appends figures to the run's log, and shows them."""
        if self.is_main:
            line = json.dumps({"step": self.step, **{name: round(value, 5) for name, value in figures.items()}})
            with (self.out / LOG).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            bar.write(line)

    def _forget_later_lines(self) -> None:
        """Takes out of the log what the steps after the checkpoint, which come again, had written."""
        path = self.out / LOG
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.step]
        with written_whole(path) as part:
            part.write_text("".join(kept), encoding="utf-8")


def gradients_on_threads(
    loss: Callable[[T], Tensor], batches: Sequence[T], weights: Sequence[nn.Parameter]
) -> list[Tensor]:
    """The batches' losses; the weights get their mean's gradients. A batch is a thread's, from end to end.

    Threads then wait for each other once a step, and not at every operation; and gradients, which are added up in the
    batches' order, don't depend on how many threads there are.
    """

    def computed(batch: T) -> tuple[Tensor, tuple[Tensor, ...]]:
        own = loss(batch)
        return own.detach(), torch.autograd.grad(own / len(batches), weights)

    losses = []
    threads = torch.get_num_threads()
    with one_thread_an_operation(), ThreadPoolExecutor(threads) as pool:
        for own, gradients in pool.map(computed, batches):
            losses.append(own)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
    return losses


# Weights and moments as a process that has all of them sees them, wherever they are.
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a run saved.

    Raises:
        InputValueError: it can't be read.
    """
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # of many kinds
        raise InputValueError(f"{path} can't be read ({error}): give --out another folder") from error
    return state


def graph_of(state: dict[str, Any]) -> str:
    """The kind of network that a checkpoint is of."""
    return str(state.get("graph", PackedNetwork.graph))  # older ones don't say


def trained_state(run: Path) -> dict[str, Any]:
    """A run's last checkpoint.

    Raises:
        InputValueError: the folder has no checkpoint.
    """
    path = run / CHECKPOINT
    if not path.exists():
        raise InputValueError(f"{path} is missing: give the --out folder of a training run")
    return read_checkpoint(path)


def result_weights(state: dict[str, Any]) -> Weights:
    """The result that a checkpoint holds: the best weights, else their average, else the last ones."""
    best: Weights | None = (state.get("best") or {}).get("weights")
    return best or state.get("average") or state["network"]


def result_of(kind: type[Network], state: dict[str, Any]) -> Network:
    """The same as a network, in float32."""
    return network_of(kind, state["sizes"], result_weights(state))


def trained_network(run: Path) -> PackedNetwork:
    """The result of a run of a shared-instruction network.

    Raises:
        InputValueError: the folder has no checkpoint, or one of another kind.
    """
    state = trained_state(run)
    if graph_of(state) != PackedNetwork.graph:
        raise InputValueError(f"{run} trained a {graph_of(state)} model, and a {PackedNetwork.graph} one is needed")
    return result_of(kind_of(state["sizes"]), state)


def network_of(kind: type[Network], sizes: dict[str, Any], weights: Weights) -> Network:
    """A network of a kind with these weights, in float32."""
    network = kind.of_sizes(sizes)
    network.load_state_dict(weights)
    return network.eval()


def parameter_groups(network: TrainableNetwork, settings: Settings) -> tuple[list[float], list[dict[str, Any]]]:
    """AdamW's groups of the weights that are trained, and by how much of the learning rate each group goes.

    Only matrices decay. Layers further from the head go slower by `layer_decay` each, embeddings most of all (as in
    ELECTRA, Clark et al., 2020).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in network.named_parameters():
        if not weight.requires_grad:
            continue
        scale = settings.layer_decay ** network.layers_above(name) if settings.layer_decay < 1 else 1.0
        decay = settings.weight_decay if weight.ndim > 1 else 0.0
        groups.setdefault((scale, decay), []).append(weight)
    return (
        [scale for scale, _ in groups],
        [{"params": weights, "weight_decay": decay} for (_, decay), weights in groups.items()],
    )


def learning_rate(before: float, after: float, settings: Settings) -> float:
    """The rate of a step that takes the run from one share of it done to another.

    Up in a line over the warm-up's share, then down in a line to zero.
    """
    return settings.learning_rate * min(after / settings.warmup, (1 - before) / (1 - settings.warmup), 1.0)


class Meter:
    """Means and speed since it was made, of this process' batches."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.losses: list[float] = []
        self._pairs = self._tokens = 0

    def count(self, batch: TextBatch) -> None:
        self._pairs += int((~batch.labels.isnan()).sum())
        self._tokens += batch.tokens

    def figures(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._start
        return {
            "loss": sum(self.losses) / len(self.losses),
            "pairs_per_second": self._pairs / seconds,
            "tokens_per_second": self._tokens / seconds,
        }

    def summary(self) -> str:
        figures = self.figures()
        return (
            f"loss {figures['loss']:.3f}, {figures['pairs_per_second']:.0f} pairs/s, "
            f"{figures['tokens_per_second']:.0f} tokens/s"
        )
