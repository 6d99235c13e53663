"""Tokens of other scripts: what a word is, and what a character."""
# ruff: noqa: RUF001  # letters and signs that look like ASCII are meant

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cappy_lite import _kernel_py
from cappy_lite.words import _marks, characters, unicode_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("... ?!", []),
        ("The cat, a mat", ["the", "cat", "a", "mat"]),
        ("Съешь ЕЩЁ этих мягких", ["съешь", "ещё", "этих", "мягких"]),  # Russian
        ("ΟΔΥΣΣΕΥΣ καί ΣΑΣ", ["οδυσσευς", "καί", "σας"]),  # Greek: sigma at the end of a word
        ("السَّلَامُ عَلَيْكُمْ، أهلاً", ["السَّلَامُ", "عَلَيْكُمْ", "أهلاً"]),  # Arabic with vowel marks
        ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),  # Hebrew with points
        ("हिन्दी में लिखें।", ["हिन्दी", "में", "लिखें"]),  # Hindi: vowel signs and the virama stay in the word
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),  # Tamil
        ("ภาษาไทย ง่ายไหม", ["ภาษาไทย", "ง่ายไหม"]),  # Thai: no spaces between words
        ("中文，很好。", ["中文", "很好"]),
        ("日本語は「難しい」カタカナー", ["日本語は", "難しい", "カタカナー"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("straße STRASSE", ["straße", "strasse"]),  # lower(), not casefold()
        ("snake_case __init__ _", ["snake", "case", "init"]),
        ("don't e-mail", ["don", "t", "e", "mail"]),
        ("2026 ٣٤ १२ ４５ x²", ["2026", "٣٤", "१२", "４５", "x²"]),  # digits of other scripts
        ("no😀emoji👍🏽 ok", ["no", "emoji", "ok"]),
        ("a\ud800b", ["a", "b"]),  # a lone surrogate
        ("a\x00b\tc\u00a0d\u2028e", ["a", "b", "c", "d", "e"]),
        ("\u0301a \u0301\u0301", ["a"]),  # a mark without a letter is none
    ],
)
def test_words_of_any_script(text: str, words: list[str]) -> None:
    assert unicode_words(text) == [unicodedata.normalize("NFC", word) for word in words]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("。、！ ", []),
        ("中文，很好。", ["中", "文", "很", "好"]),
        ("日本語カタカナー", ["日", "本", "語", "カ", "タ", "カ", "ナ", "ー"]),
        ("ab c_1", ["a", "b", "c", "1"]),
        ("น้ำที่", ["น้", "ำ", "ที่"]),  # Thai: a tone mark or vowel above stays with its consonant
        ("हिन्दी", ["हि", "न्", "दी"]),
        ("e\u0301t\u00e9", ["\u00e9", "t", "\u00e9"]),
        ("x\u0301\u0323", ["x\u0323\u0301"]),  # no composed form: the letter with both marks, in NFC's order
        ("😀a", ["a"]),
        ("𠮷野", ["𠮷", "野"]),  # beyond the basic plane
    ],
)
def test_characters(text: str, found: list[str]) -> None:
    assert characters(text) == found


@pytest.mark.parametrize("tokenize", [unicode_words, characters])
def test_the_same_text_typed_otherwise_is_the_same(tokenize: Callable[[str], list[str]]) -> None:
    for text in ("Crème brûlée", "ΐ Ά", "Ångström", "가나다", "が ぱ", "ё й"):
        decomposed = unicodedata.normalize("NFD", text)
        assert decomposed != unicodedata.normalize("NFC", text)
        assert tokenize(decomposed) == tokenize(text)
        assert tokenize(decomposed.upper()) == tokenize(text.lower())


def test_turkish_i() -> None:
    """The dotted capital's lower case is i with a dot above, which no composed letter is; the dotless i is another."""
    assert unicode_words("\u0130stanbul \u0131l\u0131k ILIK") == ["i\u0307stanbul", "\u0131l\u0131k", "ilik"]
    assert characters("\u0130\u0131") == ["i\u0307", "\u0131"]


MARKS = "".join(chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "M")

ascii_texts = st.text(st.characters(max_codepoint=127))
separators = st.sampled_from([" ", "—", "«", "。", "\u2028", "😀", "€", "\ud800", "।"])


@given(st.lists(ascii_texts | separators, max_size=10).map("".join))
def test_words_of_ascii_letters_are_rouge_s(text: str) -> None:
    assert unicode_words(text) == _kernel_py.words(text, False)
    assert characters(text) == list("".join(_kernel_py.words(text, False)))


@given(st.text(st.characters() | st.sampled_from("aé_\u0301\u0130\u093f् 中")))
def test_words_are_their_characters(text: str) -> None:
    words = unicode_words(text)
    assert "".join(characters(text)) == "".join(words)
    assert all(words)
    assert unicode_words(" ".join(words)) == words
    assert all(part[0].isalnum() and not part[1:].strip(MARKS) for part in characters(text))


def test_marks_are_all_of_unicode_s() -> None:
    ranges = _marks()
    covered = {
        code
        for first, hyphen, last in zip(ranges[::3], ranges[1::3], ranges[2::3], strict=True)
        for code in range(ord(first), ord(last) + 1)
        if hyphen == "-"
    }
    assert covered == set(map(ord, MARKS))
    assert len(covered) > 2_000


def test_every_letter_digit_and_mark_belongs_to_words() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        folded = unicodedata.normalize("NFC", ("a" + character).lower())
        belongs = character.isalnum() or unicodedata.category(character)[0] == "M"
        assert unicode_words("a" + character) == ([folded] if belongs else ["a"]), hex(code)
