"""How busy the machine is during a run, and how much of that is the run's own."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import psutil

__all__ = ["BusyMeter"]


@dataclass(slots=True)
class BusyMeter:
    """Shares of all cores' time since ``start``, as of the last ``read``; None before there are any.

    ``machine``: whatever was run; ``own``: this process and all that it has started.
    """

    machine: float | None = None
    own: float | None = None
    started: bool = False
    _idle_s: float = 0.0
    _all_s: float = 0.0
    _own_before_s: dict[int, float] = field(default_factory=dict)
    _own_s: dict[int, float] = field(default_factory=dict)

    def start(self) -> None:
        self._idle_s, self._all_s = _machine_seconds()
        self._own_before_s = _own_seconds()
        self._own_s = dict(self._own_before_s)
        self.started = True

    def read(self) -> None:
        """Look again; nothing happens before ``start``."""
        if not self.started:
            return
        idle_s, all_s = _machine_seconds()
        self._own_s |= _own_seconds()  # of a process that has ended, what it had used when last seen
        if all_s > self._all_s:
            self.machine = 1.0 - (idle_s - self._idle_s) / (all_s - self._all_s)
            self.own = (sum(self._own_s.values()) - sum(self._own_before_s.values())) / (all_s - self._all_s)


def _machine_seconds() -> tuple[float, float]:
    """Idle, and in all, of all cores; guests are in the user's time already."""
    times = psutil.cpu_times()._asdict()
    idle_s = times["idle"] + times.get("iowait", 0.0)
    return idle_s, sum(value for name, value in times.items() if not name.startswith("guest"))


def _own_seconds() -> dict[int, float]:
    own = psutil.Process()
    found = {}
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found
