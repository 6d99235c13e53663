"""What scorers ask of an open model, whatever its kind of graph, and what the kinds have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cappy_lite.packing import Cut

# Candidates that are held as token ids at a time: many rows' worth, and a few megabytes at most.
CHUNK_CANDIDATES = 1024

FloatArray = npt.NDArray[np.float32]


class Engine(Protocol):
    """It belongs to the process that opened it: its threads don't survive a fork. Any number of threads may use it.

    pid: that process. max_tokens: how many an instruction and a candidate may have, before they are cut.
    """

    pid: int
    max_tokens: int

    def keep(self, instruction: str) -> KeptInstruction:
        """The instruction, to be scored against."""
        ...

    def score_kept(self, instruction: KeptInstruction, candidates: Sequence[str], cuts: Cuts) -> FloatArray:
        """Scores (n,) of checked candidates. Memory is bounded, however many there are."""
        ...

    def score_all(
        self, instructions: Sequence[str], candidates: Sequence[Sequence[str]], cuts: Cuts
    ) -> list[FloatArray]:
        """Scores of each instruction's own candidates."""
        ...


@dataclass(slots=True)
class KeptInstruction:
    """An instruction that candidates are scored against, call after call.

    contexts: its keys and values, (layers, length, 2 * hidden), by its length as it was cut, once they are known; none
        for a graph that reads the instruction anew beside every candidate.
    """

    token_ids: Sequence[int]
    contexts: dict[int, FloatArray] = field(default_factory=dict)


class Cuts:
    """What one call had to cut, counted for its one warning."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._candidate_losses: list[int] = []
        self._instruction_losses: list[int] = []

    def add(self, instruction: int, candidates: Iterable[int], cut_lengths: Callable[[int, int], Cut]) -> None:
        """Counts one instruction and its candidates, one at least, by their lengths in tokens and the rule of cuts."""
        lost = 0
        for length in candidates:
            cut = cut_lengths(instruction, length)
            self._candidate_losses.append(length - cut.candidate)
            lost = max(lost, instruction - cut.instruction)
        self._instruction_losses.append(lost)

    def message(self) -> str | None:
        """What was cut, for the user; None if nothing was."""
        told = [
            f"{sum(loss > 0 for loss in losses)} of {len(losses)} {what} (at most {max(losses)} tokens)"
            for losses, what in (
                (self._candidate_losses, "candidates lost their ends"),
                (self._instruction_losses, "instructions lost their middle"),
            )
            if any(losses)
        ]
        return f"text was cut, since the model reads {self._max_tokens} tokens: {', '.join(told)}" if told else None


class Distinct:
    """Candidates without repetitions, and their lengths in tokens once they are known."""

    def __init__(self, candidates: Sequence[str]) -> None:
        places: dict[str, int] = {}
        self.inverse = np.array([places.setdefault(text, len(places)) for text in candidates], dtype=np.intp)
        self.distinct = list(places)
        self.lengths: list[int] = []

    def all_lengths(self) -> list[int]:
        """Each candidate's length, with repetitions."""
        return [self.lengths[place] for place in self.inverse]
