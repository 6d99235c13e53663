from __future__ import annotations

import gc
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import markdown, rounds
from benchmarks.corpus import Corpus, read_corpus, synthetic_corpus
from benchmarks.kernel import __main__ as command
from benchmarks.kernel import end_to_end, instructions, report, subsequence
from benchmarks.kernel.rivals import RIVALS, STANDARD, Rival

WORDS = 1_000


@pytest.fixture
def corpus() -> Corpus:
    return synthetic_corpus(WORDS)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole benchmark on a few words."""
    monkeypatch.setattr(command, "CLASSES", ((3, 6), (10, 20)))
    monkeypatch.setattr(command, "LENGTHS", (5, 66))
    monkeypatch.setattr(command, "WORDS", WORDS)
    monkeypatch.setattr(end_to_end, "RIVAL_SECONDS", 1e-4)


def tokens(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def write_instances(path: Path, count: int) -> None:
    records = [
        {
            "id": f"t:{number}",
            "task": "t",
            "template": None,
            "instruction": f"Say what is asked.\nWho is the {number}th? \u0130t is \u212aarl, maybe...",
            "references": [f"Answer: number {number}!"],
            "candidates": [{"text": f"It's the ({number})", "source": "s"}],
            "choices": None,
            "split": "test",
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_the_command_measures_writes_and_shows_again(
    tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    written, drawn, docs = tmp_path / "kernel.json", tmp_path / "kernel.svg", tmp_path / "kernel.md"
    docs.write_text(f"# Before\n{report.START}\nold\n{markdown.END}\nafter\n")
    command.main(["--rounds", "2", "--output", str(written), "--plot", str(drawn), "--docs", str(docs)])
    printed = capsys.readouterr().out
    measured = json.loads(written.read_text())

    assert (measured["data"], measured["rounds"], measured["instructions_a_word"]) == ("synthetic", 2, {})
    assert measured["machine"]["rouge-score"]
    assert [(one["tokens"], one["stem"]) for one in measured["classes"]] == [
        ([3, 6], False),
        ([10, 20], False),
        ([3, 6], True),
        ([10, 20], True),
    ]
    by_package = {one["package"]: one for one in measured["classes"][0]["rivals"]}
    assert list(by_package) == [rival.package for rival in RIVALS]
    for rival in RIVALS:
        result = by_package[rival.package]
        assert rival.definition or result["other_bits"] == 0, rival.package
        low, middle, high = sorted(result["times_as_fast"])
        assert result["times_as_fast"] == [middle, low, high]
        assert 0 < result["pairs"] <= measured["classes"][0]["pairs"]
    assert "rouge" not in {one["package"] for one in measured["classes"][2]["rivals"]}  # it doesn't stem
    assert [(one["shape"], one["tokens"]) for one in measured["subsequences"]] == [
        (shape, length) for shape in ("one against many", "aligned pairs", "full matrix") for length in (5, 66)
    ]

    assert docs.read_text() == f"# Before\n{report.START}\n\n{printed}\n{markdown.END}\nafter\n"
    assert "| **cappy-lite** |" in printed
    assert "callgrind" not in printed
    first_plot = drawn.read_bytes()
    assert first_plot.startswith(b"<?xml")
    command.main(["--load", str(written), "--plot", str(drawn)])
    assert capsys.readouterr().out == printed
    assert drawn.read_bytes() == first_plot


def test_the_command_reads_instances(tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "instances.jsonl"
    write_instances(path, 150)
    command.main(["--rounds", "1", "--data", str(path)])
    assert "texts: instances.jsonl" in capsys.readouterr().out
    write_instances(path, 10)
    with pytest.raises(SystemExit, match="2"):
        command.main(["--data", str(path)])
    assert "give 1,000" in capsys.readouterr().err


def test_a_corpus_has_each_line_once_and_exact_texts(tmp_path: Path) -> None:
    write_instances(tmp_path / "instances.jsonl", 30)
    corpus = read_corpus(tmp_path / "instances.jsonl", 200)
    assert len(corpus) == 200
    lengths = np.array([7, 1, 64, 128])
    texts = corpus.texts(lengths)
    assert [len(tokens(text)) for text in texts] == lengths.tolist()
    assert "".join(texts).count("Say what is asked.") == 1
    assert "".join(texts).count("Karl") > 3


def test_made_up_texts_are_always_the_same_and_have_frequent_words() -> None:
    one, other = (synthetic_corpus(3_000).texts(np.array([3_000])) for _ in range(2))
    assert one == other
    assert 300 < len(set(tokens(one[0]))) < 2_000


def test_pairs_have_lengths_of_the_whole_range(corpus: Corpus) -> None:
    predictions, references = end_to_end.draw_pairs(corpus, 5, 14)
    assert len(predictions) == len(references) == 40
    for texts in (predictions, references):
        lengths = np.array([len(tokens(text)) for text in texts])
        parts = ((lengths - 5) // 2).reshape(-1, end_to_end.PARTS)
        assert (np.sort(parts) == np.arange(end_to_end.PARTS)).all()
    fresh = end_to_end.fresh((predictions, references))
    assert fresh == (predictions, references)
    assert not any(new is old for new, old in zip(fresh[0], predictions, strict=True))


def test_a_slow_rival_scores_fewer_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a"] * 100, ["b"] * 100
    for seconds, pairs in ((10.0, 5), (0.02, 25), (1e-9, 100)):
        # Of a rival that takes so long for a pair.
        monkeypatch.setattr(end_to_end, "time_once", lambda contestant, each=seconds: contestant.work * each)
        assert end_to_end.affordable_pairs(STANDARD.score, texts) == pairs


def test_contestants_take_turns_without_garbage_collection() -> None:
    calls: list[tuple[str, bool]] = []

    def contestant(name: str) -> rounds.Contestant:
        return rounds.Contestant(lambda argument: calls.append((argument, gc.isenabled())), 10, lambda: (name,))

    measured = rounds.rates([contestant("a"), contestant("b")], 3)
    assert measured.shape == (2, 3)
    assert (measured > 0).all()
    assert calls == [("a", False), ("b", False)] * 3
    assert gc.isenabled()


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.package)
def test_rivals_give_precision_recall_and_fmeasure(rival: Rival) -> None:
    scores = rival.score(False, ["the cat sat", "one dog"], ["the cat sat down", "two birds"])
    assert scores == pytest.approx(np.array([[1, 0.75, 6 / 7], [0, 0, 0]]), abs=1e-7)
    if rival.stems:
        assert rival.score(True, ["running dogs"], ["dog"]).tolist() == [[0.5, 1, 2 / 3]]


def test_a_rivals_other_numbers_are_counted(corpus: Corpus) -> None:
    def half(stem: bool, predictions: list[str], references: list[str]) -> np.ndarray:
        scores = STANDARD.score(stem, predictions, references)
        scores[::2] /= 2
        return scores

    measured = end_to_end.end_to_end(corpus, (80, 80), True, [STANDARD, Rival("half", half)], 1)
    exact, halved = measured["rivals"]
    assert measured["pairs"] == exact["pairs"] == halved["pairs"] == 5
    assert (exact["other_bits"], exact["far_off"]) == (0, 0)
    assert (halved["other_bits"], halved["far_off"]) == (3, 3)
    assert report.numbers([exact, exact]) == "the same, 10 pairs"
    assert report.numbers([exact, halved]) == "others in 3 of 10 pairs, F-measure off by over 0.01 in 3"


def one_bit_off(scores: np.ndarray) -> np.ndarray:
    scores[-1, -1] = np.nextafter(scores[-1, -1], 2)
    return scores


def test_a_kernel_that_is_one_bit_off_rouge_score_is_caught(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    end_to_end.end_to_end(corpus, (50, 50), False, [STANDARD], 1)
    exact = end_to_end.rouge_l_pairs
    monkeypatch.setattr(end_to_end, "rouge_l_pairs", lambda *texts, **options: one_bit_off(exact(*texts, **options)))
    monkeypatch.setattr(end_to_end, "RIVAL_SECONDS", 60)  # so that rouge-score scores every pair
    with pytest.raises(SystemExit, match=r"DIFFERENT: \(50, 50\) tokens, stem=False, .* at \(\d, 2\)"):
        end_to_end.end_to_end(corpus, (50, 50), False, [STANDARD], 1)


@pytest.mark.parametrize("shape", subsequence.SHAPES)
@pytest.mark.parametrize("length", [20, 70])
def test_a_kernel_that_is_one_bit_off_rapidfuzz_is_caught(
    corpus: Corpus, shape: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = subsequence.subsequence_alone(corpus, length, shape, 1)
    assert result["pairs"] == {"one against many": WORDS // length - 1, "aligned pairs": WORDS // length // 2}.get(
        shape, (WORDS // length) ** 2
    )
    for name in ("score_pairs", "score_matrix"):
        exact = getattr(subsequence, name)
        monkeypatch.setattr(subsequence, name, lambda *some, exact=exact: one_bit_off(exact(*some)))
    with pytest.raises(SystemExit, match=f"DIFFERENT: {shape}, {length} tokens, beside rapidfuzz's"):
        subsequence.subsequence_alone(corpus, length, shape, 1)


def test_frequent_tokens_are_small_characters() -> None:
    rare = [f"w{number}" for number in range(60_000)]
    strings = subsequence.as_characters(["The end, the END; the rest", " ".join(rare)])
    assert strings[0] == "\0\1\0\1\0" + strings[0][-1]
    assert len(set(strings[1])) == len(strings[1]) == len(rare)
    assert not any(0xD800 <= ord(character) < 0xE000 for character in strings[1])


# What callgrind writes when a function returns, shortened.
PROFILE = """\
# callgrind format
version: 1
creator: callgrind-3.19.0
part: 1
desc: Trigger: --dump-after=cappy_rouge_l_pairs

positions: line
events: {events}
summary: 5 {total} 7

ob=(9) /somewhere/_kernel.abi3.so
fn=(10446) cappy_rouge_l_pairs
0 17

totals: {total}
"""


def test_callgrinds_total_is_read() -> None:
    assert instructions.read_total(PROFILE.format(events="Ir", total="119966")) == 119_966
    assert instructions.read_total(PROFILE.format(events="Dr Ir", total="3 42")) == 42
    for broken in ("", "events: Ir\n", PROFILE.format(events="Dr", total="3")):
        with pytest.raises(ValueError, match="no total of instructions"):
            instructions.read_total(broken)


# Runs what it is given, and writes for each call that it took 1,000 instructions and 30 for each letter of the text.
VALGRIND = """\
#!{python}
import json, subprocess, sys

options = dict(argument.removeprefix("--").split("=") for argument in sys.argv[1:] if argument.startswith("--"))
assert options["tool"] == "callgrind" and options["toggle-collect"] == options["dump-after"], options
subprocess.run(sys.argv[1 + len(options):], check=True)
for number, (patterns, text) in enumerate(json.loads(sys.argv[-1]), start=1):
    with open(options["callgrind-out-file"] + f".{{number}}", "w") as part:
        part.write("events: Ir\\ntotals: " + str(1_000 + 30 * text))
"""


def test_a_loop_costs_what_further_letters_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "valgrind"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program.write_text(VALGRIND.format(python=sys.executable))
    program.chmod(0o755)
    for loop in instructions.LOOPS:
        assert instructions.instructions_a_word(loop) == 30 / loop.words
    program.write_text("#!/bin/sh\n")
    with pytest.raises(RuntimeError, match=r"callgrind counted \[\] in 2 calls of cappy_rouge_l_pairs"):
        instructions.instructions_a_word(instructions.LOOPS[0])


def test_tables_show_instructions_beside_the_recurrences_own(tiny: None, corpus: Corpus) -> None:
    measured = command.measure(corpus, 1, callgrind=False)
    measured["instructions_a_word"] = {"some loop": 12.5}
    assert report.tables(measured).endswith("| some loop | 12.5 | 5 | 2.5 |")


def test_numbers_in_tables_have_three_digits() -> None:
    assert [markdown.rate(value) for value in (0.00123456, 4.4, 99.94, 99.96, 138.4, 1_964_321)] == [
        "0.00123",
        "4.40",
        "99.9",
        "100",
        "138",
        "1,960,000",
    ]


def test_docs_without_marks_are_left_alone(tmp_path: Path, tiny: None, corpus: Corpus) -> None:
    docs = tmp_path / "kernel.md"
    docs.write_text(report.START)
    with pytest.raises(ValueError, match="must have the lines"):
        report.write_docs(command.measure(corpus, 1, callgrind=False), docs)
    assert docs.read_text() == report.START
