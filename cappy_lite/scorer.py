"""Scores of candidates for an instruction: tokens, packed rows, the model's graph, a number for each."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cappy_lite.activations import ACTIVATIONS
from cappy_lite.arguments import check_count, check_list, check_text, check_texts
from cappy_lite.errors import InputValueError, TruncationWarning
from cappy_lite.joint import JointEngine
from cappy_lite.models import GRAPH_FILE, TOKENIZER_FILE, ModelConfig, canonical, check_files, model_folder, read_config
from cappy_lite.packing import Cut, cut_lengths, pack
from cappy_lite.selection import Ranked, rank
from cappy_lite.session import available_cpus, open_session, run_row
from cappy_lite.tokens import TextEncoder

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

DEFAULT_MODEL = "cappy-mini"
# Candidates that are held as token ids at a time: many rows' worth, and a few megabytes at most.
CHUNK_CANDIDATES = 1024

FloatArray = npt.NDArray[np.float32]
Model = str | os.PathLike[str]


class Scorer:
    """A model, open and ready to score. Any number of threads may share one.

    It pickles as the name or path of its model, and opens the model again in a forked child.

    Args:
        model: a shipped model's name, or the path of a model folder.
        threads: threads that one call computes on, at least 1; by default as many as this process may keep busy.

    Raises:
        InputTypeError, InputValueError: an argument can't be used.
        ModelError: the model can't be found or loaded; the message names the file and the fix.
    """

    def __init__(self, model: Model = DEFAULT_MODEL, *, threads: int | None = None) -> None:
        self._model = canonical(model)
        self._threads = None if threads is None else check_count("threads", threads)
        self._engine = _Engine.open(self._model, self._threads)

    def __repr__(self) -> str:
        return f"Scorer({self._model!r}, threads={self._threads})"

    def __reduce__(self) -> tuple[Callable[[str, int | None], Scorer], tuple[str, int | None]]:
        return _reopen, (self._model, self._threads)

    def score(self, instruction: str, candidates: Sequence[str]) -> FloatArray:
        """How well each candidate answers the instruction.

        A candidate's score depends on the instruction and on itself, not on the other candidates or their order.

        Args:
            instruction: the task's whole text, with its input.
            candidates: n texts; equal ones are scored once.

        Returns:
            float32 (n,), in the input's order; 0..1, or a joint model's own outputs where its config says so.

        Raises:
            InputTypeError, InputValueError: an argument, or an item of it, is no text.

        Warns:
            TruncationWarning: text was longer than the model reads.
        """
        return self._score([check_text("instruction", instruction)], [check_texts("candidates", candidates)])[0]

    def rerank(self, instruction: str, candidates: Sequence[str], *, top_k: int | None = None) -> list[Ranked]:
        """The candidates, best first; equal scores keep the input's order.

        Arguments, errors and warnings are those of `score`, and:

        Args:
            top_k: how many to return, at least 1; None for all.
        """
        count = None if top_k is None else check_count("top_k", top_k)
        texts = check_texts("candidates", candidates)
        return rank(texts, self._score([check_text("instruction", instruction)], [texts])[0], count)

    def score_many(self, instructions: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[FloatArray]:
        """`score` for many instructions, each with its own candidates, with one warning for all.

        Args:
            instructions: m texts.
            candidates: m lists of texts, each of any length.

        Returns:
            m arrays, each as `score` returns it.
        """
        checked_instructions = check_texts("instructions", instructions)
        checked_candidates = [
            check_texts(f"candidates[{index}]", texts)
            for index, texts in enumerate(check_list("candidates", candidates, of="lists of str"))
        ]
        if len(checked_candidates) != len(checked_instructions):
            raise InputValueError(
                f"candidates has {len(checked_candidates)} lists for {len(checked_instructions)} instructions: "
                "pass one list for each instruction"
            )
        return self._score(checked_instructions, checked_candidates)

    def _score(self, instructions: list[str], candidates: list[list[str]]) -> list[FloatArray]:
        engine = self._own_engine()
        cuts = _Cuts(engine.config.max_tokens)
        scores = [engine.score(*pair, cuts) for pair in zip(instructions, candidates, strict=True)]
        cuts.warn()
        return scores

    def _own_engine(self) -> _Engine | JointEngine:
        """The engine of this process: in a forked child, the inherited one is left alone and another is opened."""
        if self._engine.pid != os.getpid():
            with _lock:
                if self._engine.pid != os.getpid():
                    self._engine = _Engine.open(self._model, self._threads)
        return self._engine


def score(instruction: str, candidates: Sequence[str], *, model: Model | Scorer | None = None) -> FloatArray:
    """How well each candidate answers the instruction: float32 (n,), 0..1, in the input's order.

    `Scorer.score` has the arguments, errors and warnings. A model stays open after its first use in a process.

    Args:
        model: a shipped model's name, the path of a model folder, or an open Scorer; None for the default model.
    """
    return _shared_scorer(model).score(instruction, candidates)


def rerank(
    instruction: str, candidates: Sequence[str], *, top_k: int | None = None, model: Model | Scorer | None = None
) -> list[Ranked]:
    """The candidates, best first, each with its place in the input and its score.

    `Scorer.rerank` has the arguments, errors and warnings. A model stays open after its first use in a process.

    Args:
        model: a shipped model's name, the path of a model folder, or an open Scorer; None for the default model.
    """
    return _shared_scorer(model).rerank(instruction, candidates, top_k=top_k)


@dataclass(frozen=True, slots=True)
class _Engine:
    """An open model. It belongs to the process that opened it: its threads don't survive a fork."""

    pid: int
    config: ModelConfig
    encoder: TextEncoder
    session: InferenceSession

    @staticmethod
    def open(model: str, threads: int | None) -> _Engine | JointEngine:
        folder = model_folder(model)
        config = read_config(folder)
        check_files(folder, config)
        if config.graph == "joint":
            return JointEngine.open(folder, config, threads)
        encoder = TextEncoder(folder / TOKENIZER_FILE, cls_token=config.cls_token, sep_token=config.sep_token)
        session = open_session(folder / GRAPH_FILE, threads or available_cpus())
        return _Engine(os.getpid(), config, encoder, session)

    def score(self, instruction: str, candidates: list[str], cuts: _Cuts) -> FloatArray:
        """Scores (n,) of checked arguments. Memory is bounded by a chunk's token ids and one row."""
        if not candidates:
            return np.empty(0, dtype=np.float32)
        places: dict[str, int] = {}
        inverse = np.array([places.setdefault(text, len(places)) for text in candidates], dtype=np.intp)
        distinct = list(places)
        scores = np.empty(len(distinct), dtype=np.float32)
        lengths = np.empty(len(distinct), dtype=np.int64)
        instruction_ids = self.encoder.encode(instruction)
        for start in range(0, len(distinct), CHUNK_CANDIDATES):
            chunk = []
            for index, text in enumerate(distinct[start : start + CHUNK_CANDIDATES], start):
                ids = self.encoder.encode(text)
                lengths[index] = len(ids)
                # More is never read, and a chunk of very long texts must not fill the memory.
                chunk.append(ids[: self.config.max_tokens])
            rows = pack(
                instruction_ids,
                chunk,
                cls_id=self.encoder.cls_id,
                sep_id=self.encoder.sep_id,
                max_tokens=self.config.max_tokens,
            )
            activation = ACTIVATIONS[self.config.score_activation]
            for row in rows:
                scores[start + row.candidate_indices] = activation(run_row(self.session, row))
        cut = partial(cut_lengths, max_tokens=self.config.max_tokens)
        cuts.add(len(instruction_ids), lengths[inverse], cut)
        return scores[inverse]


class _Cuts:
    """What one call had to cut, counted for its one warning."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._candidate_losses: list[int] = []
        self._instruction_losses: list[int] = []

    def add(self, instruction: int, candidates: npt.NDArray[np.int64], cut_lengths: Callable[[int, int], Cut]) -> None:
        """Counts one instruction and its candidates, n > 0, by their lengths in tokens and the rule that cuts them."""
        cuts = [cut_lengths(instruction, int(length)) for length in candidates]
        self._candidate_losses += [int(length) - cut.candidate for length, cut in zip(candidates, cuts, strict=True)]
        self._instruction_losses.append(max(instruction - cut.instruction for cut in cuts))

    def warn(self) -> None:
        """Warns at the line that called into the package, if anything was cut."""
        told = [
            f"{sum(loss > 0 for loss in losses)} of {len(losses)} {what} (at most {max(losses)} tokens)"
            for losses, what in (
                (self._candidate_losses, "candidates lost their ends"),
                (self._instruction_losses, "instructions lost their middle"),
            )
            if any(losses)
        ]
        if told:
            message = f"text was cut, since the model reads {self._max_tokens} tokens: {', '.join(told)}"
            warnings.warn(message, TruncationWarning, stacklevel=_callers_stacklevel())


def _callers_stacklevel() -> int:
    """The `stacklevel` by which the function that calls this one warns about the first caller outside the package."""
    package = __name__.partition(".")[0]
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    return level


def _reopen(model: str, threads: int | None) -> Scorer:
    return Scorer(model, threads=threads)


def _shared_scorer(model: Model | Scorer | None) -> Scorer:
    if isinstance(model, Scorer):
        return model
    name = canonical(DEFAULT_MODEL if model is None else model)
    with _lock:
        if name not in _shared:
            _shared[name] = Scorer(name)
        return _shared[name]


def _renew_lock() -> None:
    """A forked child may have inherited the lock in the hands of a thread that it doesn't have."""
    global _lock
    _lock = threading.Lock()


_lock = threading.Lock()
_shared: dict[str, Scorer] = {}

if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew_lock)
