"""Deadlines: an item that cannot meet its deadline takes the best exit that it has reached; an answer always.

Best is the surest one. A task without any exit yet runs on to its first: it has nothing else to say.
"""

from __future__ import annotations

from typing import Final

__all__ = ["answer_by", "grace_s", "is_hopeless"]

_LEEWAY_S: Final = 0.002
_GRACE: Final = 0.25
_LEAST_GRACE_S: Final = 0.02
_MOST_GRACE_S: Final = 0.25


def answer_by(deadline_at: float, delay_s: float) -> float:
    """When a node must answer at the latest: the result has the way to the source before it, ``delay_s`` one way.

    Twice that, since a task's deadline travels as what is left of it, and is late by the way that it took.
    """
    return deadline_at - 2 * delay_s - _LEEWAY_S


def is_hopeless(now: float, by: float, next_answer_s: float) -> bool:
    """Whether the next exit, ``next_answer_s`` from now, comes too late for an answer ``by`` then."""
    return now + next_answer_s > by


def grace_s(patience_s: float) -> float:
    """How long after a deadline the source waits for the answer that a node has given at the last moment.

    ``patience_s``: from admission to the deadline. Only then is the item an error.
    """
    return min(max(_GRACE * patience_s, _LEAST_GRACE_S), _MOST_GRACE_S)
