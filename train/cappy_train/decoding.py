"""Responses to prompts of token ids by several decodings at once, in transformers' `generate`.

A prompt is read once for all its responses, and rows that have ended leave the others.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
)
from transformers.modeling_outputs import BaseModelOutput

from cappy_train.drawing import draw
from cappy_train.sampling import Decoding

# Most searches end within so many tokens; those that don't begin anew, without a limit of their own.
FIRST_SEARCH = 16
# Of the cache, by transformers' version.
CACHES = ("cache", "past_key_values")


@dataclass(frozen=True, slots=True)
class Responses:
    """What was written.

    tokens: (n, responses, tokens); those past an end mean nothing.
    lengths: (n, responses), how many tokens a response has, the end token included.
    sums: (n, responses) float64, log-likelihoods.
    """

    tokens: Tensor
    lengths: Tensor
    sums: Tensor


class Responder:
    """Has a network write responses.

    network: seq2seq or causal, with plain generation settings.
    decodings: how responses are chosen.
    max_new_tokens: the longest response, its end token included.
    ends, pad: the tokens of end and padding.
    """

    def __init__(
        self, network: PreTrainedModel, decodings: Sequence[Decoding], *, max_new_tokens: int, ends: list[int], pad: int
    ) -> None:
        self._network = network
        self._device = network.device
        self._decodings = decodings
        self._max_new_tokens = max_new_tokens
        self._ends, self._pad = ends, pad

    @torch.inference_mode()
    def respond(self, prompts: list[list[int]], uniforms: Tensor) -> Responses:
        """The responses to n prompts, one decoding's after another's.

        uniforms: (responses, n, tokens) float64, numbers between 0 and 1, by a row of which a response is drawn.
        """
        inputs = self._read(prompts)
        found = [self._search(inputs, decoding.beams) if decoding.beams > 1 else None for decoding in self._decodings]
        writer = Writer(self._decodings, found, uniforms)
        # Responses of one decoding lie side by side: first response of each prompt, second, and so on.
        rows = torch.arange(len(prompts), device=self._device).repeat(len(uniforms))
        self._continue(_selected(inputs, rows), writer)
        return writer.responses(self._ends)

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
            inputs: dict[str, Any] = {
                "encoder_outputs": BaseModelOutput(last_hidden_state=states),
                "attention_mask": mask,
            }
            read = self._generate(inputs, max_new_tokens=1, return_dict_in_generate=True)
            if (found := _cache(read)) is not None:
                name, cache = found
                own = DynamicCache(config=self._network.config.get_text_config(decoder=True))
                inputs[name] = _OneReading(own, cache.cross_attention_cache)
            return inputs
        inputs = {"input_ids": ids, "attention_mask": mask}
        if min(map(len, prompts)) > 1:
            # All but the last token, which gives the first token's logits.
            before = {name: value[:, :-1] for name, value in inputs.items()}
            read = self._generate(before, max_new_tokens=1, return_dict_in_generate=True)
            if (found := _cache(read)) is not None:
                name, inputs[name] = found
        return inputs

    def _search(self, inputs: dict[str, Any], beams: int) -> Tensor:
        """(n, tokens), what a beam search finds for each prompt, with the end token, padded."""
        prompts = torch.arange(len(inputs["attention_mask"]), device=self._device)
        found = torch.full((len(prompts), self._max_new_tokens), self._pad, device=self._device)
        for limit in sorted({min(FIRST_SEARCH, self._max_new_tokens), self._max_new_tokens}):
            sequences = self._generate(
                _selected(inputs, prompts, beams=beams),
                num_beams=beams,
                num_return_sequences=beams,
                max_new_tokens=limit,
            )
            tokens = sequences[:, self._width(inputs) :].unflatten(0, (-1, beams))
            found[prompts, : tokens.shape[-1]] = tokens[:, 0]
            # If all of the best ones have ended, what goes on is worse already, and a longer search finds no other.
            going_on = ~_have_ended(tokens, self._ends).all(-1)
            prompts = prompts[going_on]
            if not len(prompts):
                break
        return found

    def _continue(self, inputs: dict[str, Any], writer: Writer) -> None:
        """Has the writer write all rows. Whenever half of them have ended the others go on alone, if the cache can."""
        width = self._width(inputs)
        rows = torch.arange(len(inputs["attention_mask"]), device=self._device)
        name = next((name for name in CACHES if name in inputs), None)
        half = StoppingCriteriaList([HalfHaveEnded(self._ends, width)] if name else [])
        written = 0
        while True:
            writer.take(rows, width)
            read = self._generate(
                inputs,
                logits_processor=LogitsProcessorList([writer]),
                stopping_criteria=half,
                max_new_tokens=self._max_new_tokens - written,
                return_dict_in_generate=True,
            )
            written = read.sequences.shape[1] - width
            (open_rows,) = torch.nonzero(~_have_ended(read.sequences[:, width:], self._ends), as_tuple=True)
            if name is None or written == self._max_new_tokens or not len(open_rows):
                return
            rows, tokens, cache = rows[open_rows], read.sequences[open_rows], inputs.pop(name)
            cache.batch_select_indices(open_rows)
            inputs = _selected(inputs, open_rows) | {name: cache}
            if self._network.config.is_encoder_decoder:
                inputs |= {"decoder_input_ids": tokens, "decoder_attention_mask": torch.ones_like(tokens)}
            else:
                # With the prompt's mask, to which what was written is added.
                mask = F.pad(inputs["attention_mask"][:, :width], (0, written), value=1)
                inputs |= {"input_ids": tokens, "attention_mask": mask}

    def _width(self, inputs: dict[str, Any]) -> int:
        """Where in a sequence of `generate` responses begin."""
        return 1 if self._network.config.is_encoder_decoder else int(inputs["input_ids"].shape[1])

    def _generate(self, inputs: dict[str, Any], **options: Any) -> Any:
        network: Any = self._network
        return network.generate(**inputs, do_sample=False, **{"max_new_tokens": self._max_new_tokens} | options)


class HalfHaveEnded(StoppingCriteria):
    """Ends `generate` when at most half of its rows go on."""

    def __init__(self, ends: list[int], width: int) -> None:
        self._ends, self._width = ends, width

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        ended = _have_ended(input_ids[:, self._width :], self._ends)
        return (2 * ended.sum() >= len(ended)).expand(len(ended))


def _have_ended(tokens: Tensor, ends: list[int]) -> Tensor:
    """(...), whether there is an end among (..., t) tokens."""
    return _are_ends(tokens, ends).any(-1)


def _are_ends(tokens: Tensor, ends: list[int]) -> Tensor:
    return torch.isin(tokens, torch.tensor(ends, dtype=tokens.dtype, device=tokens.device))


class Writer(LogitsProcessor):
    """Chooses each next token in `generate`'s place, and notes the tokens' log-likelihoods.

    These are of the distribution that the network gave, before a decoding bends it. A beam search's response takes part
    as a row whose tokens are known. Rows are responses: the first ones of all n prompts, the second ones, and so on.
    """

    def __init__(self, decodings: Sequence[Decoding], found: Sequence[Tensor | None], uniforms: Tensor) -> None:
        """found: of each decoding the tokens (n, tokens) that are known; uniforms: (responses, n, tokens)."""
        self._decodings, self._found = decodings, found
        self._ends_of_decodings = np.cumsum([decoding.samples for decoding in decodings]) * uniforms.shape[1]
        self._shape = uniforms.shape
        self._uniforms = uniforms.flatten(0, 1)
        self._likelihoods = torch.zeros_like(self._uniforms)
        self._tokens = torch.zeros_like(self._uniforms, dtype=torch.int64)

    def take(self, rows: Tensor, width: int) -> None:
        """From now on it's called for these rows, in ascending order; their responses begin at `width`."""
        self._rows, self._width = rows, width
        stops = torch.searchsorted(rows, torch.tensor(self._ends_of_decodings, device=rows.device)).tolist()
        self._parts = [slice(*part) for part in pairwise([0, *stops])]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self._width
        most = scores.amax(-1, keepdim=True)
        weights = (scores - most).exp_()
        parts = []
        for decoding, found, part in zip(self._decodings, self._found, self._parts, strict=True):
            rows = self._rows[part]
            if found is not None:
                parts.append(found[rows % len(found), step])
            elif len(rows):
                bent = weights[part]
                if decoding.temperature != 1:
                    bent = ((scores[part] - most[part]) / decoding.temperature).exp_()
                parts.append(draw(bent, decoding, self._uniforms[rows, step]))
        tokens = torch.cat(parts)[:, None]
        self._tokens[self._rows, step] = tokens[:, 0]
        likelihoods = scores.gather(1, tokens) - most - weights.sum(-1, keepdim=True).log()
        self._likelihoods[self._rows, step] = likelihoods[:, 0].double()
        return scores.scatter_(1, tokens, torch.inf)

    def responses(self, ends: list[int]) -> Responses:
        tokens, likelihoods = (each.view(self._shape).transpose(0, 1) for each in (self._tokens, self._likelihoods))
        last = _are_ends(tokens, ends)
        last[..., -1] = True
        lengths = last.int().argmax(-1) + 1
        within = torch.arange(last.shape[-1], device=last.device) < lengths[..., None]
        return Responses(tokens, lengths, torch.where(within, likelihoods, 0.0).sum(-1))


def _selected(inputs: dict[str, Any], rows: Tensor, *, beams: int = 1) -> dict[str, Any]:
    """Inputs of `generate`, these rows of them; with beams `generate` repeats all but the cache by itself."""
    selected: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            selected[name] = value[rows]
        elif isinstance(value, BaseModelOutput):
            selected[name] = BaseModelOutput(last_hidden_state=value[0][rows])
        else:
            selected[name] = copy.deepcopy(value)
            selected[name].batch_select_indices(rows.repeat_interleave(beams))
    return selected


class _OneReading(EncoderDecoderCache):
    """The cache of a seq2seq all of whose beams have read the same prompt."""

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.self_attention_cache.reorder_cache(beam_idx)


def _cache(read: Any) -> tuple[str, Any] | None:
    """The cache that `generate` returned, by its name in this version of transformers, if rows can be selected."""
    for name in CACHES:
        if _is_plain(read.get(name)):
            return name, read[name]
    return None


def _is_plain(cache: object) -> bool:
    """Whether keys and values are all that the cache has; recurrent networks have more."""
    if isinstance(cache, EncoderDecoderCache):
        return _is_plain(cache.self_attention_cache) and _is_plain(cache.cross_attention_cache)
    return isinstance(cache, DynamicCache) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )
