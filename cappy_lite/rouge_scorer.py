"""rouge-score's own interface to Rouge-L and Rouge-Lsum: a program changes one import line and keeps its numbers.

    from cappy_lite import rouge_scorer  # was: from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL", "rougeLsum"], use_stemmer=True)
    scores = scorer.score("the target", "the prediction")

Results are equal to those of rouge-score 0.1.2 to the last bit. Many texts are scored faster by `cappy_lite.rouge`,
whose functions take them all in one call.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, Protocol, cast

from cappy_lite import rouge
from cappy_lite.arguments import check_list
from cappy_lite.errors import InputTypeError, InputValueError

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
        types = check_list("rouge_types", rouge_types)
        self.rouge_types = [_check_type(f"rouge_types[{index}]", value) for index, value in enumerate(types)]
        self._stem = bool(use_stemmer) and tokenizer is None
        self._split_summaries = bool(split_summaries)
        self._tokenizer = "rouge" if tokenizer is None else _check_tokenizer(tokenizer)

    def score(self, target: str | bytes, prediction: str | bytes) -> dict[str, Score]:
        """Scores of a prediction against a target, by type in the order of `rouge_types`.

        Args:
            target, prediction: texts. Bytes are decoded as UTF-8 first, for each type; rouge-score's rougeL lower-cases
                their ASCII letters alone, which differs for U+0130 and U+212A.

        Raises:
            InputTypeError: a text is neither str nor bytes, or the tokenizer's answer no list of tokens.
            InputValueError: bytes aren't UTF-8, the tokenizer raised, or NLTK or its data is missing where
                `split_summaries` asks for it.
        """
        return self._score([_check_text("target", target)], _check_text("prediction", prediction))

    def score_multi(self, targets: Sequence[str | bytes], prediction: str | bytes) -> dict[str, Score]:
        """Scores of a prediction against its best target: the greatest F-measure, type by type; the first of equals.

        Args:
            targets: at least one text.
            prediction: a text.

        Raises:
            InputTypeError, InputValueError: as for `score`; also if `targets` is no list, or is empty.
        """
        texts = [_check_text(f"targets[{index}]", text) for index, text in enumerate(check_list("targets", targets))]
        if not texts:
            raise InputValueError("targets is empty: give at least one target")
        return self._score(texts, _check_text("prediction", prediction))

    def _score(self, targets: list[str], prediction: str) -> dict[str, Score]:
        measures = {"rougeL": self._rouge_l, "rougeLsum": self._rouge_lsum}
        return {name: Score(*measures[name](targets, prediction)) for name in self.rouge_types}

    def _rouge_l(self, targets: list[str], prediction: str) -> rouge.RougeL:
        return rouge.rouge_l(prediction, targets, stem=self._stem, tokenizer=self._tokenizer)

    def _rouge_lsum(self, targets: list[str], prediction: str) -> rouge.RougeL:
        tokenizer = self._tokenizer
        if self._split_summaries:
            prediction, *targets = ("\n".join(map(_to_line, _sentences(text))) for text in (prediction, *targets))
            tokenizer = _reading_lines(tokenizer)
        return rouge.rouge_lsum(prediction, targets, stem=self._stem, tokenizer=tokenizer)


def _sentences(text: str) -> list[str]:
    """A text's sentences, as rouge-score has NLTK find them; NLTK is no dependency."""
    try:
        sentences: list[str] = importlib.import_module("nltk").sent_tokenize(text)
    except ImportError as error:
        raise InputValueError(
            "split_summaries=True needs NLTK, which can't be imported: pip install nltk, or give each sentence a line "
            "of its own and leave split_summaries out"
        ) from error
    except LookupError as error:
        raise InputValueError(
            "split_summaries=True needs NLTK's data punkt_tab, which isn't found: python -m nltk.downloader punkt_tab"
        ) from error
    return sentences


def _to_line(sentence: str) -> str:
    """The sentence as one line: a newline becomes two characters that rouge-score's tokenizer takes for spaces too."""
    return sentence.replace("\v", "\v\v").replace("\n", "\v\r")


def _from_line(line: str) -> str:
    """The sentence that `_to_line` made a line of."""
    return re.sub("\v(.)", lambda pair: "\n" if pair[1] == "\r" else "\v", line)


def _reading_lines(tokenizer: rouge.Tokenizer) -> rouge.Tokenizer:
    """The tokenizer, for what `_to_line` makes: a caller's own gets the sentences as they were."""
    return (lambda line: tokenizer(_from_line(line))) if callable(tokenizer) else tokenizer


def _check_type(name: str, value: object) -> str:
    if value not in TYPES:
        raise InputValueError(
            f"{name} must be 'rougeL' or 'rougeLsum', not {value!r}: the rouge-score package has the types that count "
            "n-grams, such as rouge1 and rouge2"
        )
    return str(value)


def _check_tokenizer(value: object) -> Callable[[str], Iterable[Hashable]]:
    tokenize = getattr(value, "tokenize", None)
    if not callable(tokenize):
        raise InputTypeError(
            f"tokenizer must be an object with a method tokenize(text), or None, not {type(value).__name__}"
        )
    return cast(Callable[[str], Iterable[Hashable]], tokenize)


def _check_text(name: str, value: object) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise InputValueError(f"{name} is bytes that aren't UTF-8 at {error.start}: decode it first") from None
    if not isinstance(value, str):
        raise InputTypeError(f"{name} must be a str, not {type(value).__name__}")
    return value
