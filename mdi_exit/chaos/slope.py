"""Whether a process grows: the slope of its memory over its life, with an interval. Pure but for numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

__all__ = ["Slope", "slope_of"]

_Z: Final = 1.96
_LEAST: Final = 8
_LAGS: Final = 4.0


@dataclass(frozen=True, slots=True)
class Slope:
    """Of y a minute; the true one lies in ``low`` to ``high`` with about 95 %."""

    per_min: float
    low: float
    high: float


def slope_of(lives: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Slope | None:
    """One slope for several lives, each with a level of its own: (seconds, values) of each. None: too few samples.

    Least squares within lives; the standard error allows for samples that resemble their neighbours (Newey and West 1987).
    """
    pairs = [(np.asarray(t, float) / 60.0, np.asarray(y, float)) for t, y in lives if len(t) >= _LEAST]
    if not pairs:
        return None
    t_N = np.concatenate([t - t.mean() for t, _ in pairs])
    y_N = np.concatenate([y - y.mean() for _, y in pairs])
    spread = float(t_N @ t_N)
    slope = float(t_N @ y_N) / spread
    scores_N = t_N * (y_N - slope * t_N)
    lags = int(_LAGS * (len(t_N) / 100.0) ** (2.0 / 9.0)) + 1
    total = float(scores_N @ scores_N)
    for lag in range(1, min(lags, len(scores_N) - 1) + 1):
        total += 2.0 * (1.0 - lag / (lags + 1.0)) * float(scores_N[lag:] @ scores_N[:-lag])
    half = _Z * max(total, 0.0) ** 0.5 / spread
    return Slope(slope, slope - half, slope + half)
