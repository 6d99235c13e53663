"""What training makes small: losses of a batch's logits against its labels, and their weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from cappy_lite.errors import InputValueError


def objective(logits: Tensor, labels: Tensor, losses: Mapping[str, float], *, temperature: float) -> Tensor:
    """The sum of losses, each by its weight.

    Args:
        logits, labels: (B, K) float32; labels are 0..1, and NaN in places without a candidate.
        losses: weights by the names in LOSSES.
        temperature: of the listwise loss' target.
    """
    present = ~labels.isnan()
    target = labels.nan_to_num()
    total = logits.new_zeros(())
    for name, weight in losses.items():
        total = total + weight * LOSSES[name](logits.float(), target, present, temperature)
    return total


def check_losses(losses: Mapping[str, float]) -> None:
    """Raises InputValueError unless each is a loss with a weight, and they are worth training for."""
    for name, weight in losses.items():
        if name not in LOSSES:
            raise InputValueError(f"losses has {name!r}: give any of {', '.join(LOSSES)}, each with a weight")
        if not 0 <= weight < float("inf"):
            raise InputValueError(f"losses gives {name} the weight {weight}: give 0 or more")
    if not sum(losses.values()):
        raise InputValueError("losses has no weight above 0: give one, such as {'squared': 1.0}")


def squared(logits: Tensor, target: Tensor, present: Tensor, temperature: float) -> Tensor:
    """The squared error of the score: the Cappy paper's objective."""
    return _mean((logits.sigmoid() - target).square(), present)


def cross_entropy(logits: Tensor, target: Tensor, present: Tensor, temperature: float) -> Tensor:
    """The cross-entropy of each score with its label: makes scores comparable between instructions."""
    return _mean(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), present)


def listwise(logits: Tensor, target: Tensor, present: Tensor, temperature: float) -> Tensor:
    """The cross-entropy of a row's softmax of logits with one of label / temperature (ListNet, Cao et al., 2007).

    It makes the best candidate win.
    """
    target_share = (target / temperature).masked_fill(~present, float("-inf")).softmax(-1)
    log_share = logits.masked_fill(~present, float("-inf")).log_softmax(-1).masked_fill(~present, 0.0)
    return -(target_share * log_share).sum(-1).mean()


def pairwise(logits: Tensor, target: Tensor, present: Tensor, temperature: float) -> Tensor:
    """The logistic loss of every two candidates of a row in the right order (RankNet, Burges et al., 2005).

    It is a margin loss without a corner. A pair weighs as much as its labels differ.
    """
    better = (target[:, :, None] - target[:, None, :]).clamp(min=0)
    better = better * (present[:, :, None] & present[:, None, :])
    losses = F.softplus(logits[:, None, :] - logits[:, :, None])
    return (better * losses).sum() / better.sum().clamp(min=torch.finfo(torch.float32).tiny)


def _mean(values: Tensor, present: Tensor) -> Tensor:
    # Without indexing by `present`, whose result has another size each time, which compilers of devices don't like.
    return values.masked_fill(~present, 0.0).sum() / present.sum()


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "squared": squared,
    "cross_entropy": cross_entropy,
    "listwise": listwise,
    "pairwise": pairwise,
}
