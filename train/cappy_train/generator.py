"""A small generator: a seq2seq that answers instructions, trained on instances of many tasks.

Its answers are what a small language model gives: some right, most partly so or wrong. That is what regression data
needs where no larger model is at hand. Reads top to bottom: examples, batches, steps. What a step reads follows from
the settings and the step's number alone, so a run that was killed goes on from its checkpoint as if it had not been.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm
from transformers import BartForConditionalGeneration, PreTrainedTokenizerFast

from cappy_lite.errors import InputValueError
from cappy_lite.packing import cut_middle
from cappy_lite.rouge import rouge_l_pairs
from cappy_lite.session import available_cpus
from cappy_train.checkpoint import quietly
from cappy_train.files import Source, find_files, written_whole
from cappy_train.instances import Instance, read_instances
from cappy_train.norms import make_exact
from cappy_train.seq2seq import seq2seq_from_bert, seq2seq_tokenizer
from cappy_train.workers import one_thread_an_operation

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"

# Instructions and responses are padded to multiples of these: few shapes, and little padding.
INSTRUCTION_STEP = 32
RESPONSE_STEP = 8
# Label of a place without a target token, PyTorch's default.
NO_TARGET = -100


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run does; part of its checkpoint, since a run can only go on as it began.

    steps: optimizer steps; None for one pass over the data.
    per_task: at most so many instances of a task, drawn at random: else a few large tasks would be nearly all.
    instruction_tokens, response_tokens: a longer instruction loses its middle, a longer response its end.
    decoder_layers: so many upper layers of the checkpoint become the decoder.
    frozen_layers: so many lower layers of the encoder stay as they are. So do word embeddings: words that the data
        lacks keep their place among those that it has.
    batch_tokens: tokens of a batch, instructions and responses, padding included.
    batches_per_step: batches whose gradients make one step.
    learning_rate, warmup, decay: the rate, reached after `warmup` steps, constant until the last share `decay` of the
        steps, and falling in a line to zero over those.
    dev: so many dev instances are evaluated, drawn at random.
    """

    seed: int = 0
    steps: int | None = None
    per_task: int = 1000
    instruction_tokens: int = 256
    response_tokens: int = 64
    decoder_layers: int = 2
    frozen_layers: int = 2
    batch_tokens: int = 1024
    batches_per_step: int = 2
    learning_rate: float = 5e-4
    warmup: int = 50
    decay: float = 0.4
    weight_decay: float = 0.01
    dev: int = 400
    checkpoint_every: int = 100
    evaluate_every: int = 500

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise InputValueError(f"steps must be at least 1, or None for one pass over the data, not {self.steps}")


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of an instruction with [CLS] and [SEP], and of a response with the [SEP] that ends it."""

    instruction: Sequence[int]
    response: Sequence[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """B instructions padded to I tokens, and their responses to R.

    instructions, mask: (B, I) int64, mask 1 for tokens and 0 for padding.
    read: (B, R) int64, what the decoder reads: [CLS] and the response but for its last token.
    targets: (B, R) int64, what it should say: the response; NO_TARGET in places without.
    """

    instructions: Tensor
    mask: Tensor
    read: Tensor
    targets: Tensor


def train_generator(data: Source, base: Path, out: Path, settings: Settings) -> BartForConditionalGeneration:
    """Trains a seq2seq; `out` is then a folder that transformers loads, with checkpoint.pt and log.jsonl beside.

    Args:
        data: instance files. Those of split "train" are trained on, those of "dev" evaluated. Of several references one
            is drawn; of an instance with choices that is a right choice.
        base: folder of the BERT checkpoint to start from, with its tokenizer.json.
        out: folder of the run; where it holds a checkpoint of the same settings, the run goes on from there.

    Raises:
        InputValueError: a file is missing or damaged, no instance is of split train, they are too few for one step,
            `out` holds a run of other settings or data or can't be written, or the loss is no number any more.
    """
    find_files(data)
    network = seq2seq_from_bert(base, decoder_layers=settings.decoder_layers)
    tokenizer = seq2seq_tokenizer(base, max_tokens=settings.instruction_tokens)
    train, dev = draw_instances(data, settings)
    if not train:
        raise InputValueError("no instance is of split 'train': nothing to train on")
    encoder = Encoder(tokenizer, settings)
    examples = [encoder.example(instance) for instance in tqdm(train, "examples", unit="row")]

    with told_if_full(out):
        out.mkdir(parents=True, exist_ok=True)
    run = Run(network, encoder, examples, settings, out)
    run.resume()
    meter = Meter()
    with (
        one_thread_an_operation(),
        ThreadPoolExecutor(available_cpus()) as threads,
        tqdm(total=run.steps, initial=run.step, desc="steps", unit="step") as bar,
    ):
        for numbers in run.remaining_steps():
            batches = [encoder.batch([examples[number] for number in part]) for part in numbers]
            # Each batch is a thread's: they wait for each other once a step, and not at every operation.
            done = list(threads.map(run.gradients, batches))
            meter.add(batches, [loss for loss, _ in done])
            run.update([gradients for _, gradients in done])
            bar.update()
            at_end = run.step == run.steps
            if run.step % settings.checkpoint_every == 0 or at_end:
                figures = meter.figures()
                bar.set_postfix_str(f"loss {figures['loss']:.3f}, {figures['tokens_per_second']:.0f} tokens/s")
                if not math.isfinite(figures["loss"]):
                    raise InputValueError(
                        f"the loss is {figures['loss']} at step {run.step}: lower the learning rate "
                        f"({settings.learning_rate}), and give --out another folder"
                    )
                run.log(figures)
                if dev and (run.step % settings.evaluate_every == 0 or at_end):
                    bar.write(run.log(evaluate(run.working, encoder, dev)))
                run.save()
                meter = Meter()
    save_model(network, tokenizer, out)
    return network


def draw_instances(data: Source, settings: Settings) -> tuple[list[Instance], list[Instance]]:
    """At most `per_task` instances of each task for training, and `dev` of the dev split; memory holds no more.

    Each is a uniform draw, the same for the same files and seed (reservoir sampling; Vitter, 1985).
    """
    train: dict[str, Reservoir] = {}
    dev = Reservoir(settings.dev, f"{settings.seed}:dev")
    size = sum(path.stat().st_size for path in find_files(data))
    with tqdm(total=size, desc="instances", unit="B", unit_scale=True) as bar:
        for instance in read_instances(data, advance=bar.update):
            if instance.split == "train":
                if instance.task not in train:
                    train[instance.task] = Reservoir(settings.per_task, f"{settings.seed}:{instance.task}")
                train[instance.task].add(instance)
            elif instance.split == "dev":
                dev.add(instance)
    return [instance for reservoir in train.values() for instance in reservoir.drawn], dev.drawn


class Reservoir:
    """A uniform draw of `size` out of however many instances are added."""

    def __init__(self, size: int, seed: str) -> None:
        self.drawn: list[Instance] = []
        self._size = size
        self._seen = 0
        self._random = random.Random(seed)

    def add(self, instance: Instance) -> None:
        self._seen += 1
        if len(self.drawn) < self._size:
            self.drawn.append(instance)
        elif (place := self._random.randrange(self._seen)) < self._size:
            self.drawn[place] = instance


class Encoder:
    """Texts to token ids and batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, settings: Settings) -> None:
        self.tokenizer = tokenizer
        self._settings = settings
        self._first, self._last = tokenizer.bos_token_id, tokenizer.eos_token_id

    def instruction(self, text: str) -> Sequence[int]:
        kept = cut_middle(self._ids(text), self._settings.instruction_tokens - 2)
        return array("i", [self._first, *kept, self._last])

    def example(self, instance: Instance) -> Example:
        """The instance's instruction with one of its references, whose draw depends on seed and id alone."""
        reference = random.Random(f"{self._settings.seed}:{instance.id}").choice(instance.references)
        response = [*self._ids(reference), self._last][: self._settings.response_tokens]
        return Example(self.instruction(instance.instruction), array("i", response))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def batch(self, examples: Sequence[Example]) -> Batch:
        instructions = padded_ids([example.instruction for example in examples], INSTRUCTION_STEP, 0)
        responses = [example.response for example in examples]
        return Batch(
            instructions=instructions,
            mask=padded_ids([[1] * len(example.instruction) for example in examples], INSTRUCTION_STEP, 0),
            read=padded_ids([[self._first, *response[:-1]] for response in responses], RESPONSE_STEP, 0),
            targets=padded_ids(responses, RESPONSE_STEP, NO_TARGET),
        )


def padded_ids(rows: Sequence[Sequence[int]], step: int, padding: int) -> Tensor:
    """Rows as one int64 tensor, padded to a multiple of `step`."""
    ids = np.full((len(rows), padded(max(map(len, rows)), step)), padding, dtype=np.int64)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(ids)


def padded(length: int, step: int) -> int:
    return -(-length // step) * step


def plan(examples: Sequence[Example], tokens: int, *, seed: int) -> list[list[int]]:
    """One epoch: batches of numbers of examples in random order, of one padded shape and at most `tokens` tokens."""
    rng = random.Random(f"{seed}:plan")
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number in rng.sample(range(len(examples)), len(examples)):
        example = examples[number]
        shape = (padded(len(example.instruction), INSTRUCTION_STEP), padded(len(example.response), RESPONSE_STEP))
        by_shape[shape].append(number)
    batches = []
    for shape in sorted(by_shape):
        size = max(1, tokens // sum(shape))
        members = by_shape[shape]
        batches += [members[start : start + size] for start in range(0, len(members), size)]
    rng.shuffle(batches)
    return batches


class Run:
    """The state of a training run: what a step changes, and what a checkpoint keeps.

    The network works in bfloat16 on a copy of the weights; the weights themselves, and AdamW's moments, are float32.
    """

    def __init__(
        self,
        network: BartForConditionalGeneration,
        encoder: Encoder,
        examples: Sequence[Example],
        settings: Settings,
        out: Path,
    ) -> None:
        self.network = network
        self.encoder = encoder
        self.settings = settings
        self.out = out
        self.step = 0
        self._examples = examples
        self._data = digest(examples)
        self._per_epoch = len(self._epoch(0))
        if not self._per_epoch:
            raise InputValueError(
                f"{len(examples)} instances don't fill one step of {settings.batches_per_step} batches: give more data"
            )
        self.steps = settings.steps or self._per_epoch
        # BART's output layer adds this, untrained: so training needn't begin by learning which words are frequent.
        network.final_logits_bias.copy_(token_frequencies(examples, network.config.vocab_size))
        freeze(network, settings.frozen_layers)
        working: Any = deepcopy(network)
        self.working: BartForConditionalGeneration = working.to(torch.bfloat16)
        make_exact(self.working)
        self._weights = [weight for weight in network.parameters() if weight.requires_grad]
        self._copies = [copy for copy in self.working.parameters() if copy.requires_grad]
        groups: list[dict[str, Any]] = [
            {
                "params": [weight for weight in self._weights if weight.ndim > 1],
                "weight_decay": settings.weight_decay,
            },
            {"params": [weight for weight in self._weights if weight.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)

    def remaining_steps(self) -> Iterator[list[list[int]]]:
        """For each step still to do, its batches as numbers of examples."""
        while self.step < self.steps:
            epoch, done = divmod(self.step, self._per_epoch)
            yield from self._epoch(epoch)[done : done + self.steps - self.step]

    def _epoch(self, epoch: int) -> list[list[list[int]]]:
        batches = plan(self._examples, self.settings.batch_tokens, seed=self.settings.seed + epoch)
        size = self.settings.batches_per_step
        return [batches[start : start + size] for start in range(0, len(batches) - size + 1, size)]

    def gradients(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A batch's loss, the mean over its target tokens, and that one's gradients; may run on several threads."""
        loss = token_losses(self.working, batch).mean()
        return loss.detach(), torch.autograd.grad(loss, self._copies)

    def update(self, gradients: Sequence[tuple[Tensor, ...]]) -> None:
        """One step of AdamW with the mean of the batches' gradients."""
        # Not by `training.gradients_on_threads`: it adds gradients up as they are, and of bfloat16 copies that rounds.
        for weight, *parts in zip(self._weights, *gradients, strict=True):
            weight.grad = sum(part.float() for part in parts) / len(parts)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.settings)
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for weight, copy in zip(self._weights, self._copies, strict=True):
                copy.copy_(weight)
        self.step += 1

    def log(self, figures: dict[str, float]) -> str:
        """Appends figures to the run's log, and returns the line."""
        line = json.dumps({"step": self.step, **{name: round(value, 5) for name, value in figures.items()}})
        with told_if_full(self.out), (self.out / LOG).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        return line

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        state = {
            "settings": asdict(self.settings) | {"steps": self.steps},
            "step": self.step,
            "steps": self.steps,
            "data": self._data,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with written_whole(self.out / CHECKPOINT) as partial:
            try:
                torch.save(state, partial)
            except RuntimeError as error:  # PyTorch's, of a full disk
                raise OSError(str(error)) from error

    def resume(self) -> None:
        """Goes on from the checkpoint in the run's folder, if there is one; the log loses what lies beyond it."""
        path = self.out / CHECKPOINT
        if path.exists():
            self._load(path)
        if (self.out / LOG).exists():
            lines = (self.out / LOG).read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.step]
            with written_whole(self.out / LOG) as partial:
                partial.write_text("".join(kept), encoding="utf-8")

    def _load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        steps: int = state.get("steps", 0)
        if (state.get("settings"), state.get("data")) != (asdict(self.settings) | {"steps": steps}, self._data):
            raise InputValueError(f"{path} is of a run with other settings or data: give --out another folder")
        # Until the rate falls, nothing depends on how many steps are to come.
        if self.steps != steps and state["step"] > (1 - self.settings.decay) * min(self.steps, steps):
            raise InputValueError(
                f"{path} is at step {state['step']} of {steps}, where the learning rate falls already, or would with "
                f"{self.steps}: their number can't change any more"
            )
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.working.load_state_dict(self.network.state_dict())


def freeze(network: BartForConditionalGeneration, layers: int) -> None:
    """Sets the word embeddings, the encoder's position embeddings and its `layers` lower layers to stay as they are."""
    encoder = network.model.encoder
    kept = [network.model.shared, encoder.embed_positions, encoder.layernorm_embedding, *encoder.layers[:layers]]
    for module in kept:
        module.requires_grad_(False)


def token_losses(network: BartForConditionalGeneration, batch: Batch) -> Tensor:
    """Cross-entropy of each target token, float32; the output layer computes them alone, since it costs most."""
    states = network.model(
        input_ids=batch.instructions, attention_mask=batch.mask, decoder_input_ids=batch.read, use_cache=False
    ).last_hidden_state
    present = batch.targets != NO_TARGET
    logits = network.lm_head(states[present]).float() + network.final_logits_bias
    return F.cross_entropy(logits, batch.targets[present], reduction="none")


@torch.inference_mode()
def evaluate(network: BartForConditionalGeneration, encoder: Encoder, dev: Sequence[Instance]) -> dict[str, float]:
    """On dev instances: loss per target token, and the mean Rouge-L (stemmed F-measure) of the most likely tokens."""
    losses = []
    rouge = []
    by_length = sorted(dev, key=lambda instance: len(encoder.instruction(instance.instruction)))
    for part in (by_length[start : start + 32] for start in range(0, len(by_length), 32)):
        batch = encoder.batch([encoder.example(instance) for instance in part])
        losses.append(token_losses(network, batch))
        tokens = network.generate(
            input_ids=batch.instructions, attention_mask=batch.mask, do_sample=False, max_new_tokens=64
        )
        responses = encoder.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        rouge.append(rouge_l_pairs(responses, [list(instance.references) for instance in part], stem=True)[:, 2])
    return {"dev_loss": float(torch.cat(losses).mean()), "dev_rouge_l": float(np.concatenate(rouge).mean())}


def save_model(network: BartForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes what transformers loads, each file whole or not at all, config.json last."""
    with told_if_full(out), quietly(), TemporaryDirectory(dir=out) as folder:
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).iterdir(), reverse=True):
            with written_whole(out / path.name) as partial:
                path.replace(partial)


@contextmanager
def told_if_full(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputValueError(f"{out} can't be written: {error}: make room, and give the same command again") from error


def token_frequencies(examples: Sequence[Example], vocabulary: int) -> Tensor:
    """The logarithm of each token's share of the responses, one occurrence added to each, (1, vocabulary) float32."""
    counts = np.ones(vocabulary)
    for example in examples:
        np.add.at(counts, example.response, 1)
    return torch.from_numpy(np.log(counts / counts.sum())).float()[None]


def digest(examples: Iterable[Example]) -> str:
    """A fingerprint of training data: two runs with the same one read the same tokens."""
    told = hashlib.sha256()
    for example in examples:
        for ids in (example.instruction, example.response):
            told.update(len(ids).to_bytes(4, "little") + array("i", ids).tobytes())
    return told.hexdigest()


class Meter:
    """Means and speed since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._losses: list[Tensor] = []
        self._tokens = self._targets = 0

    def add(self, batches: Sequence[Batch], losses: Sequence[Tensor]) -> None:
        targets = sum(int((batch.targets != NO_TARGET).sum()) for batch in batches)
        self._losses += losses
        self._tokens += sum(int(batch.mask.sum()) for batch in batches) + targets
        self._targets += targets

    def figures(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._start
        return {
            "loss": float(torch.stack(self._losses).mean()),
            "tokens_per_second": self._tokens / seconds,
            "target_tokens_per_second": self._targets / seconds,
        }


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Of a step, the first being 0: up in a line, constant, down in a line (Hu et al., 2024, call it WSD)."""
    return settings.learning_rate * min((step + 1) / settings.warmup, (steps - step) / (settings.decay * steps), 1.0)
