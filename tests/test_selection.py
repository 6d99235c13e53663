from __future__ import annotations

import numpy as np
import pytest

from cappy_lite.errors import InputTypeError
from cappy_lite.rouge import rouge_l
from cappy_lite.selection import consensus


def test_consensus_is_the_mean_agreement_with_the_others() -> None:
    texts = ["Paris", "It is Paris.", "Lyon", "it's Paris", "Paris"]
    expected = [
        sum(rouge_l(text, other).fmeasure for place, other in enumerate(texts) if place != own) / 4
        for own, text in enumerate(texts)
    ]
    assert consensus(texts) == pytest.approx(expected)
    assert texts[consensus(texts).argmax()] == "Paris"


def test_short_answers_are_a_majority_vote() -> None:
    assert consensus(["(A)", "(B)", "(C)", "(B)"]).tolist() == pytest.approx([0, 1 / 3, 0, 1 / 3])


def test_consensus_stems_and_takes_tokenizers() -> None:
    assert consensus(["dogs", "dog"]).tolist() == [0, 0]
    assert consensus(["dogs", "dog"], stem=True).tolist() == [1, 1]
    assert consensus(["да", "да", "нет"], tokenizer="unicode").tolist() == [0.5, 0.5, 0]


def test_few_texts() -> None:
    assert consensus(["alone"]).tolist() == [0]
    assert consensus([]).shape == (0,)
    assert consensus(["", ""]).tolist() == [0, 0]
    assert consensus(["a"]).dtype == np.float64


def test_one_text_is_no_list() -> None:
    with pytest.raises(InputTypeError, match="texts must be a list"):
        consensus("Paris")
