"""Continual pre-training: an encoder becomes a scorer by regression on labelled responses of every quality."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from cappy_lite.errors import InputValueError
from cappy_lite.models import TOKENIZER_FILE
from cappy_train.evaluate import dev_questions
from cappy_train.files import Source
from cappy_train.network import from_bert, packaged_minilm
from cappy_train.streaming import ShardRows
from cappy_train.training import Settings, train

GRAPHS = ("shared", "joint")
# The base that the extra [train] has.
PACKAGED = "MiniLM-L6-H384"


def pretrain(
    data: Path,
    out: Path,
    *,
    dev: Source | None = None,
    base: str = PACKAGED,
    graph: str = "shared",
    settings: Settings | None = None,
) -> None:
    """Trains a scorer; `out` then holds checkpoint.pt, tokenizer.json and log.jsonl (losses, speed, dev figures).

    Args:
        data: folder of shards that `annotate` wrote.
        out: folder of the run; where it holds a checkpoint of the same settings and data, the run goes on from there.
        dev: files of instances, of whose split dev the log has figures; None: it has none.
        base: the checkpoint to start from: see `base_folder`.
        graph: "shared": a network that reads an instruction once for all its candidates, of BERT's build; or "joint":
            an ordinary cross-encoder, of any of `checkpoint.FAMILIES`.
        settings: None: the default ones.

    Raises:
        InputValueError: a file is missing or damaged, or `out` holds another run; and what `training.train` raises.
    """
    if graph not in GRAPHS:
        raise InputValueError(f"graph must be {' or '.join(GRAPHS)}, not {graph!r}")
    settings = settings or Settings()
    folder = base_folder(base)
    rows = ShardRows(data, seed=settings.seed)
    asked = [] if dev is None else dev_questions(dev)
    torch.manual_seed(settings.seed)
    if graph == "shared":
        network = from_bert(folder)
        if not (folder / TOKENIZER_FILE).is_file():
            raise InputValueError(f"{folder / TOKENIZER_FILE} is missing: save the checkpoint's tokenizer there")
        train(network, rows, folder / TOKENIZER_FILE, out, settings, dev=asked)
    else:
        from cappy_train.joint_network import from_encoder  # transformers takes seconds to load

        with TemporaryDirectory() as made:
            tokenizer = Path(made) / TOKENIZER_FILE
            train(from_encoder(folder, tokenizer), rows, tokenizer, out, settings, dev=asked)


def base_folder(base: str) -> Path:
    """The folder of a checkpoint: MiniLM-L6-H384, which the extra [train] has; a folder; or hub:owner/name.

    Raises:
        InputValueError: it isn't there, or can't be downloaded.
    """
    if base == PACKAGED:
        return packaged_minilm()
    from cappy_train.checkpoint import local_folder  # transformers takes seconds to load

    return local_folder(base)
