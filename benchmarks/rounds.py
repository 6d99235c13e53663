"""Calls that are timed in turns, and numbers that are compared before."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Contestant:
    """A call to time, of so much `work` (pairs, or candidates); `prepare` makes its arguments, which isn't timed."""

    call: Callable[..., object]
    work: int
    prepare: Callable[[], tuple[Any, ...]] = tuple


def rates(contestants: Sequence[Contestant], rounds: int) -> FloatArray:
    """Work a second, (contestants, rounds). They take turns, so that a busy moment of the machine hits all."""
    seconds = np.array([[time_once(one) for one in contestants] for _ in range(rounds)])
    measured: FloatArray = np.array([[one.work] for one in contestants]) / seconds.T
    return measured


def time_once(contestant: Contestant) -> float:
    arguments = contestant.prepare()
    gc.disable()
    try:
        start = time.perf_counter()
        contestant.call(*arguments)
        return time.perf_counter() - start
    finally:
        gc.enable()


def affordable_rounds(contestants: Sequence[Contestant], seconds: float, least: int, most: int) -> int:
    """How many rounds take about so long; finds out by one, which isn't counted."""
    return int(np.clip(seconds / sum(map(time_once, contestants)), least, most))


def median_and_range(values: FloatArray) -> list[float]:
    return [float(np.median(values)), float(values.min()), float(values.max())]


def check_equal(ours: FloatArray, theirs: FloatArray, where: str) -> None:
    """Raises SystemExit at the first number that is not the same to the last bit; ours may be longer."""
    different = np.argwhere(ours[: len(theirs)] != theirs)
    if different.size:
        place = tuple(different[0].tolist())
        raise SystemExit(f"DIFFERENT: {where}, at {place}: ours {ours[place]!r}, theirs {theirs[place]!r}")
