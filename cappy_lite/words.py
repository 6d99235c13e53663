"""Tokenizers for Rouge-L beside rouge-score's own, whose words are ASCII alone.

Both know letters, digits and combining marks of any script, in the lower case of `str.lower` and composed to Unicode's
NFC, so that "é" is the same however it was typed. Everything else separates, the underscore too.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

# Planes without letters or marks lie between the two: private use, and what isn't assigned.
PLANES = (range(0x300, 0x20000), range(0xE0000, 0xE1000))


def unicode_words(text: str) -> list[str]:
    """Runs of letters, digits and marks; where all of them are ASCII, the same words as rouge-score's.

    In scripts without spaces, such as Chinese, Japanese or Thai, a run is many words: `characters` is for them.
    """
    return _pattern("(?:{letter}{mark}*)+").findall(_folded(text))


def characters(text: str) -> list[str]:
    """Each letter or digit, with the marks that belong to it."""
    return _pattern("{letter}{mark}*").findall(_folded(text))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text.lower())


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(template.format(letter=r"[^\W_]", mark=f"[{_marks()}]"))


@cache
def _marks() -> str:
    """Combining marks as ranges of a regular expression's set; Python's \\w is without them."""
    marks = [code for plane in PLANES for code in plane if unicodedata.category(chr(code))[0] == "M"]
    starts = [code for before, code in zip([-2, *marks], marks, strict=False) if code != before + 1]
    ends = [code for code, after in zip(marks, [*marks[1:], -2], strict=True) if after != code + 1]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))
