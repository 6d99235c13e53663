"""Attention over packed rows: a token sees its instruction and its own segment (see `cappy_lite.packing`).

On a CPU it is written out here. PyTorch's fused kernels take several times as long there with heads of 32 in bfloat16,
most of all backwards; and over a whole batch at once the weights between tokens would leave the processor's cache. So
it goes a few rows at a time, and in long rows a few queries at a time, without the keys that none of these sees.
Other devices have good kernels of their own, which read the mask whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Weights between tokens, over all heads, that are computed at a time: 8 MB of them in bfloat16.
CHUNK_WEIGHTS = 4 << 20
# Rows up to so many tokens are one block: to cut them would take longer than what it saves.
WHOLE_ROW = 256
# Queries of a block of a longer row.
BLOCK_QUERIES = 128


@dataclass(frozen=True, slots=True)
class Block:
    """Some queries of b rows, and the keys that one of them at least sees.

    queries: of each row's tokens.
    keys: of each row's tokens, in order.
    bias: (b, 1, queries, keys); what is added to the logits: 0 where a query sees a key, else -inf.
    """

    queries: slice
    keys: tuple[slice, ...]
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that are computed together, and the blocks that have each of their queries once."""

    rows: slice
    blocks: tuple[Block, ...]


class Sight:
    """Who sees whom in a batch of packed rows; made once a batch, and used by every layer."""

    def __init__(
        self,
        segment_ids: Tensor,
        heads: int,
        dtype: torch.dtype,
        *,
        position_ids: Tensor | None = None,
        window: int | None = None,
    ) -> None:
        """segment_ids: (B, L) int64, 0 for instructions; padding has -1, which nothing else sees.

        heads, dtype: of the queries, keys and values.
        position_ids, window: see `attention_bias`.
        """
        self.dtype = dtype
        self._heads = heads
        self._bias = attention_bias(segment_ids, dtype, position_ids=position_ids, window=window)
        self._chunks = tuple(_chunks(segment_ids, self._bias, heads)) if segment_ids.device.type == "cpu" else None

    def attend(self, query_key_value: Tensor) -> Tensor:
        """What every token gathers, (B, L, hidden), of queries, keys and values side by side, (B, L, 3 * hidden)."""
        parts = query_key_value.unflatten(-1, (3, self._heads, -1))
        if self._chunks is not None:
            # In the precision of its inputs, backwards as well.
            with torch.autocast("cpu", enabled=False):
                return _ChunkedAttention.apply(parts, self._chunks).flatten(-2)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value, self._bias).transpose(1, 2).flatten(-2)

    def attend_at(self, positions: Tensor, query: Tensor, key_value: Tensor) -> Tensor:
        """What the tokens at some positions gather, (B, K, hidden).

        positions: (B, K) int64, of each row's own tokens among the B * L laid end to end.
        query: (B, K, hidden), theirs. key_value: (B, L, 2 * hidden), of all tokens.
        """
        bias = self._bias.flatten(0, 2)[positions].unsqueeze(1)
        own = query.unflatten(-1, (self._heads, -1)).transpose(1, 2)
        key, value = key_value.unflatten(-1, (2, self._heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (own * own.shape[-1] ** -0.5 @ key.transpose(-1, -2) + bias).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(-2)


def attention_bias(
    segment_ids: Tensor, dtype: torch.dtype, *, position_ids: Tensor | None = None, window: int | None = None
) -> Tensor:
    """What is added to the attention logits, (B, 1, L, L): 0 where a query (row) sees a key (column), else -inf.

    window: if given, a query sees keys at most so many positions away.
    """
    segments = segment_ids.to(torch.int32)  # compared faster
    keys, queries = segments[:, None, :], segments[:, :, None]
    visible = (keys == 0) | (keys == queries)
    if position_ids is not None and window is not None:
        places = position_ids.to(torch.int32)
        visible &= (places[:, None, :] - places[:, :, None]).abs() <= window
    bias = torch.zeros(visible.shape, dtype=dtype, device=segment_ids.device)
    return bias.masked_fill(~visible, float("-inf")).unsqueeze(1)


def _chunks(segment_ids: Tensor, bias: Tensor, heads: int) -> Iterator[Chunk]:
    count, length = segment_ids.shape
    size = max(1, CHUNK_WEIGHTS // (heads * length * length))
    for first in range(0, count, size):
        rows = slice(first, min(first + size, count))
        if length <= WHOLE_ROW:
            whole = slice(0, length)
            yield Chunk(rows, (Block(whole, (whole,), bias[rows]),))
        else:
            instruction = int((segment_ids[rows] == 0).sum(1).min())
            edges = sorted({0, *range(instruction, length, BLOCK_QUERIES), length})
            yield Chunk(rows, tuple(_block(bias[rows], slice(start, end)) for start, end in pairwise(edges)))


def _block(bias: Tensor, queries: slice) -> Block:
    """A block of the rows with this bias, without the keys that none of the queries sees."""
    own = bias[:, :, queries]
    seen = F.pad((own == 0).any(2).any(0).flatten().int(), (1, 1))
    # Where keys begin to be seen, and where they end to be.
    begins, ends = ((seen.diff() == step).nonzero().flatten().tolist() for step in (1, -1))
    keys = tuple(slice(begin, end) for begin, end in zip(begins, ends, strict=True))
    return Block(queries, keys, _gathered(own.transpose(2, 3), keys).transpose(2, 3))


def _gathered(tokens: Tensor, ranges: tuple[slice, ...]) -> Tensor:
    """Ranges of the tokens, (b, H, L, d), one after the other."""
    parts = [tokens[:, :, each] for each in ranges]
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


class _ChunkedAttention(torch.autograd.Function):
    """(B, L, H, d) of queries, keys and values, (B, L, 3, H, d)."""

    @staticmethod
    def forward(ctx: Any, query_key_value: Tensor, chunks: tuple[Chunk, ...]) -> Tensor:
        context = torch.empty_like(query_key_value[:, :, 0])
        saved = []
        for chunk in chunks:
            parts = query_key_value[chunk.rows].permute(2, 0, 3, 1, 4).clone(memory_format=torch.contiguous_format)
            query, key, value = parts
            query *= query.shape[-1] ** -0.5
            saved.append(parts)
            for block in chunk.blocks:
                logits = query[:, :, block.queries] @ _gathered(key, block.keys).transpose(-1, -2)
                weights = logits.add_(block.bias).softmax(-1)
                context[chunk.rows, block.queries] = (weights @ _gathered(value, block.keys)).transpose(1, 2)
                saved.append(weights)
        ctx.chunks = chunks
        ctx.save_for_backward(*saved)
        return context

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        count, length, heads, width = grad.shape
        grads = grad.new_empty(count, length, 3, heads, width)
        saved = iter(ctx.saved_tensors)
        for chunk in ctx.chunks:
            query, key, value = next(saved)
            of_context = grad[chunk.rows].transpose(1, 2).contiguous()
            of_query, of_key, of_value = of_parts = query.new_zeros(3, *query.shape)
            for block in chunk.blocks:
                weights, own = next(saved), of_context[:, :, block.queries]
                of_weights = own @ _gathered(value, block.keys).transpose(-1, -2)
                of_logits = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
                of_query[:, :, block.queries] = of_logits @ _gathered(key, block.keys)
                _add_to(of_key, block.keys, of_logits.transpose(-1, -2) @ query[:, :, block.queries])
                _add_to(of_value, block.keys, weights.transpose(-1, -2) @ own)
            of_query *= width**-0.5
            grads[chunk.rows] = of_parts.permute(1, 3, 0, 2, 4)
        return grads, None


def _add_to(tokens: Tensor, ranges: tuple[slice, ...], values: Tensor) -> None:
    """Adds to ranges of the tokens what `_gathered` would have taken from there."""
    start = 0
    for each in ranges:
        end = start + each.stop - each.start
        tokens[:, :, each] += values[:, :, start:end]
        start = end
