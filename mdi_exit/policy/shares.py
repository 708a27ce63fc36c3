"""Routing by shares: each node is told which part of the tasks of a layer goes where, and keeps to it by deficits.

The shares come from an optimiser who sees all nodes (``mdi_exit.optimum.routes``). Deficit round robin: with every task
each node's claim grows by its share, and the one that gets the task pays 1, so that after n tasks nobody is further than
a few from n times its share. Claims are bounded, so that who could take nothing for a while does not get it all at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from mdi_exit.policy.batching import MAX_BATCH
from mdi_exit.policy.candidates import HERE, Candidate, Own

__all__ = ["Routes", "by_share"]

_BOUND: Final = 4.0
_OVERDRAWN: Final = -2.0
_ROOM_HERE: Final = 2 * MAX_BATCH
_FRESH_S: Final = 10.0


@dataclass(slots=True)
class Routes:
    """The shares in force at one node, by layer: of ``HERE`` and of other nodes."""

    told_at: float = float("-inf")
    _shares: dict[int, dict[str, float]] = field(default_factory=dict)
    _claims: dict[int, dict[str, float]] = field(default_factory=dict)

    def told(self, now: float, shares: Mapping[int, Mapping[str, float]]) -> None:
        """New shares; they hold until the next, at most ten seconds."""
        self.told_at = now
        self._shares = {layer: dict(parts) for layer, parts in shares.items() if sum(parts.values()) > 0}
        self._claims = {layer: self._claims.get(layer, {}) for layer in self._shares}

    def hold(self, now: float, layer: int) -> bool:
        """Whether there are shares for tasks that enter this layer, and they are fresh."""
        return layer in self._shares and now - self.told_at <= _FRESH_S

    def due(self, layer: int, names: Collection[str]) -> dict[str, float]:
        """How many tasks each of ``names`` is behind its share, the one to be given now included.

        ``names``: who takes this layer at all; the share of others is theirs. None: nothing goes by shares. Claims count
        against each other only, so that who has all of the share is never ahead of it, whatever was owed under other shares.
        """
        if not names:
            return {}
        claims = self._claims[layer]
        parts = self._among(layer, names)
        mean = sum(claims.get(name, 0.0) for name in parts) / max(len(parts), 1)
        return {name: claims.get(name, 0.0) - mean + share for name, share in parts.items()}

    def took(self, layer: int, name: str, names: Collection[str]) -> None:
        """A task of this layer went to ``name``."""
        if not names:
            return
        claims = self._claims[layer]
        for other, share in self._among(layer, names).items():
            claims[other] = min(claims.get(other, 0.0) + share, _BOUND)
        claims[name] = max(claims.get(name, 0.0) - 1.0, -_BOUND)

    def _among(self, layer: int, names: Collection[str]) -> dict[str, float]:
        parts = {name: share for name, share in self._shares[layer].items() if name in names}
        total = sum(parts.values())
        return {name: share / total for name, share in parts.items()} if total > 0 else {}


def by_share(own: Own, candidates: Sequence[Candidate], rng: Random) -> str | None:
    """Who is furthest behind its share among those with room; nobody who is two tasks ahead of it.

    Here is room for two full batches of a layer in I_n: more would only keep admission from serving the others.
    """
    names = [candidate.name for candidate in candidates]
    if candidates and own.alike < _ROOM_HERE:
        names.append(HERE)
    return furthest_behind(own.due, names, rng)


def furthest_behind(due: Mapping[str, float], names: Iterable[str], rng: Random) -> str | None:
    """The one of ``names`` with the largest claim; None if all are overdrawn."""
    open_to = [name for name in names if due.get(name, -1.0) > _OVERDRAWN and name in due]
    if not open_to:
        return None
    most = max(due[name] for name in open_to)
    return rng.choice([name for name in open_to if due[name] >= most - 1e-9])
