"""Rouge-L: how much of two texts is one common subsequence of words.

The definition is that of the rouge-score package (C.-Y. Lin, "ROUGE: a package for automatic evaluation of summaries",
2004), and every number equals its to the last bit: lower-cased runs of a-z and 0-9 are the words, `stem` reduces those
of more than three letters by Porter's stemmer in NLTK's default mode, and of several references the one with the
greatest F-measure counts, the first of equals.

Two kernels compute it, one in C and its specification in Python. The environment variable CAPPY_LITE_KERNEL pins one
("c" or "python"); without it the C kernel is taken, and its absence warned of. `KERNEL` names the one in use.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from cappy_lite.arguments import check_count, check_list
from cappy_lite.errors import InputTypeError, InputValueError

FloatArray = npt.NDArray[np.float64]

TOKENIZERS = ("rouge",)


class RougeL(NamedTuple):
    """Rouge-L of a prediction against a reference, each 0..1."""

    precision: float
    recall: float
    fmeasure: float


def rouge_l(
    prediction: str, references: str | Sequence[str], *, stem: bool = False, tokenizer: str = "rouge"
) -> RougeL:
    """Rouge-L of a prediction against its best reference.

    Args:
        prediction: the text to judge. An empty text scores 0.
        references: one text, or several of which the one with the greatest F-measure counts.
        stem: whether words are Porter-stemmed first, so that "skis" and "skiing" are the same.
        tokenizer: how a text becomes words; "rouge" is what the rouge-score package does.

    Raises:
        InputTypeError: a text is not a str.
        InputValueError: there is no reference, or no such tokenizer.
    """
    if not isinstance(prediction, str):
        raise _not_text("prediction", prediction)
    group = _check_references("references", references)
    _check_options(stem, tokenizer)
    scores = np.empty((1, 3))
    _kernel.rouge_l_pairs([prediction], [group], stem, scores)
    return RougeL(*scores[0].tolist())


def rouge_l_pairs(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    stem: bool = False,
    tokenizer: str = "rouge",
    threads: int | None = None,
) -> FloatArray:
    """Rouge-L of each prediction against its own references.

    Args:
        predictions: n texts.
        references: n entries, each a text or the texts of which the best counts.
        stem, tokenizer: as for `rouge_l`.
        threads: how many threads share the work; None: one.

    Returns:
        float64, (n, 3): precision, recall and F-measure, each 0..1.

    Raises:
        InputTypeError: a list is missing, or an item is not a str; the message has its index.
        InputValueError: the lengths differ, an entry of `references` is empty, an option has no such value, or texts
            that must be held together exceed 1 GiB.
    """
    texts = _check_texts("predictions", predictions)
    groups = _check_reference_lists("references", references)
    if len(texts) != len(groups):
        raise InputValueError(
            f"predictions and references must have the same length: they have {len(texts)} and {len(groups)}"
        )
    _check_options(stem, tokenizer)
    return _score_pairs(texts, groups, stem, _check_threads(threads))


def rouge_l_against(
    references: str | Sequence[str],
    predictions: Sequence[str],
    *,
    stem: bool = False,
    tokenizer: str = "rouge",
    threads: int | None = None,
) -> FloatArray:
    """Rouge-L of every prediction against the same references, which are tokenised once.

    Args:
        references: one text, or several of which the best counts, prediction by prediction.
        predictions: n texts.
        stem, tokenizer, threads: as for `rouge_l_pairs`.

    Returns:
        float64, (n, 3): precision, recall and F-measure, each 0..1.

    Raises:
        InputTypeError, InputValueError: as for `rouge_l_pairs`.
    """
    group = _check_references("references", references)
    texts = _check_texts("predictions", predictions)
    _check_options(stem, tokenizer)
    return _score_pairs(texts, [group] * len(texts), stem, _check_threads(threads))


def rouge_l_matrix(
    texts: Sequence[str], *, stem: bool = False, tokenizer: str = "rouge", threads: int | None = None
) -> FloatArray:
    """Rouge-L F-measure of every text with every other.

    Args:
        texts: n texts.
        stem, tokenizer, threads: as for `rouge_l_pairs`.

    Returns:
        float64, (n, n), 0..1, symmetric. The diagonal is 1, and 0 for a text without words.

    Raises:
        InputTypeError, InputValueError: as for `rouge_l_pairs`.
    """
    checked = _check_texts("texts", texts)
    _check_options(stem, tokenizer)
    row_step = min(_check_threads(threads), max(len(checked), 1))
    fmeasures = np.empty((len(checked), len(checked)))

    def score_rows(first_row: int) -> None:
        _kernel.rouge_l_matrix(checked, first_row, row_step, stem, fmeasures)

    _run(score_rows, range(row_step))
    return fmeasures


def _score_pairs(predictions: list[str], groups: list[tuple[str, ...]], stem: bool, threads: int) -> FloatArray:
    scores = np.empty((len(predictions), 3))
    share = max(-(-len(predictions) // threads), 1)

    def score_share(start: int) -> None:
        part = slice(start, start + share)
        _kernel.rouge_l_pairs(predictions[part], groups[part], stem, scores[part])

    _run(score_share, range(0, len(predictions), share))
    return scores


def _run(work: Callable[[int], None], starts: range) -> None:
    """Calls `work` with every start, each in its own thread if there are several; the kernel releases the GIL."""
    if len(starts) <= 1:
        for start in starts:
            work(start)
        return
    with ThreadPoolExecutor(len(starts)) as pool:
        list(pool.map(work, starts))  # raises what a thread raised


def _not_text(name: str, value: object) -> InputTypeError:
    return InputTypeError(f"{name} must be a str, not {type(value).__name__}")


def _check_texts(name: str, values: object) -> list[str]:
    """A new list of the texts. Unlike a model, Rouge-L reads any str: a lone surrogate separates words."""
    texts = check_list(name, values)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise _not_text(f"{name}[{index}]", text)
    return cast(list[str], texts)


def _check_references(name: str, value: object) -> tuple[str, ...]:
    """One prediction's references."""
    if isinstance(value, str):
        return (value,)
    references = tuple(_check_texts(name, value))
    if not references:
        raise InputValueError(f"{name} is empty: give at least one reference")
    return references


def _check_reference_lists(name: str, values: object) -> list[tuple[str, ...]]:
    """Every prediction's references. Neighbours that are one object stay one, which the kernel reads once."""
    groups: list[tuple[str, ...]] = []
    previous: object = None
    for index, entry in enumerate(check_list(name, values, of="str or of lists of str")):
        if not groups or entry is not previous:
            group = _check_references(f"{name}[{index}]", entry)
        groups.append(group)
        previous = entry
    return groups


def _check_options(stem: object, tokenizer: object) -> None:
    if not isinstance(stem, bool):
        raise InputTypeError(f"stem must be True or False, not {stem!r}")
    if tokenizer not in TOKENIZERS:
        raise InputValueError(f"tokenizer must be {' or '.join(map(repr, TOKENIZERS))}, not {tokenizer!r}")


def _check_threads(threads: int | None) -> int:
    return 1 if threads is None else check_count("threads", threads)


def _choose_kernel() -> tuple[str, ModuleType]:
    pinned = os.environ.get("CAPPY_LITE_KERNEL")
    if pinned not in (None, "c", "python"):
        raise InputValueError(f"the environment variable CAPPY_LITE_KERNEL must be 'c' or 'python', not {pinned!r}")
    if pinned != "python":
        try:
            return "c", importlib.import_module("cappy_lite._kernel")
        except ImportError as error:
            if pinned == "c":
                raise
            warnings.warn(
                f"cappy-lite's C kernel can't be loaded ({error}); Rouge-L falls back to Python, which is far slower. "
                "Install a compiler and reinstall cappy-lite, or set CAPPY_LITE_KERNEL=python.",
                RuntimeWarning,
                stacklevel=2,
            )
    return "python", importlib.import_module("cappy_lite._kernel_py")


KERNEL, _kernel = _choose_kernel()
