"""What the source is told at start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mdi_exit.policy.drift import DriftConfig
from mdi_exit.policy.steps import QueueBands, RateSteps, ThresholdSteps
from mdi_exit.requests import RequestLimits

__all__ = ["SourceConfig"]


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """What the source is told at start; every constant is ours.

    ``rate_per_s``: arrivals (None: as fast as admission allows); ``max_queue``: Q at which an arrival is refused;
    ``max_pending``: items admitted and not yet answered; ``period_s``: of the step rules; ``retry_share``: retries per
    admission at most. ``floor``: lowest threshold; below it items are refused instead, since a promised accuracy
    outranks throughput. ``own_input`` False: the only items are requests of other programs. ``codec``: as in ``Control``.
    """

    run: int
    own_input: bool = True
    rate_per_s: float | None = None
    arrivals: Literal["fixed", "poisson"] = "fixed"
    adapt: str = "none"
    threshold: float = 0.9
    floor: float = 0.5
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
    deadline_s: float | None = None
    target_p99_s: float | None = None
    drift: DriftConfig = DriftConfig()
    solve_period_s: float = 2.0
    codec: str = ""
