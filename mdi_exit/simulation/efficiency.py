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

__all__ = ["Efficiency", "efficiency_of"]

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
    used = np.array([int(record.sample) for record in done.records if record.row.label is not None])
    exits = exit_table(trace_of(scenario).subset(used), settings=settings)
    asked_for = scenario.arrivals.saturating or scenario.policy.adapt == "rate"
    offered = math.inf if asked_for else (summary.admitted + summary.refused) / summary.elapsed_s
    bound = ScenarioBound(scenario, exits, 0.0, max(summary.elapsed_s, scenario.duration_s))
    most = bound.rate(summary.accuracy - _ROUNDING, offered)
    return None if not most else Efficiency(most, summary.rate_per_s / most)
