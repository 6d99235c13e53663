"""What `benchmarks.kernel` measured, as Markdown tables and as a plot."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TypedDict

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.kernel.instructions import FLOOR
from benchmarks.markdown import Median, rate, renew, start, table, times

FAR = 0.01
# Two threads share a batch so many times as large as that of the other figures.
LARGE = 8


class RivalResult(TypedDict):
    """times_as_fast: cappy-lite's rate by the rival's.

    other_bits: how many of its pairs have not our numbers; far_off: whose F-measure is off by more than FAR.
    """

    package: str
    definition: str
    pairs: int
    pairs_per_second: float
    times_as_fast: Median
    other_bits: int
    far_off: int


class EndToEnd(TypedDict):
    """pairs_per_second: cappy-lite's on one thread, in a first call that knows no words yet. known_words: that of later
    calls by that. two_threads: the same on two threads by one, for LARGE times as many pairs."""

    tokens: tuple[int, int]
    stem: bool
    pairs: int
    pairs_per_second: float
    known_words: Median
    two_threads: Median
    rivals: list[RivalResult]


class Subsequence(TypedDict):
    """pairs_per_second: cappy-lite's, all on one thread; a cell of a matrix is a pair."""

    shape: str
    tokens: int
    pairs: int
    pairs_per_second: float
    rapidfuzz_call: str
    rapidfuzz_pairs_per_second: float
    times_as_fast: Median


class Report(TypedDict):
    """instructions_a_word: of each loop of the kernel; empty if they weren't counted."""

    benchmark: str
    data: str
    kernel: str
    rounds: int
    machine: dict[str, str | int | None]
    classes: list[EndToEnd]
    lengths: list[EndToEnd]
    subsequences: list[Subsequence]
    instructions_a_word: dict[str, float]


START = start("benchmarks.kernel")


def write_docs(report: Report, path: Path) -> None:
    """Puts the tables between their marks in a Markdown file; ValueError if it hasn't these."""
    renew(path, START, tables(report))


def tables(report: Report) -> str:
    """Everything in Markdown."""
    parts = [
        f"Measured on {described(report)}.",
        "Pairs a second from lists of texts to an array of scores, on one thread; a rival scores as many of the same "
        "pairs as take it about half a second, five at least. In brackets: how many times as fast cappy-lite is, the "
        "median of the rounds and their range. cappy-lite's rate is that of a process' first call, which meets each "
        "word for the first time; later calls know the words.",
    ]
    for stem in (False, True):
        results = [one for one in report["classes"] if one["stem"] == stem]
        pairs = ", ".join(f"{one['pairs']:,}" for one in results)
        parts += [f"{'Stemmed' if stem else 'Not stemmed'}, cappy-lite in batches of {pairs} pairs:"]
        parts += [end_to_end_table(results)]
    parts += [
        "The longest common subsequence alone, of sequences of token ids that exist already, on one thread; millions "
        "of pairs a second, for the full matrix of cells. cappy-lite's time includes precision, recall and F-measure.",
        subsequence_table(report["subsequences"]),
    ]
    if report["instructions_a_word"]:
        parts += [
            "Instructions for a 64-bit word of the recurrence, counted by callgrind, whose processor has AVX2 but no "
            "AVX-512:",
            instruction_table(report["instructions_a_word"]),
        ]
    return "\n\n".join(parts)


def described(report: Report) -> str:
    machine = dict(report["machine"])
    processor, cpus, system = (machine.pop(key) for key in ("processor", "cpus", "system"))
    versions = ", ".join(f"{name} {version}" for name, version in machine.items())
    return (
        f"{processor} ({cpus} CPUs, {system}) in {report['rounds']} rounds; texts: {report['data']}; "
        f"kernel: {report['kernel']}; {versions}"
    )


def end_to_end_table(results: list[EndToEnd]) -> str:
    """A row for each package, a column for each class of lengths."""
    head = ["", *(f"{low:,} to {high:,} tokens" for low, high in (one["tokens"] for one in results)), "numbers"]
    rows = [
        ["**cappy-lite**", *(f"**{rate(one['pairs_per_second'])}**" for one in results), ""],
        ["its later calls, words known", *(times(one["known_words"]) for one in results), ""],
        [f"2 threads beside 1, {LARGE} times the batch", *(times(one["two_threads"]) for one in results), ""],
    ]
    for several in zip(*(one["rivals"] for one in results), strict=True):
        speeds = [f"{rate(one['pairs_per_second'])} ({times(one['times_as_fast'])})" for one in several]
        rows.append([several[0]["package"], *speeds, numbers(list(several))])
    return table(head, rows)


def numbers(results: list[RivalResult]) -> str:
    """What a rival's numbers are, beside ours on the same pairs."""
    pairs = sum(one["pairs"] for one in results)
    other = sum(one["other_bits"] for one in results)
    far = sum(one["far_off"] for one in results)
    if other == 0:
        return f"the same, {pairs:,} pairs"
    reason = f": {results[0]['definition']}" if results[0]["definition"] else ""
    return f"others in {other:,} of {pairs:,} pairs, F-measure off by over {FAR} in {far:,}{reason}"


def subsequence_table(results: list[Subsequence]) -> str:
    head = ["", "tokens", "pairs", "cappy-lite", "rapidfuzz", "its fastest call", "times as fast"]
    rows = [
        [
            one["shape"],
            f"{one['tokens']:,}",
            f"{one['pairs']:,}",
            rate(one["pairs_per_second"] / 1e6),
            rate(one["rapidfuzz_pairs_per_second"] / 1e6),
            one["rapidfuzz_call"],
            times(one["times_as_fast"]),
        ]
        for one in results
    ]
    return table(head, rows)


def instruction_table(instructions: dict[str, float]) -> str:
    rows = [[name, f"{count:.1f}", str(FLOOR), f"{count / FLOOR:.1f}"] for name, count in instructions.items()]
    return table(["", "instructions", "the recurrence's own", "ratio"], rows)


def plot(report: Report, path: Path) -> None:
    """Pairs a second over length, one thread, both axes logarithmic. The path's suffix says the format."""
    # Without a date, and with the same ids each time: a plot of the same figures is the same file.
    with rc_context({"svg.hashsalt": "kernel"}):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        axes = figure.add_subplot(xscale="log", yscale="log", xlabel="tokens a text", ylabel="pairs a second")
        for (package, what), points in sorted(plotted_lines(report).items(), key=lambda line: -line[1][-1][1]):
            lengths, rates = zip(*points, strict=True)
            style = STYLES[what]
            axes.plot(lengths, rates, style, color=COLOURS[package], marker=".", label=f"{package}, {what}")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.grid(color="0.9")
        figure.legend(loc="outside right upper", frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


COLOURS = {"cappy-lite": "tab:red", "rouge-score-rs": "tab:blue", "rouge-score": "tab:gray", "rapidfuzz": "tab:green"}
STYLES = {"subsequence alone": ":", "texts": "-", "texts, stemmed": "--"}


def plotted_lines(report: Report) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Points (tokens, pairs a second), by a package and what it does."""
    lines: defaultdict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for one in report["lengths"]:
        what = "texts, stemmed" if one["stem"] else "texts"
        lines["cappy-lite", what].append((one["tokens"][0], one["pairs_per_second"]))
        for rival in one["rivals"]:
            lines[rival["package"], what].append((one["tokens"][0], rival["pairs_per_second"]))
    for alone in report["subsequences"]:
        if alone["shape"] == "aligned pairs":
            what = "subsequence alone"
            lines["cappy-lite", what].append((alone["tokens"], alone["pairs_per_second"]))
            lines["rapidfuzz", what].append((alone["tokens"], alone["rapidfuzz_pairs_per_second"]))
    return lines
