"""An open model: texts become token ids, token ids packed rows, rows scores; an instruction is read once.

Candidates of one instruction that don't fit into a row go into several. The first has the instruction in it; the
others are read beside its keys and values, which that row gave. A row may also hold several short instructions, each
with its own candidates. A score is the same to the last bit whichever way it came about.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cappy_lite.models import GRAPH_FILE, TOKENIZER_FILE, check_files, model_folder, read_config
from cappy_lite.packing import ROW_TOKENS, Group, cut_lengths, groups_of, row_beside, row_of
from cappy_lite.session import Session, available_cpus
from cappy_lite.tokens import TextEncoder

# Candidates that are held as token ids at a time: many rows' worth, and a few megabytes at most.
CHUNK_CANDIDATES = 1024

FloatArray = npt.NDArray[np.float32]


class Cuts:
    """What one call had to cut, counted for its one warning."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._candidate_losses: list[int] = []
        self._instruction_losses: list[int] = []

    def add(self, instruction: int, candidates: Iterable[int]) -> None:
        """Counts one instruction and its candidates, one at least, by their lengths in tokens."""
        lost = 0
        for length in candidates:
            cut = cut_lengths(instruction, length, self._max_tokens)
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


@dataclass(slots=True)
class KeptInstruction:
    """An instruction that candidates are scored against, call after call.

    contexts: its keys and values, (layers, length, 2 * hidden), by its length as it was cut, once they are known.
    """

    token_ids: Sequence[int]
    contexts: dict[int, FloatArray] = field(default_factory=dict)


class Engine:
    """It belongs to the process that opened it: its threads don't survive a fork. Any number of threads may use it.

    Raises:
        ModelError: the model's folder is missing a file or can't be loaded; the message names the file and the fix.
    """

    def __init__(self, model: str, threads: int | None) -> None:
        folder = model_folder(model)
        config = read_config(folder)
        check_files(folder, config)
        self.pid = os.getpid()
        self.max_tokens = config.max_tokens
        self._encoder = TextEncoder(folder / TOKENIZER_FILE, cls_token=config.cls_token, sep_token=config.sep_token)
        self._session = Session(folder / GRAPH_FILE, threads or available_cpus())

    def keep(self, instruction: str) -> KeptInstruction:
        """The instruction, to be scored against; its keys and values are computed with the first candidates."""
        return KeptInstruction(self._encoder.encode(instruction))

    def score_kept(self, instruction: KeptInstruction, candidates: Sequence[str], cuts: Cuts) -> FloatArray:
        """Scores (n,) of checked candidates. Memory is bounded by a chunk's token ids, one row, and the context."""
        texts = _Distinct(candidates)
        logits = np.empty(len(texts.distinct), dtype=np.float32)
        for start in range(0, len(texts.distinct), CHUNK_CANDIDATES):
            for group in self._groups(instruction.token_ids, texts, start):
                self._score_beside(instruction, group, logits)
        texts.count(instruction.token_ids, cuts)
        return _sigmoid(logits)[texts.inverse]

    def score_all(
        self, instructions: Sequence[str], candidates: Sequence[Sequence[str]], cuts: Cuts
    ) -> list[FloatArray]:
        """Scores of each instruction's own candidates. Short ones share a row."""
        scores: list[FloatArray] = [np.empty(0, dtype=np.float32)] * len(instructions)
        waiting = _Waiting()
        for number, (instruction, own) in enumerate(zip(instructions, candidates, strict=True)):
            if not own:
                continue
            kept = self.keep(instruction)
            if len(own) > ROW_TOKENS:
                scores[number] = self.score_kept(kept, own, cuts)
                continue
            texts = _Distinct(own)
            logits = np.empty(len(texts.distinct), dtype=np.float32)
            waiting.finish(number, texts, logits)
            for group in self._groups(kept.token_ids, texts, 0):
                if group.tokens > ROW_TOKENS:
                    self._score_beside(kept, group, logits)
                    continue
                if waiting.tokens + group.tokens > ROW_TOKENS:
                    self._score_waiting(waiting)
                waiting.add(group, logits)
            texts.count(kept.token_ids, cuts)
        self._score_waiting(waiting)
        for number, texts, logits in waiting.unfinished:
            scores[number] = _sigmoid(logits)[texts.inverse]
        return scores

    def _groups(self, instruction: Sequence[int], texts: _Distinct, start: int) -> list[Group]:
        """The groups of a chunk of the texts, from `start` on."""
        ids = []
        for text in texts.distinct[start : start + CHUNK_CANDIDATES]:
            own = self._encoder.encode(text)
            texts.lengths.append(len(own))
            # More is never read, and a chunk of very long texts must not fill the memory.
            ids.append(own[: self.max_tokens])
        encoder = self._encoder
        groups = groups_of(instruction, ids, cls_id=encoder.cls_id, sep_id=encoder.sep_id, max_tokens=self.max_tokens)
        return [Group(group.head, group.candidates, [start + index for index in group.indices]) for group in groups]

    def _score_beside(self, instruction: KeptInstruction, group: Group, logits: FloatArray) -> None:
        """Scores a group in rows of its own: the first with the instruction, unless that is known already."""
        length = len(group.head)
        known = length in instruction.contexts
        for part in group.parts(ROW_TOKENS if known else ROW_TOKENS - length, ROW_TOKENS):
            if length in instruction.contexts:
                row = row_beside(part)
                logits[row.candidate_indices] = self._session.run(row, instruction.contexts[length])
            else:
                row = row_of([part])
                logits[row.candidate_indices], states = self._session.run_and_keep(row, length)
                instruction.contexts[length] = states

    def _score_waiting(self, waiting: _Waiting) -> None:
        """Scores the waiting groups in one row."""
        if not waiting.groups:
            return
        values = self._session.run(row_of(waiting.groups))
        for group, logits in zip(waiting.groups, waiting.logits, strict=True):
            logits[list(group.indices)] = values[: len(group.indices)]
            values = values[len(group.indices) :]
        waiting.clear()


class _Distinct:
    """Candidates without repetitions, and their lengths in tokens once they are known."""

    def __init__(self, candidates: Sequence[str]) -> None:
        places: dict[str, int] = {}
        self.inverse = np.array([places.setdefault(text, len(places)) for text in candidates], dtype=np.intp)
        self.distinct = list(places)
        self.lengths: list[int] = []

    def count(self, instruction: Sequence[int], cuts: Cuts) -> None:
        if self.distinct:
            cuts.add(len(instruction), (self.lengths[place] for place in self.inverse))


class _Waiting:
    """Groups that will share a row, and where their logits go; and all that is to be done when there are no more."""

    def __init__(self) -> None:
        self.unfinished: list[tuple[int, _Distinct, FloatArray]] = []
        self.clear()

    def clear(self) -> None:
        self.groups: list[Group] = []
        self.logits: list[FloatArray] = []
        self.tokens = 0

    def add(self, group: Group, logits: FloatArray) -> None:
        self.groups.append(group)
        self.logits.append(logits)
        self.tokens += group.tokens

    def finish(self, number: int, texts: _Distinct, logits: FloatArray) -> None:
        self.unfinished.append((number, texts, logits))


def _sigmoid(logits: FloatArray) -> FloatArray:
    """0..1 for any logit, without overflow; in float64, so that small scores keep their order."""
    return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64))).astype(np.float32)
