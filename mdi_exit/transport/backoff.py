"""When to ask a broker again that does not answer: full jitter under a bound that grows with the attempts and the outage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["Backoff"]

_FIRST_S: Final = 0.1
_SHORT_MOST_S: Final = 1.0
_MOST_S: Final = 5.0
_PART_OF_OUTAGE: Final = 0.1


@dataclass(slots=True)
class Backoff:
    """The attempts of one outage. A broker that restarts is met again within a second of its return, one that is gone for
    long is asked seldom: the bound is doubled with every attempt from 0.1 s, up to a tenth of the outage so far; that is
    taken as 1 s at least and 5 s at most.
    """

    _attempts: int = 0
    _began: float | None = None

    def ended(self) -> None:
        """The outage is over: there was a connection that lasted."""
        self._attempts, self._began = 0, None

    def failed(self, now: float, *, is_last: bool = True) -> float:
        """No connection at ``now`` (monotonic seconds): the most seconds to wait until the next attempt.

        Not ``is_last``: there are other brokers to try first, so that it is at most the first bound and counts for nothing.
        """
        if self._began is None:
            self._began = now
        if not is_last:
            return _FIRST_S
        longest_s = min(max(_PART_OF_OUTAGE * (now - self._began), _SHORT_MOST_S), _MOST_S)
        most_s = min(_FIRST_S * 2.0**self._attempts, longest_s)
        self._attempts = min(self._attempts + 1, 10)
        return most_s
