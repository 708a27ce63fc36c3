"""Who is there: statuses, signs of life and links of the other nodes.

A node's name is unique in a deployment; every start has an incarnation number, so that a late will, or a status that the
broker remembers of a node long gone, is recognised. A remembered status counts only after a live sign.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from mdi_exit.links import Inbound, Outbound
from mdi_exit.reports import completed
from mdi_exit.span import LayerSpan
from mdi_exit.wire import Status, Telemetry

__all__ = ["Change", "Members", "Peer"]


class Change(StrEnum):
    """What a message said about a node."""

    NONE = "none"
    JOINED = "joined"
    LEFT = "left"
    UPDATED = "updated"


@dataclass(slots=True)
class Peer:
    """One other node, in its present incarnation. ``alive``: it has given a live sign and is not silent since."""

    status: Status
    heard_at: float
    out: Outbound
    alive: bool
    telemetry: Telemetry | None = None
    probed_at: float = float("-inf")

    @property
    def name(self) -> str:
        return self.status.node

    @property
    def span(self) -> LayerSpan | None:
        span = self.status.span
        return LayerSpan(*span) if span is not None and span[0] < span[1] else None

    @property
    def ready(self) -> bool:
        """It takes tasks now."""
        status = self.status
        span = status.span
        return self.alive and status.online and status.state == "ready" and span is not None and span[0] < span[1]

    @property
    def served(self) -> list[LayerSpan]:
        """Its span, and those that it leaves but serves still."""
        held = [self.span] if self.span is not None else []
        return held + [LayerSpan(*span) for span in self.status.leaving if span[0] < span[1]]

    def takes(self, layer: int) -> bool:
        return self.ready and layer in self.status.entries


@dataclass(slots=True)
class Members:
    """All other nodes of the deployment that this node has heard of. ``name`` is its own.

    ``changes`` counts whatever alters who is there and what they take, so that others need not look at every node at every
    event; ``owing``: the senders to whom an acknowledgement is due; ``dead``: the nodes that are not alive;
    ``autos``: those that let the source place their layers.
    ``hears``: those whose telemetry this node listens to, hence whose silence means something; None: all.
    """

    name: str
    dead_after_s: float
    hears: frozenset[str] | None = None
    changes: int = 0
    owing: dict[str, Inbound] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    autos: set[str] = field(default_factory=set)
    peers: dict[str, Peer] = field(default_factory=dict)
    inbounds: dict[str, Inbound] = field(default_factory=dict)
    _silent_at: float = 0.0
    _served: dict[str, list[LayerSpan]] = field(default_factory=dict)
    _spans: Counter[LayerSpan] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self.peers.values())

    def get(self, name: str) -> Peer | None:
        return self.peers.get(name)

    def status(self, now: float, status: Status, *, retained: bool) -> Change:
        """Take in a status message; a will of another incarnation than the known one changes nothing."""
        known = self.peers.get(status.node)
        if known is None or known.status.incarnation != status.incarnation:
            if not status.online:
                return Change.NONE
            link = Outbound(status.incarnation, status.window)
            known = self.peers[status.node] = Peer(status, now, link, alive=not retained)
            self._note(known)
            return Change.NONE if retained else Change.JOINED
        change = self._update(now, known, status, retained=retained)
        self._note(known)
        return change

    @staticmethod
    def _update(now: float, known: Peer, status: Status, *, retained: bool) -> Change:
        was_alive = known.alive and known.status.online
        known.status = status
        known.out.window = status.window
        if not retained:
            known.alive, known.heard_at = status.online, now
        if was_alive and not status.online:
            known.alive = False
            return Change.LEFT
        return Change.JOINED if known.alive and not was_alive else Change.UPDATED

    def _note(self, peer: Peer) -> None:
        """Something may have changed of it."""
        self.changes += 1
        name = peer.status.node
        (self.dead.discard if peer.alive else self.dead.add)(name)
        (self.autos.add if peer.status.auto else self.autos.discard)(name)
        self._spans.subtract(self._served.pop(name, ()))
        if peer.ready:
            self._served[name] = peer.served
            self._spans.update(peer.served)

    def telemetry(self, now: float, telemetry: Telemetry) -> Change:
        """Take in a load report; one of an unknown incarnation is dropped."""
        peer = self.peers.get(telemetry.node)
        if peer is None or peer.status.incarnation != telemetry.incarnation:
            return Change.NONE
        peer.telemetry = completed(peer.telemetry, telemetry)
        peer.out.reported(now, telemetry.inputs, telemetry.backlog_s, telemetry.received.get(self.name, 0))
        return self.heard(now, telemetry.node, telemetry.incarnation)

    def heard(self, now: float, name: str, incarnation: int) -> Change:
        """Any message of a node is a live sign."""
        peer = self.peers.get(name)
        if peer is None or peer.status.incarnation != incarnation or not peer.status.online:
            return Change.NONE
        peer.heard_at = now
        if peer.alive:
            return Change.NONE
        peer.alive = True
        self._note(peer)
        return Change.JOINED

    def silent(self, now: float) -> list[Peer]:
        """Nodes that have just been silent for too long; they are not alive until heard again."""
        if now <= self._silent_at:
            return []  # none can have been silent for so long since the last look at all of them
        heard_at = now
        gone = []
        for peer in self:
            if self.hears is not None and peer.status.node not in self.hears:
                continue
            if peer.alive and now - peer.heard_at > self.dead_after_s:
                peer.alive = False
                self._note(peer)
                gone.append(peer)
            elif peer.alive and peer.heard_at < heard_at:
                heard_at = peer.heard_at
        self._silent_at = heard_at + self.dead_after_s
        return gone

    def owe(self, now: float, sender: str, inbound: Inbound, delay_s: float) -> None:
        """An acknowledgement to ``sender`` is due within ``delay_s``."""
        inbound.owe(now, delay_s)
        self.owing[sender] = inbound

    def inbound(self, sender: str, incarnation: int) -> Inbound | None:
        """The receiving side of the link from ``sender``; None for a start of it that is known to be over."""
        peer = self.peers.get(sender)
        if peer is not None and peer.status.incarnation != incarnation:
            return None
        inbound = self.inbounds.get(sender)
        if inbound is None or inbound.incarnation != incarnation:
            inbound = self.inbounds[sender] = Inbound(incarnation)
            self.owing.pop(sender, None)
        return inbound

    def announced_spans(self) -> list[LayerSpan]:
        """Spans of the nodes that are online, ready or not, those that are being left included."""
        return [span for peer in self if peer.status.online for span in peer.served]

    def spans(self) -> list[LayerSpan]:
        """Spans of the nodes that take tasks now, each once, those that are being left included."""
        return [span for span, count in self._spans.items() if count]

    def held(self) -> frozenset[int]:
        """Layers that the nodes that take tasks now hold, and do not merely leave."""
        return frozenset(layer for peer in self if peer.ready and peer.span is not None for layer in peer.span)
