"""What the source is told at start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mdi_exit.placement import PlacementRules
from mdi_exit.policy.drift import DriftConfig
from mdi_exit.policy.steps import QueueBands, RateSteps, ThresholdSteps
from mdi_exit.requests import RequestLimits
from mdi_exit.routes import Channel

__all__ = ["Promised", "SourceConfig", "floor_reached"]


@dataclass(frozen=True, slots=True)
class Promised:
    """What the model's calibration promises as long as the threshold is at least ``threshold``, in words."""

    threshold: float
    words: str

    def at_start(self, threshold: float, floor: float) -> str:
        """What holds under this threshold and this floor."""
        if threshold < self.threshold:
            return f"not promised at threshold {threshold:g}, below {self.threshold:g}: {self.words}"
        if floor < self.threshold:
            return f"promised only down to threshold {self.threshold:g}, though the floor is {floor:g}: {self.words}"
        return f"promised from threshold {self.threshold:g} up: {self.words}"

    def crossed(self, before: float, now: float) -> str:
        """What to say when the threshold moves; nothing when it stays on one side."""
        if now < self.threshold <= before:
            return f"the threshold goes below {self.threshold:g}: no longer promised: {self.words}"
        if before < self.threshold <= now:
            return f"the threshold is {self.threshold:g} or more: promised again: {self.words}"
        return ""


def floor_reached(floor: float, promised: Promised | None) -> str:
    """What to say when the threshold can fall no further."""
    kept = f", to keep what is promised ({promised.words})" if promised and floor >= promised.threshold else ""
    return f"the threshold is at its floor {floor:g}: further load is refused{kept}"


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """What the source is told at start; every constant is ours.

    ``rate_per_s``: arrivals (None: as fast as admission allows); ``max_queue``: Q at which an arrival is refused;
    ``max_pending``: items admitted and not yet answered; ``period_s``: of the step rules; ``retry_share``: retries per
    admission at most. ``floor``: lowest threshold; below it items are refused instead, since a promised accuracy
    outranks throughput. ``promised``: what that accuracy is, if the model says. ``own_input`` False: the only items are
    requests of other programs. ``codec``: as in ``Control``.
    ``channel``: if all nodes are on one, for the optimiser, which cannot see it by the speeds of links.
    ``placement``: when agents that let the source choose their layers are moved. ``journalled``: ask that items, requests and
    replies be written down, for a later life.
    """

    run: int
    own_input: bool = True
    rate_per_s: float | None = None
    arrivals: Literal["fixed", "poisson"] = "fixed"
    adapt: str = "none"
    threshold: float = 0.9
    floor: float = 0.5
    promised: Promised | None = None
    max_queue: int = 40
    max_pending: int = 512
    period_s: float = 0.5
    max_attempts: int = 6
    min_retry_s: float = 1.0
    retry_share: float = 0.1
    bands: QueueBands = QueueBands()
    rate_steps: RateSteps = RateSteps()
    threshold_steps: ThresholdSteps = ThresholdSteps()
    start_interval_s: float = 0.1
    requests: RequestLimits = RequestLimits()
    placement: PlacementRules = PlacementRules()
    deadline_s: float | None = None
    target_p99_s: float | None = None
    drift: DriftConfig = DriftConfig()
    solve_period_s: float = 2.0
    channel: Channel | None = None
    offloading: str = ""
    codec: str = ""
    journalled: bool = False
