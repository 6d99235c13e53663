"""The losses, by hand."""

import math

import pytest
import torch

from cappy_lite.errors import InputValueError
from cappy_train.objective import LOSSES, check_losses, objective

NAN = float("nan")
LOGITS = torch.tensor([[2.0, -1.0, 9.0], [0.5, 0.0, -3.0]])
LABELS = torch.tensor([[1.0, 0.0, NAN], [0.2, 0.7, 0.2]])
PRESENT = [(2.0, 1.0), (-1.0, 0.0), (0.5, 0.2), (0.0, 0.7), (-3.0, 0.2)]


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def softmax(values: list[float]) -> list[float]:
    whole = sum(math.exp(value) for value in values)
    return [math.exp(value) / whole for value in values]


def loss(name: str) -> float:
    return float(objective(LOGITS, LABELS, {name: 1.0}, temperature=0.2))


def test_squared_error_of_the_score() -> None:
    assert loss("squared") == pytest.approx(sum((sigmoid(z) - y) ** 2 for z, y in PRESENT) / 5)


def test_cross_entropy_of_the_score() -> None:
    expected = -sum(y * math.log(sigmoid(z)) + (1 - y) * math.log(1 - sigmoid(z)) for z, y in PRESENT) / 5
    assert loss("cross_entropy") == pytest.approx(expected)


def test_listwise_over_each_rows_candidates() -> None:
    rows = [([2.0, -1.0], [1.0, 0.0]), ([0.5, 0.0, -3.0], [0.2, 0.7, 0.2])]
    expected = -sum(
        share * math.log(predicted)
        for logits, labels in rows
        for share, predicted in zip(softmax([label / 0.2 for label in labels]), softmax(logits), strict=True)
    )
    assert loss("listwise") == pytest.approx(expected / 2)


def test_pairwise_over_candidates_that_differ() -> None:
    def wrong(better: float, worse: float) -> float:
        return math.log1p(math.exp(worse - better))

    expected = 1.0 * wrong(2.0, -1.0) + 0.5 * wrong(0.0, 0.5) + 0.5 * wrong(0.0, -3.0)
    assert loss("pairwise") == pytest.approx(expected / 2)


def test_losses_add_up_by_their_weights() -> None:
    mixed = objective(LOGITS, LABELS, {"squared": 2.0, "pairwise": 0.5}, temperature=0.2)
    assert float(mixed) == pytest.approx(2 * loss("squared") + 0.5 * loss("pairwise"))


@pytest.mark.parametrize("name", LOSSES)
def test_places_without_a_candidate_give_no_gradient(name: str) -> None:
    logits = LOGITS.clone().requires_grad_()
    objective(logits, LABELS, {name: 1.0}, temperature=0.2).backward()
    assert logits.grad is not None
    assert logits.grad[0, 2] == 0
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_better_order_costs_less(name: str) -> None:
    labels = torch.tensor([[1.0, 0.5, 0.0]])
    right = objective(torch.tensor([[2.0, 0.0, -2.0]]), labels, {name: 1.0}, temperature=0.2)
    wrong = objective(torch.tensor([[-2.0, 0.0, 2.0]]), labels, {name: 1.0}, temperature=0.2)
    assert right < wrong


def test_rows_whose_labels_are_all_equal_have_no_pair() -> None:
    assert float(objective(LOGITS, torch.ones(2, 3), {"pairwise": 1.0}, temperature=0.2)) == 0


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"mse": 1.0}, "squared, cross_entropy"),
        ({"squared": -1.0}, "0 or more"),
        ({"squared": 0.0}, "above 0"),
        ({}, "above 0"),
    ],
)
def test_bad_losses_are_refused(losses: dict[str, float], message: str) -> None:
    with pytest.raises(InputValueError, match=message):
        check_losses(losses)
