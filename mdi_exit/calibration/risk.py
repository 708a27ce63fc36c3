"""Thresholds that keep a promise: risk control for early exits.

Jazbec et al., Fast yet Safe: Early-Exiting with Risk Control (NeurIPS 2024, arXiv 2405.20915): of the thresholds from the
strictest down, take the last before the first that a test does not let pass (fixed-sequence testing, hence no correction
for the number of thresholds). The loss of a sample is max(0, early wrong - last exit wrong), which is 0 or 1; so the losses
of n samples are binomial and P(Bin(n, ε) ≤ observed) is an exact p-value for "the loss is above ε" (Learn then Test,
Angelopoulos et al., arXiv 2110.01052, section 2). With probability 1 - δ over the draw of the samples the loss of the
chosen thresholds is at most ε, whatever the data and the model.

The thresholds of all exits are tested along one line, from 1 everywhere (no early exit) in a fixed **direction**: exit e
stands at 1 - u·d_e. This is the line on which ``ModelPlan.threshold_at`` moves them when the one knob is raised, so that
what holds at the calibrated threshold was found to hold above it too. Nothing of the line may depend on the samples tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mdi_exit.calibration.temperature import scipy_part
from mdi_exit.trace import Trace

__all__ = ["Chosen", "controlled", "least_samples", "losses", "naively_passed", "passed", "steps", "thresholds_on"]

_FINE: Final = np.logspace(-6, -2, 81)[:-1]
_COARSE: Final = np.arange(2, 201) / 200


@dataclass(frozen=True, slots=True)
class Chosen:
    """``thresholds``: of the early exits. ``observed_loss``: on the ``samples`` they were chosen on."""

    thresholds: tuple[float, ...]
    observed_loss: float
    samples: int


def steps() -> NDArray[np.float64]:
    """Positions u on the line, from strict to lax: close together near 1, where most confidences are."""
    return np.unique(np.concatenate([_FINE, _COARSE]).round(9))


def thresholds_on(direction: Sequence[float], u: float) -> tuple[float, ...]:
    """1 - u·d for each early exit, in [0, 1], nine digits."""
    return tuple(round(min(max(1.0 - u * d, 0.0), 1.0), 9) for d in direction)


def losses(trace: Trace, direction: Sequence[float]) -> NDArray[np.bool_]:
    """U×N: at each of ``steps()``, which samples are wrong early and right at the last exit."""
    harm_NS, rows_N = trace.harm_NS, np.arange(len(trace))
    return np.stack([harm_NS[rows_N, trace.exits_at(thresholds_on(direction, u))] for u in steps().tolist()])


def least_samples(max_loss: float, confidence: float) -> int:
    """With fewer samples no loss seen at all is still no evidence: (1 - ε)^n ≤ δ."""
    return int(np.ceil(np.log(1.0 - confidence) / np.log1p(-max_loss)))


def passed(count_U: NDArray[np.integer[Any]], samples: int, max_loss: float, confidence: float) -> int:
    """How many of the steps, from the strictest, the test lets pass; ``count_U``: losses of ``samples`` at each.

    Raises ``UsageError`` without SciPy.
    """
    p_U = scipy_part("stats").binom.cdf(count_U, samples, max_loss)
    return _first(p_U > 1.0 - confidence)


def naively_passed(count_U: NDArray[np.integer[Any]], samples: int, max_loss: float) -> int:
    """What is done without a test, to compare: go on while the loss observed is at most ``max_loss``. Promises nothing."""
    return _first(count_U > max_loss * samples)


def _first(stops_U: NDArray[np.bool_]) -> int:
    return int(np.argmax(stops_U)) if stops_U.any() else len(stops_U)


def controlled(
    trace: Trace, max_loss: float, confidence: float, direction: Sequence[float] | None = None
) -> Chosen | None:
    """The laxest thresholds on the line whose loss is at most ``max_loss`` with ``confidence``; None: not even the strictest.

    ``direction`` None: the same threshold at every exit. Raises ``UsageError`` without SciPy.
    """
    line = direction or (1.0,) * (trace.exits - 1)
    count_U = losses(trace, line).sum(axis=1)
    steps_passed = passed(count_U, len(trace), max_loss, confidence)
    if steps_passed == 0:
        return None
    u = float(steps()[steps_passed - 1])
    return Chosen(thresholds_on(line, u), float(count_U[steps_passed - 1]) / len(trace), len(trace))
