"""How long a node may be silent before it counts as dead: by the rhythm in which it was heard so far.

The gaps between its load reports are smoothed as round trips are in RFC 6298 (mean, mean deviation). A quiet machine is
missed after four reports; one that is busy and reports unevenly is given longer. A full accrual detector (Hayashibara et al.,
SRDS 2004) fits a distribution for the same answer; with few gaps and a limit of 3 s it would say no more than this.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Patience", "Rhythm"]

_MEAN_GAIN = 0.125
_DEVIATION_GAIN = 0.25


@dataclass(frozen=True, slots=True)
class Patience:
    """``least_s`` and ``most_s`` bound the silence that is borne; ``reports``: mean gaps that may always pass.

    ``most_s`` gives way to ``reports`` only for a node that reports too seldom for it. ``deviations``: as many mean
    deviations beyond the mean gap.
    """

    least_s: float = 2.0
    most_s: float = 2.5
    reports: float = 3.0
    deviations: float = 6.0


@dataclass(slots=True)
class Rhythm:
    """Gaps between the load reports of one node, seconds."""

    mean_s: float | None = None
    deviation_s: float = 0.0
    _last_at: float | None = None

    def reported(self, now: float, patience: Patience) -> None:
        """A load report has come. A gap that was taken for death teaches no more than the longest that is borne."""
        last, self._last_at = self._last_at, now
        if last is None:
            return
        gap_s = min(now - last, 2 * patience.most_s)
        if self.mean_s is None:
            self.mean_s, self.deviation_s = gap_s, 0.0
            return
        self.deviation_s += _DEVIATION_GAIN * (abs(gap_s - self.mean_s) - self.deviation_s)
        self.mean_s += _MEAN_GAIN * (gap_s - self.mean_s)

    def limit_s(self, patience: Patience) -> float:
        """The silence after which the node counts as dead."""
        if self.mean_s is None:
            return patience.most_s
        expected_s = self.mean_s + patience.deviations * self.deviation_s
        return max(min(max(expected_s, patience.least_s), patience.most_s), patience.reports * self.mean_s)
