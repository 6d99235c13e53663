"""Rouge-L in plain Python: what the C kernel computes, said readably, and the fallback where it can't be compiled.

Equal to the rouge-score package to the last bit: its words, its stemmer (NLTK's default Porter), its order of
operations.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

# Only words of more letters than this are stemmed.
UNSTEMMED_LENGTH = 3

Score = tuple[float, float, float]


# Rows of a matrix that are one share of work.
MATRIX_ROWS = 8


def all_texts(values: list[object]) -> bool:
    """Whether all are str."""
    return all(isinstance(value, str) for value in values)


class Sequences:
    """Texts as sequences of word ids; two ids are equal where the words are."""

    def __init__(self, ids: list[list[int]]) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)


def sequences(id_lists: list[list[int]]) -> Sequences:
    """Sequences of ids that the caller has given, each 0 to 2**32 - 2."""
    return Sequences(id_lists)


class Lexicon:
    """Gives words their ids; one for all sequences that are to be scored together, and for one thread."""

    def __init__(self, stem: bool) -> None:
        self._stem = stem
        self._ids: dict[str, int] = {}

    @property
    def size(self) -> int:
        """How many words it remembers."""
        return len(self._ids)

    @property
    def bytes(self) -> int:
        """How many bytes it holds, roughly: what a dict takes for a short key, and the key."""
        return 200 * len(self._ids)

    def read(self, texts: list[str]) -> Sequences:
        """The texts' words."""
        return Sequences(
            [[self._ids.setdefault(word, len(self._ids)) for word in words(text, self._stem)] for text in texts]
        )


class Scoring:
    """Scores sequences, and calls `watch` from time to time; what it raises ends the call."""

    def __init__(self, watch: Callable[[], None]) -> None:
        self.watch = watch

    @property
    def bytes(self) -> int:
        """How many bytes it keeps from call to call."""
        return 0

    def rouge_l_pairs(self, predictions: Sequences, references: Sequences, scores: npt.NDArray[np.float64]) -> None:
        """Precision, recall and F-measure of the first pairs into `scores`, as many as it has rows."""
        for index in range(len(scores)):
            self.watch()
            scores[index] = rouge_l(predictions.ids[index], references.ids[index])

    def rouge_l_texts(
        self,
        lexicon: Lexicon,
        predictions: list[Any],
        references: list[Any],
        start: int,
        stop: int,
        scores: npt.NDArray[np.float64],
    ) -> bool:
        """Scores of the texts from `start` to `stop`; or nothing, and False, if they are not all str."""
        some, others = predictions[start:stop], references[start:stop]
        if not (all_texts(some) and all_texts(others)):
            return False
        self.rouge_l_pairs(lexicon.read(some), lexicon.read(others), scores)
        return True

    def rouge_lsum_pairs(
        self,
        predictions: Sequences,
        prediction_counts: list[int],
        references: Sequences,
        reference_counts: list[int],
        scores: npt.NDArray[np.float64],
    ) -> None:
        """The same for Rouge-Lsum; the counts say how many sentences each text has."""
        prediction_sentences, reference_sentences = iter(predictions.ids), iter(references.ids)
        for index, (p_count, r_count) in enumerate(zip(prediction_counts, reference_counts, strict=True)):
            self.watch()
            prediction = list(islice(prediction_sentences, p_count))
            reference = list(islice(reference_sentences, r_count))
            scores[index] = rouge_lsum(prediction, reference)

    def rouge_l_matrix(
        self, texts: Sequences, first_block: int, block_step: int, fmeasures: npt.NDArray[np.float64]
    ) -> None:
        """F-measure of every pair of texts into `fmeasures`, (n, n), symmetric.

        Of the blocks of MATRIX_ROWS rows it does first_block, first_block + block_step, ... from the diagonal on, and
        mirrors them; so `block_step` threads share a matrix evenly.
        """
        count = len(texts)
        for row in range(count):
            if row // MATRIX_ROWS % block_step != first_block:
                continue
            self.watch()
            for column in range(row, count):
                score = rouge_l(texts.ids[row], texts.ids[column])
                fmeasures[row, column] = fmeasures[column, row] = score[2]


def rouge_l(prediction: Sequence[int], reference: Sequence[int]) -> Score:
    """Precision, recall and F-measure of two sequences."""
    return _score(lcs_length(prediction, reference), len(prediction), len(reference))


def rouge_lsum(prediction: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> Score:
    """Rouge-Lsum of two texts of several sentences, as rouge-score defines it.

    A reference's sentence shares with the prediction the union of the subsequences that it shares with the
    prediction's sentences; of each word no more count than either text has.
    """
    left_in_prediction, left_in_reference = Counter(chain(*prediction)), Counter(chain(*reference))
    hits = 0
    for sentence in reference:
        union: set[int] = set().union(*(_common_places(other, sentence) for other in prediction))
        for place in sorted(union):
            word = sentence[place]
            if left_in_prediction[word] > 0 and left_in_reference[word] > 0:
                left_in_prediction[word] -= 1
                left_in_reference[word] -= 1
                hits += 1
    return _score(hits, sum(map(len, prediction)), sum(map(len, reference)))


def _score(common: int, prediction_length: int, reference_length: int) -> Score:
    if common == 0:
        return 0.0, 0.0, 0.0
    precision = common / prediction_length
    recall = common / reference_length
    return precision, recall, 2 * precision * recall / (precision + recall)


def _common_places(prediction: Sequence[int], reference: Sequence[int]) -> set[int]:
    """Where in the reference the longest common subsequence is that rouge-score finds: there may be others.

    Rouge-score walks back through the table of all prefixes' lengths, which is kept whole for it.
    """
    table = [[0] * (len(prediction) + 1)]
    for word in reference:
        above, row = table[-1], [0]
        for column, other in enumerate(prediction):
            row.append(above[column] + 1 if word == other else max(above[column + 1], row[column]))
        table.append(row)
    places: set[int] = set()
    i, j = len(reference), len(prediction)
    while i > 0 and j > 0:
        if reference[i - 1] == prediction[j - 1]:
            i, j = i - 1, j - 1
            places.add(i)
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return places


def words(text: str, stem: bool) -> list[str]:
    """Runs of a-z and 0-9 in the lower-cased text; everything else separates them."""
    found = re.findall("[a-z0-9]+", text.lower())
    return [porter(word) if len(word) > UNSTEMMED_LENGTH else word for word in found] if stem else found


def lcs_length(pattern: Sequence[int], text: Sequence[int]) -> int:
    """Length of the longest common subsequence.

    The row of the usual table is one big integer with a 0 bit where the row steps up by one, so its zeros count the
    length; one addition takes it past a word whose places in the pattern are `matches`. (Crochemore et al. 2001; Hyyrö
    2004.)
    """
    places: dict[int, int] = {}
    for index, word in enumerate(pattern):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(pattern)) - 1
    row = full
    for word in text:
        matches = places.get(word, 0)
        row = ((row + (row & matches)) | (row & ~matches)) & full
    return len(pattern) - row.bit_count()


# Porter's stemmer: M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980, with the changes of NLTK's
# default mode, each marked "NLTK". Digits count as consonants.

Rules = tuple[tuple[str, str], ...]

# NLTK: words that the rules would get wrong. Words of three letters are never stemmed, so "sky" is not among them.
IRREGULAR = {
    "skies": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "innings": "inning",
    "outings": "outing",
    "cannings": "canning",
    **{word: word for word in ("news", "inning", "outing", "canning", "howe", "proceed", "exceed", "succeed")},
}
PLURALS: Rules = (("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", ""))
STEP2: Rules = (
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),  # NLTK
)
STEP3: Rules = (
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
)
STEP4: Rules = tuple(
    (suffix, "")
    for suffix in (
        *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent"),
        *("ion", "ou", "ism", "ate", "iti", "ous", "ive", "ize"),
    )
)


def porter(word: str) -> str:
    """The stem of a lower-case ASCII word."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    for step in (_step1a, _step1b, _step1c, _step2, _step3, _step4, _step5a, _step5b):
        word = step(word)
    return word


def _step1a(word: str) -> str:
    """Plurals: cats -> cat."""
    if len(word) == 4 and word.endswith("ies"):  # NLTK: dies -> die, though flies -> fli
        return word[:-1]
    return _apply(PLURALS, word, lambda stem: True)


def _step1b(word: str) -> str:
    """Past tenses and gerunds: plastered -> plaster, motoring -> motor."""
    if word.endswith("ied"):  # NLTK: died -> die, though spied -> spi
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for suffix in ("ed", "ing"):
        stem = word.removesuffix(suffix)
        if stem != word and any(_vowels(stem)):
            return _mend(stem)
    return word


def _mend(stem: str) -> str:
    """What step 1b does to the stem of a removed -ed or -ing: hopp -> hop, fil -> file."""
    if stem.endswith(("at", "bl", "iz")):
        return stem + "e"
    if len(stem) > 1 and stem[-1] == stem[-2] and not _vowels(stem)[-1]:
        return stem if stem[-1] in "lsz" else stem[:-1]
    return stem + "e" if _measure(stem) == 1 and _ends_cvc(stem) else stem


def _step1c(word: str) -> str:
    """NLTK: y -> i behind a consonant that isn't the word's first letter: happy -> happi, but enjoy, by."""
    if len(word) > 2 and word.endswith("y") and not _vowels(word)[-2]:
        return word[:-1] + "i"
    return word


def _step2(word: str) -> str:
    """Double suffixes to single ones: relational -> relate."""
    if word.endswith("alli") and _measure(word[:-4]) > 0:  # NLTK: as -al, which may end a longer suffix
        word = word[:-2]
    if word.endswith("logi"):  # NLTK: the l counts with the stem, so geologi -> geolog
        return word[:-1] if _measure(word[:-3]) > 0 else word
    return _apply(STEP2, word, lambda stem: _measure(stem) > 0)


def _step3(word: str) -> str:
    """electrical -> electric, hopeful -> hope."""
    return _apply(STEP3, word, lambda stem: _measure(stem) > 0)


def _step4(word: str) -> str:
    """Single suffixes off: allowance -> allow; -ion only behind s or t."""
    return _apply(STEP4, word, lambda stem: _measure(stem) > 1 and (not word.endswith("ion") or stem[-1] in "st"))


def _step5a(word: str) -> str:
    """A final e off: probate -> probat, but rate."""
    stem = word.removesuffix("e")
    if stem != word and (_measure(stem) > 1 or (_measure(stem) == 1 and not _ends_cvc(stem))):
        return stem
    return word


def _step5b(word: str) -> str:
    """controll -> control."""
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _apply(rules: Rules, word: str, condition: Callable[[str], bool]) -> str:
    """Replaces the first suffix that the word has, if the stem before it meets the condition; no later one is tried."""
    for suffix, replacement in rules:
        if word.endswith(suffix):
            stem = word[: -len(suffix)]
            return stem + replacement if condition(stem) else word
    return word


def _vowels(word: str) -> list[bool]:
    """Which letters are vowels: a, e, i, o, u, and y behind a consonant."""
    vowels: list[bool] = []
    for letter in word:
        vowels.append(letter in "aeiou" or (letter == "y" and bool(vowels) and not vowels[-1]))
    return vowels


def _measure(word: str) -> int:
    """Porter's m: how often a vowel is followed by a consonant."""
    vowels = _vowels(word)
    return sum(before and not after for before, after in pairwise(vowels))


def _ends_cvc(word: str) -> bool:
    """Porter's *o: consonant, vowel, consonant other than w, x, y. NLTK: also vowel, consonant as the whole word."""
    vowels = _vowels(word)
    if len(word) == 2:
        return vowels == [True, False]
    return vowels[-3:] == [False, True, False] and word[-1] not in "wxy"
