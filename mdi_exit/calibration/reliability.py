"""How far confidence is from being right: expected calibration error over bins of equally many samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "Reliability", "reliability"]

BINS: Final = 15


@dataclass(frozen=True, slots=True)
class Reliability:
    """By bin, from the least sure to the surest: mean confidence, share that is right, samples. ``ece`` in [0, 1]."""

    confidence_B: NDArray[np.float64]
    accuracy_B: NDArray[np.float64]
    count_B: NDArray[np.int64]

    @property
    def ece(self) -> float:
        share_B = self.count_B / self.count_B.sum()
        return float((share_B * np.abs(self.accuracy_B - self.confidence_B)).sum())


def reliability(confidence_N: NDArray[np.floating[Any]], right_N: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Samples sorted by confidence in ``bins`` bins of equally many (adaptive bins: Nguyen and O'Connor, EMNLP 2015).

    Bins of equal width would leave all but one or two nearly empty, since most confidences are close to 1.
    """
    order = np.argsort(confidence_N, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return Reliability(
        np.array([confidence_N[part].mean(dtype=np.float64) for part in parts]),
        np.array([right_N[part].mean() for part in parts], np.float64),
        np.array([len(part) for part in parts], np.int64),
    )
