"""Rouge-L for users: literal scores, rouge-score's beside them, the batch forms, and what they refuse.

All of it holds for either kernel.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

import cappy_lite
from cappy_lite import rouge
from cappy_lite.errors import InputTypeError, InputValueError
from cappy_lite.rouge import (
    RougeL,
    rouge_l,
    rouge_l_against,
    rouge_l_matrix,
    rouge_l_pairs,
    rouge_lsum,
    rouge_lsum_pairs,
)

TEXTS = ["the cat sat on the mat", "The cat, the mat!", "", "on a mat sat a dog", "...", "mat"]
SUMMARIES = ["the cat sat\non a mat", "A mat.\nThe cat!", "", "\n\n", "...\ndog\n", "sat the cat\nmat the\non dog"]
THREADS = [None, 1, 2, 5, 100]


def test_words_in_order_count() -> None:
    # Common: the, cat, mat.
    assert rouge_l("The cat, a mat", "the cat sat on the mat") == RougeL(3 / 4, 3 / 6, 2 * 0.75 * 0.5 / 1.25)


def test_result_has_names_and_plain_floats() -> None:
    for score in (rouge_l("a b c d", "a c"), rouge_lsum("a b c d", "a c")):
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
        ("\udc80\u0130\ud800", "i", 1.0),
        ("a\x00b", "a b", 1.0),
        ("nationalizations", "nationalizationz", 0.0),  # 16 letters, a key of the C kernel's lexicon
        ("internationalizations", "internationalizationz", 0.0),
        ("internationalizations", "INTERNATIONALIZATIONS", 1.0),
    ],
)
def test_words_are_runs_of_ascii_letters_and_digits(prediction: str, reference: str, fmeasure: float) -> None:
    assert rouge_l(prediction, reference).fmeasure == fmeasure
    assert rouge_lsum(prediction, reference).fmeasure == fmeasure


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
    for score in (rouge_l, rouge_lsum):
        assert score(one, other, stem=True).fmeasure == (1.0 if same else 0.0)
        assert score(one, other).fmeasure == 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        # Lin 2004, section 3.2: w1 w2 with one sentence, w1 w3 w5 with the other, so four of five words are shared.
        ("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", RougeL(0.4, 0.8, 2 * 0.4 * 0.8 / (0.4 + 0.8))),
        # Lines in another order share as much; as one text they would share half.
        ("c d\na b", "a b\nc d", RougeL(1.0, 1.0, 1.0)),
        # A word counts no more often than either text has it.
        ("a", "a\na\na", RougeL(1.0, 1 / 3, 0.5)),
        ("a\na\na", "a", RougeL(1 / 3, 1.0, 0.5)),
        # Empty lines, and lines without words, are nothing.
        ("\n\na b\n...\n", "a b", RougeL(1.0, 1.0, 1.0)),
        ("...\n\n", "a b", RougeL(0.0, 0.0, 0.0)),
        # Only "\n" ends a line.
        ("b\ra", "a\u2028b", RougeL(0.5, 0.5, 0.5)),
    ],
)
def test_summaries_share_their_lines_subsequences(prediction: str, reference: str, score: RougeL) -> None:
    assert rouge_lsum(prediction, reference) == score


@pytest.mark.parametrize("score", [rouge_l, rouge_lsum])
def test_best_reference_counts(score: Callable[..., RougeL]) -> None:
    assert score("a b", ["c", "a x y z", "a b c"]) == score("a b", "a b c")
    # Equal F-measures: the first reference's precision and recall.
    assert score("a b", ["a", "a b c d"]) == RougeL(0.5, 1.0, 2 / 3)
    assert score("a b", ["a b c d", "a"]) == RougeL(1.0, 0.5, 2 / 3)


def test_first_of_equally_good_references_counts_in_batches() -> None:
    references = [["a", "a b c d"], ["a b c d", "a"], ["x", "a", "a b c d"], "a", ["x", "y"], ["a b c d", "x", "a"]]
    expected = [(0.5, 1, 2 / 3), (1, 0.5, 2 / 3), (0.5, 1, 2 / 3), (0.5, 1, 2 / 3), (0, 0, 0), (1, 0.5, 2 / 3)]
    for score in (rouge_l_pairs, rouge_lsum_pairs):
        np.testing.assert_array_equal(score(["a b"] * 6, references), expected)
    np.testing.assert_array_equal(rouge_l_against(["a", "a b c d"], ["a b"]), [(0.5, 1, 2 / 3)])
    np.testing.assert_array_equal(rouge_l_against(["a b c d", "a"], ["a b"]), [(1, 0.5, 2 / 3)])


words = st.sampled_from(["The", "cat", "cats", "skiing", "skis", "a", "mat", "\u0130x", "é", "\ud800", "...", "\n"])
texts = st.lists(words, max_size=20).map(" ".join)
items = st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=4)), max_size=5)


@given(items, st.booleans())
def test_scores_are_those_of_rouge_score(items: list[tuple[str, list[str]]], stem: bool) -> None:
    scorer = RougeScorer(["rougeL", "rougeLsum"], use_stemmer=stem)
    expected = [scorer.score_multi(references, text) for text, references in items]
    predictions, references = [text for text, _ in items], [group for _, group in items]
    for name, pairs, single in (
        ("rougeL", rouge_l_pairs, rouge_l),
        ("rougeLsum", rouge_lsum_pairs, rouge_lsum),
    ):
        rows = [tuple(scores[name]) for scores in expected]
        assert list(map(tuple, pairs(predictions, references, stem=stem).tolist())) == rows
        assert [single(text, group, stem=stem) for text, group in items] == rows


@pytest.mark.parametrize("threads", THREADS)
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
    assert matrix.dtype == np.float64
    assert matrix.tolist() == [[rouge_l(one, other, stem=stem).fmeasure for other in TEXTS] for one in TEXTS]

    groups = [SUMMARIES[1], SUMMARIES, (SUMMARIES[3], SUMMARIES[0]), "", SUMMARIES[:1], SUMMARIES]
    summaries = rouge_lsum_pairs(SUMMARIES, groups, stem=stem, threads=threads)
    assert summaries.shape == (6, 3)
    assert summaries.dtype == np.float64
    assert summaries.tolist() == [
        list(rouge_lsum(text, group, stem=stem)) for text, group in zip(SUMMARIES, groups, strict=True)
    ]


def mixed_texts(count: int) -> list[str]:
    """Short texts and some long ones, no two alike."""
    return [
        f"text {number} " + " ".join(f"w{(number * 7 + place) % 23}" for place in range([0, 5, 9, 12, 80][number % 5]))
        for number in range(count)
    ]


@pytest.mark.parametrize("tokenizer", ["rouge", "unicode", str.split])
def test_any_number_of_threads_gives_the_same_bits(tokenizer: rouge.Tokenizer) -> None:
    """More texts than a thread takes at a time, so that threads share them."""
    some = mixed_texts(1_300)
    references: list[str | list[str]] = [[text, "w1 w2"] if len(text) % 2 else text for text in reversed(some)]
    for score, others in ((rouge_l_pairs, references), (rouge_l_pairs, some[::-1]), (rouge_lsum_pairs, references)):
        expected = score(some, others, tokenizer=tokenizer)
        for threads in (1, 2, 5, 100):
            np.testing.assert_array_equal(score(some, others, tokenizer=tokenizer, threads=threads), expected)
    fmeasures = rouge_l_matrix(some[:77], tokenizer=tokenizer)
    for threads in (1, 2, 5, 100):
        np.testing.assert_array_equal(rouge_l_matrix(some[:77], tokenizer=tokenizer, threads=threads), fmeasures)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 20])
def test_matrix_is_the_pairs_scores(count: int) -> None:
    for some in (mixed_texts(count), ["w1 w2 w3 " * 50 + text for text in mixed_texts(count)]):
        expected = [[rouge_l(one, other).fmeasure for other in some] for one in some]
        np.testing.assert_array_equal(rouge_l_matrix(some), expected)
        np.testing.assert_array_equal(rouge_l_matrix(some, threads=3), expected)


def test_callers_threads_do_not_disturb_each_other() -> None:
    """Several threads call everything at once on the same lists."""
    some = mixed_texts(600)
    references = [[text, "w1 w2"] for text in reversed(some)]

    def score(number: int) -> list[np.ndarray]:
        threads = 1 + number % 2
        return [
            rouge_l_pairs(some, references, stem=True, threads=threads),
            rouge_lsum_pairs(some, some[::-1], threads=threads),
            rouge_l_against(some[:3], some[:200], threads=threads),
            rouge_l_matrix(some[:60], tokenizer="char", threads=threads),
            np.array([rouge_l(text, some[:2]) for text in some[:20]]),
        ]

    alone = score(0)
    with ThreadPoolExecutor(6) as pool:
        for together in pool.map(score, range(6)):
            for one, other in zip(together, alone, strict=True):
                np.testing.assert_array_equal(one, other)


def test_neighbours_with_the_same_references_object() -> None:
    shared = ["the mat", "a dog"]
    references = [shared, shared, list(shared), "the mat", "the mat", shared]
    expected = [list(rouge_l(text, group)) for text, group in zip(TEXTS, references, strict=True)]
    assert rouge_l_pairs(TEXTS, references).tolist() == expected


def test_nothing_gives_nothing() -> None:
    for threads in THREADS:
        assert rouge_l_pairs([], [], threads=threads).shape == (0, 3)
        assert rouge_lsum_pairs([], [], threads=threads).shape == (0, 3)
        assert rouge_l_against("a", [], threads=threads).shape == (0, 3)
        assert rouge_l_matrix([], threads=threads).shape == (0, 0)


def test_callers_lists_stay_as_they_were() -> None:
    some, references = list(TEXTS), [list(TEXTS) for _ in TEXTS]
    rouge_l_pairs(some, references, threads=2)
    rouge_lsum_pairs(some, references, threads=2)
    rouge_l_matrix(some, threads=2)
    assert some == TEXTS
    assert references == [TEXTS] * len(TEXTS)


@pytest.mark.parametrize("threads", [None, 2])
@pytest.mark.parametrize("score", [rouge_l_pairs, rouge_lsum_pairs])
@pytest.mark.parametrize("changed", [0, 1])
def test_lists_that_shrink_meanwhile_are_refused(score: Callable[..., Any], changed: int, threads: int | None) -> None:
    lists = (["a b"] * 20_000, ["b a"] * 20_000)

    def tokenize(text: str) -> list[str]:
        del lists[changed][100:]
        return text.split()

    with pytest.raises(InputValueError, match="must keep their lengths"):
        score(*lists, tokenizer=tokenize, threads=threads)


def test_numpy_texts_are_texts() -> None:
    assert rouge_l_matrix(np.array(["a b", "a"])).tolist() == [[1.0, 2 / 3], [2 / 3, 1.0]]  # type: ignore[arg-type]


def test_texts_may_come_from_a_generator() -> None:
    assert rouge_l_pairs((text for text in ["a b", "a"]), iter(["a", "a"]))[:, 2].tolist() == [2 / 3, 1.0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tokenizer", "prediction", "reference", "fmeasure"),
    [
        ("rouge", "Кошка", "кошка", 0.0),
        ("unicode", "Кошка спит.", "кошка, спит", 1.0),
        ("unicode", "猫が好き", "猫が嫌い", 0.0),
        ("char", "猫が好き", "猫が嫌い", 2 / 4),
        ("char", "ab", "a b", 1.0),
        (str.split, "a, b", "a b", 1 / 2),
        (list, "abc", "abd", 2 / 3),
        (lambda text: map(int, text.split()), "1 02 3", "01 2", 0.8),
        (lambda text: text.split() * 2, "a", "a a", 2 / 3),
        (lambda text: (), "a", "a", 0.0),
        (lambda text: [None, 1.5, (text, 2)], "a", "b", 2 / 3),
    ],
)
def test_tokenizers(tokenizer: rouge.Tokenizer, prediction: str, reference: str, fmeasure: float) -> None:
    assert rouge_l(prediction, reference, tokenizer=tokenizer).fmeasure == pytest.approx(fmeasure, abs=1e-15)
    assert rouge_lsum(prediction, reference, tokenizer=tokenizer).fmeasure == pytest.approx(fmeasure, abs=1e-15)
    pairs = rouge_l_pairs([prediction], [reference], tokenizer=tokenizer, threads=2)
    assert pairs[0, 2] == pytest.approx(fmeasure, abs=1e-15)
    matrix = rouge_l_matrix([prediction, reference], tokenizer=tokenizer)
    assert matrix[0, 1] == pytest.approx(fmeasure, abs=1e-15)


@given(items)
def test_a_tokenizer_that_finds_rouge_s_words_changes_nothing(items: list[tuple[str, list[str]]]) -> None:
    def tokenize(text: str) -> Iterable[str]:
        word = ""
        for letter in text.lower() + " ":
            if letter in "abcdefghijklmnopqrstuvwxyz0123456789":
                word += letter
            elif word:
                yield word
                word = ""

    predictions, references = [text for text, _ in items], [group for _, group in items]
    for score in (rouge_l_pairs, rouge_lsum_pairs):
        np.testing.assert_array_equal(
            score(predictions, references, tokenizer=tokenize), score(predictions, references)
        )


def test_rouge_lsum_gives_a_tokenizer_its_lines() -> None:
    seen: list[str] = []

    def tokenize(text: str) -> list[str]:
        seen.append(text)
        return text.split()

    rouge_lsum("a b\n\nc", ["d\ne"], tokenizer=tokenize)
    assert sorted(seen) == ["a b", "c", "d", "e"]


def raising(error: BaseException) -> Callable[[str], list[str]]:
    """A tokenizer that raises at the text "bad"."""

    def tokenize(text: str) -> list[str]:
        if text == "bad":
            raise error
        return text.split()

    return tokenize


def calls_with(tokenizer: rouge.Tokenizer) -> list[Callable[[], Any]]:
    """Every function, with a text "bad" among others; in one thread and in several."""
    some = ["good"] * 600 + ["bad"] + ["good"] * 600
    return [
        lambda: rouge_l("bad", "good", tokenizer=tokenizer),
        lambda: rouge_lsum("good", ["good", "bad"], tokenizer=tokenizer),
        *(
            call
            for threads in (None, 2)
            for call in (
                lambda threads=threads: rouge_l_pairs(some, some[::-1], tokenizer=tokenizer, threads=threads),
                lambda threads=threads: rouge_lsum_pairs(some, some[::-1], tokenizer=tokenizer, threads=threads),
                lambda threads=threads: rouge_l_against(some[-2:], some, tokenizer=tokenizer, threads=threads),
                lambda threads=threads: rouge_l_matrix(some[590:610], tokenizer=tokenizer, threads=threads),
            )
        ),
    ]


def test_what_a_tokenizer_raises_is_told_with_the_text() -> None:
    cause = KeyError("no such word")
    for call in calls_with(raising(cause)):
        with pytest.raises(
            InputValueError, match="tokenizer raised KeyError for the text 'bad': 'no such word'"
        ) as caught:
            call()
        assert caught.value.__cause__ is cause


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interruptions_in_a_tokenizer_pass_as_they_are(error: type[BaseException]) -> None:
    raised = error()
    for call in calls_with(raising(raised)):
        with pytest.raises(error) as caught:
            call()
        assert caught.value is raised


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("a b", "must return a list of tokens, not str"),
        (b"a b", "must return a list of tokens, not bytes"),
        (None, "must return a list of tokens, not NoneType"),
        (3, "must return a list of tokens, not int"),
        ([["a"]], r"tokens that a dict takes as keys, for the text 'bad': .*unhashable type: 'list'"),
        (["a", {}], r"tokens that a dict takes as keys, for the text 'bad': .*unhashable type: 'dict'"),
    ],
)
def test_what_is_no_list_of_tokens_is_refused(tokens: Any, message: str) -> None:
    for call in calls_with(lambda text: tokens if text == "bad" else [text]):
        with pytest.raises(InputTypeError, match=message):
            call()


def test_long_texts_are_shortened_in_errors() -> None:
    def tokenize(text: str) -> list[str]:
        raise ValueError("wrong")

    with pytest.raises(InputValueError, match=r"for the text 'a{57}\.\.\.': wrong$"):
        rouge_l("a" * 1_000_000, "a", tokenizer=tokenize)


def test_a_thread_that_fails_stops_the_others() -> None:
    """It would take minutes otherwise: the texts of the other thread are slow."""
    count = 100_000
    read: list[str] = []
    begun = threading.Event()

    def tokenize(text: str) -> list[str]:
        if text == "bad":
            begun.wait(60)
            raise ValueError("wrong")
        begun.set()
        read.append(text)
        time.sleep(0.002)
        return [text]

    with pytest.raises(InputValueError, match="wrong"):
        rouge_l_pairs(["bad"] + ["good"] * count, ["good"] * (count + 1), tokenizer=tokenize, threads=2)
    assert 0 < len(read) < count


@pytest.mark.parametrize("score", [rouge_l, rouge_lsum])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, "a"), InputTypeError, "prediction must be a str, not NoneType"),
        ((b"a", "a"), InputTypeError, "prediction must be a str, not bytes"),
        ((["a"], "a"), InputTypeError, "prediction must be a str, not list"),
        (("a", None), InputTypeError, "references must be a list of str, not NoneType"),
        (("a", b"a"), InputTypeError, "references must be a list of str, not bytes"),
        (("a", {"a"}), InputTypeError, "references must be a list of str, not set"),
        (("a", ["a", 1]), InputTypeError, r"references\[1\] must be a str, not int"),
        (("a", [None]), InputTypeError, r"references\[0\] must be a str, not NoneType"),
        (("a", []), InputValueError, "references is empty: give at least one"),
    ],
)
def test_bad_arguments_for_one_are_named(
    score: Callable[..., Any], arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        score(*arguments)


@pytest.mark.parametrize("score", [rouge_l_pairs, rouge_lsum_pairs])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("a", ["a"]), InputTypeError, "predictions must be a list of str, not a single str"),
        ((None, ["a"]), InputTypeError, "predictions must be a list of str, not NoneType"),
        ((["a"], "a"), InputTypeError, "references must be a list of .* not a single str"),
        ((["a"], None), InputTypeError, "references must be a list of .* not NoneType"),
        ((["a", None], ["a", "a"]), InputTypeError, r"predictions\[1\] must be a str, not NoneType"),
        ((["a"], [3]), InputTypeError, r"references\[0\] must be a list of str, not int"),
        ((["a"], [None]), InputTypeError, r"references\[0\] must be a list of str, not NoneType"),
        ((["a"], [["a", 3]]), InputTypeError, r"references\[0\]\[1\] must be a str, not int"),
        ((["a", "b"], ["a", []]), InputValueError, r"references\[1\] is empty"),
        ((["a", "b"], ["a"]), InputValueError, "same length: they have 2 and 1"),
        (([], ["a"]), InputValueError, "same length: they have 0 and 1"),
    ],
)
def test_bad_arguments_for_many_are_named(
    score: Callable[..., Any], arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        score(*arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rouge_l_against("a", "a"), InputTypeError, "predictions must be a list of str, not a single str"),
        (lambda: rouge_l_against(["a"], ["b", 2]), InputTypeError, r"predictions\[1\] must be a str, not int"),
        (lambda: rouge_l_against([], ["a"]), InputValueError, "references is empty"),
        (lambda: rouge_l_against(None, ["a"]), InputTypeError, "references must be a list of str, not NoneType"),
        (lambda: rouge_l_matrix("a"), InputTypeError, "texts must be a list of str, not a single str"),
        (lambda: rouge_l_matrix(None), InputTypeError, "texts must be a list of str, not NoneType"),
        (lambda: rouge_l_matrix([1]), InputTypeError, r"texts\[0\] must be a str, not int"),
        (lambda: rouge_l_matrix(["a", None]), InputTypeError, r"texts\[1\] must be a str, not NoneType"),
    ],
)
def test_bad_texts_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def with_options(**options: Any) -> list[Callable[[], Any]]:
    """Every function with the options, on nothing where it takes a list."""
    calls: list[Callable[[], Any]] = [
        lambda: rouge_l_pairs([], [], **options),
        lambda: rouge_lsum_pairs([], [], **options),
        lambda: rouge_l_against("a", [], **options),
        lambda: rouge_l_matrix([], **options),
    ]
    if "threads" not in options:
        calls += [lambda: rouge_l("a", "a", **options), lambda: rouge_lsum("a", "a", **options)]
    return calls


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stem": 1}, InputTypeError, "stem must be True or False, not 1"),
        ({"stem": None}, InputTypeError, "stem must be True or False, not None"),
        ({"stem": True, "tokenizer": "unicode"}, InputValueError, "stem=True works with tokenizer='rouge' alone"),
        ({"stem": True, "tokenizer": "char"}, InputValueError, "stem=True works with tokenizer='rouge' alone"),
        ({"stem": True, "tokenizer": str.split}, InputValueError, "stem=True works with tokenizer='rouge' alone"),
        ({"tokenizer": "chars"}, InputValueError, "tokenizer must be 'rouge', 'unicode', 'char' or a .* not 'chars'"),
        ({"tokenizer": None}, InputValueError, "tokenizer must be 'rouge', 'unicode', 'char' or a .* not None"),
        ({"tokenizer": ["a"]}, InputValueError, r"tokenizer must be 'rouge', 'unicode', 'char' or a .* not \['a'\]"),
        ({"threads": 0}, InputValueError, "threads must be at least 1"),
        ({"threads": -1}, InputValueError, "threads must be at least 1"),
        ({"threads": 1.5}, InputTypeError, "threads must be an int"),
        ({"threads": "2"}, InputTypeError, "threads must be an int"),
        ({"threads": True}, InputTypeError, "threads must be an int"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    for call in with_options(**options):
        with pytest.raises(error, match=message):
            call()


def test_rouge_is_public() -> None:
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
