import numpy as np
import numpy.typing as npt

def rouge_l_pairs(
    predictions: list[str], references: list[tuple[str, ...]], stem: bool, scores: npt.NDArray[np.float64]
) -> None: ...
def rouge_l_matrix(
    texts: list[str], first_row: int, row_step: int, stem: bool, fmeasures: npt.NDArray[np.float64]
) -> None: ...
