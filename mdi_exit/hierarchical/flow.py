"""Who may send, who learns next, how old a batch may be: both ends of hierarchical training, without clock or network.

Rules, at each end in the order in which they are applied:

======  ==================================================================================================================
edge    1. no link: train on, send nothing (the batch is *skipped*); 2. a credit is there: send; 3. wait for one
cloud   1. a batch older than ``most_stale`` steps of its edge is dropped, and its credit given back;
        2. of the edges with a batch waiting, the one that has had the least for its share of all data goes first
======  ==================================================================================================================

Batches are numbered from 1 for each pair of starts (an edge's, the cloud's). An edge may have ``window`` of them on the way:
that bounds memory everywhere, and the staleness of what the cloud learns from. Every number in a report is cumulative, so a
lost report costs nothing, and a lost batch only itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

__all__ = ["CloudFlow", "EdgeFlow", "Grant", "Offer", "Turn"]

T = TypeVar("T")


class Offer(StrEnum):
    """What an edge does with a batch that it has trained on."""

    SEND = "send"
    WAIT = "wait"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Grant:
    """The cloud to one edge, all cumulative: it may send up to ``allowed``; up to ``settled`` nothing is open any more."""

    allowed: int = 0
    settled: int = 0
    trained: int = 0
    dropped: int = 0
    lost: int = 0


@dataclass(slots=True)
class EdgeFlow:
    """An edge's side. Times are seconds on its own clock; ``dead_after_s`` of silence from the cloud is a lost link.

    ``longest_open``: steps from a batch's sending to the word that it was trained, dropped or lost, at most."""

    dead_after_s: float
    grant: Grant = field(default_factory=Grant)
    sent: int = 0
    skipped: int = 0
    connected: bool = False
    heard_at: float | None = None
    longest_open: int = 0
    first_skipped: int | None = None
    last_skipped: int | None = None
    _steps: dict[int, int] = field(default_factory=dict)

    def link_is_up(self, now: float) -> bool:
        return self.connected and self.heard_at is not None and now - self.heard_at <= self.dead_after_s

    def offer(self, now: float) -> Offer:
        """What to do with the batch that was just trained on; asked again after WAIT."""
        if not self.link_is_up(now):
            return Offer.SKIP
        return Offer.SEND if self.sent < self.grant.allowed else Offer.WAIT

    def sending(self, step: int) -> int:
        """The number of the batch of ``step`` that is now sent. Raises ``ValueError`` without a credit."""
        if self.sent >= self.grant.allowed:
            raise ValueError(f"expected a credit, got number {self.sent + 1} with {self.grant.allowed} allowed")
        self.sent += 1
        self._steps[self.sent] = step
        return self.sent

    def skipping(self, step: int) -> None:
        """The batch of ``step`` is not sent."""
        self.skipped += 1
        self.first_skipped = step if self.first_skipped is None else self.first_skipped
        self.last_skipped = step

    def granted(self, grant: Grant, step: int, now: float) -> None:
        """The cloud reports. ``step``: how far the edge is, so that the age of what was settled is known."""
        self.heard_at = now
        for number in [number for number in self._steps if number <= grant.settled]:
            self.longest_open = max(self.longest_open, step - self._steps.pop(number))
        if grant.settled >= self.grant.settled:
            self.grant = grant

    def restarted(self) -> None:
        """The cloud is another one: numbers begin anew."""
        self.grant, self.sent = Grant(), 0
        self._steps.clear()

    @property
    def open(self) -> int:
        """Batches sent of which nothing is known yet."""
        return max(self.sent - self.grant.settled, 0)


@dataclass(frozen=True, slots=True)
class Turn(Generic[T]):
    """A batch whose turn it is."""

    edge: str
    seq: int
    step: int
    count: int
    batch: T


@dataclass(slots=True)
class _Edge(Generic[T]):
    incarnation: int
    samples: int
    queue: deque[Turn[T]] = field(default_factory=deque)
    at_work: int | None = None
    received: int = 0
    newest_step: int = 0
    trained: int = 0
    dropped: int = 0
    lost: int = 0
    learned: int = 0

    @property
    def settled(self) -> int:
        waiting = self.at_work if self.at_work is not None else self.queue[0].seq if self.queue else None
        return self.received if waiting is None else waiting - 1


@dataclass(slots=True)
class CloudFlow(Generic[T]):
    """The cloud's side, for any number of edges. ``most_stale``: in steps of the edge that a batch comes from."""

    window: int
    most_stale: int
    stalest: int = 0
    _edges: dict[str, _Edge[T]] = field(default_factory=dict)

    @property
    def edges(self) -> tuple[str, ...]:
        return tuple(self._edges)

    def joined(self, name: str, incarnation: int, samples: int) -> None:
        """An edge is there, or is there again with a new start: then what waits of the earlier one is forgotten."""
        known = self._edges.get(name)
        if known is None or known.incarnation != incarnation:
            learned = known.learned if known is not None else 0
            self._edges[name] = _Edge(incarnation, samples, learned=learned)

    def learned(self, name: str) -> int:
        """Samples of that edge that were learned from."""
        return self._edges[name].learned

    def heard(self, name: str, incarnation: int, last_seq: int, step: int) -> None:
        """An edge says how far it is. What it sent before this and is not here will never come."""
        if (edge := self._known(name, incarnation)) is not None:
            edge.newest_step = max(edge.newest_step, step)
            if last_seq > edge.received:
                edge.lost += last_seq - edge.received
                edge.received = last_seq

    def arrived(self, name: str, incarnation: int, seq: int, step: int, count: int, batch: T) -> bool:
        """A batch comes; False if it is not taken: of another start, there before, or sent without a credit."""
        edge = self._known(name, incarnation)
        if edge is None or seq <= edge.received or seq > edge.settled + self.window:
            return False
        edge.lost += seq - edge.received - 1
        edge.received = seq
        edge.newest_step = max(edge.newest_step, step)
        edge.queue.append(Turn(name, seq, step, count, batch))
        return True

    def next(self) -> Turn[T] | None:
        """The batch to learn from now; None: nothing waits. The one before it must be ``done``."""
        for edge in self._edges.values():
            while edge.queue and edge.newest_step - edge.queue[0].step > self.most_stale:
                edge.queue.popleft()
                edge.dropped += 1
        ready = [name for name, edge in self._edges.items() if edge.queue]
        if not ready:
            return None
        edge = self._edges[min(ready, key=lambda name: (self._share(name), name))]
        turn = edge.queue.popleft()
        edge.at_work = turn.seq
        self.stalest = max(self.stalest, edge.newest_step - turn.step)
        return turn

    def done(self, turn: Turn[T]) -> None:
        """It was learned from."""
        edge = self._edges[turn.edge]
        if edge.at_work == turn.seq:
            edge.at_work = None
            edge.trained += 1
        edge.learned += turn.count

    def grant(self, name: str) -> Grant:
        edge = self._edges[name]
        return Grant(edge.settled + self.window, edge.settled, edge.trained, edge.dropped, edge.lost)

    def _known(self, name: str, incarnation: int) -> _Edge[T] | None:
        edge = self._edges.get(name)
        return edge if edge is not None and edge.incarnation == incarnation else None

    def _share(self, name: str) -> float:
        edge = self._edges[name]
        return edge.learned / max(edge.samples, 1)

    def validate(self) -> None:
        """Raises ``ValueError`` if a batch is neither waiting nor at work, trained, dropped or lost."""
        for name, edge in self._edges.items():
            open_now = len(edge.queue) + (edge.at_work is not None)
            known = edge.trained + edge.dropped + edge.lost + open_now
            if known != edge.received or open_now > self.window:
                raise ValueError(f"edge {name}: expected {edge.received} batches, got {known}, {open_now} of them open")
