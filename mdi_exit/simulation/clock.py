"""Virtual time: what is to happen when, in a heap."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Act", "Clock"]

Act = Callable[[Any, Any, Any], None]


@dataclass(slots=True)
class Clock:
    """``now``: seconds; ``events``: how many things have happened. Several deployments may share one."""

    now: float = 0.0
    events: int = 0
    _heap: list[tuple[float, int, Act, Any, Any, Any]] = field(default_factory=list)
    _number: int = 0

    def call_at(self, when: float, act: Act, x: Any = None, y: Any = None, z: Any = None) -> None:
        """Call ``act(x, y, z)`` at ``when``; what is due at the same moment goes in the order in which it was asked for."""
        self._number += 1
        heapq.heappush(self._heap, (when, self._number, act, x, y, z))

    def run(self, until: float, while_: Callable[[], bool] | None = None) -> None:
        """Let happen what is due up to ``until``, as long as ``while_()`` holds."""
        heap, pop = self._heap, heapq.heappop
        done = 0
        while heap and heap[0][0] <= until:
            if while_ is not None and not while_():
                break
            self.now, _, act, x, y, z = pop(heap)
            act(x, y, z)
            done += 1
        else:
            self.now = until if while_ is None or while_() else self.now
        self.events += done
