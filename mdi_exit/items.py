"""The items that the source has admitted and not yet recorded: what is known of each, and how long they take."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from mdi_exit.policy.deadline import grace_s
from mdi_exit.requests import Request
from mdi_exit.wire import ResultRow

__all__ = ["Forecast", "Pending", "RetryTimer", "final_error", "named_layers", "percentile", "quantiles"]

_RECENT: Final = 32
_MISSED_SHARE: Final = 0.02
_CAUTION_STEP: Final = 0.05


@dataclass(slots=True)
class Pending:
    """An admitted item. ``holder``: the node that has the present attempt, as far as the source knows, and which start of it.

    ``waits``: to be tried again, as soon as that may be. ``deadline_at``: until when its answer is of use, infinity without.
    ``position``: as in ``InputOffered``.
    """

    sample: str
    truth: int | None
    payload: object
    size_bytes: int
    admitted_at: float
    attempt: int = 0
    sent_at: float = 0.0
    holder: str = ""
    holder_start: int = 0
    overdue: bool = False
    waits: bool = False
    request: Request | None = None
    deadline_at: float = math.inf
    position: int = -1

    @property
    def expires_at(self) -> float:
        """When the source waits for an answer no longer."""
        return (
            self.deadline_at + grace_s(self.deadline_at - self.admitted_at) if self.deadline_at < math.inf else math.inf
        )

    @property
    def deadline_passed(self) -> str:
        return f"the deadline of {self.deadline_at - self.admitted_at:g} s has passed"


@dataclass(slots=True)
class RetryTimer:
    """Time after which an attempt is taken for lost: max(1 s, SRTT + 4·RTTVAR)·2^attempt, at most 30 s (as in RFC 6298)."""

    least_s: float
    most_s: float = 30.0
    mean_s: float | None = None
    deviation_s: float = 0.0

    def measured(self, latency_s: float) -> None:
        if self.mean_s is None:
            self.mean_s, self.deviation_s = latency_s, latency_s / 2
            return
        self.deviation_s += 0.25 * (abs(latency_s - self.mean_s) - self.deviation_s)
        self.mean_s += 0.125 * (latency_s - self.mean_s)

    def after_s(self, attempt: int) -> float:
        expected_s = self.least_s if self.mean_s is None else self.mean_s + 4 * self.deviation_s
        return min(max(self.least_s, expected_s) * 2.0**attempt, self.most_s)


class Forecast:
    """How long an item that is admitted now will take: work on what would be late only takes others' time.

    ``caution``: the share by which expectations are exceeded so that of the items with a deadline one in fifty misses it.
    With fewer, some are turned away that could have been ready; with more, time is lost on them.
    """

    def __init__(self) -> None:
        self.caution = 0.0
        self._recorded_at: deque[float] = deque(maxlen=_RECENT)

    def recorded(self, now: float) -> None:
        """An item has its label."""
        self._recorded_at.append(now)

    def expected_s(self, now: float, ahead: int, mean_s: float | None) -> float:
        """Seconds, when ``ahead`` items are under way and answers have taken ``mean_s`` of late.

        The lesser of the latter, which is late to notice that the load has gone, and of what those under way will take at
        the present rate (Little's law), which a quiet hour makes too long.
        """
        if mean_s is None:
            return 0.0
        recent = self._recorded_at
        queued_s = ahead * (now - recent[0]) / len(recent) if recent else math.inf
        return min(queued_s, mean_s) * (1 + self.caution)

    def learn(self, *, missed: bool) -> None:
        """An item with a deadline has missed it, or not."""
        step = _CAUTION_STEP * ((1 - _MISSED_SHARE) if missed else -_MISSED_SHARE)
        self.caution = min(max(self.caution + step, 0.0), 1.0)

    def dare(self) -> None:
        """One was turned away. After many of these, one can dare more."""
        self.caution = max(self.caution - _CAUTION_STEP * _MISSED_SHARE / 10, 0.0)


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest of ``values``, of which there must be some, that at least ``share`` (0 to 1) of them do not exceed."""
    ordered = sorted(values)
    rank = math.ceil(round(share * len(ordered), 6))  # 0.07 of 100 is 7.000000000000001
    return ordered[max(rank, 1) - 1]


def quantiles(values: Collection[float]) -> tuple[float, float, float] | None:
    """p50, p90 and p99; None of nothing."""
    if not values:
        return None
    return percentile(values, 0.5), percentile(values, 0.9), percentile(values, 0.99)


def final_error(row: ResultRow, error: str) -> ResultRow:
    """``row`` as a final error."""
    return ResultRow(row.item, row.attempt, row.path, error=error[:400])


def named_layers(layers: tuple[int, ...]) -> str:
    """``layer 6`` or ``layers 4-6, 8``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"layer{'s' if len(layers) > 1 else ''} {text}"
