"""Best of n, against brute force over all subsets."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cappy_lite.rouge import rouge_l
from cappy_lite.selection import consensus
from cappy_train.best_of import SUBSETS, best_of, consensus_best_of, subset_sizes

TEXTS = ["the dog runs", "a dog ran", "dogs run", "snow", "the dog runs", "a cat", "", "the cat ran on snow"]


def test_sizes_are_powers_of_two_and_the_largest_number() -> None:
    assert subset_sizes([1, 17, 3]) == [1, 2, 4, 8, 16, 17]
    assert subset_sizes([4, 2]) == [1, 2, 4]
    assert subset_sizes([1]) == [1]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from([-2.5, 0.0, 0.1, 0.5, 0.9])), min_size=1, max_size=8),
    st.integers(1, 9),
)
def test_the_closed_form_is_the_mean_over_all_subsets(responses: list[tuple[float, float]], size: int) -> None:
    gains, scores = (np.array(column) for column in zip(*responses, strict=True))
    subsets = list(combinations(range(len(gains)), min(size, len(gains))))
    picks = [max(subset, key=lambda place: (scores[place], -place)) for subset in subsets]
    assert best_of(gains, scores, [size])[0] == pytest.approx(gains[picks].mean())


def test_ends_are_random_and_the_pick_of_all_however_many() -> None:
    rng = np.random.default_rng(0)
    gains, scores = rng.random((2, 2000))
    curve = best_of(gains, scores, [1, 700, 2000, 5000])
    assert curve[0] == pytest.approx(gains.mean())
    assert curve[2] == curve[3] == gains[scores.argmax()]
    assert np.diff(best_of(gains, gains, [1, 2, 4, 8, 1024, 2000])).min() > 0


def brute_consensus(gains: list[float], size: int) -> float:
    """The mean over all subsets, with agreement computed pair by pair."""
    agreement = [[rouge_l(a, b, stem=True).fmeasure for b in TEXTS] for a in TEXTS]
    picked = []
    for subset in combinations(range(len(gains)), size):
        votes = {place: sum(agreement[place][other] for other in subset if other != place) for place in subset}
        best = max(round(vote, 9) for vote in votes.values())
        picked.append(gains[next(place for place in subset if round(votes[place], 9) == best)])
    return sum(picked) / len(picked)


def test_consensus_is_the_mean_over_all_subsets() -> None:
    gains = [0.9, 0.7, 0.5, 0.1, 0.9, 0.2, 0.0, 0.4]
    curve = consensus_best_of(TEXTS, np.array(gains), range(1, 10))
    assert curve[:8].tolist() == pytest.approx([brute_consensus(gains, size) for size in range(1, 9)])
    assert curve[8] == curve[7] == gains[consensus(TEXTS, stem=True).argmax()]


def test_many_subsets_are_drawn_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = np.array([0.9, 0.7, 0.5, 0.1, 0.9, 0.2, 0.0, 0.4] * 2)
    texts = [text + " again" * (place // 8) for place, text in enumerate(TEXTS * 2)]
    drawn = consensus_best_of(texts, gains, [8])
    assert drawn == consensus_best_of(texts, gains, [8])
    assert drawn != consensus_best_of(texts, gains, [8], seed=1)
    monkeypatch.setattr("cappy_train.best_of.SUBSETS", 20000)
    # Four standard errors of a mean of numbers between 0 and 1.
    assert drawn == pytest.approx(consensus_best_of(texts, gains, [8]), abs=2 / np.sqrt(SUBSETS))
