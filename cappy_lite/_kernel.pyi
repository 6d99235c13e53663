from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

MATRIX_ROWS: int

def all_texts(values: list[object]) -> bool: ...

class Sequences:
    def __len__(self) -> int: ...

def sequences(id_lists: list[list[int]]) -> Sequences: ...

class Lexicon:
    def __init__(self, stem: bool) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    def read(self, texts: list[str]) -> Sequences: ...

class Scoring:
    watch: Callable[[], None]
    def __init__(self, watch: Callable[[], None]) -> None: ...
    @property
    def bytes(self) -> int: ...
    def rouge_l_pairs(self, predictions: Sequences, references: Sequences, scores: npt.NDArray[np.float64]) -> None: ...
    def rouge_l_texts(
        self,
        lexicon: Lexicon,
        predictions: list[Any],
        references: list[Any],
        start: int,
        stop: int,
        scores: npt.NDArray[np.float64],
    ) -> bool: ...
    def rouge_lsum_pairs(
        self,
        predictions: Sequences,
        prediction_counts: list[int],
        references: Sequences,
        reference_counts: list[int],
        scores: npt.NDArray[np.float64],
    ) -> None: ...
    def rouge_l_matrix(
        self, texts: Sequences, first_block: int, block_step: int, fmeasures: npt.NDArray[np.float64]
    ) -> None: ...
