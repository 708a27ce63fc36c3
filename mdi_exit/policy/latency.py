"""A target for the 99th percentile of the latency: the threshold falls to meet it, and then admission does.

Once per period, over the answers of the last periods. Above the target, or with items turned away, T goes down; with time
and room to spare it goes up by less. So many items are let in as Little's law allows: those under way are the rate times
the target, less a margin that grows when the target is missed. At the floor of T only admission is left: what would come
too late is refused. Every constant is ours.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

__all__ = ["LatencyControl", "LatencySteps"]


@dataclass(frozen=True, slots=True)
class LatencySteps:
    """Steps of T per period, and of the part of the target that may be spent waiting; ``window_s``: what is looked at."""

    fall: float = 0.04
    rise: float = 0.01
    spare: float = 0.6
    tighten: float = 0.85
    loosen: float = 1.03
    least_part: float = 0.1
    aim: float = 0.85
    window_s: float = 3.0
    least_answers: int = 20
    least_under_way: int = 4


@dataclass(slots=True)
class LatencyControl:
    """``part``: of the target that the mean item may take; ``per_s``: the largest rate of answers of late."""

    target_s: float
    steps: LatencySteps = LatencySteps()
    part: float = 0.6
    per_s: float = 0.0
    _answers: deque[tuple[float, float]] = field(default_factory=deque)
    _turned_away: int = 0

    def answered(self, now: float, latency_s: float) -> None:
        """An item has its answer."""
        self._answers.append((now, latency_s))

    def p99_s(self, now: float) -> float | None:
        """Of the last answers; None while there are too few to say."""
        answers, steps = self._answers, self.steps
        while len(answers) > steps.least_answers and answers[0][0] < now - steps.window_s:
            answers.popleft()
        if len(answers) < steps.least_answers:
            return None
        ordered = sorted(latency_s for _, latency_s in answers)
        return ordered[min(math.ceil(0.99 * len(ordered)), len(ordered)) - 1]

    def under_way(self, most: int, expected_per_s: float = 0.0) -> int:
        """How many items may be under way at once, at most ``most``; ``expected_per_s``: until answers tell the rate."""
        per_s = self.per_s or expected_per_s
        return min(max(math.ceil(per_s * self.target_s * self.part), self.steps.least_under_way), most)

    def next_threshold(self, now: float, threshold: float, floor: float, *, turned_away: int, crowded: bool) -> float:
        """One period: T, with the total number of items ``turned_away`` so far; ``crowded``: no room for many more."""
        p99_s, steps = self.p99_s(now), self.steps
        lost, self._turned_away = turned_away - self._turned_away, turned_away
        if p99_s is None:
            return threshold
        self._measure(now)
        over = p99_s > steps.aim * self.target_s
        self.part = min(max(self.part * (steps.tighten if over else steps.loosen), steps.least_part), 1.0)
        if over or lost > 0:
            return max(threshold - steps.fall, floor)
        if p99_s < steps.spare * self.target_s and not crowded:
            return min(threshold + steps.rise, 1.0)
        return threshold

    def _measure(self, now: float) -> None:
        begin = self._answers[0][0]
        if now > begin:
            self.per_s = max(len(self._answers) / (now - begin), 0.98 * self.per_s)
