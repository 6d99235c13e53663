"""Rouge-L for users: literal scores, the batch forms, and what they refuse."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cappy_lite
from cappy_lite import rouge
from cappy_lite.errors import InputTypeError, InputValueError
from cappy_lite.rouge import RougeL, rouge_l, rouge_l_against, rouge_l_matrix, rouge_l_pairs

TEXTS = ["the cat sat on the mat", "The cat, the mat!", "", "on a mat sat a dog", "...", "mat"]


def test_words_in_order_count() -> None:
    # Common: the, cat, mat.
    assert rouge_l("The cat, a mat", "the cat sat on the mat") == RougeL(3 / 4, 3 / 6, 2 * 0.75 * 0.5 / 1.25)


def test_result_has_names_and_plain_floats() -> None:
    score = rouge_l("a b c d", "a c")
    assert (score.precision, score.recall, score.fmeasure) == (0.5, 1.0, 2 * 0.5 * 1.0 / 1.5)
    assert {type(value) for value in score} == {float}


@pytest.mark.parametrize(
    ("prediction", "reference", "fmeasure"),
    [
        ("", "", 0.0),
        ("", "a", 0.0),
        ("a", "", 0.0),
        ("...", "...", 0.0),
        ("a", "b", 0.0),
        ("a", "a", 1.0),
        ("b a", "a b", 0.5),
        ("don't", "don t", 1.0),
        ("x_1-y", "x 1 y", 1.0),
        ("caf\u00e9s", "caf s", 1.0),
        ("na\u00efve", "naive", 0.0),
        ("\u0130stanbul", "i stanbul", 1.0),  # lower-cased: i, a combining dot, stanbul
        ("\u212aelvin", "kelvin", 1.0),  # the Kelvin sign
        ("\u0131", "i", 0.0),  # dotless i
        ("a\ud800b", "a b", 1.0),  # a lone surrogate
        ("a\x00b", "a b", 1.0),
        ("declinate", "macallums", 0.0),  # the same 32-bit FNV-1a hash, the C kernel's
    ],
)
def test_words_are_runs_of_ascii_letters_and_digits(prediction: str, reference: str, fmeasure: float) -> None:
    assert rouge_l(prediction, reference).fmeasure == fmeasure


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("skiing", "skiings", True),
        ("caresses", "caress", True),
        ("relational", "relate", True),
        ("hopping", "hop", True),
        ("happy", "happi", True),
        ("skies", "sky", True),
        ("dying", "die", True),
        ("geology", "geologi", True),
        ("controlling", "control", True),
        ("adoption", "adopt", True),
        ("enjoy", "enjoi", False),
        ("was", "wa", False),  # three letters stay as they are
        ("news", "new", False),
        ("feed", "fe", False),
        ("onion", "on", False),
    ],
)
def test_stemming(one: str, other: str, same: bool) -> None:
    assert rouge_l(one, other, stem=True).fmeasure == (1.0 if same else 0.0)
    assert rouge_l(one, other).fmeasure == 0.0


def test_best_reference_counts() -> None:
    assert rouge_l("a b", ["c", "a x y z", "a b c"]) == rouge_l("a b", "a b c")
    # Equal F-measures: the first reference's precision and recall.
    assert rouge_l("a b", ["a", "a b c d"]) == RougeL(0.5, 1.0, 2 / 3)
    assert rouge_l("a b", ["a b c d", "a"]) == RougeL(1.0, 0.5, 2 / 3)


@pytest.mark.parametrize("threads", [None, 1, 2, 5, 100])
@pytest.mark.parametrize("stem", [False, True])
def test_batch_forms_are_the_single_form(stem: bool, threads: int | None) -> None:
    references = [TEXTS[1], TEXTS, (TEXTS[3], TEXTS[0]), "", TEXTS[:1], TEXTS]
    pairs = rouge_l_pairs(TEXTS, references, stem=stem, threads=threads)
    assert pairs.shape == (6, 3)
    assert pairs.dtype == np.float64
    assert pairs.tolist() == [
        list(rouge_l(text, group, stem=stem)) for text, group in zip(TEXTS, references, strict=True)
    ]

    against = rouge_l_against(TEXTS[:2], TEXTS, stem=stem, threads=threads)
    assert against.tolist() == [list(rouge_l(text, TEXTS[:2], stem=stem)) for text in TEXTS]

    matrix = rouge_l_matrix(TEXTS, stem=stem, threads=threads)
    assert matrix.tolist() == [[rouge_l(one, other, stem=stem).fmeasure for other in TEXTS] for one in TEXTS]


def test_neighbours_with_the_same_references_object() -> None:
    shared = ["the mat", "a dog"]
    references = [shared, shared, list(shared), "the mat", "the mat", shared]
    expected = [list(rouge_l(text, group)) for text, group in zip(TEXTS, references, strict=True)]
    assert rouge_l_pairs(TEXTS, references).tolist() == expected


def test_nothing_gives_nothing() -> None:
    assert rouge_l_pairs([], []).shape == (0, 3)
    assert rouge_l_against("a", []).shape == (0, 3)
    assert rouge_l_matrix([]).shape == (0, 0)
    assert rouge_l_matrix([], threads=4).shape == (0, 0)


def test_callers_lists_stay_as_they_were() -> None:
    texts, references = list(TEXTS), [list(TEXTS) for _ in TEXTS]
    rouge_l_pairs(texts, references, threads=2)
    assert texts == TEXTS
    assert references == [TEXTS] * len(TEXTS)


def test_numpy_texts_are_texts() -> None:
    assert rouge_l_matrix(np.array(["a b", "a"])).tolist() == [[1.0, 2 / 3], [2 / 3, 1.0]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rouge_l(None, "a"), InputTypeError, "prediction must be a str, not NoneType"),
        (lambda: rouge_l(b"a", "a"), InputTypeError, "prediction must be a str, not bytes"),
        (lambda: rouge_l("a", None), InputTypeError, "references must be a list of str, not NoneType"),
        (lambda: rouge_l("a", ["a", 1]), InputTypeError, r"references\[1\] must be a str, not int"),
        (lambda: rouge_l("a", []), InputValueError, "references is empty: give at least one"),
        (lambda: rouge_l("a", "a", stem=1), InputTypeError, "stem must be True or False, not 1"),
        (lambda: rouge_l("a", "a", tokenizer="char"), InputValueError, "tokenizer must be 'rouge', not 'char'"),
        (lambda: rouge_l_pairs("a", ["a"]), InputTypeError, "predictions must be a list of str, not a single str"),
        (lambda: rouge_l_pairs(["a"], "a"), InputTypeError, "references must be a list of .* not a single str"),
        (lambda: rouge_l_pairs(["a"], None), InputTypeError, "references must be a list of .* not NoneType"),
        (
            lambda: rouge_l_pairs(["a", None], ["a", "a"]),
            InputTypeError,
            r"predictions\[1\] must be a str, not NoneType",
        ),
        (lambda: rouge_l_pairs(["a"], [3]), InputTypeError, r"references\[0\] must be a list of str, not int"),
        (lambda: rouge_l_pairs(["a"], [["a", 3]]), InputTypeError, r"references\[0\]\[1\] must be a str, not int"),
        (lambda: rouge_l_pairs(["a", "b"], ["a", []]), InputValueError, r"references\[1\] is empty"),
        (lambda: rouge_l_pairs(["a", "b"], ["a"]), InputValueError, "same length: they have 2 and 1"),
        (lambda: rouge_l_against("a", "a"), InputTypeError, "predictions must be a list of str, not a single str"),
        (lambda: rouge_l_against(["a"], ["b", 2]), InputTypeError, r"predictions\[1\] must be a str, not int"),
        (lambda: rouge_l_against([], ["a"]), InputValueError, "references is empty"),
        (lambda: rouge_l_matrix("a"), InputTypeError, "texts must be a list of str, not a single str"),
        (lambda: rouge_l_matrix([1]), InputTypeError, r"texts\[0\] must be a str, not int"),
        (lambda: rouge_l_matrix(["a"], threads=0), InputValueError, "threads must be at least 1"),
        (lambda: rouge_l_pairs(["a"], ["a"], threads=1.5), InputTypeError, "threads must be an int"),
        (lambda: rouge_l_against("a", ["a"], threads=True), InputTypeError, "threads must be an int"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_rouge_l_is_public() -> None:
    assert cappy_lite.rouge_l is rouge_l


def run_python(program: str, folder: Path, kernel: str | None) -> subprocess.CompletedProcess[str]:
    """Runs a program in a new interpreter, with CAPPY_LITE_KERNEL as given, away from the sources."""
    environment = {name: value for name, value in os.environ.items() if name != "CAPPY_LITE_KERNEL"}
    if kernel is not None:
        environment["CAPPY_LITE_KERNEL"] = kernel
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


SCORE = "from cappy_lite import rouge; print(rouge.KERNEL, rouge.rouge_l('a b', ['b', 'c']).precision)"
WITHOUT_C = "import sys; sys.modules['cappy_lite._kernel'] = None; "


@pytest.mark.parametrize(("pinned", "chosen"), [(None, "c"), ("c", "c"), ("python", "python")])
def test_kernel_can_be_pinned(tmp_path: Path, pinned: str | None, chosen: str) -> None:
    done = run_python(SCORE, tmp_path, pinned)
    assert (done.stdout, done.stderr) == (f"{chosen} 0.5\n", "")


def test_missing_c_kernel_is_warned_of(tmp_path: Path) -> None:
    done = run_python(WITHOUT_C + SCORE, tmp_path, None)
    assert done.stdout == "python 0.5\n"
    assert "RuntimeWarning: cappy-lite's C kernel can't be loaded" in done.stderr


def test_pinned_kernel_has_no_fallback(tmp_path: Path) -> None:
    done = run_python(WITHOUT_C + SCORE, tmp_path, "c")
    assert done.returncode != 0
    assert "ImportError" in done.stderr or "ModuleNotFoundError" in done.stderr
    assert run_python(WITHOUT_C + SCORE, tmp_path, "python").stdout == "python 0.5\n"


def test_unknown_kernel_is_refused(tmp_path: Path) -> None:
    done = run_python(SCORE, tmp_path, "rust")
    assert "CAPPY_LITE_KERNEL must be 'c' or 'python', not 'rust'" in done.stderr


def test_kernel_in_use_is_named() -> None:
    assert os.environ.get("CAPPY_LITE_KERNEL", "c") == rouge.KERNEL
