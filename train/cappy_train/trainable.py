"""What the training loop needs of a network and of its batches: one of a shared graph has it, and one of a joint."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cappy_train.workers import Here, Threads, one_thread_an_operation

if TYPE_CHECKING:  # its packers are of these
    from cappy_train.batches import LabelledRow, TokenRow

# Of each row of a batch: which (instruction, candidates) it is of, and which of the candidates, (n,) integers.
Places = list[tuple[int, npt.NDArray[np.intp]]]


class TrainableNetwork(nn.Module):
    """A network that `training.train` can train.

    graph: the kind of model folder that becomes of it.
    precision: what its layers compute in; weights, and what comes out, are float32 all the same.
    recompute: whether training computes a layer's states again in the backward pass, rather than keep them.
    """

    graph: ClassVar[str]
    precision: torch.dtype
    recompute: bool

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """The most tokens of an instruction with one candidate that it reads."""

    @abstractmethod
    def sizes(self) -> dict[str, Any]:
        """What `of_sizes` makes such a network of; simple values, since checkpoints keep it."""

    @classmethod
    @abstractmethod
    def of_sizes(cls, sizes: dict[str, Any]) -> Self:
        """A network of the same build, with any weights."""

    @abstractmethod
    def packer(self, tokenizer: Path) -> TextPacker:
        """What makes its batches, by a tokenizer.json."""

    @abstractmethod
    def words(self) -> nn.Module:
        """The embeddings of its tokens."""

    @abstractmethod
    def layers_above(self, name: str) -> int:
        """How many steps a weight lies below the head: 0 for the head's own, 1 for the last layer's, and so on."""


class TextPacker(Protocol):
    """Texts to batches of one kind of network.

    least_tokens: how many tokens an instruction with one candidate must be allowed.
    """

    @property
    def least_tokens(self) -> int: ...

    def token_rows(self, rows: Sequence[LabelledRow], max_tokens: Sequence[int]) -> list[TokenRow]:
        """The rows' token ids; `max_tokens` has for each how many an instruction with one response may have."""
        ...

    def batch(self, rows: Sequence[TokenRow]) -> TextBatch: ...

    def scoring_batches(
        self, pairs: Sequence[tuple[str, Sequence[str]]], max_tokens: int
    ) -> Iterator[tuple[TextBatch, Places]]:
        """Batches that have every candidate of each (instruction, candidates) once; a row has one instruction's."""
        ...


class TextBatch(Protocol):
    """Rows of an instruction and its candidates: B rows, with K places for candidates each."""

    @property
    def labels(self) -> Tensor:
        """(B, K) float32, 0..1; NaN in places without a candidate."""
        ...

    @property
    def tokens(self) -> int:
        """How many it has, without padding."""
        ...

    def to(self, device: torch.device) -> Self: ...

    def logits(self, network: nn.Module) -> Tensor:
        """(B, K) logits of a network, or of what wraps one; meaningless in places without a candidate."""
        ...


def network_scores(
    network: TrainableNetwork, packer: TextPacker, pairs: Sequence[tuple[str, Sequence[str]]], max_tokens: int
) -> list[np.ndarray]:
    """Scores (float32, 0..1) of the candidates of each (instruction, candidates), in their order.

    On a CPU a batch is a thread's, as in training.
    """
    device = next(network.parameters()).device
    scores = [np.empty(len(candidates), dtype=np.float32) for _, candidates in pairs]

    @torch.no_grad()  # torch_xla can't slice weights in inference mode
    def scored(packed: tuple[TextBatch, Places]) -> tuple[npt.NDArray[np.float32], Places]:
        batch, places = packed
        return batch.to(device).logits(network).sigmoid().float().cpu().numpy(), places

    workers = Threads(torch.get_num_threads()) if device.type == "cpu" else Here()
    with (
        one_thread_an_operation(),
        closing(workers.map(scored, lambda: packer.scoring_batches(pairs, max_tokens))) as batches,
    ):
        for values, places in batches:
            for (index, candidates), own in zip(places, values, strict=True):
                scores[index][candidates] = own[: len(candidates)]
    return scores
