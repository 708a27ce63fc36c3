"""When items arrive: at a fixed pace, at random, in bursts, as recorded, or at a rate that changes over the run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, Literal

from mdi_exit import values
from mdi_exit.config import nearest
from mdi_exit.errors import UsageError
from mdi_exit.tables import Table

__all__ = ["ARRIVALS", "Arrivals", "Phase", "read_arrivals"]

Kind = Literal["fixed", "poisson", "bursts", "recorded"]
ARRIVALS: Final[tuple[Kind, ...]] = ("fixed", "poisson", "bursts", "recorded")
_DAY_STEPS: Final = 24


@dataclass(frozen=True, slots=True)
class Phase:
    """From ``start_s`` on, ``rate_per_s`` items a second on average."""

    start_s: float
    rate_per_s: float
    name: str = ""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """``phases`` in order of time, the first at 0; none: as fast as admission allows.

    ``burst``: items that come together (kind ``bursts``: bursts at random, so many a second that the mean is the phase's
    rate). ``times_s``: of kind ``recorded``, from the start, rising. ``end_s``: when the phases are over, 0 if never.
    """

    kind: Kind = "fixed"
    phases: tuple[Phase, ...] = ()
    burst: int = 1
    times_s: tuple[float, ...] = ()
    end_s: float = 0.0

    @property
    def saturating(self) -> bool:
        return not self.phases and self.kind != "recorded"

    def rate_at(self, now_s: float) -> float | None:
        """The mean rate in force, items a second; None: as fast as admission allows."""
        if self.kind == "recorded":
            return len(self.times_s) / self.times_s[-1] if self.times_s[-1] else float(len(self.times_s))
        before = [phase.rate_per_s for phase in self.phases if phase.start_s <= now_s]
        return before[-1] if before else None

    def times(self, until_s: float, rng: Random) -> Iterator[float]:
        """The moments of arrivals before ``until_s``; of saturating ones, none."""
        if self.kind == "recorded":
            yield from (moment for moment in self.times_s if moment < until_s)
            return
        for number, phase in enumerate(self.phases):
            later = self.phases[number + 1 :]
            yield from self._within(phase, min(later[0].start_s if later else math.inf, until_s), rng)

    def _within(self, phase: Phase, stop_s: float, rng: Random) -> Iterator[float]:
        size = self.burst if self.kind == "bursts" else 1
        mean_s = size / phase.rate_per_s
        moment = phase.start_s
        while True:
            moment += mean_s if self.kind == "fixed" else rng.expovariate(1.0) * mean_s
            if moment >= stop_s:
                return
            for _ in range(size):
                yield moment


def read_arrivals(run: Table, folder: Path) -> Arrivals:
    """From ``rate``, ``arrivals``, ``burst``, ``times``, ``[[run.phases]]`` and ``[run.day]``. Raises ``UsageError``."""
    kind = run.get("arrivals", _kind) or "fixed"
    burst = run.get("burst", values.integer(1, 10_000), 1)
    file = run.get("times", values.path)
    rate = run.get("rate", values.rate)
    phases, end_s = _phases(run)
    if (kind == "bursts") != (burst > 1):
        raise run.wrong("burst", "items in a burst, at least 2, with arrivals = bursts and only then", burst)
    if (kind == "recorded") != (file is not None):
        raise run.wrong("times", "a file of moments with arrivals = recorded and only then", file)
    if phases and "rate" in run.content:
        raise UsageError(run.place, "rates in the phases only", "rate beside phases")
    if rate is not None:
        phases = (Phase(0.0, rate),)
    if kind in ("poisson", "bursts") and not phases:
        raise run.wrong("rate", f"items a second, with arrivals = {kind}", "none")
    times_s = _recorded(folder / file) if file is not None else ()
    return Arrivals(kind, phases, burst, times_s, end_s)


def _kind(text: str) -> Kind:
    for kind in ARRIVALS:
        if text == kind:
            return kind
    raise UsageError("", "one of " + ", ".join(ARRIVALS), repr(text) + nearest(text, ARRIVALS))


def _phases(run: Table) -> tuple[tuple[Phase, ...], float]:
    phases: list[Phase] = []
    start_s = 0.0
    for row in run.rows("phases"):
        rate = row.needed("rate", values.rate)
        if rate is None:
            raise row.wrong("rate", "items a second such as 25/s", "max")
        phases.append(Phase(start_s, rate, row.get("name", values.text, "")))
        start_s += row.needed("duration", values.duration)
        row.done()
    day = run.table("day")
    if not day.content:
        return tuple(phases), start_s
    if phases:
        raise UsageError(run.place, "phases or a day", "both")
    return _day(day)


def _day(day: Table) -> tuple[tuple[Phase, ...], float]:
    """A cosine in 24 steps from ``low`` at the start to ``high`` in the middle and back."""
    length_s = day.needed("length", values.duration)
    low, high = day.needed("low", values.rate), day.needed("high", values.rate)
    day.done()
    if low is None or high is None:
        raise UsageError(day.place, "low and high in items a second such as 25/s", "max")
    phases = []
    for step in range(_DAY_STEPS):
        height = (1 - math.cos(2 * math.pi * (step + 0.5) / _DAY_STEPS)) / 2
        phases.append(Phase(step * length_s / _DAY_STEPS, low + (high - low) * height, f"hour {step}"))
    return tuple(phases), length_s


def _recorded(path: Path) -> tuple[float, ...]:
    """One moment a line, seconds, rising. Raises ``UsageError``."""
    try:
        moments = tuple(float(line) for line in path.read_text().split())
    except (OSError, ValueError) as error:
        raise UsageError(f"times {path}", "one moment in seconds a line", error) from None
    if not moments or list(moments) != sorted(moments) or not 0 <= moments[0] <= moments[-1] < math.inf:
        raise UsageError(f"times {path}", "moments from 0 on that do not fall", f"{len(moments)} others")
    return moments
