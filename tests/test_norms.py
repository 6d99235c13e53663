"""Layer normalisation: its gradients in bfloat16 are those in float32."""

import pytest
import torch
from torch import nn

from cappy_train.norms import LayerNorm, make_exact

TOKENS, WIDTH = 4096, 64


def gradients(norm: nn.LayerNorm, states: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    """Of the input, the weight and the bias."""
    states = states.clone().requires_grad_()
    found = torch.autograd.grad(norm(states), (states, norm.weight, norm.bias), grad)
    return [each.float() for each in found]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_gradients_in_bfloat16_are_right_over_thousands_of_tokens(threads: int, weights: torch.dtype) -> None:
    torch.manual_seed(0)
    states, grad = torch.randn(TOKENS, WIDTH).bfloat16(), (0.01 * torch.randn(TOKENS, WIDTH) + 0.003).bfloat16()
    exact = gradients(nn.LayerNorm(WIDTH), states.float(), grad.float())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = gradients(LayerNorm(WIDTH).to(weights), states, grad)
        plain = gradients(nn.LayerNorm(WIDTH).to(torch.bfloat16), states, grad)
    finally:
        torch.set_num_threads(before)
    for rounded, true in zip(ours, exact, strict=True):
        assert float((rounded - true).norm() / true.norm()) < 0.01
    # Once PyTorch's own is as good, `LayerNorm` can go.
    assert float((plain[2] - exact[2]).norm() / exact[2].norm()) > 0.02


def test_it_gives_its_inputs_precision() -> None:
    states = torch.randn(3, WIDTH)
    norm = LayerNorm(WIDTH)
    assert torch.equal(norm(states), nn.LayerNorm(WIDTH)(states))
    assert norm(states.bfloat16()).dtype is torch.bfloat16


def test_a_networks_own_ones_are_changed_in_place() -> None:
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Sequential(nn.LayerNorm(WIDTH)))
    weights = list(network.parameters())
    make_exact(network)
    assert isinstance(network[1][0], LayerNorm)
    assert all(one is other for one, other in zip(network.parameters(), weights, strict=True))
