"""Damping of nodes that come and go: each death is a penalty that decays, and penalties keep work away (as in RFC 2439).

One death is no flapping: the node is given work as soon as it is back. From the second on it waits ``first_hold_s``, twice
that after the third, and so on up to ``most_hold_s``; each ``half_life_s`` without a death halves what is held against it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, exp2, log2

__all__ = ["Damping", "Flaps"]

_FORGOTTEN = 0.05
_BORNE = 1.5


@dataclass(frozen=True, slots=True)
class Damping:
    """Seconds."""

    half_life_s: float = 60.0
    first_hold_s: float = 2.0
    most_hold_s: float = 60.0

    def hold_s(self, penalty: float) -> float:
        """How long a node that comes back with this penalty waits for work."""
        if penalty <= _BORNE:
            return 0.0
        return min(self.first_hold_s * exp2(penalty - 2), self.most_hold_s)

    def decayed(self, penalty: float, elapsed_s: float) -> float:
        """What is left of a penalty."""
        left = penalty * exp2(-elapsed_s / self.half_life_s)
        return left if left >= _FORGOTTEN else 0.0

    @property
    def most_penalty(self) -> float:
        """More would only be held against a node for longer than its hold lasts."""
        return 2.0 + ceil(log2(max(self.most_hold_s / self.first_hold_s, 1.0)))


@dataclass(slots=True)
class Flaps:
    """The deaths of the nodes, by name, whatever their start. ``held``: until when those that are back get no work."""

    damping: Damping = Damping()
    held: dict[str, float] = field(default_factory=dict)
    _penalties: dict[str, tuple[float, float, float]] = field(default_factory=dict)  # penalty, at, the one before

    def penalty(self, now: float, name: str) -> float:
        """What is held against the node now; about the number of its recent deaths."""
        penalty, at, _ = self._penalties.get(name, (0.0, now, 0.0))
        return self.damping.decayed(penalty, now - at)

    def died(self, now: float, name: str) -> None:
        """The node died, without a goodbye."""
        before = self.penalty(now, name)
        self._penalties[name] = (min(before + 1.0, self.damping.most_penalty), now, before)
        self.held.pop(name, None)

    def back(self, now: float, name: str) -> float:
        """The node is back; seconds that it is to wait for work."""
        penalty = self.penalty(now, name)
        if penalty == 0.0:
            self._penalties.pop(name, None)
        hold_s = self.damping.hold_s(penalty)
        if hold_s > 0.0:
            self.held[name] = now + hold_s
        return hold_s

    def forgive(self, since: float) -> None:
        """Take back the deaths from ``since`` on: they were not the nodes' own."""
        for name, (_, at, before) in list(self._penalties.items()):
            if at >= since:
                self._penalties[name] = (before, at, before)
                self.held.pop(name, None)

    def release(self, now: float) -> list[str]:
        """Those whose hold is over."""
        over = [name for name, until in self.held.items() if until <= now]
        for name in over:
            del self.held[name]
        return over

    def hold_left_s(self, now: float, name: str) -> float:
        """Seconds until the node gets work again; 0 if it does."""
        return max(self.held.get(name, now) - now, 0.0)
