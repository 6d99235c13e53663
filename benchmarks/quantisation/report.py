"""What `benchmarks.quantisation` measured, as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from benchmarks.markdown import Median, rate, start, table


class Time(TypedDict):
    """Of one row. times: its time by the shipped scheme's, over the rounds."""

    milliseconds: float
    times: Median
    rounds: int


class Difference(TypedDict):
    """Of scores from float32's. same_pick: share of the clear questions with the same best candidate."""

    mean: float
    largest: float
    same_pick: float
    clear: int


class DevFigure(TypedDict):
    """A set's figure, and its difference from float32's: the estimate, and its 95 % interval's ends."""

    value: float
    difference: list[float]


class Steadiness(TypedDict):
    """moved: share of the candidates whose score alone differs in any bit from that beside others."""

    candidates: int
    moved: float
    largest: float


class SchemeResult(TypedDict):
    """megabytes: of the graph with its weights. times: by size; "as_shipped": it has the shipped scheme's.

    dev: by set. What wasn't measured is missing.
    """

    name: str
    megabytes: float
    as_shipped: bool
    times: NotRequired[dict[str, Time]]
    difference: NotRequired[Difference]
    dev: NotRequired[dict[str, DevFigure]]
    steadiness: NotRequired[Steadiness]


class Report(TypedDict):
    """weights: where they are from. threads, machine: of the times. questions: how many have scores, by set."""

    benchmark: str
    model: str
    weights: str
    threads: int
    machine: dict[str, str | int | None]
    calibrating_rows: int
    questions: dict[str, int]
    schemes: list[SchemeResult]


START = start("benchmarks.quantisation")
# The dev sets' names in tables.
SETS = {"superni": "superni", "t0_generation": "T0 open", "t0_choice": "T0 choices"}


def tables(report: Report) -> str:
    """Everything in Markdown."""
    threads = "1 thread" if report["threads"] == 1 else f"{report['threads']} threads"
    machine = dict(report["machine"])
    processor, cpus, system = (machine.pop(key) for key in ("processor", "cpus", "system"))
    versions = ", ".join(f"{name} {version}" for name, version in machine.items() if version is not None)
    asked = ", ".join(f"{count} of {SETS[name]}" for name, count in report["questions"].items())
    measured = [one for one in report["schemes"] if "steadiness" in one]
    parts = [
        f"Measured on {processor} ({cpus} CPUs, {system}), {threads}; weights: {report['weights']}, "
        f"calibrated on {report['calibrating_rows']} rows; {versions}.",
        "MB of the graph with its weights. The time of one row's run beside the shipped scheme's, the median of rounds "
        "in which all take turns, and their range.",
        cost_table(report["schemes"]),
    ]
    if measured:
        parts += [
            f"Scores beside float32's on {asked} (dev questions that didn't calibrate): mean and largest difference, "
            f"and the share of {measured[0]['difference']['clear']} clear questions that keep their best candidate. "
            f"Then how many of {measured[0]['steadiness']['candidates']} candidates have another score alone than "
            "beside others, and the largest such difference.",
            score_table(measured),
            "What picks are worth, in per cent: how far from a random one to the best one (superni, T0 open), "
            "and accuracy (T0 choices). In brackets how many points that is above float32's, with the 95 % interval of "
            "a paired bootstrap over tasks.",
            dev_table(measured),
        ]
    return "\n\n".join(parts)


def cost_table(schemes: Sequence[SchemeResult]) -> str:
    sizes = list(dict.fromkeys(size for one in schemes for size in one.get("times", {})))
    head = ["scheme", "MB", *sizes]
    rows = []
    for one in schemes:
        spent = [_time(one["times"][size]) if "times" in one else "as shipped" for size in sizes]
        rows.append([one["name"], f"{one['megabytes']:.1f}", *spent])
    return table(head, rows)


def _time(time: Time) -> str:
    median, least, most = time["times"]
    return f"{rate(median)} [{rate(least)}, {rate(most)}], {rate(time['milliseconds'])} ms"


def score_table(schemes: Sequence[SchemeResult]) -> str:
    head = ["scheme", "mean", "largest", "same pick", "other score alone", "by at most"]
    rows = []
    for one in schemes:
        off, steady = one["difference"], one["steadiness"]
        row = [f"{off['mean']:.4f}", f"{off['largest']:.3f}", f"{off['same_pick']:.1%}", f"{steady['moved']:.1%}"]
        rows.append([one["name"], *row, f"{steady['largest']:.1g}"])
    return table(head, rows)


def dev_table(schemes: Sequence[SchemeResult]) -> str:
    sets = list(schemes[0]["dev"])
    head = ["scheme", *(SETS[name] for name in sets)]
    return table(head, [[one["name"], *(dev_figure(one["dev"][name]) for name in sets)] for one in schemes])


def dev_figure(figure: DevFigure) -> str:
    """Per cent, and points more or less than the reference's."""
    if not any(figure["difference"]):
        return f"{100 * figure['value']:.1f}"
    ahead, low, high = (100 * value for value in figure["difference"])
    return f"{100 * figure['value']:.1f} ({ahead:+.1f} [{low:+.1f}, {high:+.1f}])"
