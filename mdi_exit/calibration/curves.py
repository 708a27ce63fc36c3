"""Accuracy against cost as one threshold for all exits goes from 1 to 0, and what it is at equal cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mdi_exit.calibration.risk import steps
from mdi_exit.trace import Trace

__all__ = ["COSTS", "Curve", "curve_of", "equal_costs"]

COSTS: Final = (0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True, slots=True)
class Curve:
    """``macs_P`` rising: mean multiply-accumulates of a sample; ``accuracy_P``: in [0, 1]."""

    macs_P: NDArray[np.float64]
    accuracy_P: NDArray[np.float64]

    def accuracy_at(self, macs: float) -> float | None:
        """In a straight line between the thresholds on either side; None where no threshold costs as little or as much."""
        if not self.macs_P[0] <= macs <= self.macs_P[-1]:
            return None
        return float(np.interp(macs, self.macs_P, self.accuracy_P))


def curve_of(trace: Trace) -> Curve:
    """The points of a threshold for all early exits."""
    scores = [trace.score(1.0 - u) for u in (0.0, *steps().tolist())]
    points = sorted({(score.mean_macs, score.accuracy) for score in scores})
    macs_P, accuracy_P = np.array(points, np.float64).T
    return Curve(macs_P, accuracy_P)


def equal_costs(trace: Trace) -> tuple[float, ...]:
    """Four costs at which curves are compared: from leaving all at the first exit (0) to the network without exits (1)."""
    least, most = float(trace.macs_S[0]), float(trace.plain_macs)
    return tuple(least + share * (most - least) for share in COSTS)
