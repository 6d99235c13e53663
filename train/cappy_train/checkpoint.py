"""Checkpoints as transformers saves them: found, checked, and opened without running any code of theirs."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.utils import logging as transformers_logging

from cappy_lite.errors import InputValueError
from cappy_lite.models import TOKENIZER_FILE

# By transformers' names; tests import a checkpoint of each. MiniLM's are of type bert or xlm-roberta.
FAMILIES = ("bert", "deberta-v2", "modernbert", "roberta", "xlm-roberta")
HUB = "hub:"
HEAD = "ForSequenceClassification"
# Of these, transformers could make a tokenizer in its own way; what it makes can differ from the original's.
SLOW_TOKENIZER_FILES = ("vocab.txt", "vocab.json", "spm.model", "spiece.model", "sentencepiece.bpe.model")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A cross-encoder in PyTorch.

    network: with one output, in float32.
    reads_types: whether the network tells an instruction's tokens from a candidate's by their type.
    max_tokens: the most that it reads.
    """

    network: PreTrainedModel
    tokenizer: FastTokenizer
    reads_types: bool
    max_tokens: int


def local_folder(source: str, *, files: Sequence[str] = ("*.json",)) -> Path:
    """The folder of a checkpoint; `hub:owner/name` is downloaded into the hub's own cache.

    Args:
        source: a folder, or hub:owner/name.
        files: patterns of the files that are wanted besides the weights.

    Raises:
        InputValueError: it can't be downloaded, or there is no such folder.
    """
    if not source.startswith(HUB):
        folder = Path(source)
        if not source or not folder.is_dir():
            raise InputValueError(f"{source!r} is no folder: give a checkpoint's folder, or hub:owner/name to download")
        return folder
    from huggingface_hub import snapshot_download

    weights = "*.safetensors"
    try:
        # Many have their weights in PyTorch's own form as well, which is wanted where there is no other.
        for wanted in ([*files, weights], [*files, "pytorch_model*.bin"]):
            folder = Path(snapshot_download(source.removeprefix(HUB), allow_patterns=wanted, ignore_patterns=["*/*"]))
            if any(folder.glob(weights)):
                break
        return folder
    except Exception as error:  # of huggingface_hub, of its HTTP library, of the system
        raise InputValueError(
            f"{source} can't be downloaded ({error}): download the folder and give its path"
        ) from error


def open_checkpoint(folder: Path) -> Checkpoint:
    """The sequence-classification network in a folder, and its tokenizer.

    Raises:
        InputValueError: it isn't one with a single output, of a family in FAMILIES, with a fast tokenizer.
    """
    _check_config(folder)
    network = _network(folder)
    tokenizer = _tokenizer(folder)
    max_tokens = min(positions(network), tokenizer.model_max_length)
    return Checkpoint(network, tokenizer, _reads_types(network, tokenizer), max_tokens)


def open_base(folder: Path) -> Checkpoint:
    """The encoder in a folder, to be trained as a network with one output, and its tokenizer.

    A head with one output is kept; in place of any other or none, a new one is drawn from torch's global generator.
    Dropout is off.

    Raises:
        InputValueError: it isn't a checkpoint of a family in FAMILIES, with a fast tokenizer.
    """
    _check_family(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, num_labels=1)
    for name, value in config.to_dict().items():
        if "dropout" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    network, report = _read_network(folder, config=config, ignore_mismatched_sizes=True)
    encoder = f"{network.base_model_prefix}."
    lacking = sorted(name for name in report["missing_keys"] if name.startswith(encoder) and "pooler" not in name)
    if lacking:
        raise InputValueError(
            f"{folder} lacks weights that its config.json tells of, such as {lacking[0]}: download or save it again"
        )
    tokenizer = _tokenizer(folder)
    return Checkpoint(network, tokenizer, _reads_types(network, tokenizer), positions(network))


def save_tokenizer(tokenizer: FastTokenizer, path: Path) -> None:
    """Writes tokenizer.json; not by the tokenizer's own save, whose errors, such as of a full disk, are no OSError."""
    path.write_text(tokenizer.backend_tokenizer.to_str(pretty=True), encoding="utf-8")


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps to themselves what transformers and PyTorch's exporter have to say about their work, short of errors."""
    level, bars = logging.root.manager.disable, transformers_logging.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _check_config(folder: Path) -> None:
    """Looks at config.json as it is, before transformers makes of it what it can."""
    architecture = _check_family(folder)
    if not architecture.endswith(HEAD):
        raise InputValueError(
            f"{folder} has no head that gives a score ({architecture}): give one that was fine-tuned for scores, "
            f"whose architecture ends in {HEAD}"
        )
    outputs = AutoConfig.from_pretrained(folder, local_files_only=True).num_labels
    if outputs != 1:
        raise InputValueError(
            f"{folder} has {outputs} outputs, which are classes, and a score is one: give a checkpoint with one output "
            "(num_labels=1)"
        )


def _check_family(folder: Path) -> str:
    """Looks for an encoder that can be imported; returns its architecture."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputValueError(f"{path} is missing: give the folder that transformers' save_pretrained wrote") from None
    except ValueError as error:
        raise InputValueError(f"{path} is not JSON ({error}): save or download the checkpoint again") from None
    kind = config.get("model_type")
    architectures = config.get("architectures") or ["of no stated architecture"]
    if config.get("is_encoder_decoder") or any("ConditionalGeneration" in name for name in architectures):
        raise InputValueError(
            f"{folder} is a text-to-text checkpoint ({kind}), which writes text and gives no score: give one of a "
            f"cross-encoder, whose architecture ends in {HEAD}"
        )
    if "auto_map" in config:
        raise InputValueError(f"{folder} needs Python code of its own, which is never run: give one that doesn't")
    if kind not in FAMILIES:
        raise InputValueError(f"{folder} is of type {kind}, which can't be imported; these can: {', '.join(FAMILIES)}")
    return str(architectures[0])


def _network(folder: Path) -> PreTrainedModel:
    network, report = _read_network(folder, attn_implementation="eager")
    if report["missing_keys"] or report["mismatched_keys"]:
        names = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise InputValueError(
            f"{folder} lacks weights that its config.json tells of, such as {names[0]}: download or save it again"
        )
    return network.eval()


def _read_network(
    folder: Path,
    *,
    config: PreTrainedConfig | None = None,
    attn_implementation: str | None = None,
    ignore_mismatched_sizes: bool = False,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The network, and what transformers reports of its weights; the options are those of `from_pretrained`."""
    try:
        network, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation=attn_implementation,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            output_loading_info=True,
        )
    except Exception as error:  # of many kinds, of transformers, safetensors and PyTorch
        raise InputValueError(f"{folder}: its weights can't be read ({error}): download or save them again") from error
    return network, report


def _reads_types(network: PreTrainedModel, tokenizer: FastTokenizer) -> bool:
    return "token_type_ids" in tokenizer.model_input_names and getattr(network.config, "type_vocab_size", 0) > 1


def _tokenizer(folder: Path) -> FastTokenizer:
    remedy = f"with transformers, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes {TOKENIZER_FILE}"
    if not (folder / TOKENIZER_FILE).exists():
        slow = [name for name in SLOW_TOKENIZER_FILES if (folder / name).exists()]
        raise InputValueError(
            f"{folder} has {f'only a slow tokenizer ({slow[0]})' if slow else 'no tokenizer'}, and "
            f"{TOKENIZER_FILE} is needed: {remedy if slow else 'copy the tokenizer of the base model'}"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many kinds
        raise InputValueError(f"{folder / TOKENIZER_FILE} can't be read ({error}): {remedy}") from error
    if not isinstance(tokenizer, FastTokenizer):
        raise InputValueError(f"{folder} has a slow tokenizer ({type(tokenizer).__name__}): {remedy}")
    if tokenizer.cls_token is None or tokenizer.sep_token is None:
        raise InputValueError(f"{folder}: its tokenizer names no cls_token or sep_token: add both to its config")
    return tokenizer


def positions(network: PreTrainedModel) -> int:
    """How many tokens the network has positions for; RoBERTa's count on from its padding token's id."""
    positions: int = network.config.max_position_embeddings
    for name, module in network.named_modules():
        if name.endswith(".position_embeddings") and isinstance(module, nn.Embedding):
            return positions if module.padding_idx is None else positions - module.padding_idx - 1
    return positions
