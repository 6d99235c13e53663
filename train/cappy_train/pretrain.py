"""Continual pre-training: an encoder becomes a scorer by regression on labelled responses of every quality."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Regex, Tokenizer, normalizers

from cappy_lite.errors import InputValueError
from cappy_lite.models import GRAPH_FILE, TOKENIZER_FILE, model_folder, shipped_models
from cappy_train.evaluate import dev_questions
from cappy_train.files import Source
from cappy_train.network import PackedNetwork, packaged_minilm
from cappy_train.read_back import network_of
from cappy_train.shared_builds import from_saved
from cappy_train.streaming import ShardRows
from cappy_train.trainable import TrainableNetwork
from cappy_train.training import CHECKPOINT, Settings, train, trained_network

GRAPHS = ("shared", "joint")
# The base that the extra [train] has.
PACKAGED = "MiniLM-L6-H384"
# White space and full stops at a text's end. Each run of them is tried once, or long texts would take quadratic time.
FINAL_STOPS = r"(?<![\s.])[\s.]++\z"


def pretrain(
    data: Path,
    out: Path,
    *,
    dev: Source | None = None,
    base: str = PACKAGED,
    graph: str = "shared",
    choice_weight: float = 1.0,
    settings: Settings | None = None,
) -> None:
    """Trains a scorer; `out` then holds checkpoint.pt, tokenizer.json and log.jsonl (losses, speed, dev figures).

    Args:
        data: folder of shards that `annotate` wrote.
        out: folder of the run; where it holds a checkpoint of the same settings and data, the run goes on from there.
        dev: files of instances, of whose split dev the log has figures; None: it has none.
        base: the checkpoint or the model to start from: see `base_folder`.
        graph: "shared": a network that reads an instruction once for all its candidates, of BERT's or ModernBERT's
            build; or "joint": an ordinary cross-encoder, of any of `checkpoint.FAMILIES`.
        choice_weight: how often an epoch has an instance with choices, where it has others once.
        settings: None: the default ones.

    Raises:
        InputValueError: a file is missing or damaged, or `out` holds another run; and what `training.train` raises.
        ModelError: the model to start from is damaged.
    """
    if graph not in GRAPHS:
        raise InputValueError(f"graph must be {' or '.join(GRAPHS)}, not {graph!r}")
    settings = settings or Settings()
    folder = base_folder(base)
    rows = ShardRows(data, seed=settings.seed, choice_weight=choice_weight)
    asked = [] if dev is None else dev_questions(dev)
    torch.manual_seed(settings.seed)
    with TemporaryDirectory() as made:
        tokenizer = Path(made) / TOKENIZER_FILE
        if graph == "shared":
            network: TrainableNetwork = _shared_network(folder, tokenizer)
        else:
            from cappy_train.joint_network import from_encoder  # transformers takes seconds to load

            network = from_encoder(folder, tokenizer)
            leave_out_final_stops(tokenizer)
        train(network, rows, tokenizer, out, settings, dev=asked)


def leave_out_final_stops(tokenizer_file: Path) -> None:
    """Changes a tokenizer.json to one that reads no full stops at a text's end, nor white space there.

    What asks for them isn't told by a label either: Rouge-L compares words. So a full stop more or less can't change
    a score, in training and wherever the file goes with the network.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    own = [tokenizer.normalizer] if tokenizer.normalizer else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(FINAL_STOPS), ""), *own])
    tokenizer_file.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def _shared_network(folder: Path, tokenizer: Path) -> PackedNetwork:
    """What `trained_scorer` finds, or a checkpoint's network with a new head.

    `tokenizer` is where its tokenizer.json is written.
    """
    if not (folder / TOKENIZER_FILE).is_file():
        raise InputValueError(f"{folder / TOKENIZER_FILE} is missing: save the checkpoint's tokenizer there")
    shutil.copyfile(folder / TOKENIZER_FILE, tokenizer)
    network = trained_scorer(folder)
    if network is None:
        network = from_saved(folder)
        leave_out_final_stops(tokenizer)
    return network


def trained_scorer(folder: Path) -> PackedNetwork | None:
    """A run's result, or the network in a model folder, their heads included; None: there is an encoder at most.

    Raises:
        InputValueError, ModelError: what there is is damaged, or of another kind.
    """
    if (folder / CHECKPOINT).is_file():
        return trained_network(folder)
    if (folder / GRAPH_FILE).is_file() and not (folder / "model.safetensors").exists():
        return network_of(folder)
    return None


def base_folder(base: str) -> Path:
    """A folder to start from: MiniLM-L6-H384, which the extra [train] has; a shipped model; a folder; hub:owner/name.

    A folder holds a checkpoint that transformers saved, a model that `export` made, or a run.

    Raises:
        InputValueError: it isn't there, or can't be downloaded.
    """
    if base == PACKAGED:
        return packaged_minilm()
    if base in shipped_models():
        return model_folder(base)
    from cappy_train.checkpoint import local_folder  # transformers takes seconds to load

    return local_folder(base)
