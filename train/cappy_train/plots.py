"""Plots as SVG, small and without a library: what inherits the page's colours is right in the light and in the dark.

A series has the class s0, s1, ..., by which the page gives it a colour. Every plot is WIDTH units wide, the width of a
phone, so that its letters are legible there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import log2, sqrt
from typing import Any

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 10, 40
TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
# Lines are told apart without colours too.
DASHES = ("none", "6 3", "2 3", "8 3 2 3", "1 2", "12 4")


@dataclass(frozen=True, slots=True)
class Axes:
    """Where values lie in a plot; low and high are those of its edges."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return round(LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM), 1)

    def draw(self, x_ticks: Mapping[float, str], y_ticks: Mapping[float, str], x_label: str, y_label: str) -> list[str]:
        """Grid, ticks and labels."""
        left, right, bottom = self.x(self.x_low), self.x(self.x_high), self.y(self.y_low)
        parts = [
            f'<line class="grid" x1="{left}" x2="{right}" y1="{self.y(value)}" y2="{self.y(value)}"/>'
            f'<text x="{left - 4}" y="{self.y(value) + 3.5}" text-anchor="end">{as_text(label)}</text>'
            for value, label in y_ticks.items()
        ]
        parts += [
            f'<line class="tick" x1="{self.x(value)}" x2="{self.x(value)}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text x="{self.x(value)}" y="{bottom + 15}" text-anchor="middle">{as_text(label)}</text>'
            for value, label in x_ticks.items()
        ]
        middle = (TOP + HEIGHT - BOTTOM) / 2
        return [
            *parts,
            f'<text x="{(left + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{as_text(x_label)}</text>',
            f'<text transform="rotate(-90) translate({-middle} 10)" text-anchor="middle">{as_text(y_label)}</text>',
        ]


def calibration_plot(title: str, models: Mapping[str, Mapping[str, Any]]) -> str:
    """Mean label over mean score, a point a bin, larger where more scores are; calibrated is the diagonal."""
    axes = Axes(0, 1, 0, 1)
    ticks = {value: f"{value:g}" for value in TICKS}
    parts = axes.draw(ticks, ticks, "mean score", "mean label")
    parts.append(f'<line class="guide" x1="{axes.x(0)}" y1="{axes.y(0)}" x2="{axes.x(1)}" y2="{axes.y(1)}"/>')
    for number, found in enumerate(models.values()):
        bins = [one for one in found["bins"] if one["candidates"]]
        points = [(axes.x(min(max(one["score"], 0), 1)), axes.y(one["gain"])) for one in bins]
        radii = [1.5 + 5 * sqrt(one["candidates"] / found["candidates"]) for one in bins]
        parts.append(_line(number, points))
        parts += [
            f'<circle class="s{number}" fill="currentColor" cx="{x}" cy="{y}" r="{radius:.1f}"/>'
            for (x, y), radius in zip(points, radii, strict=True)
        ]
    return _svg(title, HEIGHT, parts)


def distribution_plot(title: str, histogram: Mapping[str, Sequence[int]]) -> str:
    """Which share of the right and of the wrong candidates has which score."""
    count = len(next(iter(histogram.values())))
    shares = {name: [one / max(sum(counts), 1) for one in counts] for name, counts in histogram.items()}
    top = max(max(own) for own in shares.values())
    axes = Axes(0, 1, 0, top)
    parts = axes.draw(
        {value: f"{value:g}" for value in TICKS}, _percent_ticks(0, top), "score", "of the right, of the wrong, %"
    )
    width = (axes.x(1) - axes.x(0)) / count / len(shares) - 0.5
    for number, own in enumerate(shares.values()):
        parts += [
            f'<rect class="s{number}" fill="currentColor" x="{axes.x(place / count) + number * (width + 0.4):.1f}" '
            f'y="{axes.y(share)}" width="{width:.1f}" height="{axes.y(0) - axes.y(share):.1f}"/>'
            for place, share in enumerate(own)
            if share
        ]
    return _svg(title, HEIGHT, parts)


def best_of_plot(title: str, sizes: Sequence[int], curves: Sequence[Mapping[str, Any]], y_label: str) -> str:
    """The mean gain of each curve's pick among n random responses, with its interval if it has one.

    n is on a logarithmic axis.
    """
    ends = [value[end] for curve in curves for value in curve["values"] for end in ("value", "low", "high")]
    known = [end for end in ends if end is not None]
    low, high = min(known), max(known)
    room = max((high - low) * 0.05, 0.01)
    axes = Axes(0, log2(sizes[-1]), low - room, high + room)
    # The largest size may be no power of 2, and then too near to the last one that is.
    labelled = [size for size in sizes[:-1] if size * 1.3 < sizes[-1]] + [sizes[-1]]
    x_ticks = {log2(size): str(size) for size in labelled}
    parts = axes.draw(x_ticks, _percent_ticks(low - room, high + room), "responses to pick from", y_label)
    places = [axes.x(log2(size)) for size in sizes]
    for number, curve in enumerate(curves):
        if any(value["low"] is None for value in curve["values"]):
            continue
        lows, highs = ([axes.y(value[end]) for value in curve["values"]] for end in ("low", "high"))
        corners = [*zip(places, lows, strict=True), *reversed(list(zip(places, highs, strict=True)))]
        outline = " ".join(f"{x},{y}" for x, y in corners)
        parts.append(f'<polygon class="s{number} band" points="{outline}"/>')
    for number, curve in enumerate(curves):
        points = [(x, axes.y(value["value"])) for x, value in zip(places, curve["values"], strict=True)]
        parts.append(_line(number, points))
    return _svg(title, HEIGHT, parts)


def task_bars(
    title: str, tasks: Sequence[str], bars: Sequence[Mapping[str, float]], marks: Sequence[Mapping[str, float]]
) -> str:
    """For each task a bar a model, 0 to 1, and a mark for each method that it is compared with.

    bars, marks: by series, values by task; a task may lack. The series of the marks are counted on from the bars'.
    """
    bar, head = 9, 17
    left, right = 2, WIDTH - 32

    def x(value: float) -> float:
        return round(left + value * (right - left), 1)

    parts: list[str] = []
    top = 0
    for task in tasks:
        parts.append(f'<text x="{left}" y="{top + 12}">{as_text(task)}</text>')
        for number, values in enumerate(bars):
            y = top + head + number * (bar + 1)
            if task in values:
                parts.append(
                    f'<rect class="track" x="{left}" y="{y}" width="{x(1) - left}" height="{bar}"/>'
                    f'<rect class="s{number}" fill="currentColor" x="{left}" y="{y}" '
                    f'width="{x(values[task]) - left:.1f}" height="{bar}"/>'
                    f'<text x="{right + 4}" y="{y + bar - 0.5}">{100 * values[task]:.1f}</text>'
                )
        foot = top + head + len(bars) * (bar + 1)
        for number, values in enumerate(marks, start=len(bars)):
            if task in values:
                parts.append(
                    f'<line class="s{number}" stroke="currentColor" stroke-width="2.5" x1="{x(values[task])}" '
                    f'x2="{x(values[task])}" y1="{top + head - 3}" y2="{foot + 2}"/>'
                )
        top = foot + 6
    return _svg(title, top, parts)


def as_text(text: str) -> str:
    """Text as it stands in a page; what XML can't hold is replaced."""
    return escape("".join(c if c >= " " or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text))


def swatch(number: int, kind: str) -> str:
    """The sign of a series in a legend. kind: "line", "bar" or "mark"."""
    shape = {
        "line": _line(number, [(0, 6), (26, 6)]),
        "bar": f'<rect class="s{number}" fill="currentColor" width="26" y="2" height="8"/>',
        "mark": f'<line class="s{number}" stroke="currentColor" stroke-width="2.5" x1="13" x2="13" y1="0" y2="12"/>',
    }[kind]
    return f'<svg class="swatch" viewBox="0 0 26 12" aria-hidden="true">{shape}</svg>'


def _percent_ticks(low: float, high: float) -> dict[float, str]:
    """Round numbers between two shares, in per cent, six at most."""
    step = next((step for step in (1, 2, 5, 10, 20) if (high - low) * 100 / step <= 5), 50)
    return {number / 100: str(number) for number in range(-1000, 1000, step) if low * 100 <= number <= high * 100}


def _line(number: int, points: Sequence[tuple[float, float]]) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    return (
        f'<polyline class="s{number}" fill="none" stroke="currentColor" stroke-width="2" '
        f'stroke-dasharray="{DASHES[number % len(DASHES)]}" points="{path}"/>'
    )


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{as_text(title)}">'
        f"<title>{as_text(title)}</title>{''.join(parts)}</svg>"
    )
