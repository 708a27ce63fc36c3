"""What a node has learnt of its own speed: measured seconds by segment and batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from mdi_exit.policy.batching import choose_batch, seconds_per_task
from mdi_exit.segments import SegmentKey

__all__ = ["SegmentSeconds"]

_WEIGHT: Final = 0.2
_FORGET_AFTER: Final = 500
_STEP: Final = 1.4
_STEP_RUNS: Final = 4


@dataclass(slots=True)
class SegmentSeconds:
    """Exponential averages, seconds of a whole batch, of the segments that the engine can run (``key in ...``).

    Sizes above 1 are forgotten now and then, to be tried afresh. Where some runs one after the other were all much slower
    than expected, or all much faster, the device itself has changed its speed: all averages move with it at once.
    ``changes``: counts up whenever any of it may be another.
    """

    _by_key: dict[SegmentKey, dict[int, float]] = field(default_factory=dict)
    changes: int = 0
    _batches: int = 0
    _off: list[float] = field(default_factory=list)

    def __contains__(self, key: SegmentKey) -> bool:
        return key in self._by_key

    def ready(self, seconds: Mapping[SegmentKey, float]) -> None:
        """The engine can run these; ``seconds`` is one warm run of each at batch 1."""
        self.changes += 1
        for key, measured in seconds.items():
            self._by_key.setdefault(key, {})[1] = measured

    def add(self, key: SegmentKey, count: int, seconds: float) -> None:
        """One run of ``count`` tasks; a segment of a model no longer in force teaches nothing."""
        known = self._by_key.get(key)
        if known is None:
            return
        self._batches += 1
        self.changes += 1
        before = known.get(count, seconds)
        if self._stepped(seconds / before if before > 0 else 1.0):
            before = known[count]
        known[count] = before + _WEIGHT * (seconds - before)
        if self._batches % _FORGET_AFTER == 0:
            for size in [size for size in known if size > 1]:
                del known[size]

    def _stepped(self, ratio: float) -> bool:
        """Take in how one run's seconds compare to those expected; True if all averages were moved because of it."""
        if 1 / _STEP < ratio < _STEP:
            if self._off:
                self._off.clear()
            return False
        if self._off and (self._off[-1] > 1.0) is not (ratio > 1.0):
            self._off.clear()
        self._off.append(ratio)
        if len(self._off) < _STEP_RUNS:
            return False
        factor = sorted(self._off)[_STEP_RUNS // 2]
        self._off.clear()
        for known in self._by_key.values():
            for size in known:
                known[size] *= factor
        return True

    def batch(self, key: SegmentKey, waiting: int, *, explore: bool = True) -> int:
        """How many of ``waiting`` tasks to run at once; without ``explore`` of the sizes that have been measured."""
        return choose_batch(waiting, self._by_key.get(key, {}), explore=explore)

    def per_task(self, key: SegmentKey, waiting: int, fallback_s: float) -> float:
        """Γ: expected seconds a task, when ``waiting`` are there; with or without head is taken to be alike."""
        measured = self._by_key.get(key) or self._by_key.get(key._replace(head=not key.head), {})
        if waiting <= 1:
            return measured.get(1, fallback_s)
        return seconds_per_task(waiting, measured, fallback_s)

    def clear(self) -> None:
        self.changes += 1
        self._by_key.clear()

    def __iter__(self) -> Iterator[SegmentKey]:
        return iter(self._by_key)

    def retain(self, wanted: Callable[[SegmentKey], bool]) -> None:
        """Forget the segments that are no longer here."""
        self.changes += 1
        self._by_key = {key: known for key, known in self._by_key.items() if wanted(key)}
