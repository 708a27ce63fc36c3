"""The whole way from outcomes to thresholds with a promise, as ``mdi-exit calibrate`` goes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mdi_exit.calibration.budget import cheapest_within_loss
from mdi_exit.calibration.risk import Chosen, controlled, least_samples
from mdi_exit.calibration.temperature import fit_temperature
from mdi_exit.model.manifest import Measure
from mdi_exit.outcomes import Outcomes

__all__ = ["FIT_SHARE", "Kept", "fitted_temperatures", "least_for", "parted", "promised"]

FIT_SHARE: Final = 4


@dataclass(frozen=True, slots=True)
class Kept:
    """``chosen`` None: no threshold keeps the promise."""

    temperatures: tuple[float, ...]
    chosen: Chosen | None


def parted(known: Outcomes, seed: int) -> tuple[Outcomes, Outcomes]:
    """A quarter of the samples to fit things to, and the rest."""
    order: NDArray[np.intp] = np.random.default_rng(seed).permutation(len(known))
    first, second = np.split(order, [len(order) // FIT_SHARE])
    return known.subset(np.sort(first)), known.subset(np.sort(second))


def fitted_temperatures(fitted: Outcomes) -> tuple[float, ...]:
    """One for each exit. Raises ``UsageError`` without SciPy."""
    return tuple(fit_temperature(logits_NK, fitted.truth_N) for logits_NK in fitted.logits_SNK)


def promised(known: Outcomes, measure: Measure, max_loss: float, confidence: float, seed: int) -> Kept:
    """A quarter of the samples gives the temperatures and the direction of the thresholds; the promise is tested on the
    rest, which nothing was fitted to, as the test demands. Raises ``UsageError`` without SciPy.
    """
    fitted, held = parted(known, seed)
    temperatures = fitted_temperatures(fitted)
    cheapest = cheapest_within_loss(fitted.trace(measure, temperatures), max_loss)
    direction = [1.0 - threshold for threshold in cheapest]
    return Kept(temperatures, controlled(held.trace(measure, temperatures), max_loss, confidence, direction))


def least_for(max_loss: float, confidence: float) -> int:
    """So many samples that those left after fitting can be enough."""
    least = least_samples(max_loss, confidence)
    return next(count for count in range(least, 3 * least) if count - count // FIT_SHARE >= least)
