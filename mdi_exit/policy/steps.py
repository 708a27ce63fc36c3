"""Step rules of the source (MDI-Exit, arXiv 2408.05247, Alg. 3 and Alg. 4).

Both look at Q = I + O at the source, smoothed, once per period, against T_Q1 < T_Q2: below T_Q1 a large step up,
between them a small one, above T_Q2 a step down; inside a dead band around T_Q2 nothing moves, so that the delay of the
queue's answer does not make the rule oscillate. The shapes are the paper's; **every constant is ours**.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QueueBands", "RateSteps", "ThresholdSteps", "next_interval_s", "next_threshold", "smoothed"]


@dataclass(frozen=True, slots=True)
class QueueBands:
    """``low`` is T_Q1, ``high`` T_Q2 (tasks); ``dead`` the half-width of the dead band as a share of ``high``."""

    low: float = 4.0
    high: float = 12.0
    dead: float = 0.15

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high or not 0 <= self.dead < 1:
            raise ValueError(f"expected 0 <= low < high and 0 <= dead < 1, got {self}")

    def steps_up(self, queue: float) -> bool:
        return queue < self.high * (1 - self.dead)

    def steps_down(self, queue: float) -> bool:
        return queue > self.high * (1 + self.dead)


@dataclass(frozen=True, slots=True)
class RateSteps:
    """Factors on the admission interval μ (seconds) per period, and its bounds."""

    large: float = 0.95
    small: float = 0.985
    grow: float = 1.10
    shortest_s: float = 1e-4
    longest_s: float = 10.0


@dataclass(frozen=True, slots=True)
class ThresholdSteps:
    """Steps of T_e per period."""

    large: float = 0.02
    small: float = 0.005
    fall: float = 0.05


def smoothed(previous: float, queue: float, weight: float = 0.5) -> float:
    """Exponential average of the queue; ``weight`` in (0, 1] is that of the new value."""
    return previous + weight * (queue - previous)


def next_interval_s(interval_s: float, queue: float, bands: QueueBands, steps: RateSteps) -> float:
    """Alg. 3: the next inter-arrival time, seconds, T_e being fixed. ``queue`` is the smoothed Q."""
    if bands.steps_down(queue):
        factor = steps.grow
    elif bands.steps_up(queue):
        factor = steps.large if queue < bands.low else steps.small
    else:
        factor = 1.0
    return min(max(interval_s * factor, steps.shortest_s), steps.longest_s)


def next_threshold(threshold: float, queue: float, bands: QueueBands, steps: ThresholdSteps, floor: float) -> float:
    """Alg. 4: the next T_e, the arrival rate being fixed; never above 1, never below ``floor``."""
    if bands.steps_down(queue):
        step = -steps.fall
    elif bands.steps_up(queue):
        step = steps.large if queue < bands.low else steps.small
    else:
        step = 0.0
    return min(max(threshold + step, floor), 1.0)
