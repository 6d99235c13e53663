"""Of which build a shared-instruction network is: BERT's or ModernBERT's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cappy_train.modern_network import MODEL_TYPE, ModernNetwork, from_modern_bert
from cappy_train.network import PackedNetwork, ScorerNetwork, from_bert


def kind_of(sizes: Mapping[str, Any]) -> type[PackedNetwork]:
    """The kind of network whose `sizes` these are."""
    return ModernNetwork if sizes.get("build") == MODEL_TYPE else ScorerNetwork


def from_saved(folder: Path) -> PackedNetwork:
    """A network with the encoder weights of a checkpoint that transformers saved, and a fresh head.

    Raises:
        InputValueError: a file is missing or damaged, or the checkpoint is of another build.
    """
    return from_modern_bert(folder) if _is_modern_bert(folder) else from_bert(folder)


def _is_modern_bert(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # `from_bert` says what is wrong
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE
