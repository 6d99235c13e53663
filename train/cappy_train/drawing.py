"""Drawing a next token among those of a vocabulary by temperature, top-k or nucleus, without sorting them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cappy_train.sampling import Decoding

# A nucleus has seldom more tokens; only where it has, its bound is searched among all.
USUAL_NUCLEUS = 128
# Tokens of the vocabulary that are summed up at a time, before one of them is drawn.
BLOCK = 64
# What is left of a uniform number is less than 1 too.
LARGEST_SHARE = 1 - 2.0**-40


def draw(weights: Tensor, decoding: Decoding, uniforms: Tensor) -> Tensor:
    """Tokens drawn by inverse transform.

    Args:
        weights: (n, v) float32, what tokens' probabilities are proportional to, at the decoding's temperature.
        decoding: says by top_k, then by top_p which tokens may be drawn. Tokens as likely as the nucleus' last one are
            in it.
        uniforms: (n,) float64, numbers between 0 and 1.

    Returns:
        (n,), int64.
    """
    likeliest = None
    if decoding.top_k is not None:
        weights, likeliest = _likeliest(weights, decoding.top_k)
    if decoding.top_p is not None:
        weights = weights.clone().ge_(_least_of_nucleus(weights, decoding.top_p)).mul_(weights)
    places = _place(weights, uniforms)
    return places if likeliest is None else likeliest.gather(-1, places[:, None])[:, 0]


def _place(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Where in (n, v) weights the (n,) uniforms fall: first in which block, then where in it."""
    blocks = _blocks(weights)
    sums = blocks.sum(-1)
    block, share = _fall(sums, uniforms)
    inner = blocks.gather(1, block[:, None, None].expand(-1, 1, BLOCK))[:, 0]
    place, _ = _fall(inner, share)
    # Past the end only where weights are no numbers.
    return (block * BLOCK + place).clamp(max=weights.shape[1] - 1)


def _fall(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The place of each uniform number, (n,), and how far it is through that place's weight, again between 0 and 1."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    wanted = (uniforms * cumulative[:, -1])[:, None]
    places = torch.searchsorted(cumulative, wanted, right=True).clamp_(max=weights.shape[1] - 1)
    inside = weights.gather(1, places).double()
    share = 1 - (cumulative.gather(1, places) - wanted) / inside
    return places[:, 0], share[:, 0].clamp(0.0, LARGEST_SHARE)


def _blocks(weights: Tensor) -> Tensor:
    """(n, v) weights as (n, blocks, BLOCK), zeros behind them."""
    if missing := -weights.shape[1] % BLOCK:
        weights = F.pad(weights, (0, missing))
    return weights.unflatten(1, (-1, BLOCK))


def _likeliest(weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The greatest of (n, v) weights, (n, count) in descending order, and their places."""
    blocks = _blocks(weights)
    if blocks.shape[1] <= count:
        values, places = weights.topk(min(count, weights.shape[1]))
        return values, places
    # They are in the blocks with the greatest maxima.
    chosen = blocks.amax(-1).topk(count).indices
    values, places = blocks.gather(1, chosen[..., None].expand(-1, -1, BLOCK)).flatten(1).topk(count)
    return values, chosen.gather(1, places // BLOCK) * BLOCK + places % BLOCK


def _least_of_nucleus(weights: Tensor, top_p: float) -> Tensor:
    """(n, 1), the greatest weight with which the weights that are no less are `top_p` of all, or more."""
    wanted = top_p * weights.sum(-1, keepdim=True)
    values, _ = _likeliest(weights, USUAL_NUCLEUS)
    before = (values.cumsum(-1) < wanted).sum(-1, keepdim=True)
    least = values.gather(1, before.clamp(max=values.shape[1] - 1))
    (wide,) = torch.nonzero(before[:, 0] == values.shape[1], as_tuple=True)
    if len(wide):
        least[wide] = _bisected(weights[wide], wanted[wide])
    return least


def _bisected(weights: Tensor, wanted: Tensor) -> Tensor:
    """(n, 1), the greatest bound from which on (n, v) weights are in all what is wanted, or more."""
    # Numbers that aren't negative are in the order of their bits.
    low, high = torch.zeros_like(wanted).view(torch.int32), weights.amax(-1, keepdim=True).view(torch.int32)
    above = torch.empty_like(weights)
    while bool((low < high).any()):
        middle = low + (high - low + 1) // 2
        torch.ge(weights, middle.view(torch.float32), out=above)
        enough = above.mul_(weights).sum(-1, keepdim=True) >= wanted
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle - 1)
    return low.view(torch.float32)
