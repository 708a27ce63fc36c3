"""How near a run came to what no policy can pass."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass

import numpy as np

from mdi_exit.simulation.bound import ScenarioBound, exit_table
from mdi_exit.simulation.record import trace_of
from mdi_exit.simulation.run import Simulated
from mdi_exit.simulation.scenario import Scenario

__all__ = ["Efficiency", "efficiency_of", "frontier_of"]

_SETTINGS = 400
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Efficiency:
    """``bound_per_s``: the largest rate at the accuracy that the run had, and of no more than was offered."""

    bound_per_s: float
    efficiency: float


def efficiency_of(scenario: Scenario, done: Simulated, *, settings: int = _SETTINGS) -> Efficiency | None:
    """None without SciPy, or where nothing was completed.

    The bound is on the samples that the run had, since another draw of them would have had another accuracy.
    """
    summary = done.summary
    if importlib.util.find_spec("scipy") is None or not summary.completed or summary.accuracy is None:
        return None
    asked_for = scenario.arrivals.saturating or scenario.policy.adapt == "rate"
    offered = math.inf if asked_for else (summary.admitted + summary.refused) / summary.elapsed_s
    bound = _bound_of(scenario, done, settings)
    most = bound.rate(summary.accuracy - _ROUNDING, offered)
    return None if not most else Efficiency(most, summary.rate_per_s / most)


def frontier_of(scenario: Scenario, done: Simulated, *, settings: int = _SETTINGS) -> tuple[tuple[float, float], ...]:
    """(items a second, accuracy) that no policy can pass on the samples that the run had, rates falling.

    Empty without SciPy, or where nothing was completed.
    """
    if importlib.util.find_spec("scipy") is None or not done.summary.completed or done.summary.accuracy is None:
        return ()
    found = _bound_of(scenario, done, settings).frontier()
    return tuple((scenario.cells * bound.rate, bound.accuracy) for bound in found)


def _bound_of(scenario: Scenario, done: Simulated, settings: int) -> ScenarioBound:
    used = np.array([int(record.sample) for record in done.records if record.row.label is not None])
    exits = exit_table(trace_of(scenario).subset(used), settings=settings)
    return ScenarioBound(scenario, exits, 0.0, max(done.summary.elapsed_s, scenario.duration_s))
