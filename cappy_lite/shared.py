"""Scores by a graph that reads an instruction once for all its candidates.

Candidates of one instruction that don't fit into a row go into several, beside the instruction's keys and values, which
a row of its own gave. A row may also hold several short instructions, each with its own candidates. A score is the same
to the last bit whichever way it came about.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from cappy_lite.engine import CHUNK_CANDIDATES, Cuts, Distinct, FloatArray, KeptInstruction
from cappy_lite.models import GRAPH_FILE, TOKENIZER_FILE, ModelConfig
from cappy_lite.packing import (
    LONGEST_ROW_TOKENS,
    ROW_TOKENS,
    Group,
    cut_lengths,
    groups_of,
    row_alone,
    row_beside,
    row_of,
)
from cappy_lite.session import Session
from cappy_lite.tokens import TextEncoder


class SharedEngine:
    """An open model whose files have been checked. Memory is bounded by a chunk's token ids, one row, and contexts.

    Raises:
        ModelError: its tokenizer or its graph can't be read.
    """

    def __init__(self, folder: Path, config: ModelConfig, threads: int) -> None:
        self.pid = os.getpid()
        self.max_tokens = config.max_tokens
        self._scores = config.scores
        self._encoder = TextEncoder(folder / TOKENIZER_FILE, cls_token=config.cls_token, sep_token=config.sep_token)
        self._session = Session(folder / GRAPH_FILE, threads)

    def keep(self, instruction: str) -> KeptInstruction:
        """The instruction, to be scored against; its keys and values are computed with the first candidates."""
        return KeptInstruction(self._encoder.encode(instruction))

    def score_kept(self, instruction: KeptInstruction, candidates: Sequence[str], cuts: Cuts) -> FloatArray:
        """Scores (n,) of checked candidates. Memory is bounded by a chunk's token ids, one row, and the context."""
        texts = Distinct(candidates)
        logits = np.empty(len(texts.distinct), dtype=np.float32)
        for start in range(0, len(texts.distinct), CHUNK_CANDIDATES):
            for group in self._groups(instruction.token_ids, texts, start):
                self._score_beside(instruction, group, logits)
        self._count(instruction, texts, cuts)
        return self._scores(logits)[texts.inverse]

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
            texts = Distinct(own)
            logits = np.empty(len(texts.distinct), dtype=np.float32)
            waiting.finish(number, texts, logits)
            for group in self._groups(kept.token_ids, texts, 0):
                if group.tokens > LONGEST_ROW_TOKENS:
                    self._score_beside(kept, group, logits)
                    continue
                if waiting.tokens + group.tokens > ROW_TOKENS:
                    self._score_waiting(waiting)
                waiting.add(group, logits)
            self._count(kept, texts, cuts)
        self._score_waiting(waiting)
        for number, texts, logits in waiting.unfinished:
            scores[number] = self._scores(logits)[texts.inverse]
        return scores

    def _count(self, instruction: KeptInstruction, texts: Distinct, cuts: Cuts) -> None:
        if texts.distinct:
            rule = partial(cut_lengths, max_tokens=self.max_tokens)
            cuts.add(len(instruction.token_ids), texts.all_lengths(), rule)

    def _groups(self, instruction: Sequence[int], texts: Distinct, start: int) -> list[Group]:
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
        """Scores a group in rows of its own, beside the instruction's keys and values."""
        length = len(group.head)
        if length not in instruction.contexts:
            instruction.contexts[length] = self._session.keep(row_alone(group.head))
        for part in group.parts(ROW_TOKENS):
            row = row_beside(part)
            logits[row.candidate_indices] = self._session.run(row, instruction.contexts[length])

    def _score_waiting(self, waiting: _Waiting) -> None:
        """Scores the waiting groups in one row."""
        if not waiting.groups:
            return
        values = self._session.run(row_of(waiting.groups))
        for group, logits in zip(waiting.groups, waiting.logits, strict=True):
            logits[list(group.indices)] = values[: len(group.indices)]
            values = values[len(group.indices) :]
        waiting.clear()


class _Waiting:
    """Groups that will share a row, and where their logits go; and all that is to be done when there are no more."""

    def __init__(self) -> None:
        self.unfinished: list[tuple[int, Distinct, FloatArray]] = []
        self.clear()

    def clear(self) -> None:
        self.groups: list[Group] = []
        self.logits: list[FloatArray] = []
        self.tokens = 0

    def add(self, group: Group, logits: FloatArray) -> None:
        self.groups.append(group)
        self.logits.append(logits)
        self.tokens += group.tokens

    def finish(self, number: int, texts: Distinct, logits: FloatArray) -> None:
        self.unfinished.append((number, texts, logits))
