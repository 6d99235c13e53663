"""C kernel == its Python specification == three independent sources, to the last bit.

The sources: the rouge-score package, rapidfuzz's LCSseq, and the textbook's table. The C kernel has to pass the same
however it is compiled: see `.ci/run`.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from rapidfuzz.distance import LCSseq
from rouge_score.rouge_scorer import RougeScorer

from cappy_lite import _kernel, _kernel_py
from cappy_lite.errors import InputValueError

KERNELS = [pytest.param(_kernel, id="c"), pytest.param(_kernel_py, id="python")]
# Where a vector, a machine word or several, or a strip of them is full.
LENGTHS = (0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257, 320, 512, 513)
# Letters of a word where a key of the lexicon ends, or a link of its chains.
LETTERS = (1, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33, 40)

SUFFIXES = sorted(
    {
        suffix
        for rules in (_kernel_py.PLURALS, _kernel_py.STEP2, _kernel_py.STEP3, _kernel_py.STEP4)
        for suffix, _ in rules
    }
    | {"ed", "ing", "eed", "ied", "y", "e", "ll", "logi", "at", "bl", "iz", "tt", "zz"}
)


def go_on() -> None:
    """A watch that never ends a call."""


def read(lexicon: Any, texts: Sequence[str]) -> Any:
    """All texts at once."""
    return lexicon.read(list(texts))


def score_sequences(kernel: ModuleType, predictions: Any, references: Any) -> np.ndarray:
    scores = np.full((len(predictions), 3), np.nan)
    kernel.Scoring(go_on).rouge_l_pairs(predictions, references, scores)
    return scores


def score_pairs(
    kernel: ModuleType, predictions: Sequence[str], references: Sequence[str], stem: bool = False
) -> np.ndarray:
    lexicon = kernel.Lexicon(stem)
    return score_sequences(kernel, read(lexicon, predictions), read(lexicon, references))


def score_summaries(
    kernel: ModuleType, predictions: Sequence[str], references: Sequence[str], stem: bool = False
) -> np.ndarray:
    lexicon = kernel.Lexicon(stem)
    arguments: list[Any] = []
    for texts in (predictions, references):
        lines = [[line for line in text.split("\n") if line] for text in texts]
        arguments += [read(lexicon, [line for text in lines for line in text]), [len(text) for text in lines]]
    scores = np.full((len(predictions), 3), np.nan)
    kernel.Scoring(go_on).rouge_lsum_pairs(*arguments, scores)
    return scores


def score_matrix(kernel: ModuleType, texts: Sequence[str], stem: bool = False, block_step: int = 1) -> np.ndarray:
    sequences = read(kernel.Lexicon(stem), texts)
    fmeasures = np.full((len(texts), len(texts)), np.nan)
    for first_block in range(block_step):
        kernel.Scoring(go_on).rouge_l_matrix(sequences, first_block, block_step, fmeasures)
    return fmeasures


def lcs_lengths(kernel: ModuleType, predictions: list[list[int]], references: list[list[int]]) -> list[int]:
    scores = score_sequences(kernel, kernel.sequences(predictions), kernel.sequences(references))
    lengths = [precision * len(ids) for precision, ids in zip(scores[:, 0], predictions, strict=True)]
    np.testing.assert_allclose(lengths, np.round(lengths), rtol=1e-12)
    return [round(length) for length in lengths]


def textbook_lcs_length(one: Sequence[int], other: Sequence[int]) -> int:
    above = [0] * (len(other) + 1)
    for left in one:
        row = [0]
        for column, right in enumerate(other):
            row.append(above[column] + 1 if left == right else max(above[column + 1], row[column]))
        above = row
    return above[-1]


def oracle(rouge_type: str, predictions: Sequence[str], references: Sequence[str], stem: bool) -> np.ndarray:
    scorer = RougeScorer([rouge_type], use_stemmer=stem)
    rows = [scorer.score(*texts)[rouge_type] for texts in zip(references, predictions, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def assert_all_agree(predictions: Sequence[str], references: Sequence[str], stem: bool = False) -> None:
    expected = oracle("rougeL", predictions, references, stem)
    for kernel in (_kernel, _kernel_py):
        np.testing.assert_array_equal(score_pairs(kernel, predictions, references, stem), expected, kernel.__name__)


def assert_same_words(texts: Sequence[str], stem: bool = False) -> None:
    """The C kernel finds the words in the texts that its specification finds."""
    plain = [" ".join(_kernel_py.words(text, False)) for text in texts]
    # A text without words scores 0 against itself.
    expected = [[float(text != "")] * 3 for text in plain] or np.empty((0, 3))
    np.testing.assert_array_equal(score_pairs(_kernel, texts, plain, stem), expected)


def assert_distinct(words: Sequence[str], stem: bool = False) -> None:
    """The C kernel takes no two of the words for the same one."""
    # They have one word in common with their reverse; any two that were the same would make it two.
    score = score_pairs(_kernel, [" ".join(words)], [" ".join(reversed(words))], stem)
    assert score[0, 0] == 1 / len(words)


def stemmed_words() -> list[str]:
    """Words that reach the stemmer's rules: short stems of every shape with every suffix, and random longer ones."""
    rng = random.Random(1)
    stems = ["".join(letters) for size in (1, 2, 3) for letters in product("aeywxl1", repeat=size)]
    short = {stem + suffix for stem in stems for suffix in ("", *SUFFIXES)}
    long = {
        "".join(rng.choices("abeilostuyz", k=rng.randint(1, 5))) + "".join(rng.choices(SUFFIXES, k=rng.randint(1, 5)))
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
long_words = st.builds(
    lambda letters, last: "x" * letters + last, st.integers(0, 40), st.sampled_from(["", "y", "ing", "é"])
)
words = (
    suffixed_words
    | long_words
    | st.sampled_from(["The", "cat", "CATS", "skies", "dying", "news", "x", "\u212a", "x\u0130x"])
    | st.text(characters)
)
sentences = st.lists(words, max_size=12).map(" ".join)
repeats = st.builds(lambda unit, times: unit * times, st.text(characters, max_size=4), st.integers(0, 150))
texts = st.text(characters) | sentences | repeats
summaries = st.lists(sentences | repeats | st.sampled_from(["", "...", "the cat"]), max_size=5).map("\n".join)
pairs_of_texts = st.lists(st.tuples(texts, texts), max_size=6)


@given(pairs_of_texts, st.booleans())
def test_pairs_of_random_unicode_are_rouge_scores(pairs: list[tuple[str, str]], stem: bool) -> None:
    assert_all_agree([one for one, _ in pairs], [other for _, other in pairs], stem)


@given(st.lists(st.tuples(summaries, summaries), max_size=3), st.booleans())
@example([("", ""), ("\n\n", "a"), ("...\na", "a\n...\n"), ("a b\nb a", "b a\r\na b")], False)
@example([("a b " * 70 + "\nb c", "c b\n" + "b a " * 70)], False)
def test_summaries_of_random_unicode_are_rouge_scores(pairs: list[tuple[str, str]], stem: bool) -> None:
    predictions, references = [one for one, _ in pairs], [other for _, other in pairs]
    expected = oracle("rougeLsum", predictions, references, stem)
    for kernel in (_kernel, _kernel_py):
        np.testing.assert_array_equal(score_summaries(kernel, predictions, references, stem), expected, kernel.__name__)


@pytest.mark.parametrize("vocabulary", [2, 8, 300])
@pytest.mark.parametrize("lengths", [(1, 63), (64, 65), (129, 127), (128, 192), (65, 300), (257, 64)])
def test_long_lines_of_summaries_are_rouge_scores(lengths: tuple[int, int], vocabulary: int) -> None:
    rng = random.Random(f"{lengths} {vocabulary}")
    one, other = (
        "\n".join(" ".join(f"w{rng.randrange(vocabulary)}" for _ in range(length)) for _ in range(3))
        for length in lengths
    )
    expected = oracle("rougeLsum", [one], [other], False)
    for kernel in (_kernel, _kernel_py):
        np.testing.assert_array_equal(score_summaries(kernel, [one], [other]), expected, kernel.__name__)


@st.composite
def pairs_of_ids(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Lengths around machine words, of one id or of many; random, or one with parts cut out, doubled or changed."""
    rng = random.Random(draw(st.integers(0, 2**32 - 1)))
    vocabulary = draw(st.sampled_from([1, 2, 3, 26, 300, 5_000]))
    lengths = st.sampled_from(LENGTHS) | st.integers(0, 600)
    one, other = ([rng.randrange(vocabulary) for _ in range(draw(lengths))] for _ in range(2))
    if draw(st.booleans()):
        other = list(one)
        for _ in range(draw(st.integers(0, 3))):
            start, stop = sorted(rng.choices(range(len(other) + 1), k=2))
            part = other[start:stop]
            other[start:stop] = rng.choice([[], part * 2, [rng.randrange(vocabulary)], part[::-1]])
    return one, other


@given(st.lists(pairs_of_ids(), min_size=1, max_size=4))
def test_subsequences_are_rapidfuzz_s_and_the_textbook_s(pairs: list[tuple[list[int], list[int]]]) -> None:
    predictions, references = [one for one, _ in pairs], [other for _, other in pairs]
    expected = [LCSseq.similarity(*pair) for pair in pairs]
    assert lcs_lengths(_kernel, predictions, references) == expected
    assert lcs_lengths(_kernel_py, predictions, references) == expected
    assert textbook_lcs_length(*pairs[0]) == expected[0]


@pytest.mark.parametrize("vocabulary", [2, 20, 400])
@pytest.mark.parametrize(
    "lengths",
    [(16, 1_000), (32, 1_000), (33, 1_000), (65, 1_000), (64, 1_000), (300, 1_000), (1_000, 1_000), (129, 5_000)],
)
def test_subsequences_of_unlike_lengths(lengths: tuple[int, int], vocabulary: int) -> None:
    rng = random.Random(f"{lengths} {vocabulary}")
    one, other = ([rng.randrange(vocabulary) for _ in range(length)] for length in lengths)
    expected = LCSseq.similarity(one, other)
    for kernel in (_kernel, _kernel_py):
        assert lcs_lengths(kernel, [one, other], [other, one]) == [expected, expected]


@pytest.mark.parametrize("length", LENGTHS)
def test_ids_in_order_and_in_reverse(length: int) -> None:
    ids = list(range(length))
    for kernel in (_kernel, _kernel_py):
        assert lcs_lengths(kernel, [ids, ids], [ids, ids[::-1]]) == [length, min(length, 1)]


@pytest.mark.parametrize("length", LENGTHS)
def test_one_word_repeated_is_its_own_subsequence(length: int) -> None:
    shorter = length // 2
    for kernel in (_kernel, _kernel_py):
        score = score_pairs(kernel, ["ha " * length], ["ha " * shorter])[0]
        assert score[1] == (1.0 if shorter else 0.0)
        assert score[0] == (shorter / length if shorter else 0.0)


@pytest.mark.parametrize("vocabulary", [2, 20, 400])
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_around_machine_words_are_rouge_scores(length: int, vocabulary: int) -> None:
    rng = random.Random(length * 1000 + vocabulary)

    def text(count: int) -> str:
        return " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(count))

    prediction = text(length)
    references = [text(other) for other in (length, max(length - 1, 0), length + 1, 64, 130)]
    assert_all_agree([prediction] * len(references), references)
    assert_all_agree(references, [prediction] * len(references))


@pytest.mark.parametrize("block_step", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 16, 29])
def test_matrix_is_the_pairs_scores(count: int, block_step: int) -> None:
    """Of texts of every length beside each other: those that fill a lane, and those that don't fit into one."""
    rng = random.Random(count)
    lengths = [rng.choice([0, 1, 5, 63, 64, 65, 130, 257, 300]) for _ in range(count)]
    some = [" ".join(rng.choices("abcdefghijklmnop", k=length)) for length in lengths]
    pairs = [(one, other) for one in some for other in some]
    scores = score_pairs(_kernel, [one for one, _ in pairs], [other for _, other in pairs])
    expected = scores[:, 2].reshape(count, count)
    for kernel in (_kernel, _kernel_py):
        np.testing.assert_array_equal(score_matrix(kernel, some, False, block_step), expected, kernel.__name__)


def test_matrix_has_every_score_of_short_texts() -> None:
    """Every length up to a machine word's, with every number of words in common: all quotients to the last bit."""
    sizes = np.array([(length, shared) for length in range(65) for shared in range(length + 1)])
    unshared = iter(range(64, 1_000_000))
    ids = [[*range(shared), *(next(unshared) for _ in range(length - shared))] for length, shared in sizes.tolist()]
    fmeasures = np.full((len(ids), len(ids)), np.nan)
    _kernel.Scoring(go_on).rouge_l_matrix(_kernel.sequences(ids), 0, 1, fmeasures)
    lengths, shared = sizes.T.astype(np.float64)
    # A text has all of its words in common with itself.
    common = np.minimum.outer(shared, shared) + np.diag(lengths - shared)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = common / lengths, common / lengths[:, None]
        expected = np.where(common > 0, 2 * precision * recall / (precision + recall), 0.0)
    np.testing.assert_array_equal(fmeasures, expected)


@given(st.lists(texts, max_size=18), st.booleans(), st.integers(1, 3))
def test_matrix_of_random_unicode_is_the_pairs_scores(some: list[str], stem: bool, block_step: int) -> None:
    pairs = [(one, other) for one in some for other in some]
    scores = score_pairs(_kernel, [one for one, _ in pairs], [other for _, other in pairs], stem)
    expected = scores[:, 2].reshape(len(some), len(some))
    np.testing.assert_array_equal(score_matrix(_kernel, some, stem, block_step), expected)


def test_one_scoring_serves_calls_of_every_kind_in_turn() -> None:
    """What one call leaves behind mustn't count in the next: lengths, vocabularies and kinds of calls alternate."""
    rng = random.Random(1)
    scoring = _kernel.Scoring(go_on)
    for _ in range(60):
        count, vocabulary = rng.choice([1, 3, 9]), rng.choice([2, 30, 1_000])
        one, other = (
            [[rng.randrange(vocabulary) for _ in range(rng.choice(LENGTHS))] for _ in range(count)] for _ in range(2)
        )
        scores, lsum, fmeasures = np.empty((count, 3)), np.empty((1, 3)), np.empty((count, count))
        scoring.rouge_l_pairs(_kernel.sequences(one), _kernel.sequences(other), scores)
        scoring.rouge_lsum_pairs(_kernel.sequences(one), [1], _kernel.sequences(other), [1], lsum)
        scoring.rouge_l_matrix(_kernel.sequences(one), 0, 1, fmeasures)
        np.testing.assert_array_equal(scores, [_kernel_py.rouge_l(*pair) for pair in zip(one, other, strict=True)])
        np.testing.assert_array_equal(lsum, [_kernel_py.rouge_lsum(one[:1], other[:1])])
        np.testing.assert_array_equal(fmeasures, score_all(one))


def score_all(sequences: list[list[int]]) -> list[list[float]]:
    return [[_kernel_py.rouge_l(one, other)[2] for other in sequences] for one in sequences]


def test_one_lexicon_serves_call_after_call() -> None:
    """A word has the same id in every text that one lexicon reads, however much it has read between."""
    lexicon = _kernel.Lexicon(True)
    first = read(lexicon, ["Relational words, nationalizationalities and skies"])
    for start in range(0, 20_000, 2_000):
        read(lexicon, [f"word{number} " + "w" * 20 + str(number) for number in range(start, start + 2_000)])
    again = read(lexicon, ["relate word nationalizationalities AND sky"])
    assert score_sequences(_kernel, first, again).tolist() == [[1.0, 1.0, 1.0]]
    assert lexicon.size >= 40_000


def test_texts_are_scored_as_their_sequences_are() -> None:
    """However many there are: they are read and scored some at a time."""
    generator = random.Random(5)
    words = ["the", "cats", "relational", "a", "nationalizations", "\u00e9", "u" * 70, *map(str, range(50))]
    predictions = [" ".join(generator.choices(words, k=generator.choice([0, 3, 15, 40]))) for _ in range(1500)]
    references = [" ".join(generator.choices(words, k=generator.choice([0, 3, 15, 40]))) for _ in range(1500)]
    references[300:900] = [references[300]] * 600
    predictions[1000] = "a cat \u0130 sat " * 100_000
    for stem in (False, True):
        expected = score_pairs(_kernel, predictions, references, stem)
        for kernel in (_kernel, _kernel_py):
            lexicon, scoring = kernel.Lexicon(stem), kernel.Scoring(go_on)
            for start, stop in ((0, 1500), (290, 1001), (7, 7), (1499, 1500)) if kernel is _kernel else ((7, 40),):
                scores = np.full((stop - start, 3), np.nan)
                assert scoring.rouge_l_texts(lexicon, predictions, references, start, stop, scores)
                np.testing.assert_array_equal(scores, expected[start:stop])


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_no_text_is_not_scored(kernel: ModuleType) -> None:
    lexicon, scoring, scores = kernel.Lexicon(False), kernel.Scoring(go_on), np.full((2, 3), np.nan)
    for wrong in (["a"], None, b"a"):
        for sides in ((["a", wrong], ["a", "b"]), (["a", "b"], [wrong, "b"])):
            assert scoring.rouge_l_texts(lexicon, *sides, 0, 2, scores) is False
    assert np.isnan(scores).all()
    assert scoring.rouge_l_texts(lexicon, ["a", wrong], ["a", "b"], 0, 1, scores[:1]) is True


def test_every_character_means_what_python_says() -> None:
    # Both sides of a character: does it separate, vanish or become a letter?
    assert_same_words(
        [
            "".join(f" a{chr(code)}b" for code in range(start, min(start + 512, sys.maxunicode + 1)))
            for start in range(0, sys.maxunicode + 1, 512)
        ]
    )


@pytest.mark.parametrize("letters", LETTERS)
def test_words_at_every_place_of_a_text(letters: int) -> None:
    """The kernel looks at 64 bytes at a time: words begin and end at each of them, and reach over several."""
    word = ("Abcdefghijklmnopqrstuvwxyz0123456789" * 2)[:letters]
    fillers = (" ", ".", "é", "\u0130", "x ")
    some = [
        (filler * (place // len(filler.encode()) + 1))[:place] + word + tail
        for filler in fillers
        for place in range(132)
        for tail in ("", " end", "-" + word)
    ]
    assert_same_words(some)
    assert_same_words(some, stem=True)
    # Words in the middle are the same word, wherever they were read.
    middle = [" " * place + word + "." for place in range(132)]
    np.testing.assert_array_equal(score_pairs(_kernel, middle, [word.lower()] * len(middle)), 1.0)


@pytest.mark.parametrize("character", ["a", "-", "é", "\u0130", "\u212a", "\ud800", "a ", "\u0130a", "a\u212a-"])
def test_texts_of_every_length(character: str) -> None:
    start = "one two " * 40
    some = [character * length for length in range(201)]
    some += [start[:offset] + character * length for offset in range(64) for length in (1, 2, 15, 16, 17, 63, 64, 65)]
    assert_same_words(some)


def test_words_longer_than_a_block() -> None:
    """Such a word is read at once, to wherever it ends."""
    ends = ("", " ", "\u00e9b", "\u0130s", "\u212ab", "\u0130 \u212a" * 40, " b" * 40)
    some = ["-" * place + "Q7" * 200 + "z" * odd + end for place in (0, 1, 63) for odd in range(66) for end in ends] + [
        "x" * length + end for length in range(60, 135) for end in ends
    ]
    for stem in (False, True):
        assert_same_words(some, stem)


@given(st.lists(st.text("aZ09 \u0130\u212aé\ud800", max_size=300), max_size=8), st.booleans())
def test_random_texts_have_the_same_words(some: list[str], stem: bool) -> None:
    assert_same_words(some, stem)


def test_words_that_differ_in_one_letter_are_distinct() -> None:
    """At any place of words of any length: the lexicon's keys end behind 16 letters, then behind every 8."""
    some = {"q" * length for length in range(1, 41)}
    some |= {"q" * place + "r" + "q" * (length - place - 1) for length in range(1, 41) for place in range(length)}
    assert_distinct(sorted(some))
    assert_distinct([word + "b" for word in sorted(some) if len(word) > 2], stem=True)
    assert_same_words([" ".join(sorted(some))])


def test_long_words_with_common_starts_are_distinct() -> None:
    rng = random.Random(1)
    starts = ["s" * 15, "s" * 16, "t" * 16, "s" * 24, "s" * 16 + "t" * 8, "t" * 16 + "s" * 8, "s" * 32]
    ends = ["", *"ab1", *("".join(rng.choices("ab1", k=rng.randint(2, 20))) for _ in range(100))]
    some = sorted({start + end for start in starts for end in ends})
    rng.shuffle(some)
    assert_distinct(some)
    upper = [word.upper() for word in some]
    np.testing.assert_array_equal(score_pairs(_kernel, some, upper), 1.0)
    # Words which begin alike, one after another in one text, find their way back.
    assert score_pairs(_kernel, [" ".join(some)], [" ".join(upper)]).tolist() == [[1.0, 1.0, 1.0]]


def test_short_words_are_not_taken_for_ends_of_long_ones() -> None:
    """In the lexicon a long word's end stands beside the number of its start, and a letter is a number too."""
    starts = [f"{number:016}" for number in range(200)]
    ends = [start + "q" * 8 for start in starts]
    short = ["q" * 8 + letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    assert_distinct([*starts, *ends, *short])
    assert_distinct([*starts, *short, *ends])


def test_many_words_are_distinct() -> None:
    """The lexicon grows while it reads."""
    some = [f"{number:x}" * (1 + number % 7) for number in range(20_000)]
    assert_distinct(sorted(set(some)))


def test_python_stemmer_is_nltks() -> None:
    nltk_stem = PorterStemmer().stem
    wrong = [word for word in stemmed_words() if len(word) > 3 and _kernel_py.porter(word) != nltk_stem(word)]
    assert not wrong


def test_c_stemmer_merges_the_same_words() -> None:
    some = stemmed_words()
    stems = [_kernel_py.words(word, True)[0] for word in some]
    member = dict(zip(stems, some, strict=True))
    merged = score_pairs(_kernel, [*some, *map(str.upper, some)], [member[stem] for stem in stems] * 2, True)
    assert not [word for word, fmeasure in zip(some * 2, merged[:, 2], strict=True) if fmeasure != 1.0]
    assert_distinct(list(member.values()), stem=True)


def test_large_words_and_texts_agree() -> None:
    word = "nationalizations" * 500
    predictions = [word, "a " * 20_000, "y" * 5_000 + "ing", word + " " + word]
    references = [word + "s", "a " * 129, "y" * 5_000, word]
    for stem in (False, True):
        np.testing.assert_array_equal(
            score_pairs(_kernel, predictions, references, stem), score_pairs(_kernel_py, predictions, references, stem)
        )


def test_neighbours_with_the_same_reference_score_as_with_copies() -> None:
    rng = random.Random(1)
    shared = [" ".join(rng.choices("abcdefgh", k=length)) for length in (5, 64, 65, 300)]
    references = [rng.choice(shared) for _ in range(100)]
    references = [text for text in references for _ in range(rng.randint(1, 3))]
    predictions = [" ".join(rng.choices("abcdefgh", k=rng.choice(LENGTHS))) for _ in references]
    copies = [text + " " for text in references]
    np.testing.assert_array_equal(
        score_pairs(_kernel, predictions, references), score_pairs(_kernel, predictions, copies)
    )


class Interrupted(Exception):
    pass


def score_all_pairs(scoring: Any, texts: Any, others: Any) -> None:
    scoring.rouge_l_pairs(texts, others, np.empty((len(texts), 3)))


def score_whole_matrix(scoring: Any, texts: Any, others: Any) -> None:
    scoring.rouge_l_matrix(texts, 0, 1, np.empty((len(texts), len(texts))))


def score_as_one_summary(scoring: Any, texts: Any, others: Any) -> None:
    scoring.rouge_lsum_pairs(texts, [len(texts)], others, [len(others)], np.empty((1, 3)))


@pytest.mark.parametrize(
    ("call", "length", "count"),
    [
        (score_all_pairs, 60, 300_000),
        (score_all_pairs, 100_000, 1),
        (score_whole_matrix, 60, 3_000),
        (score_whole_matrix, 5_000, 40),
        (score_as_one_summary, 3_000, 20),
    ],
)
def test_what_the_watch_raises_ends_the_call_and_leaves_nothing_behind(
    call: Callable[[Any, Any, Any], None], length: int, count: int
) -> None:
    rng = random.Random(1)
    some = [[rng.randrange(50) for _ in range(length)] for _ in range(min(count, 40))]
    calls: list[None] = []

    def watch() -> None:
        calls.append(None)
        raise Interrupted

    scoring = _kernel.Scoring(watch)
    texts = (some * (count // len(some) + 1))[:count]
    others = [ids[::-1] for ids in some] * (count // len(some) + 1)
    with pytest.raises(Interrupted):
        call(scoring, _kernel.sequences(texts), _kernel.sequences(others[:count]))
    assert len(calls) == 1

    short = [ids[:size] for ids, size in zip(some * 10, (3, 64, 65, 100, 300, 0, 1, 2, 70), strict=False)]
    scores, lsum, fmeasures = np.empty((len(short), 3)), np.empty((1, 3)), np.empty((len(short), len(short)))
    scoring.rouge_l_pairs(_kernel.sequences(short), _kernel.sequences(short[::-1]), scores)
    scoring.rouge_l_matrix(_kernel.sequences(short), 0, 1, fmeasures)
    scoring.rouge_lsum_pairs(_kernel.sequences(short[:2]), [2], _kernel.sequences(short[2:4]), [2], lsum)
    np.testing.assert_array_equal(scores, [_kernel_py.rouge_l(*pair) for pair in zip(short, short[::-1], strict=True)])
    np.testing.assert_array_equal(fmeasures, score_all(short))
    np.testing.assert_array_equal(lsum, [_kernel_py.rouge_lsum(short[:2], short[2:4])])


def test_c_kernel_refuses_results_of_another_shape() -> None:
    one, two = _kernel.sequences([[1]]), _kernel.sequences([[1], [2]])
    scoring = _kernel.Scoring(go_on)
    for predictions, references, shape in [(one, two, (2, 3)), (two, one, (2, 3)), (one, one, (1, 2))]:
        with pytest.raises(ValueError, match="3 columns, and a row for each pair"):
            scoring.rouge_l_pairs(predictions, references, np.empty(shape))
    for counts, others, shape in [([1], [1], (2, 3)), ([1], [1, 1], (1, 3)), ([], [1], (1, 3)), ([1], [1], (1, 2))]:
        with pytest.raises(ValueError, match="3 columns, and a row for each count"):
            scoring.rouge_lsum_pairs(one, counts, two, others, np.empty(shape))
    for shape in [(2, 1), (1, 2), (1, 1), (3, 3)]:
        with pytest.raises(ValueError, match="a row and a column for each text"):
            scoring.rouge_l_matrix(two, 0, 1, np.empty(shape))
    with pytest.raises(ValueError, match="block_step must be positive"):
        scoring.rouge_l_matrix(one, 0, 0, np.empty((1, 1)))
    for results in (np.empty((2, 3), dtype=np.float32), np.empty((3, 2)).T, np.empty(3)):
        with pytest.raises(ValueError, match=r"Buffer|ndarray"):
            scoring.rouge_l_pairs(two, two, results)


def test_c_kernel_refuses_counts_of_more_sentences_than_there_are() -> None:
    sentences = _kernel.sequences([[1], [2]])
    scoring = _kernel.Scoring(go_on)
    for counts in ([3, 0], [2, 1], [0, 3]):
        with pytest.raises(ValueError, match="more sentences than there are"):
            scoring.rouge_lsum_pairs(sentences, counts, sentences, [1, 1], np.empty((2, 3)))
        with pytest.raises(ValueError, match="more sentences than there are"):
            scoring.rouge_lsum_pairs(sentences, [1, 1], sentences, counts, np.empty((2, 3)))
    with pytest.raises(OverflowError):
        scoring.rouge_lsum_pairs(sentences, [-1], sentences, [1], np.empty((1, 3)))


def test_c_kernel_refuses_ids_out_of_range() -> None:
    assert len(_kernel.sequences([[0, 2**32 - 2], []])) == 2
    with pytest.raises(ValueError, match=r"less than 2\*\*32 - 1"):
        _kernel.sequences([[1], [2, 2**32 - 1]])
    for wrong in (-1, 2**32, 2**70):
        with pytest.raises(OverflowError):
            _kernel.sequences([[wrong]])
    for wrong in ([["a"]], [[None]], [(1,)], [None], None):
        with pytest.raises(TypeError):
            _kernel.sequences(wrong)  # type: ignore[arg-type]


def test_c_kernel_refuses_what_is_no_text() -> None:
    lexicon = _kernel.Lexicon(False)
    for wrong in (b"a", None, 1):
        with pytest.raises(TypeError):
            lexicon.read(["a", wrong])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        lexicon.read(("a",))  # type: ignore[arg-type]
    for wrong in (None, [[1]]):
        with pytest.raises(TypeError):
            _kernel.Scoring(go_on).rouge_l_pairs(wrong, wrong, np.empty((1, 3)))  # type: ignore[arg-type]


def test_longer_lines_than_rouge_lsum_s_table_holds_are_refused() -> None:
    with pytest.raises(InputValueError, match="line of more than"):
        score_summaries(_kernel, ["a " * 100_000], ["a " * 100_000])


MEMORY = """
import resource
import numpy as np
from cappy_lite import _kernel
{prepare}
scoring = _kernel.Scoring(lambda: None)
def call():
    {call}
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
unlimited = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (size + 2**24, unlimited))
try:
    call()
except MemoryError:
    print("MemoryError", end=" ")
resource.setrlimit(resource.RLIMIT_AS, (unlimited, unlimited))
call()
print("once")
"""
READ = "_kernel.Lexicon({stem}).read([text])"


@pytest.mark.parametrize(
    ("prepare", "call"),
    [
        pytest.param("text = 'a ' * 2**23", READ.format(stem=False), id="ids"),
        pytest.param("text = ' '.join(map(str, range(500_000)))", READ.format(stem=False), id="lexicon"),
        pytest.param("text = '\\u0130' * 2**23", READ.format(stem=False), id="rewritten text"),
        pytest.param("text = 'y' * 2**24", READ.format(stem=True), id="stemmed word"),
        pytest.param(
            "one = _kernel.sequences([[3_000_000]])",
            "scoring.rouge_l_pairs(one, one, np.empty((1, 3)))",
            id="masks",
        ),
        pytest.param(
            "one, other = _kernel.sequences([[1] * 1_000_000]), _kernel.sequences([[2] * 1_000_000])",
            "scoring.rouge_l_pairs(one, other, np.empty((1, 3)))",
            id="strips",
        ),
        pytest.param(
            "one = _kernel.sequences([[1] * 20_000])",
            "scoring.rouge_lsum_pairs(one, [1], one, [1], np.empty((1, 3)))",
            id="table of a summary",
        ),
        pytest.param(
            "one = _kernel.sequences([[1_000_000]])",
            "scoring.rouge_l_matrix(one, 0, 1, np.empty((1, 1)))",
            id="lanes of a matrix",
        ),
    ],
)
def test_failed_allocation_is_a_memory_error_once(prepare: str, call: str) -> None:
    """With memory again, the same call goes through."""
    program = MEMORY.format(prepare=prepare, call=call)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "MemoryError once\n"), done.stderr
