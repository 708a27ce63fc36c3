"""Whether the broker gives out what the source said last, under the topics of which only the source has the say.

A broker that comes back, or one bridged to it, may publish what it remembers of long ago as if it were new. So the source
listens to its own words, and says them again when others are in their place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

__all__ = ["Retained"]

_FIRST_S: Final = 1.0  # time for one's own words to come back
_MOST_S: Final = 60.0


@dataclass(slots=True)
class Retained:
    """Words by topic. Times are monotonic seconds."""

    _said: dict[str, bytes] = field(default_factory=dict)
    _given: dict[str, bytes] = field(default_factory=dict)
    _look_at: dict[str, float] = field(default_factory=dict)
    _pause_s: dict[str, float] = field(default_factory=dict)

    def said(self, now: float, topic: str, payload: bytes) -> None:
        """The source publishes this."""
        self._said[topic] = payload
        self._look_at[topic] = now + self._pause_s.get(topic, _FIRST_S)

    def given(self, topic: str, payload: bytes) -> None:
        """The broker gives this out."""
        self._given[topic] = payload
        if payload == self._said.get(topic):
            self._pause_s.pop(topic, None)

    def astray(self, now: float) -> list[str]:
        """Topics whose last words must be said again; each less often the more often it was in vain."""
        found = []
        for topic, payload in self._given.items():
            if topic in self._said and payload != self._said[topic] and now >= self._look_at[topic]:
                self._pause_s[topic] = min(2 * self._pause_s.get(topic, _FIRST_S), _MOST_S)
                found.append(topic)
        return found
