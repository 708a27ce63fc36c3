"""Baselines that look at queues at most, not at speeds or links: random, and join-the-shortest-queue.

All decide for each task once, when it is created.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from mdi_exit.policy.candidates import HERE, Candidate, Own

__all__ = ["anyone", "shortest_queue", "whole_items"]


def anyone(own: Own, candidates: Sequence[Candidate], rng: Random) -> str | None:
    """Each node that has room, this one included, is as likely."""
    del own
    return rng.choice([HERE, *(candidate.name for candidate in candidates)]) if candidates else None


def shortest_queue(own: Own, candidates: Sequence[Candidate], rng: Random) -> str | None:
    """Where the fewest tasks wait; here, if it is no longer than the others'."""
    if not candidates:
        return None
    least = min(candidate.inputs for candidate in candidates)
    if own.inputs <= least:
        return HERE
    return rng.choice([candidate.name for candidate in candidates if candidate.inputs == least])


def whole_items(own: Own, candidates: Sequence[Candidate], rng: Random) -> str | None:
    """By the shortest queue as long as no layer has been run; then the item stays where it is."""
    return HERE if own.begun and candidates else shortest_queue(own, candidates, rng)
