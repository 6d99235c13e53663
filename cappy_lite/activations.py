"""What becomes of a graph's raw outputs on their way to scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def sigmoid(logits: FloatArray) -> FloatArray:
    """0..1 for any logit, without overflow; in float64, so that small scores keep their order."""
    return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64))).astype(np.float32)


def identity(logits: FloatArray) -> FloatArray:
    """The outputs as they are: what a network gives that was trained to give scores, as the paper's Cappy was."""
    return logits


# By their names in a model's config.
ACTIVATIONS: Mapping[str, Callable[[FloatArray], FloatArray]] = {"sigmoid": sigmoid, "identity": identity}
