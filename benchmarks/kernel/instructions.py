"""Instructions that the kernel spends on a step of the LCS recurrence, 64 cells of the table in one machine word.

Callgrind counts those of a call. What every further letter of the text adds is the loop's: the difference of a call
with twice the text, by the letters that it has more, and by the words that a letter takes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# The recurrence's own: and, add (with carry), and-not, or; and one to load the letter's places in the pattern.
FLOOR = 5


@dataclass(frozen=True)
class Loop:
    """A loop of the kernel, and the lengths of patterns and of a text with which a call comes to it.

    words: how many words a letter of the text takes.
    """

    name: str
    function: str
    patterns: tuple[int, ...]
    text: int
    words: int


LOOPS = (
    Loop("pattern of one word", "cappy_rouge_l_pairs", (64,), 4096, 1),
    Loop("pattern of four words", "cappy_rouge_l_pairs", (4 * 64,), 4096, 4),
    Loop("longer pattern, in strips", "cappy_rouge_l_pairs", (128 * 64,), 128 * 64, 128),
    Loop("matrix, eight patterns in vector lanes", "cappy_rouge_l_matrix", (64,) * 8, 4096, 8),
)

# Without numpy, which takes long under valgrind. Given lengths of patterns and of a text, it makes one call: one
# pattern is the reference of a pair, several are the first block of a matrix's rows.
PROGRAM = """
import json, random, sys
from cappy_lite import _kernel

letters = random.Random(0)
for patterns, text in json.loads(sys.argv[1]):
    *rows, column = [letters.choices(range(97), k=length) for length in (*patterns, text)]
    scoring = _kernel.Scoring(lambda: None)
    if len(rows) == 1:
        scores = memoryview(bytearray(3 * 8)).cast("d", (1, 3))
        scoring.rouge_l_pairs(_kernel.sequences([column]), _kernel.sequences(rows), scores)
    else:
        count = len(rows) + 1
        fmeasures = memoryview(bytearray(count**2 * 8)).cast("d", (count, count))
        scoring.rouge_l_matrix(_kernel.sequences([*rows, column]), 0, count, fmeasures)
"""


def instructions_a_word(loop: Loop) -> float:
    """Instructions that the loop spends on a word of the recurrence.

    Raises:
        FileNotFoundError: valgrind is not installed.
        RuntimeError: callgrind didn't see the kernel's calls.
    """
    short, long = _count(loop.function, [(loop.patterns, loop.text), (loop.patterns, 2 * loop.text)])
    return (long - short) / (loop.text * loop.words)


def _count(function: str, calls: Sequence[tuple[tuple[int, ...], int]]) -> list[int]:
    """Instructions of each call of the function."""
    with tempfile.TemporaryDirectory() as folder:
        # Counts inside the function alone, and writes a part whenever it returns.
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/part"]
        command += [f"--toggle-collect={function}", f"--dump-after={function}"]
        command += [sys.executable, "-c", PROGRAM, json.dumps(calls)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        parts = [Path(folder, f"part.{number}") for number in range(1, len(calls) + 1)]
        totals = [read_total(part.read_text(encoding="utf-8")) for part in parts if part.exists()]
    if done.returncode or len(totals) != len(calls) or 0 in totals:
        raise RuntimeError(
            f"callgrind counted {totals} in {len(calls)} calls of {function}; if the kernel was stripped of its "
            f"symbols, build it anew\n{done.stderr}"
        )
    return totals


def read_total(profile: str) -> int:
    """Instructions in one part of callgrind's output.

    Raises:
        ValueError: it has no total of instructions.
    """
    events = re.search(r"^events: (.+)$", profile, re.MULTILINE)
    totals = re.search(r"^totals: (.+)$", profile, re.MULTILINE)
    if events is None or totals is None or "Ir" not in events[1].split():
        raise ValueError("callgrind's output has no total of instructions")
    return int(totals[1].split()[events[1].split().index("Ir")])
