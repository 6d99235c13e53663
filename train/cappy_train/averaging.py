"""The mean of several networks' weights: of runs from one start, or of a run and the encoder that it started from.

Between what an encoder knew and what training made of it lie weights that can be better than either, most of all on
tasks that training never saw (WiSE-FT: Wortsman et al., 2022, "Robust fine-tuning of zero-shot models"); and so can
those between runs of one start (Wortsman et al., 2022, "Model soups"). A mean costs no training, and no time to score.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from cappy_lite.errors import InputValueError
from cappy_lite.models import TOKENIZER_FILE
from cappy_train.evaluate import dev_figures, dev_questions
from cappy_train.files import Source, folder_written_whole
from cappy_train.network import HEAD, PackedNetwork
from cappy_train.pretrain import base_folder, trained_scorer
from cappy_train.shared_builds import from_saved
from cappy_train.trainable import network_scores
from cappy_train.training import CHECKPOINT, LOG, PRECISIONS, trained_state


@dataclass(frozen=True, slots=True)
class Member:
    """A network of an average.

    name: as it was given.
    folder: where it was found.
    share: of it in the average, above 0.
    trained: whether it has a head of its own.
    """

    name: str
    folder: Path
    share: float
    network: PackedNetwork
    trained: bool


def average(networks: Sequence[tuple[str, float]], out: Path, *, dev: Source | None = None) -> dict[str, float]:
    """Writes the folder `out`, whole or not at all, as if a run had ended with the mean of the networks' weights.

    `export` takes it, and `pretrain` and `average` as something to start from; a run doesn't go on in it. Its settings,
    of which a model card tells, and its tokenizer are those of the run that is named last.

    Args:
        networks: what `pretrain` can start from (see `pretrain.base_folder`), all of the same sizes and vocabulary, one
            of them a run; and the share of each, above 0, in the sum of all shares. The head is the mean of those that
            have one.
        out: the folder to make; it must not exist.
        dev: files of instances, of whose split dev the folder's log has figures.

    Returns:
        The dev figures; none without `dev`.

    Raises:
        InputValueError: a network is missing, damaged, or of another kind, size or vocabulary; a share isn't above 0;
            there are fewer than two networks, or no run; `out` exists or can't be written.
        ModelError: a model folder is damaged.
    """
    if out.exists():
        raise InputValueError(f"{out} exists: give --out a new folder")
    members = [_member(name, share) for name, share in networks]
    runs = [member.folder for member in members if (member.folder / CHECKPOINT).is_file()]
    if len(members) < 2 or not runs:
        raise InputValueError("an average needs two networks, and one of them must be a run's: name more of them")
    for member in members[1:]:
        _check_alike(members[0], member)
    network, state = members[-1].network, trained_state(runs[-1])
    network.load_state_dict({name: _mean(name, members) for name in network.state_dict()})
    network.precision = PRECISIONS[state["settings"]["precision"]]
    packer, tokens = network.packer(runs[-1] / TOKENIZER_FILE), state["settings"]["long"]
    asked = [] if dev is None else dev_questions(dev)
    figures = dev_figures(asked, lambda pairs: network_scores(network, packer, pairs, tokens)) if asked else {}
    named = ", ".join(f"{Path(member.name).name} ({member.share:g})" for member in members)
    with folder_written_whole(out) as folder:
        result = {
            "settings": state["settings"],
            "graph": network.graph,
            "sizes": network.sizes(),
            "data": f"an average of {named}",
            "average_of": named,
            "step": state["step"],
            "network": network.state_dict(),
        }
        torch.save(result, folder / CHECKPOINT)
        shutil.copyfile(runs[-1] / TOKENIZER_FILE, folder / TOKENIZER_FILE)
        rounded = {name: round(value, 5) for name, value in figures.items()}
        (folder / LOG).write_text(json.dumps({"step": state["step"], **rounded}) + "\n", encoding="utf-8")
    return figures


def _member(name: str, share: float) -> Member:
    if not 0 < share < math.inf:
        raise InputValueError(f"the share of {name} is {share}: give a number above 0, or leave it out")
    folder = base_folder(name)
    trained = trained_scorer(folder)
    return Member(name, folder, share, trained or from_saved(folder), trained is not None)


def _check_alike(first: Member, other: Member) -> None:
    """Raises InputValueError unless a mean of the two networks means something."""
    if first.network.sizes() != other.network.sizes():
        raise InputValueError(f"{first.name} and {other.name} are networks of other sizes: they have no mean")
    if vocabulary(first.folder) != vocabulary(other.folder):
        raise InputValueError(f"{first.name} and {other.name} have other vocabularies: their embeddings have no mean")


def vocabulary(folder: Path) -> dict[str, int]:
    """A token's number, by the folder's tokenizer.

    Raises:
        InputValueError: it has none.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise InputValueError(f"{path} is missing: save the checkpoint's tokenizer there")
    return Tokenizer.from_file(str(path)).get_vocab()


def _mean(weight: str, members: Sequence[Member]) -> Tensor:
    """The mean of a weight, by shares, of those members that have learned or been given it."""
    having = [member for member in members if member.trained or not weight.startswith(HEAD)]
    total = sum(member.share for member in having)
    parts = [member.network.state_dict()[weight].double() * (member.share / total) for member in having]
    return torch.stack(parts).sum(0).float()
