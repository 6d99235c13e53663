"""Figures as Markdown: numbers, tables, and the tables of a page of the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# A median over rounds, and the least and the greatest.
Median = list[float]

END = "<!-- End of tables. -->"


def start(module: str) -> str:
    """The line of a page from which on its tables are those of a benchmark; END ends them."""
    return f"<!-- Tables: python -m {module} --docs writes them. -->"


def renew(path: Path, start: str, tables: str) -> None:
    """Puts the tables between the two marks in a Markdown file.

    Raises:
        ValueError: the file hasn't the marks.
    """
    text = path.read_text(encoding="utf-8")
    before, found_start, rest = text.partition(start)
    _, found_end, after = rest.partition(END)
    if not found_start or not found_end:
        raise ValueError(f"{path} must have the lines {start!r} and {END!r}, which the tables go between")
    path.write_text(f"{before}{start}\n\n{tables}\n\n{END}{after}", encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rate(value: float) -> str:
    """Three digits that count."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 99.95 else f"{value:#.3g}"


def times(median: Median) -> str:
    return f"{rate(median[0])} times [{rate(median[1])}, {rate(median[2])}]"
