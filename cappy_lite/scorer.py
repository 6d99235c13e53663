"""Scores of candidates for an instruction, as users ask for them."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence

from cappy_lite.arguments import check_count, check_list, check_text, check_texts
from cappy_lite.engine import Cuts, Engine, FloatArray, KeptInstruction
from cappy_lite.errors import InputValueError, TruncationWarning
from cappy_lite.joint import JointEngine
from cappy_lite.models import canonical, files_checked, model_folder, read_config
from cappy_lite.selection import Ranked, rank
from cappy_lite.session import available_cpus
from cappy_lite.shared import SharedEngine

DEFAULT_MODEL = "cappy-mini"

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
        self._engine = _open(self._model, self._threads)

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
            float32 (n,), 0..1, in the input's order.

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

    def instruction(self, text: str) -> Instruction:
        """A handle to score candidates against one instruction, call after call, which is read once.

            with scorer.instruction(text) as handle:
                for candidate in sampled_from_a_model():
                    score = handle.score([candidate])

        Args:
            text: the task's whole text, with its input.

        Raises:
            InputTypeError, InputValueError: `text` is no text.
        """
        return Instruction(self, check_text("text", text))

    def _score(self, instructions: list[str], candidates: list[list[str]]) -> list[FloatArray]:
        engine = self._own_engine()
        cuts = Cuts(engine.max_tokens)
        scores = engine.score_all(instructions, candidates, cuts)
        _warn(cuts)
        return scores

    def _own_engine(self) -> Engine:
        """The engine of this process: in a forked child, the inherited one is left alone and another is opened."""
        if self._engine.pid != os.getpid():
            with _lock:
                if self._engine.pid != os.getpid():
                    self._engine = _open(self._model, self._threads)
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


class Instruction:
    """An instruction whose keys and values are kept, so that candidates can be scored as they come; see `Scorer`.

    Use it in a `with` block, or call `close` when it isn't needed any more: with the shipped model it holds 18 KB a
    token of the instruction. Scores are those of `Scorer.score` to the last bit.
    """

    def __init__(self, scorer: Scorer, text: str) -> None:
        self._scorer = scorer
        self._text: str | None = text
        self._kept: tuple[Engine, KeptInstruction] | None = None

    def __enter__(self) -> Instruction:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score(self, candidates: Sequence[str]) -> FloatArray:
        """As `Scorer.score`, for this instruction."""
        return self._score(check_texts("candidates", candidates))

    def rerank(self, candidates: Sequence[str], *, top_k: int | None = None) -> list[Ranked]:
        """As `Scorer.rerank`, for this instruction."""
        count = None if top_k is None else check_count("top_k", top_k)
        texts = check_texts("candidates", candidates)
        return rank(texts, self._score(texts), count)

    def close(self) -> None:
        """Lets go of what is kept; the handle can't score any more."""
        self._text = self._kept = None

    def _score(self, candidates: list[str]) -> FloatArray:
        if self._text is None:
            raise InputValueError("this instruction is closed: open another with Scorer.instruction")
        engine = self._scorer._own_engine()
        if self._kept is None or self._kept[0] is not engine:  # a forked child has an engine of its own
            self._kept = engine, engine.keep(self._text)
        cuts = Cuts(engine.max_tokens)
        scores = engine.score_kept(self._kept[1], candidates, cuts)
        _warn(cuts)
        return scores


def _warn(cuts: Cuts) -> None:
    """Warns at the line that called into the package, if anything was cut."""
    message = cuts.message()
    if message:
        warnings.warn(message, TruncationWarning, stacklevel=_callers_stacklevel())


def _callers_stacklevel() -> int:
    """The `stacklevel` by which the function that calls this one warns about the first caller outside the package."""
    package = __name__.partition(".")[0]
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    return level


def _open(model: str, threads: int | None) -> Engine:
    folder = model_folder(model)
    config = read_config(folder)
    kind = JointEngine if config.graph == "joint" else SharedEngine
    with files_checked(folder, config):
        return kind(folder, config, threads or available_cpus())


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
