"""What becomes of a graph's raw outputs on their way to scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


class ScoreCalibration:
    """A strictly increasing, piecewise linear function from a network's logit to one whose sigmoid can be taken at
    its word; its first and its last piece go on beyond the ends.

    It never turns the order of two logits around, not even by a rounding.

    Args:
        logits, calibrated: where its pieces meet and end: finite, strictly increasing, two at least, and as many.

    Raises:
        ValueError: they are not so.
    """

    def __init__(self, logits: Sequence[float], calibrated: Sequence[float]) -> None:
        if len(logits) != len(calibrated) or len(logits) < 2:
            raise ValueError(f"{len(logits)} logits and {len(calibrated)} calibrated ones: give as many, two at least")
        self.logits = np.array(logits, dtype=np.float64)
        self.calibrated = np.array(calibrated, dtype=np.float64)
        with np.errstate(all="ignore"):
            widths = np.diff(self.logits)
            self._slopes = np.diff(self.calibrated) / widths
        if not ((widths > 0) & (self._slopes > 0) & np.isfinite(self._slopes)).all():
            raise ValueError("logits and calibrated must each be finite and strictly increasing")
        # A rounding mustn't lift the end of a piece above the start of the next one.
        self._tops = np.append(self.calibrated[1:-1], np.inf)

    def __call__(self, logits: FloatArray) -> npt.NDArray[np.float64]:
        """Calibrated logits, of any shape: float64, since float32 would make close ones equal."""
        piece = np.clip(np.searchsorted(self.logits, logits, side="right") - 1, 0, len(self._slopes) - 1)
        values = self.calibrated[piece] + self._slopes[piece] * (logits - self.logits[piece])
        calibrated: npt.NDArray[np.float64] = np.minimum(values, self._tops[piece])
        return calibrated


def sigmoid(logits: npt.NDArray[np.floating]) -> FloatArray:
    """0..1 for any logit, without overflow; in float64, so that small scores keep their order."""
    return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64))).astype(np.float32)


def identity(logits: FloatArray) -> FloatArray:
    """The outputs as they are: what a network gives that was trained to give scores, as the paper's Cappy was."""
    return logits


# By their names in a model's config.
ACTIVATIONS: Mapping[str, Callable[[FloatArray], FloatArray]] = {"sigmoid": sigmoid, "identity": identity}
