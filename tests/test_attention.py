"""Attention over packed rows is that of the dense mask, forwards and backwards, however it is cut into blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cappy_train import attention
from cappy_train.attention import Sight, attention_bias
from cappy_train.network import NetworkConfig, ScorerNetwork

HEADS, WIDTH = 3, 4


def segments(rows: list[list[int]], length: int) -> torch.Tensor:
    """(B, L) segment ids of rows by the lengths of their segments, with padding."""
    ids = np.full((len(rows), length), -1)
    for own, lengths in zip(ids, rows, strict=True):
        own[: sum(lengths)] = np.repeat(np.arange(len(lengths)), lengths)
    return torch.from_numpy(ids)


def dense(
    parts: torch.Tensor,
    segment_ids: torch.Tensor,
    heads: int = HEADS,
    *,
    position_ids: torch.Tensor | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Attention under the whole mask, (B, L, hidden)."""
    query, key, value = parts.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    bias = attention_bias(segment_ids, parts.dtype, position_ids=position_ids, window=window)
    logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
    return (logits.softmax(-1) @ value).transpose(1, 2).flatten(-2)


row_lengths = st.lists(st.integers(1, 12), min_size=1, max_size=8)


@given(st.lists(row_lengths, min_size=1, max_size=5), st.integers(0, 9), st.sampled_from([1, 500, 1 << 20]), st.data())
def test_it_is_dense_attention_with_its_gradients(
    rows: list[list[int]], padding: int, chunk_weights: int, data: st.DataObject
) -> None:
    length = max(map(sum, rows)) + padding
    segment_ids = segments(rows, length)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    parts = torch.randn(len(rows), length, 3 * HEADS * WIDTH, generator=generator, requires_grad=True)
    weights = torch.randn(len(rows), length, HEADS * WIDTH, generator=generator)
    window = data.draw(st.none() | st.integers(1, 12))
    position_ids = torch.where(segment_ids == 0, 0, rows[0][0]) + torch.arange(length) % 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "CHUNK_WEIGHTS", chunk_weights)
        patch.setattr(attention, "WHOLE_ROW", data.draw(st.sampled_from([0, 20, 1000])))
        patch.setattr(attention, "BLOCK_QUERIES", data.draw(st.integers(1, 16)))
        sight = Sight(segment_ids, HEADS, torch.float32, position_ids=position_ids, window=window)
        found = sight.attend(parts)
    expected = dense(parts, segment_ids, position_ids=position_ids, window=window)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    gradients = [torch.autograd.grad((each * weights).sum(), parts)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)


def test_keys_that_no_query_of_a_block_sees_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "WHOLE_ROW", 0)
    monkeypatch.setattr(attention, "BLOCK_QUERIES", 10)
    segment_ids = segments([[20, 10, 10, 10]], 52)
    (chunk,) = attention._chunks(segment_ids, attention_bias(segment_ids, torch.float32), HEADS)
    assert [(block.queries, block.keys) for block in chunk.blocks] == [
        (slice(0, 20), (slice(0, 20),)),
        (slice(20, 30), (slice(0, 30),)),
        (slice(30, 40), (slice(0, 20), slice(30, 40))),
        (slice(40, 50), (slice(0, 20), slice(40, 50))),
        (slice(50, 52), (slice(0, 20), slice(50, 52))),
    ]


def test_at_some_positions_it_is_what_all_positions_have() -> None:
    segment_ids = segments([[5, 3, 4], [7, 2, 2]], 14)
    positions = torch.tensor([[7, 11], [14 + 8, 14 + 10]])
    parts = torch.randn(2, 14, 3 * HEADS * WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sight = Sight(segment_ids, HEADS, torch.float64)
    query, key_value = parts.split((HEADS * WIDTH, 2 * HEADS * WIDTH), -1)
    found = sight.attend_at(positions, query.flatten(0, 1)[positions], key_value)
    torch.testing.assert_close(found, dense(parts, segment_ids).flatten(0, 1)[positions])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("lengths", [[[9, 1]], [[40, 3, 1, 12, 7], [55, 2], [17, 20, 9]], [[260, 30, 90, 4], [300, 7]]])
def test_the_network_and_its_gradients_are_those_of_the_dense_mask(lengths: list[list[int]], recompute: bool) -> None:
    torch.manual_seed(0)
    sizes = NetworkConfig(vocabulary=50, hidden=16, layers=3, heads=4, feed_forward=24, positions=512)
    network = ScorerNetwork(sizes)
    network.recompute = recompute
    length = max(map(sum, lengths)) + 5
    segment_ids = segments(lengths, length)
    ids = torch.randint(50, segment_ids.shape)
    types = (segment_ids > 0).long()
    position_ids = torch.arange(length).expand_as(ids) % 512
    ends = [np.cumsum(row)[1:] - 1 + length * number for number, row in enumerate(lengths)]
    most = max(map(len, ends))
    positions = torch.from_numpy(np.stack([np.pad(row, (0, most - len(row)), mode="edge") for row in ends]))

    def gradients(logits: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad((logits * torch.arange(1, logits.numel() + 1)).sum(), network.parameters()))

    found = network(ids, position_ids, types, segment_ids, positions.flatten())
    found_gradients = gradients(found)
    # All states of all layers, by the dense mask; then the head at the same places.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sight, "attend", lambda sight, parts: dense(parts, segment_ids, sizes.heads))
        states = network.encode(ids, position_ids, types, segment_ids)
        last = states.flatten(0, 1)[positions.flatten()]
        expected = network.head_output(torch.tanh(network.head_dense(last))).flatten()
        expected_gradients = gradients(expected)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for ours, theirs in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_leaves_its_precision_alone(dtype: torch.dtype) -> None:
    segment_ids = segments([[5, 3, 4], [7, 2, 2]], 14)
    parts = torch.randn(2, 14, 3 * HEADS * WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    parts.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        context = Sight(segment_ids, HEADS, torch.float32).attend(parts)
    assert context.dtype == dtype
    context.sum().backward()
    assert parts.grad is not None
    torch.testing.assert_close(context.float(), dense(parts.float(), segment_ids), atol=2e-2, rtol=2e-2)


def test_other_devices_read_the_whole_mask() -> None:
    """PyTorch's own kernel, which stands in for those of other devices, gives the same."""
    segment_ids = segments([[5, 3, 4], [7, 2, 2]], 14)
    parts = torch.randn(2, 14, 3 * HEADS * WIDTH, generator=torch.Generator().manual_seed(0))
    sight = Sight(segment_ids, HEADS, torch.float32)
    sight._chunks = None
    torch.testing.assert_close(sight.attend(parts), dense(parts, segment_ids), atol=1e-5, rtol=0)
