"""What shows in long calls alone: large texts, the memory of many pairs, and an end when the user wants it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cappy_lite.rouge import RougeL, rouge_l, rouge_l_matrix, rouge_lsum

TEN_MEGABYTES = 10_000_000


def test_ten_megabytes_of_one_word_repeated() -> None:
    count = TEN_MEGABYTES // 3
    text = "ha " * count
    for short in (1, 64, 65, 257, 1_000):
        precision = short / count
        expected = RougeL(precision, 1.0, 2 * precision / (precision + 1.0))
        assert rouge_l(text, "ha " * short) == expected
        assert rouge_l("Ha? " * short, text) == RougeL(1.0, precision, expected.fmeasure)


@pytest.mark.parametrize("stem", [False, True])
def test_ten_megabytes_of_different_words(stem: bool) -> None:
    # Odd digits alone, which the stemmer leaves as they are.
    words = [f"{number:o}9" for number in range(8**6, 8**6 + TEN_MEGABYTES // 9)]
    text = " ".join(words)
    some = words[::1_000]
    score = rouge_l(" ".join(some), [" ".join(reversed(words)), text], stem=stem)
    assert score[:2] == (1.0, len(some) / len(words))
    assert rouge_l(" ".join(reversed(some)), text, stem=stem).precision == 1 / len(some)
    # Two long texts with little in common.
    others = [*(word + "x" for word in words), *some]
    assert rouge_l(" ".join(others), text, stem=stem).precision == len(some) / len(others)


@pytest.mark.parametrize("letters", ["y", "ab", "abcdefg"])
def test_ten_megabytes_of_one_word(letters: str) -> None:
    word = letters * (TEN_MEGABYTES // len(letters))
    texts = [word, word.upper() + ".", word[:-1] + "c", "c" + word, word[:-1]]
    np.testing.assert_array_equal(rouge_l_matrix(texts)[0], [1, 1, 0, 0, 0])
    assert rouge_l(word + "cies", word + "cy", stem=True).fmeasure == 1.0


@pytest.mark.parametrize("filling", ["é", "\u0130", "\u212a ", "\ud800", "."])
def test_ten_megabytes_of_what_is_no_ascii(filling: str) -> None:
    text = filling * (TEN_MEGABYTES // len(filling.encode(errors="surrogatepass")))
    found = {"\u0130": "i ", "\u212a ": "k "}.get(filling, "") * len(text)
    words = len(found.split()) // len(filling)
    assert rouge_l("the end", text + " the end").recall == 2 / (words + 2)


def test_summary_of_many_lines() -> None:
    count = TEN_MEGABYTES // 8
    prediction = "the cat\n" * count
    assert rouge_lsum(prediction, "the cat\na dog\n\nthe cat")[:2] == (4 / (2 * count), 4 / 6)
    assert rouge_lsum("a dog\nthe cat", prediction)[:2] == (1 / 2, 2 / (2 * count))


def test_memory_stays_the_same_however_many_pairs() -> None:
    """The benchmark's words are all new. Remembered all the time, those of one round would take some 300 MiB."""
    root = Path(__file__).resolve().parents[1]
    program = (
        f"import sys; sys.path.append({str(root)!r}); from benchmarks.kernel_memory import main; main(sys.argv[1:])"
    )
    arguments = ["--pairs", "400000", "--round", "100000", "--stem"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    first, second, *_, last = report["resident"]
    assert last < max(first, second) + 20
    # Some 65 to 100 MiB, as the system has huge pages at hand for the table of words.
    assert report["scoring"] < 150


# Each would take a minute at least.
LONG_CALLS = {
    "one pair": (
        "one, other = 'a b c d ' * 1_500_000, 'd c b a e ' * 1_200_000",
        "rouge.rouge_l(one, other)",
    ),
    "one pair in a batch": (
        "one, other = 'a b c d ' * 1_500_000, 'd c b a e ' * 1_200_000",
        "rouge.rouge_l_pairs([one], [other])",
    ),
    "short pairs": (
        "predictions = [f'a b {number}' for number in range(1_000_000)]; references = ['b a', 'a'] * 1_000",
        "rouge.rouge_l_against(references, predictions)",
    ),
    "long pairs": (
        "one, other = ['a b c d ' * 25_000] * 5_000, ['d c b a e ' * 20_000] * 5_000",
        "rouge.rouge_l_pairs(one, other)",
    ),
    "two threads": (
        "one, other = ['a b c d ' * 25_000] * 5_000, ['d c b a e ' * 20_000] * 5_000",
        "rouge.rouge_l_pairs(one, other, threads=2)",
    ),
    "matrix": (
        "texts = ['a b c d ' * 25_000, 'd c b a e ' * 20_000] * 60",
        "rouge.rouge_l_matrix(texts)",
    ),
    "matrix in two threads": (
        "texts = ['a b c d ' * 25_000, 'd c b a e ' * 20_000] * 60",
        "rouge.rouge_l_matrix(texts, threads=2)",
    ),
    "summary": (
        "one, other = ('a b c d ' * 5_000 + chr(10)) * 100, ('d c b a e ' * 4_000 + chr(10)) * 100",
        "rouge.rouge_lsum(one, other)",
    ),
    "tokenizer": (
        "text = 'a b c d ' * 1_000",
        "rouge.rouge_l_pairs([text] * 1_000_000, [text] * 1_000_000, tokenizer='unicode', threads=2)",
    ),
}


# A shell's background jobs, and so their children, ignore it.
HEEDS_SIGINT = "import signal; from cappy_lite import rouge; signal.signal(signal.SIGINT, signal.default_int_handler)"


@pytest.mark.parametrize(("prepare", "call"), LONG_CALLS.values(), ids=LONG_CALLS.keys())
def test_ctrl_c_ends_a_long_call(prepare: str, call: str) -> None:
    program = f"{HEEDS_SIGINT}; {prepare}; print('started', flush=True); {call}; print('finished')"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            time.sleep(1.0)  # until it is in the midst of its work
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=10)
        finally:
            process.kill()
    assert output == ""
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    assert process.returncode == -signal.SIGINT
