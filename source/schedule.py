"""A run's phases: names and rates over time, as ``calm=20/s@0s,load=60/s@10s``."""

from __future__ import annotations

from dataclasses import dataclass

from mdi_exit import values
from mdi_exit.errors import UsageError

__all__ = ["Phase", "Schedule", "schedule"]


@dataclass(frozen=True, slots=True)
class Phase:
    """From ``start_s`` after the first admission on, ``rate_per_s`` items a second are offered."""

    name: str
    rate_per_s: float
    start_s: float

    def __str__(self) -> str:
        return f"{self.name}={self.rate_per_s:g}/s@{self.start_s:g}s"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Phases in order of time; the first starts at 0."""

    phases: tuple[Phase, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.phases))


def schedule(text: str) -> Schedule:
    """Read ``NAME=RATE@TIME,…``. Raises ``UsageError``."""
    phases = tuple(_phase(part.strip()) for part in text.split(","))
    starts = [phase.start_s for phase in phases]
    if starts[0] != 0 or starts != sorted(set(starts)):
        raise UsageError("schedule", "rising times that start at 0s", repr(text))
    return Schedule(phases)


def _phase(text: str) -> Phase:
    name, equals, rest = text.partition("=")
    rate, at, start = rest.partition("@")
    if not name or not equals or not at:
        raise UsageError("schedule", "phases such as load=60/s@10s", repr(text))
    rate_per_s = values.rate(rate)
    if rate_per_s is None:
        raise UsageError("schedule", "a rate such as 60/s in each phase", repr(text))
    start_s = 0.0 if start in ("0", "0s") else values.duration(start)
    return Phase(name, rate_per_s, start_s)
