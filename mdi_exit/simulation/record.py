"""The outcomes that a scenario takes its items from: recorded ones, or those of its artifact on the shipped images."""

from __future__ import annotations

from functools import lru_cache

from mdi_exit.data.sets import shipped
from mdi_exit.model.artifact import Artifact
from mdi_exit.outcomes import outcomes
from mdi_exit.simulation.scenario import Scenario
from mdi_exit.trace import Trace

__all__ = ["trace_of"]


def trace_of(scenario: Scenario) -> Trace:
    """Without a recorded trace the artifact runs once over the shipped images. Raises ``UsageError``."""
    if scenario.trace is not None:
        return scenario.trace
    return _recorded(scenario.artifact or "", scenario.codec)


@lru_cache(4)
def _recorded(artifact: str, codec: str) -> Trace:
    opened = Artifact.open(artifact)
    return outcomes(opened, shipped(), codec=codec).trace(opened.manifest.calibration.measure)
