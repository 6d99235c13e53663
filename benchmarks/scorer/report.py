"""What `benchmarks.scorer` measured, as Markdown tables and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.markdown import Median, rate, renew, start, table, times
from benchmarks.scorer.rivals import CAPPY


class RivalResult(TypedDict):
    """times_as_fast: cappy-lite's rate by the rival's.

    off_by, rank_correlation: of its scores, beside those of each pair alone.
    """

    name: str
    weights: str
    rounds: int
    candidates_per_second: float
    times_as_fast: Median
    off_by: float
    rank_correlation: float


class SizeResult(TypedDict):
    """instruction, candidates: lengths in tokens. candidates_per_second, milliseconds: of cappy-lite.

    floors: milliseconds of the multiplications alone, by how they are done; floor: the fastest of them.
    times_the_floor: cappy-lite's time by that.
    """

    name: str
    instruction: int
    candidates: list[int]
    candidates_per_second: float
    milliseconds: float
    floors: dict[str, float]
    floor: str
    times_the_floor: Median
    rivals: list[RivalResult]


class ColdStart(TypedDict):
    """Seconds from before the import to the first scores. ours_by_its: cappy-lite's by these, start by start."""

    name: str
    seconds: Median
    ours_by_its: Median


class Memory(TypedDict):
    """MiB resident after the first scores, at most, and after a large call."""

    name: str
    before: float
    peak: float
    after: float


class Throughput(TypedDict):
    """Of one scorer whose calls compute on `threads`, by how many threads call it."""

    threads: int
    scores_per_second: dict[str, Median]


class Report(TypedDict):
    """left_out: rivals that weren't measured, and why. first, large: names of the sizes that processes score."""

    benchmark: str
    model: str
    data: str
    threads: int
    machine: dict[str, str | int | None]
    left_out: dict[str, str]
    sizes: list[SizeResult]
    first: str
    large: str
    cold_starts: list[ColdStart]
    memory: list[Memory]
    throughput_size: str
    throughput: list[Throughput]


START = start("benchmarks.scorer")


def write_docs(report: Report, path: Path) -> None:
    """Puts the tables between their marks in a Markdown file; ValueError if it hasn't these."""
    renew(path, START, tables(report))


def tables(report: Report) -> str:
    """Everything in Markdown."""
    threads = "1 thread" if report["threads"] == 1 else f"{report['threads']} threads"
    parts = [
        f"Measured on {described(report)}.",
        f"Candidates a second from texts to scores, each on {threads}. In brackets: how many times as fast cappy-lite "
        "is, the median of the rounds and their range; and how far a rival's scores are at most from those of its file "
        "read pair by pair, with the least rank correlation.",
        side_by_side_table(report["sizes"]),
    ]
    if report["left_out"]:
        parts.append("Left out: " + "; ".join(f"{name} ({why})" for name, why in report["left_out"].items()) + ".")
    parts += [
        "cappy-lite beside the matrix multiplications of the same tokens alone, in milliseconds:",
        floor_table(report["sizes"]),
        f"A fresh process, from before the import to the scores of {report['first']}, by medians of starts that took "
        "turns:",
        cold_start_table(report["cold_starts"]),
        f"Resident memory of a fresh process in MiB: after those first scores, at most, and after {report['large']}:",
        memory_table(report["memory"]),
        f"Scores a second of one scorer that several threads call, {report['throughput_size']}:",
        throughput_table(report["throughput"]),
    ]
    return "\n\n".join(parts)


def described(report: Report) -> str:
    machine = dict(report["machine"])
    processor, cpus, system = (machine.pop(key) for key in ("processor", "cpus", "system"))
    versions = ", ".join(f"{name} {version}" for name, version in machine.items() if version is not None)
    return f"{processor} ({cpus} CPUs, {system}); texts: {report['data']}; model: {report['model']}; {versions}"


def side_by_side_table(sizes: Sequence[SizeResult]) -> str:
    """A row for each scorer, a column for each size."""
    head = ["", "weights", *(size["name"] for size in sizes), "scores"]
    rows = [["**cappy-lite**", "its own", *(f"**{rate(size['candidates_per_second'])}**" for size in sizes), ""]]
    fastest = [fastest_package(size) for size in sizes]
    if all(fastest):
        rows.append(["beside the fastest package", "", *(times(one["times_as_fast"]) for one in fastest if one), ""])
    for several in zip(*(size["rivals"] for size in sizes), strict=True):
        speeds = [f"{rate(one['candidates_per_second'])} ({times(one['times_as_fast'])})" for one in several]
        off_by, correlation = max(one["off_by"] for one in several), min(one["rank_correlation"] for one in several)
        scores = f"off by {off_by:.1g}, {correlation:.3f}"
        rows.append([several[0]["name"], several[0]["weights"], *speeds, scores])
    return table(head, rows)


def fastest_package(size: SizeResult) -> RivalResult | None:
    """The rival that isn't cappy-lite itself, if there is any, that is the nearest."""
    others = [one for one in size["rivals"] if not one["name"].startswith(CAPPY)]
    return min(others, key=lambda one: one["times_as_fast"][0], default=None)


def floor_table(sizes: Sequence[SizeResult]) -> str:
    kinds = list(sizes[0]["floors"])
    head = ["", "cappy-lite", *kinds, "times the fastest"]
    rows = [
        [
            size["name"],
            rate(size["milliseconds"]),
            *(rate(size["floors"][kind]) for kind in kinds),
            times(size["times_the_floor"]),
        ]
        for size in sizes
    ]
    return table(head, rows)


def cold_start_table(starts: Sequence[ColdStart]) -> str:
    head = ["", "milliseconds", "cappy-lite's by these"]
    rows = []
    for one in starts:
        median, least, greatest = (rate(1e3 * value) for value in one["seconds"])
        rows.append([one["name"], f"{median} [{least}, {greatest}]", times(one["ours_by_its"])])
    return table(head, rows)


def memory_table(memories: Sequence[Memory]) -> str:
    head = ["", "before", "peak", "after", "after by before"]
    rows = [
        [
            one["name"],
            *(f"{one[when]:.0f}" for when in ("before", "peak", "after")),
            f"{one['after'] - one['before']:+.0f}",
        ]
        for one in memories
    ]
    return table(head, rows)


def throughput_table(results: Sequence[Throughput]) -> str:
    callers = list(results[0]["scores_per_second"])
    head = ["threads of a call", *(f"{count} calling" for count in callers)]
    rows = []
    for one in results:
        medians = [one["scores_per_second"][count] for count in callers]
        rows.append(
            [str(one["threads"]), *(f"{rate(median)} [{rate(low)}, {rate(high)}]" for median, low, high in medians)]
        )
    return table(head, rows)


def plot(report: Report, path: Path) -> None:
    """Candidates a second by size, as bars beside each other. The path's suffix says the format."""
    speeds = plotted_speeds(report)
    sizes = [size["name"] for size in report["sizes"]]
    # Without a date, and with the same ids each time: a plot of the same figures is the same file.
    with rc_context({"svg.hashsalt": "scorer"}):
        figure = Figure(figsize=(11, 1 + 1.1 * len(sizes)), layout="constrained")
        axes = figure.add_subplot(xscale="log", xlabel="candidates a second")
        height = 0.8 / len(speeds)
        for number, (name, rates) in enumerate(speeds.items()):
            places = [size + (number - (len(speeds) - 1) / 2) * height for size in range(len(sizes))]
            axes.barh(places, rates, height, label=name, color=COLOURS[number % len(COLOURS)])
        axes.set_yticks(range(len(sizes)), sizes)
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        figure.legend(loc="outside right upper", frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


# cappy-lite's first; light and dark are the two files of one package.
COLOURS = (
    *("tab:red", "#1f77b4", "#aec7e8", "#2ca02c", "#98df8a", "#9467bd", "#c5b0d5"),
    *("#8c564b", "#c49c94", "#e377c2", "#7f7f7f", "#c7c7c7", "#bcbd22"),
)


def plotted_speeds(report: Report) -> dict[str, list[float]]:
    """Candidates a second of each size, by scorer and weights."""
    speeds = {"cappy-lite": [size["candidates_per_second"] for size in report["sizes"]]}
    for several in zip(*(size["rivals"] for size in report["sizes"]), strict=True):
        name = f"{several[0]['name']}, {several[0]['weights']}"
        speeds[name] = [one["candidates_per_second"] for one in several]
    return speeds
