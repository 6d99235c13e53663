"""Scores and ranks candidate answers to an instruction, on a CPU, with a small model that comes along."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cappy_lite.rouge import rouge_l
    from cappy_lite.scorer import Scorer, rerank, score
    from cappy_lite.selection import Ranked

__all__ = ["Ranked", "Scorer", "rerank", "rouge_l", "score"]

_HOMES = {"Ranked": "selection", "Scorer": "scorer", "rerank": "scorer", "rouge_l": "rouge", "score": "scorer"}


def __getattr__(name: str) -> object:
    """A public name, imported when it is first used: numpy alone would be most of the time of `import cappy_lite`."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
