"""rouge-score's own interface to Rouge-L and Rouge-Lsum: a program changes one import line and keeps its numbers.

    from cappy_lite import rouge_scorer  # was: from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL", "rougeLsum"], use_stemmer=True)
    scores = scorer.score("the target", "the prediction")

Results are equal to those of rouge-score 0.1.2 to the last bit. Many texts are scored faster by `cappy_lite.rouge`,
whose functions take them all in one call.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, Protocol

from cappy_lite.arguments import check_list
from cappy_lite.errors import InputTypeError, InputValueError
from cappy_lite.rouge import RougeL, rouge_l, rouge_lsum

TYPES = ("rougeL", "rougeLsum")


class Score(NamedTuple):
    """What rouge-score calls a score: three numbers, each 0..1."""

    precision: float
    recall: float
    fmeasure: float


class Tokenizer(Protocol):
    """Makes tokens of a text, as rouge-score's tokenizers do."""

    def tokenize(self, text: str, /) -> Iterable[Hashable]: ...


class RougeScorer:
    """Scores predictions as `rouge_score.rouge_scorer.RougeScorer` does.

    A scorer doesn't change: threads may share it, and it can be pickled where its tokenizer can.
    """

    def __init__(
        self,
        rouge_types: Sequence[str],
        use_stemmer: bool = False,
        split_summaries: bool = False,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """Makes a scorer.

        Args:
            rouge_types: "rougeL", "rougeLsum" or both.
            use_stemmer: whether words are Porter-stemmed. As in rouge-score, a tokenizer of the caller's own overrides
                it.
            split_summaries: whether the sentences of Rouge-Lsum are those that NLTK finds; if not, they are the lines.
            tokenizer: an object with a method `tokenize(text)`; None takes runs of ASCII letters and digits.

        Raises:
            InputTypeError: `rouge_types` is no list, or the tokenizer has no such method.
            InputValueError: another type is asked for.
        """
        self.rouge_types = [_check_type(f"rouge_types[{index}]", name) for index, name in _listed(rouge_types)]
        self._split_summaries = bool(split_summaries)
        self._stem = bool(use_stemmer) and tokenizer is None
        self._tokenizer = "rouge" if tokenizer is None else _check_tokenizer(tokenizer)
