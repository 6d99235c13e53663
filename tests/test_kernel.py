"""C kernel == its Python specification == the rouge-score package, to the last bit."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer

from cappy_lite import _kernel, _kernel_py
from cappy_lite.errors import InputValueError

KERNELS = [pytest.param(_kernel, id="c"), pytest.param(_kernel_py, id="python")]
# Where a machine word ends, or two do, and where a pattern has many.
LENGTHS = (0, 1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193, 512)

SUFFIXES = sorted(
    {
        suffix
        for rules in (_kernel_py.PLURALS, _kernel_py.STEP2, _kernel_py.STEP3, _kernel_py.STEP4)
        for suffix, _ in rules
    }
    | {"ed", "ing", "eed", "ied", "y", "e", "ll", "logi", "at", "bl", "iz", "tt", "zz"}
)


def score_pairs(
    kernel: ModuleType, predictions: Sequence[str], references: Sequence[tuple[str, ...]], stem: bool
) -> np.ndarray:
    scores = np.full((len(predictions), 3), np.nan)
    kernel.rouge_l_pairs(list(predictions), list(references), stem, scores)
    return scores


def score_matrix(kernel: ModuleType, texts: Sequence[str], stem: bool, row_step: int = 1) -> np.ndarray:
    fmeasures = np.full((len(texts), len(texts)), np.nan)
    for first_row in range(row_step):
        kernel.rouge_l_matrix(list(texts), first_row, row_step, stem, fmeasures)
    return fmeasures


def oracle(predictions: Sequence[str], references: Sequence[tuple[str, ...]], stem: bool) -> np.ndarray:
    scorer = RougeScorer(["rougeL"], use_stemmer=stem)
    rows = [scorer.score_multi(group, text)["rougeL"] for text, group in zip(predictions, references, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def assert_all_agree(predictions: Sequence[str], references: Sequence[tuple[str, ...]], stem: bool) -> None:
    expected = oracle(predictions, references, stem)
    for kernel in (_kernel, _kernel_py):
        np.testing.assert_array_equal(score_pairs(kernel, predictions, references, stem), expected, kernel.__name__)


def stemmed_words() -> list[str]:
    """Words that reach the stemmer's rules: short stems of every shape with every suffix, and random longer ones."""
    rng = random.Random(1)
    stems = ["".join(letters) for size in (1, 2, 3) for letters in product("aeywxl1", repeat=size)]
    short = {stem + suffix for stem in stems for suffix in ("", *SUFFIXES)}
    long = {
        "".join(rng.choices("abeilostuyz", k=rng.randint(1, 5))) + "".join(rng.choices(SUFFIXES, k=rng.randint(1, 3)))
        for _ in range(5_000)
    }
    return sorted(short | long | set(_kernel_py.IRREGULAR))


# Few letters, so that texts have words in common; all that is lower-cased into ASCII, and what looks like it.
characters = st.characters() | st.sampled_from(
    "ab0Z \n-_'.,\x00\x7fÀéß\u0130\u0131\u0307\u212a\u017f\ufb01\u03a3\uff21\u4e2d\ud83d\udc00\U0001f600"
)
suffixed_words = st.builds(
    lambda head, tail: head + "".join(tail),
    st.text("abeisty", max_size=4),
    st.lists(st.sampled_from(SUFFIXES), max_size=3),
)
words = suffixed_words | st.sampled_from(["The", "cat", "CATS", "skies", "dying", "news", "x"]) | st.text(characters)
sentences = st.lists(words, max_size=12).map(" ".join)
repeats = st.builds(lambda unit, times: unit * times, st.text(characters, max_size=4), st.integers(0, 150))
texts = st.text(characters) | sentences | repeats
items = st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3).map(tuple)), max_size=4)


@given(items, st.booleans())
def test_pairs_of_random_unicode_agree(items: list[tuple[str, tuple[str, ...]]], stem: bool) -> None:
    assert_all_agree([text for text, _ in items], [group for _, group in items], stem)


@given(st.lists(sentences | repeats, max_size=5), st.booleans(), st.integers(1, 3))
def test_matrix_is_the_pairs_scores(texts: list[str], stem: bool, row_step: int) -> None:
    pairs = [(one, other) for one in texts for other in texts]
    scores = score_pairs(_kernel, [one for one, _ in pairs], [(other,) for _, other in pairs], stem)
    expected = scores[:, 2].reshape(len(texts), len(texts))
    np.testing.assert_array_equal(score_matrix(_kernel, texts, stem, row_step), expected)
    np.testing.assert_array_equal(score_matrix(_kernel_py, texts, stem, row_step), expected)


@pytest.mark.parametrize("vocabulary", [2, 20, 400])
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_around_machine_words_agree(length: int, vocabulary: int) -> None:
    rng = random.Random(length * 1000 + vocabulary)

    def text(count: int) -> str:
        return " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(count))

    prediction = text(length)
    references = tuple(text(other) for other in (length, max(length - 1, 0), length + 1, 64, 130))
    assert_all_agree([prediction], [references], False)
    assert_all_agree(references, [(prediction,)] * len(references), False)


@pytest.mark.parametrize("length", LENGTHS)
def test_one_word_repeated_is_its_own_subsequence(length: int) -> None:
    shorter = length // 2
    for kernel in (_kernel, _kernel_py):
        score = score_pairs(kernel, ["ha " * length], [("ha " * shorter,)], False)[0]
        assert score[1] == (1.0 if shorter else 0.0)
        assert score[0] == (shorter / length if shorter else 0.0)


def test_every_character_means_what_python_says() -> None:
    # Both sides of a character: does it separate, vanish or become a letter?
    texts = [
        "".join(f" a{chr(code)}b" for code in range(start, min(start + 512, sys.maxunicode + 1)))
        for start in range(0, sys.maxunicode + 1, 512)
    ]
    plain = [(" ".join(_kernel_py.words(text, False)),) for text in texts]
    np.testing.assert_array_equal(score_pairs(_kernel, texts, plain, False), 1.0)


def test_python_stemmer_is_nltks() -> None:
    nltk_stem = PorterStemmer().stem
    wrong = [word for word in stemmed_words() if len(word) > 3 and _kernel_py.porter(word) != nltk_stem(word)]
    assert not wrong


def test_c_stemmer_merges_the_same_words() -> None:
    some = stemmed_words()
    stems = [_kernel_py.words(word, True)[0] for word in some]
    member = dict(zip(stems, some, strict=True))
    merged = score_pairs(_kernel, some, [(member[stem],) for stem in stems], True)
    assert not [word for word, fmeasure in zip(some, merged[:, 2], strict=True) if fmeasure != 1.0]
    # Distinct words have one in common with their reverse; any two that were the same would make it two.
    distinct = list(member.values())
    apart = score_pairs(_kernel, [" ".join(distinct)], [(" ".join(reversed(distinct)),)], True)
    assert apart[0, 0] == 1 / len(distinct)


@pytest.mark.parametrize("kernel", KERNELS)
def test_first_of_equally_good_references_counts(kernel: ModuleType) -> None:
    # Both have F-measure 2/3; precision and recall are exchanged.
    long, short = "a b c d", "a"
    for references in ((long, short), (short, long)):
        assert (
            oracle(["a b"], [references], False).tolist() == score_pairs(kernel, ["a b"], [references], False).tolist()
        )


@pytest.mark.parametrize("kernel", KERNELS)
def test_shared_references_score_as_separate_ones(kernel: ModuleType) -> None:
    shared = ("the cat sat", "a dog ran far away")
    predictions = ["the cat", "", "dog ran", "cat the", "far away a dog"]
    copies = [(shared[0], shared[1]) for _ in predictions]
    expected = score_pairs(kernel, predictions, copies, False)
    np.testing.assert_array_equal(score_pairs(kernel, predictions, [shared] * len(predictions), False), expected)
    mixed = [shared, shared, *copies[2:4], shared]
    np.testing.assert_array_equal(score_pairs(kernel, predictions, mixed, False), expected)


def test_large_words_and_texts_agree() -> None:
    word = "nationalizations" * 500
    predictions = [word, "a " * 20_000, "y" * 5_000 + "ing", word + " " + word]
    references = [(word + "s", word), ("a " * 129,), ("y" * 5_000,), (word,)]
    for stem in (False, True):
        np.testing.assert_array_equal(
            score_pairs(_kernel, predictions, references, stem), score_pairs(_kernel_py, predictions, references, stem)
        )


def test_c_kernel_refuses_results_of_another_shape() -> None:
    with pytest.raises(ValueError, match="a row for each prediction"):
        _kernel.rouge_l_pairs(["a"], [("a",)], False, np.empty((2, 3)))
    with pytest.raises(ValueError, match="a row for each prediction"):
        _kernel.rouge_l_pairs(["a"], [("a",)], False, np.empty((1, 2)))
    with pytest.raises(ValueError, match="a row for each prediction"):
        _kernel.rouge_l_pairs(["a"], [], False, np.empty((1, 3)))
    with pytest.raises(ValueError, match="a row and a column for each text"):
        _kernel.rouge_l_matrix(["a", "b"], 0, 1, False, np.empty((2, 1)))
    with pytest.raises(ValueError, match="row_step must be positive"):
        _kernel.rouge_l_matrix(["a"], 0, 0, False, np.empty((1, 1)))


def test_c_kernel_refuses_what_is_no_text() -> None:
    with pytest.raises(TypeError):
        _kernel.rouge_l_pairs([b"a"], [("a",)], False, np.empty((1, 3)))  # type: ignore[list-item]
    with pytest.raises(TypeError):
        _kernel.rouge_l_pairs(["a"], [None], False, np.empty((1, 3)))  # type: ignore[list-item]
    with pytest.raises(TypeError):
        _kernel.rouge_l_pairs(["a", "a"], [("a",), ("a", 1)], False, np.empty((2, 3)))  # type: ignore[list-item]
    with pytest.raises(TypeError):
        _kernel.rouge_l_matrix([None], 0, 1, False, np.empty((1, 1)))  # type: ignore[list-item]


def test_more_text_than_the_c_kernel_holds_is_refused() -> None:
    megabyte = "a" * 2**20
    with pytest.raises(InputValueError, match="1 GiB"):
        score_pairs(_kernel, ["a"], [(megabyte,) * 1025], False)
    with pytest.raises(InputValueError, match="1 GiB"):
        score_matrix(_kernel, [megabyte] * 1025, False)


def test_failed_allocation_is_a_memory_error() -> None:
    program = """
import resource
import numpy as np
from cappy_lite import _kernel
text = "a" * 2**25
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**27, size + 2**27))
try:
    _kernel.rouge_l_pairs([text], [(text,)], False, np.empty((1, 3)))
except MemoryError:
    print("MemoryError")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "MemoryError\n"), done.stderr
