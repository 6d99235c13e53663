"""Scores by an ordinary cross-encoder, which reads the instruction anew beside every candidate.

Any sequence-pair network with one output can be run so. Pairs are never padded, and a score doesn't depend on what else
is scored. There are two forms of graph: over packed rows, as a shared model's, where pairs of any lengths stand side by
side and see nothing of each other; and over pairs of one length, which run together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cappy_lite.engine import CHUNK_CANDIDATES, Cuts, Distinct, FloatArray, KeptInstruction
from cappy_lite.errors import ModelError
from cappy_lite.models import GRAPH_FILE, TOKENIZER_FILE, ModelConfig
from cappy_lite.packing import INSTRUCTION_FLOOR, ROW_TOKENS, Cut, PackedRow, cut_middle, parts_within
from cappy_lite.session import CONTEXT, OUTPUT, Session, input_names, open_session
from cappy_lite.tokens import read_tokenizer

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

# Tokens of pairs of one length that run together, unless one alone has more. The network's inner states of them are
# what memory must hold; pairs of one length among few candidates seldom fill more.
RUN_TOKENS = 1024

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pair:
    """An instruction and a candidate as the network reads them, special tokens included: int64, (L,) each."""

    input_ids: IntArray
    token_type_ids: IntArray


class JointEngine:
    """An open joint model whose files have been checked. Memory is bounded by a chunk's token ids and one row or run.

    Raises:
        ModelError: its tokenizer or graph isn't one for pairs of texts.
    """

    def __init__(self, folder: Path, config: ModelConfig, threads: int) -> None:
        self.pid = os.getpid()
        self.max_tokens = config.max_tokens
        self._scores = config.scores
        self._encoder = PairEncoder(folder / TOKENIZER_FILE, config.max_tokens)
        self._session = open_joint_session(folder / GRAPH_FILE, threads)

    def keep(self, instruction: str) -> KeptInstruction:
        return KeptInstruction(self._encoder.encode(instruction))

    def score_kept(self, instruction: KeptInstruction, candidates: Sequence[str], cuts: Cuts) -> FloatArray:
        if not candidates:
            return np.empty(0, dtype=np.float32)
        texts = Distinct(candidates)
        logits = np.empty(len(texts.distinct), dtype=np.float32)
        for start in range(0, len(texts.distinct), CHUNK_CANDIDATES):
            pairs = []
            for text in texts.distinct[start : start + CHUNK_CANDIDATES]:
                candidate_ids = self._encoder.encode(text)
                texts.lengths.append(len(candidate_ids))
                pairs.append(self._encoder.pair(instruction.token_ids, candidate_ids))
            logits[start : start + len(pairs)] = run_pairs(self._session, pairs)
        cuts.add(len(instruction.token_ids), texts.all_lengths(), self._encoder.cut_lengths)
        return self._scores(logits)[texts.inverse]

    def score_all(
        self, instructions: Sequence[str], candidates: Sequence[Sequence[str]], cuts: Cuts
    ) -> list[FloatArray]:
        return [
            self.score_kept(self.keep(instruction), own, cuts)
            for instruction, own in zip(instructions, candidates, strict=True)
        ]


class PairEncoder:
    """A tokenizer.json that joins two texts as its own post-processor does, within `max_tokens` tokens.

    The texts are encoded on their own, the instruction once for all its candidates. Text is only ever text: a special
    token's name in it is no special token.
    """

    def __init__(self, path: Path, max_tokens: int) -> None:
        self._tokenizer = read_tokenizer(path)
        self._template = PairTemplate.of(path, self._tokenizer)
        self._max_tokens = max_tokens
        if max_tokens < self._template.least_tokens:
            raise ModelError(
                f"{path}: with max_tokens {max_tokens} in config.json, there is no room for a candidate beside "
                f"{INSTRUCTION_FLOOR} tokens of instruction and {self._template.special_tokens} special ones: "
                "use a model that reads more"
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, all of them, without special ones."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def cut_lengths(self, instruction: int, candidate: int) -> Cut:
        """Lengths that an instruction and a candidate of so many tokens keep."""
        return self._template.cut_lengths(instruction, candidate, self._max_tokens)

    def pair(self, instruction: Sequence[int], candidate: Sequence[int]) -> Pair:
        """The pair of two texts' token ids: a long instruction loses its middle, a long candidate its end."""
        return self._template.pair(instruction, candidate, self._max_tokens)


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """How two texts become a pair: (token, type) before, between and after them, and the types of their own tokens.

    Training cuts and joins pairs by it too, so both read the same ones.
    """

    before: list[tuple[int, int]]
    between: list[tuple[int, int]]
    after: list[tuple[int, int]]
    instruction_type: int
    candidate_type: int

    @staticmethod
    def of(path: Path, tokenizer: Tokenizer) -> PairTemplate:
        """Read off a pair that the tokenizer, of the file at `path`, made.

        Raises:
            ModelError: it doesn't make pairs.
        """
        sample = tokenizer.encode("a", "a")
        tokens = list(zip(sample.ids, sample.type_ids, strict=True))
        places = [[at for at, text in enumerate(sample.sequence_ids) if text == number] for number in (0, 1)]
        first, second = places
        if not (first and second and first[-1] < second[0]):
            raise ModelError(f"{path} doesn't join two texts to a pair, the first one first: import the model again")
        return PairTemplate(
            before=tokens[: first[0]],
            between=tokens[first[-1] + 1 : second[0]],
            after=tokens[second[-1] + 1 :],
            instruction_type=tokens[first[0]][1],
            candidate_type=tokens[second[0]][1],
        )

    @property
    def special_tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    @property
    def least_tokens(self) -> int:
        """How many tokens a pair must be allowed, so that there is room for a candidate beside any instruction."""
        return self.special_tokens + INSTRUCTION_FLOOR + 1

    def cut_lengths(self, instruction: int, candidate: int, max_tokens: int) -> Cut:
        """Lengths that an instruction and a candidate of so many tokens keep within `max_tokens`.

        The candidate comes first: the instruction gives way down to INSTRUCTION_FLOOR tokens, and only a candidate that
        still doesn't fit is cut.
        """
        room = max_tokens - self.special_tokens
        kept_candidate = min(candidate, room - min(instruction, INSTRUCTION_FLOOR))
        return Cut(min(instruction, room - kept_candidate), kept_candidate)

    def pair(self, instruction: Sequence[int], candidate: Sequence[int], max_tokens: int) -> Pair:
        """The pair of two texts' token ids: a long instruction loses its middle, a long candidate its end."""
        cut = self.cut_lengths(len(instruction), len(candidate), max_tokens)
        tokens = np.array(
            [
                *self.before,
                *((token, self.instruction_type) for token in cut_middle(instruction, cut.instruction)),
                *self.between,
                *((token, self.candidate_type) for token in candidate[: cut.candidate]),
                *self.after,
            ],
            dtype=np.int64,
        )
        return Pair(input_ids=tokens[:, 0], token_type_ids=tokens[:, 1])


def open_joint_session(path: Path, threads: int) -> Session | InferenceSession:
    """The graph at `path`, ready to run pairs on `threads` threads; it may be run from any number of them.

    Returns: a Session if the graph is over packed rows, else ONNX Runtime's own.

    Raises:
        ModelError: the file is no ONNX graph, or not one over packed rows or pairs.
    """
    if CONTEXT in input_names(path):
        return Session(path, threads)
    session = open_session(path, threads)
    found = {(node.name, node.type) for node in session.get_inputs()}
    needed, optional = ("input_ids", "tensor(int64)"), ("token_type_ids", "tensor(int64)")
    gives = {(node.name, node.type) for node in session.get_outputs()}
    if needed not in found or not found <= {needed, optional} or (OUTPUT, "tensor(float)") not in gives:
        raise ModelError(
            f"{path} reads neither packed rows nor pairs: for pairs, it must read input_ids and may read "
            f"token_type_ids (int64), and give {OUTPUT} (float32), but it reads "
            f"{', '.join(f'{name} {kind}' for name, kind in sorted(found))}: import it again"
        )
    return session


def run_pairs(session: Session | InferenceSession, pairs: Sequence[Pair]) -> FloatArray:
    """The network's outputs for one pair or more: float32 (n,), in their order."""
    logits = np.empty(len(pairs), dtype=np.float32)
    if isinstance(session, Session):
        for row in rows_of(pairs):
            logits[row.candidate_indices] = session.run(row)
        return logits
    names = [node.name for node in session.get_inputs()]
    lengths = np.array([len(pair.input_ids) for pair in pairs])
    for run in chain.from_iterable(_runs(lengths, int(length)) for length in np.unique(lengths)):
        inputs = {name: np.stack([getattr(pairs[index], name) for index in run]) for name in names}
        logits[run] = session.run([OUTPUT], inputs)[0]
    return logits


def rows_of(pairs: Sequence[Pair]) -> Iterator[PackedRow]:
    """Packed rows of one pair or more, up to ROW_TOKENS tokens each, unless a pair alone has more.

    Each pair is a segment that sees but itself, and its score is read at its first token.
    """
    lengths = np.array([len(pair.input_ids) for pair in pairs], dtype=np.int64)
    for part in parts_within(lengths.tolist(), ROW_TOKENS):
        own = pairs[part]
        ends = np.cumsum(lengths[part])
        starts = ends - lengths[part]
        nothing, places = np.zeros_like(starts), np.arange(len(own))
        yield PackedRow(
            input_ids=np.concatenate([pair.input_ids for pair in own]),
            position_ids=np.arange(ends[-1]) - np.repeat(starts, lengths[part]),
            token_type_ids=np.concatenate([pair.token_type_ids for pair in own]),
            segments=np.stack([starts, ends, nothing, nothing], axis=1),
            score_spans=np.stack([places, places + 1], axis=1),
            score_positions=starts,
            candidate_indices=part.start + places,
        )


def _runs(lengths: IntArray, length: int) -> list[npt.NDArray[np.intp]]:
    """The places of one length in `lengths`, in parts that run together."""
    places = np.flatnonzero(lengths == length)
    size = max(1, RUN_TOKENS // length)
    return np.split(places, range(size, len(places), size))
