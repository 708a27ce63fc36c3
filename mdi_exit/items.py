"""The items that the source has admitted and not yet recorded, and how long it waits for an attempt."""

from __future__ import annotations

from dataclasses import dataclass

from mdi_exit.requests import Request

__all__ = ["Pending", "RetryTimer"]


@dataclass(slots=True)
class Pending:
    """An admitted item. ``holder``: the node that has the present attempt, as far as the source knows."""

    sample: str
    truth: int | None
    payload: object
    size_bytes: int
    admitted_at: float
    attempt: int = 0
    sent_at: float = 0.0
    holder: str = ""
    overdue: bool = False
    request: Request | None = None


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
