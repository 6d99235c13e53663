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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

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
    _check_text(prediction, "prediction")
    group = _reference_group(references, "references")
    _check_options(stem, tokenizer, threads=None)
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
        InputValueError: the lengths differ, an entry of `references` is empty, or an option has no such value.
    """
    checked_predictions = list(_check_texts(predictions, "predictions"))
    groups = _reference_groups(references)
    if len(groups) != len(checked_predictions):
        raise InputValueError(
            f"predictions and references must have the same length; "
            f"they have {len(checked_predictions)} and {len(groups)}"
        )
    return _score_pairs(checked_predictions, groups, stem, _check_options(stem, tokenizer, threads))


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
    group = _reference_group(references, "references")
    checked_predictions = list(_check_texts(predictions, "predictions"))
    groups = [group] * len(checked_predictions)
    return _score_pairs(checked_predictions, groups, stem, _check_options(stem, tokenizer, threads))


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
    checked_texts = list(_check_texts(texts, "texts"))
    workers = _check_options(stem, tokenizer, threads)
    fmeasures = np.empty((len(checked_texts), len(checked_texts)))

    def do_rows(first_row: int) -> None:
        _kernel.rouge_l_matrix(checked_texts, first_row, workers, stem, fmeasures)

    _run(do_rows, range(workers), workers)
    return fmeasures


def _score_pairs(predictions: list[str], groups: list[tuple[str, ...]], stem: bool, threads: int) -> FloatArray:
    scores = np.empty((len(predictions), 3))
    step = -(-len(predictions) // threads) or 1

    def do_slice(start: int) -> None:
        part = slice(start, start + step)
        _kernel.rouge_l_pairs(predictions[part], groups[part], stem, scores[part])

    _run(do_slice, range(0, len(predictions), step), threads)
    return scores


def _run(work: Callable[[int], None], starts: range, threads: int) -> None:
    """Calls `work` for every start, in as many threads; the kernel releases the GIL."""
    if threads == 1:
        for start in starts:
            work(start)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, starts):
            pass


def _check_text(text: object, name: str) -> None:
    if not isinstance(text, str):
        raise InputTypeError(f"{name} must be a str, not {type(text).__name__}")


def _check_texts(texts: object, name: str) -> Sequence[str]:
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        raise InputTypeError(f"{name} must be a list of str, not {type(texts).__name__}")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputTypeError(f"{name}[{index}] must be a str, not {type(text).__name__}")
    return texts


def _reference_group(references: object, name: str) -> tuple[str, ...]:
    """One prediction's references, checked."""
    if isinstance(references, str):
        return (references,)
    if isinstance(references, bytes) or not isinstance(references, Sequence):
        raise InputTypeError(f"{name} must be a str or a list of str, not {type(references).__name__}")
    if not references:
        raise InputValueError(f"{name} is empty; give one reference at least")
    return tuple(_check_texts(references, name))


def _reference_groups(references: object) -> list[tuple[str, ...]]:
    """Every prediction's references. Neighbours that are one object stay one, which the kernel reads once."""
    if isinstance(references, str | bytes) or not isinstance(references, Sequence):
        raise InputTypeError(
            f"references must be a list with a str or a list of str for each prediction, "
            f"not {type(references).__name__}"
        )
    groups: list[tuple[str, ...]] = []
    previous: object = None
    for index, entry in enumerate(references):
        groups.append(groups[-1] if groups and entry is previous else _reference_group(entry, f"references[{index}]"))
        previous = entry
    return groups


def _check_options(stem: object, tokenizer: object, threads: object) -> int:
    """Checks the options; returns the number of threads."""
    if not isinstance(stem, bool):
        raise InputTypeError(f"stem must be True or False, not {stem!r}")
    if tokenizer not in TOKENIZERS:
        raise InputValueError(f"tokenizer must be {' or '.join(map(repr, TOKENIZERS))}, not {tokenizer!r}")
    if threads is None:
        return 1
    if not isinstance(threads, int) or isinstance(threads, bool):
        raise InputTypeError(f"threads must be an int or None, not {type(threads).__name__}")
    if threads < 1:
        raise InputValueError(f"threads must be at least 1, not {threads}")
    return threads


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
