"""Responses of a Hugging Face model on this machine, seq2seq or causal, with their likelihoods under it.

What is drawn for an instance depends on the seed, its id and the decoding: not on its neighbours in a batch, except
that these can move a logit by a rounding.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutput

from cappy_lite.arguments import check_count
from cappy_lite.errors import InputTypeError, InputValueError, ModelError
from cappy_train.checkpoint import local_folder, quietly
from cappy_train.instances import Candidate, Instance
from cappy_train.sampling import MAX_NEW_TOKENS, PAPER, Advance, Decoding, Sampled, no_advance
from cappy_train.shards import Plan, input_digests

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCH_TOKENS = 16384
# What a checkpoint's folder has besides its weights.
FILES = ("*.json", "*.jinja", "*.model", "*.txt")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
# Parts of the names of architectures that write text.
WRITERS = ("CausalLM", "LMHead", "ConditionalGeneration", "EncoderDecoder", "Seq2SeqLM")
# A nucleus has seldom more tokens; only where it has, all are sorted.
USUAL_NUCLEUS = 1024
# A tokenizer without a limit says more than this.
NO_LIMIT = 1 << 40
# The least that a prompt has to keep.
LEAST_PROMPT = 16


class LocalModel:
    """A `Sampler` of a model that transformers can read; no code that comes with it is run.

    Of the model's own generation settings only the tokens of start, end and padding count, so that a decoding means the
    same with every model.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        decodings: Sequence[Decoding] = PAPER,
        max_new_tokens: int = MAX_NEW_TOKENS,
        seed: int = 0,
        batch_tokens: int = BATCH_TOKENS,
        precision: str | None = None,
    ) -> None:
        """Opens the model on a GPU, if PyTorch has one, else on the CPU.

        Args:
            source: the folder that save_pretrained wrote, or hub:owner/name, which is downloaded.
            decodings: how responses are chosen; their sources differ.
            max_new_tokens: the longest response, its end token included.
            seed: of all that is drawn.
            batch_tokens: tokens of prompts and responses that are computed at a time, padding included: memory grows
                with it. An instance that has more with all its responses is computed alone.
            precision: "float32" or "bfloat16"; None: bfloat16 on processors that have instructions for it.

        Raises:
            InputValueError: there is no such model, it doesn't write text or needs code of its own, or an option is out
                of range.
        """
        if not decodings or len({decoding.source for decoding in decodings}) < len(decodings):
            raise InputValueError("decodings should be one or more, with sources that differ")
        if not isinstance(seed, int):
            raise InputTypeError(f"seed must be an int, not {type(seed).__name__}")
        if precision not in (None, *PRECISIONS):
            raise InputValueError(f"precision is {precision!r}: give one of {', '.join(PRECISIONS)}, or None")
        self._decodings = tuple(decodings)
        self._max_new_tokens = check_count("max_new_tokens", max_new_tokens)
        self._batch_tokens = check_count("batch_tokens", batch_tokens)
        self._seed = seed
        self._rows = sum(decoding.samples for decoding in decodings)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._precision = precision or ("bfloat16" if _fast_bfloat16(self._device) else "float32")
        folder = local_folder(str(source), files=FILES)
        with quietly():
            self._network, self._tokenizer = _open(folder, PRECISIONS[self._precision])
        network: Any = self._network
        network.to(self._device)
        self._ends, self._pad = _use_plain_generation(self._network, self._tokenizer)
        self._most = _longest_prompt(self._network, self._tokenizer, self._max_new_tokens)
        self._identity = {
            "name": str(source) if str(source).startswith("hub:") else folder.name,
            "files": input_digests(_read_files(folder)),
        }

    @property
    def plan(self) -> Plan:
        """The model's files with their digests, and the settings that responses depend on."""
        return self._identity | {
            "decodings": [asdict(decoding) for decoding in self._decodings],
            "max_new_tokens": self._max_new_tokens,
            "seed": self._seed,
            "batch_tokens": self._batch_tokens,
            "precision": self._precision,
            "device": self._device.type,
            "versions": {package: metadata.version(package) for package in ("torch", "transformers")},
        }

    def job(self, folder: Path) -> nullcontext[None]:
        """Nothing is kept: the same responses can be made again."""
        return nullcontext()

    def sample(self, instances: Sequence[Instance], *, advance: Advance = no_advance) -> Sampled:
        """Candidates for some instances, longest prompts first, in batches of prompts of like length.

        Raises:
            ModelError: the model's output isn't a number.
            InputValueError: memory doesn't suffice for a batch, or the tokenizer's chat template fails.
        """
        with quietly():
            prompts = self._prompts([instance.instruction for instance in instances])
            cut = 0
            for place, prompt in enumerate(prompts):
                if self._most is not None and len(prompt) > self._most:
                    prompts[place] = _without_middle(prompt, self._most)
                    cut += 1
            candidates: list[list[Candidate]] = [[] for _ in instances]
            for batch in self._batches(list(map(len, prompts))):
                try:
                    responses, tokens = self._respond([prompts[at] for at in batch], [instances[at].id for at in batch])
                except torch.OutOfMemoryError as error:
                    raise InputValueError(
                        f"memory doesn't suffice for {len(batch)} instances of {len(prompts[batch[0]]):,} tokens with "
                        f"{self._rows} responses each: give fewer --batch-tokens ({error})"
                    ) from error
                for at, given in zip(batch, responses, strict=True):
                    candidates[at] = given
                advance(len(batch), tokens)
        return Sampled(candidates, {"prompts_cut": cut})

    def _prompts(self, instructions: list[str]) -> list[list[int]]:
        tokenizer: Any = self._tokenizer
        if tokenizer.chat_template is None:
            ids = tokenizer(instructions)["input_ids"]
        else:
            chats = [[{"role": "user", "content": instruction}] for instruction in instructions]
            try:
                # Templates of models that reason at length ask by enable_thinking whether to; others ignore it.
                texts = tokenizer.apply_chat_template(
                    chats, add_generation_prompt=True, tokenize=False, enable_thinking=False
                )
            except Exception as error:  # of Jinja, or of the template's own
                raise InputValueError(f"the model's chat template fails on an instruction alone: {error}") from error
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [prompt or [self._pad] for prompt in ids]

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Places of prompts that are computed together; the longest of all come first, so that memory shows at once."""
        batch: list[int] = []
        for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
            widest = lengths[batch[0]] if batch else 0
            if batch and (len(batch) + 1) * self._rows * (widest + self._max_new_tokens) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    @torch.inference_mode()
    def _respond(self, prompts: list[list[int]], ids: list[str]) -> tuple[list[list[Candidate]], int]:
        """The candidates for each prompt, and how many tokens they have together."""
        inputs = self._read(prompts)
        found = [self._search(inputs, decoding.beams) if decoding.beams > 1 else None for decoding in self._decodings]
        uniforms = torch.tensor(np.stack([self._uniforms(id) for id in ids]), device=self._device)
        writer = _Writer(self._decodings, found, uniforms, self._ends)
        self._generate(_repeated(inputs, self._rows), logits_processor=LogitsProcessorList([writer]))
        if writer.sums.isnan().any():
            raise ModelError("the model gave what is no number: try --precision float32, or another model")
        tokens = [row[:length] for row, length in zip(writer.rows(), writer.lengths.flatten().tolist(), strict=True)]
        ends = set(self._ends)
        said = [row[:-1] if row[-1] in ends else row for row in tokens]
        texts = iter(self._tokenizer.batch_decode(said, skip_special_tokens=True))
        means = (writer.sums / writer.lengths).tolist()
        candidates = []
        for sums_of_one, means_of_one in zip(writer.sums.tolist(), means, strict=True):
            likelihoods = zip(sums_of_one, means_of_one, strict=True)
            candidates.append(
                [
                    Candidate(next(texts).strip(), decoding.source, *next(likelihoods))
                    for decoding in self._decodings
                    for _ in range(decoding.samples)
                ]
            )
        return candidates, int(writer.lengths.sum())

    def _read(self, prompts: list[list[int]]) -> dict[str, Any]:
        """What `generate` takes in place of prompts, a row each: they are read once, however many responses follow."""
        width = max(map(len, prompts))
        padded, seen = np.full((len(prompts), width), self._pad), np.zeros((len(prompts), width), np.int64)
        for row, prompt in enumerate(prompts):
            # A causal model goes on at the end, so what is missing is missing before.
            place = slice(len(prompt)) if self._network.config.is_encoder_decoder else slice(width - len(prompt), None)
            padded[row, place], seen[row, place] = prompt, 1
        ids, mask = (torch.tensor(array, device=self._device) for array in (padded, seen))
        if self._network.config.is_encoder_decoder:
            states = self._network.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True)[0]
            return {"encoder_outputs": BaseModelOutput(last_hidden_state=states), "attention_mask": mask}
        inputs = {"input_ids": ids, "attention_mask": mask}
        if min(map(len, prompts)) > 1:
            # All but the last token, which gives the first token's logits.
            before = {name: value[:, :-1] for name, value in inputs.items()}
            read = self._generate(before, max_new_tokens=1, return_dict_in_generate=True)
            for name in ("cache", "past_key_values"):  # by transformers' version
                if _can_be_repeated(read.get(name)):
                    inputs[name] = read[name]
        return inputs

    def _search(self, inputs: dict[str, Any], beams: int) -> Tensor:
        """(n, length), the tokens that a beam search finds for each prompt, with the end token, padded."""
        found: Tensor = self._generate(_repeated(inputs, 1, beams=beams), num_beams=beams)
        return found[:, 1 if self._network.config.is_encoder_decoder else inputs["input_ids"].shape[1] :]

    def _generate(self, inputs: dict[str, Any], **options: Any) -> Any:
        network: Any = self._network
        return network.generate(**inputs, do_sample=False, **{"max_new_tokens": self._max_new_tokens} | options)

    def _uniforms(self, id: str) -> npt.NDArray[np.float64]:
        """(rows, tokens), numbers between 0 and 1, without either: a response is drawn by a row of them."""
        parts = []
        for decoding in self._decodings:
            key = json.dumps([self._seed, decoding.source, id]).encode()
            # Raw numbers of PCG64 are the same in every version of NumPy.
            generator = np.random.PCG64(int.from_bytes(blake2b(key, digest_size=16).digest()))
            raw = generator.random_raw(decoding.samples * self._max_new_tokens)
            parts.append((((raw >> np.uint64(24)) + 0.5) * 2.0**-40).reshape(decoding.samples, -1))
        return np.concatenate(parts)


class _Writer(LogitsProcessor):
    """Chooses each next token in `generate`'s place, and adds up the tokens' log-likelihoods.

    These are of the distribution that the network gave, before a decoding bends it. A beam search's response takes part
    as a row whose tokens are known.

    sums: (n, rows) float64, log-likelihoods of the responses so far.
    lengths: (n, rows), their tokens, the end token included.
    """

    def __init__(
        self, decodings: Sequence[Decoding], found: Sequence[Tensor | None], uniforms: Tensor, ends: list[int]
    ) -> None:
        """found: of each decoding the tokens (n, length) that are known; uniforms: (n, rows, tokens)."""
        self._decodings, self._found, self._uniforms = decodings, found, uniforms
        self._ends = torch.tensor(ends, device=uniforms.device)
        self._tokens: list[Tensor] = []
        self._open = torch.ones_like(uniforms[..., 0], dtype=torch.bool)
        self.sums = torch.zeros_like(uniforms[..., 0])
        self.lengths = torch.zeros_like(self.sums, dtype=torch.int64)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = len(self._tokens)
        logits = scores.view(*self._open.shape, -1)
        parts, row = [], 0
        for decoding, found in zip(self._decodings, self._found, strict=True):
            rows = slice(row, row + decoding.samples)
            row = rows.stop
            if found is None:
                parts.append(draw(logits[:, rows], decoding, self._uniforms[:, rows, step]))
            else:
                # Past the longest one all of them have ended, and any token will do.
                parts.append(found[:, min(step, found.shape[1] - 1), None])
        tokens = torch.cat(parts, dim=1)
        likelihoods = logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)
        self.sums += torch.where(self._open, likelihoods.double(), 0.0)
        self.lengths += self._open
        self._open &= ~torch.isin(tokens, self._ends)
        self._tokens.append(tokens)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens.view(-1, 1), 0.0)

    def rows(self) -> list[list[int]]:
        """The tokens of all responses, one instance's after the other's; those past an end mean nothing."""
        return torch.stack(self._tokens, dim=-1).flatten(0, 1).tolist()


def draw(logits: Tensor, decoding: Decoding, uniforms: Tensor) -> Tensor:
    """Tokens drawn by inverse transform.

    Args:
        logits: (..., v).
        decoding: says which tokens may be drawn, and how logits are bent, in the order temperature, top-k, top-p.
        uniforms: (...), float64, numbers between 0 and 1; one a token.

    Returns:
        (...), int64.
    """
    logits = logits / decoding.temperature
    if decoding.top_k is None and decoding.top_p is None:
        return _place(logits.softmax(-1, dtype=torch.float64), uniforms)
    vocabulary = logits.shape[-1]
    if decoding.top_k is not None:
        values, likeliest = logits.topk(min(decoding.top_k, vocabulary))
        probabilities = values.softmax(-1, dtype=torch.float64)
    else:
        total = logits.logsumexp(-1, keepdim=True)
        for width in (min(USUAL_NUCLEUS, vocabulary), vocabulary):
            values, likeliest = logits.topk(width)
            probabilities = (values - total).double().exp()
            if probabilities.sum(-1).min() >= (decoding.top_p or 1):
                break
    if decoding.top_p is not None:
        likelier = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(likelier >= decoding.top_p, 0.0)
    return likeliest.gather(-1, _place(probabilities, uniforms)[..., None])[..., 0]


def _place(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    cumulative = probabilities.cumsum(-1)
    places = torch.searchsorted(cumulative, (uniforms * cumulative[..., -1])[..., None], right=True)[..., 0]
    return places.clamp(max=probabilities.shape[-1] - 1)  # past the end only where they are no numbers


def _repeated(inputs: dict[str, Any], rows: int, *, beams: int = 1) -> dict[str, Any]:
    """Inputs of `generate` with each row so many times; with beams `generate` repeats all but the cache by itself."""
    repeated: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            repeated[name] = value.repeat_interleave(rows, dim=0)
        elif isinstance(value, BaseModelOutput):
            repeated[name] = BaseModelOutput(last_hidden_state=value[0].repeat_interleave(rows, dim=0))
        else:
            repeated[name] = copy.deepcopy(value)
            repeated[name].batch_repeat_interleave(rows * beams)
    return repeated


def _can_be_repeated(cache: object) -> bool:
    """Whether keys and values of a prompt are all that the cache has; recurrent networks have more."""
    return isinstance(cache, DynamicCache) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )


def _without_middle(prompt: list[int], most: int) -> list[int]:
    head = (most + 1) // 2
    return prompt[:head] + prompt[len(prompt) - (most - head) :]


def _open(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many kinds
        raise InputValueError(
            f"{folder}: its config.json can't be read, or it needs Python code of its own, which is never run ({error})"
        ) from error
    names = config.architectures or []
    if names and not any(part in name for name in names for part in WRITERS):
        raise InputValueError(f"{folder} is a {names[0]}, which writes no text: give a seq2seq or a causal model")
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        network, report = kind.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=dtype, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many kinds
        raise InputValueError(
            f"{folder}: its weights or its tokenizer can't be read ({error}): download or save both again"
        ) from error
    if missing := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise InputValueError(
            f"{folder} lacks weights that its config.json tells of, such as {missing[0]}: download or save it again"
        )
    return network.eval(), tokenizer


def _use_plain_generation(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """Leaves of the network's own generation settings the special tokens; returns the end tokens and the padding."""
    own: Any = network.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    pads = [own.pad_token_id, tokenizer.pad_token_id, *ends, 0]
    pad = next(token for token in pads if token is not None)
    start = own.decoder_start_token_id
    if start is None:
        start = getattr(network.config, "decoder_start_token_id", None)
    network.generation_config = GenerationConfig(
        eos_token_id=ends or None,
        pad_token_id=pad,
        bos_token_id=own.bos_token_id,
        decoder_start_token_id=start,
    )
    return ends, pad


def _longest_prompt(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> int | None:
    """The most tokens of a prompt that leave room for a response; None where the model has no limit."""
    config: Any = network.config
    reader = getattr(config, "encoder", None) or config.get_text_config()
    limits = [tokenizer.model_max_length, getattr(reader, "max_position_embeddings", None)]
    most = min(limit for limit in limits if limit is not None)
    if not config.is_encoder_decoder:
        most -= max_new_tokens
    if most < LEAST_PROMPT:
        raise InputValueError(f"max_new_tokens is {max_new_tokens}: it leaves no room for prompts in this model")
    return most if most < NO_LIMIT else None


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch have none
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def _read_files(folder: Path) -> list[Path]:
    """The files that a model consists of."""
    names = WEIGHTS[:1] if any(folder.glob(WEIGHTS[0])) else WEIGHTS[1:]
    return sorted(path for pattern in (*FILES, *names) for path in folder.glob(pattern))
