"""Who is there: statuses, signs of life and links of the other nodes.

A node's name is unique in a deployment; every start has an incarnation number, so that a late will, or a status that the
broker remembers of a node long gone, is recognised. A remembered status counts only after a live sign, and so does one of an
earlier start while a later one is alive: a broker that comes back gives out what it remembers as if it were new.

Silence counts from when this node itself could hear: one that was cut off, or stopped, does not judge the others by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from mdi_exit.links import DelayModel, Inbound, Outbound
from mdi_exit.policy.damping import Flaps
from mdi_exit.policy.silence import Patience, Rhythm
from mdi_exit.reports import completed
from mdi_exit.span import LayerSpan
from mdi_exit.wire import Status, Telemetry

__all__ = ["GOODBYE", "Change", "Members", "Peer"]

GOODBYE: Final = "left"
"""State in the status of a node that ended as it should; a last will has none of it."""

_OWN_PAUSE_S: Final = 0.5  # so late, this node was not running itself
_LAST_WORDS_S: Final = 1.0  # a broker that ends publishes the wills of all


class Change(StrEnum):
    """What a message said about a node."""

    NONE = "none"
    JOINED = "joined"
    LEFT = "left"
    UPDATED = "updated"


@dataclass(slots=True)
class Peer:
    """One other node, in its present incarnation. ``alive``: it has given a live sign and is not silent since.

    ``earlier``: a status of an earlier start, put aside.
    """

    status: Status
    heard_at: float
    out: Outbound
    alive: bool
    telemetry: Telemetry | None = None
    probed_at: float = float("-inf")
    rhythm: Rhythm = field(default_factory=Rhythm)
    earlier: Status | None = None

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
    ``restarts``: how often a start took the place of another; ``autos``: those that let the source place their layers.
    ``hears``: those whose telemetry this node listens to, hence whose silence means something; None: all.
    ``dead_after_s``: the longest silence that is borne of a node that reports as often as it should; ``look_at``: when it is
    to be looked for silence next.
    """

    name: str
    dead_after_s: float
    hears: frozenset[str] | None = None
    changes: int = 0
    restarts: int = 0
    owing: dict[str, Inbound] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    autos: set[str] = field(default_factory=set)
    peers: dict[str, Peer] = field(default_factory=dict)
    inbounds: dict[str, Inbound] = field(default_factory=dict)
    flaps: Flaps = field(default_factory=Flaps)
    look_at: float = float("-inf")
    _hearing_since: float = float("-inf")
    _patience: Patience = field(init=False)
    _served: dict[str, list[LayerSpan]] = field(default_factory=dict)
    _spans: Counter[LayerSpan] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._patience = Patience(least_s=0.8 * self.dead_after_s, most_s=self.dead_after_s)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self.peers.values())

    def get(self, name: str) -> Peer | None:
        return self.peers.get(name)

    def status(self, now: float, status: Status, *, retained: bool) -> Change:
        """Take in a status message; a will of another incarnation than the known one changes nothing."""
        known = self.peers.get(status.node)
        if known is not None and known.status.incarnation == status.incarnation:
            change = self._update(now, known, status, retained=retained)
            self._note(known)
            return change
        if not status.online:
            return Change.NONE
        if known is not None and known.alive and status.incarnation < known.status.incarnation:
            known.earlier = status
            return Change.NONE
        return self._start(now, known, status, alive=not retained)

    def _start(self, now: float, known: Peer | None, status: Status, *, alive: bool) -> Change:
        """Another start of a node takes the place of the known one."""
        self.restarts += known is not None
        if known is not None and known.alive:
            self.flaps.died(now, known.name)
        peer = self.peers[status.node] = Peer(status, now, Outbound(status.incarnation, status.window), alive=alive)
        return self._joined(now, peer) if alive else self._changed(peer, Change.NONE)

    def _joined(self, now: float, peer: Peer) -> Change:
        self.flaps.back(now, peer.name)
        # An old slow sample would keep work away from it, and with it newer samples.
        peer.out.measured_from, peer.out.delay = now, DelayModel()
        return self._changed(peer, Change.JOINED)

    def _changed(self, peer: Peer, change: Change) -> Change:
        self._note(peer)
        return change

    def _update(self, now: float, known: Peer, status: Status, *, retained: bool) -> Change:
        was_alive = known.alive and known.status.online
        known.status = status
        known.out.window = status.window
        if not retained:
            known.alive, known.heard_at = status.online, now
        if was_alive and not status.online:
            known.alive = False
            if not retained and status.state != GOODBYE:
                self.flaps.died(now, known.name)
            return Change.LEFT
        if known.alive and not was_alive:
            return self._joined(now, known)
        return Change.UPDATED

    def _note(self, peer: Peer) -> None:
        """Something may have changed of it."""
        self.changes += 1
        name = peer.status.node
        (self.dead.discard if peer.alive else self.dead.add)(name)
        (self.autos.add if peer.status.auto else self.autos.discard)(name)
        for span in self._served.pop(name, ()):
            self._spans[span] -= 1
            if not self._spans[span]:
                del self._spans[span]
        if peer.ready:
            self._served[name] = peer.served
            self._spans.update(peer.served)

    def telemetry(self, now: float, telemetry: Telemetry) -> Change:
        """Take in a load report; one of an unknown incarnation is dropped."""
        change = self.heard(now, telemetry.node, telemetry.incarnation)
        peer = self.peers.get(telemetry.node)
        if peer is not None and peer.status.incarnation == telemetry.incarnation:
            peer.rhythm.reported(now, self._patience)
            peer.telemetry = completed(peer.telemetry, telemetry)
            peer.out.reported(now, telemetry.inputs, telemetry.backlog_s, telemetry.received.get(self.name, 0))
        return change

    def heard(self, now: float, name: str, incarnation: int) -> Change:
        """Any message of a node is a live sign."""
        peer = self.peers.get(name)
        if peer is None:
            return Change.NONE
        if peer.earlier is not None and incarnation == peer.earlier.incarnation:
            return self._start(now, peer, peer.earlier, alive=True)  # its clock went back
        if peer.status.incarnation != incarnation or not peer.status.online:
            return Change.NONE
        peer.heard_at = now
        if peer.alive:
            return Change.NONE
        peer.alive = True
        return self._joined(now, peer)

    def is_gone(self, name: str, incarnation: int) -> bool:
        """Whether this start (0: any) of a node that was there is dead, as far as known."""
        peer = self.peers.get(name)
        return peer is not None and not (peer.alive and incarnation in (0, peer.status.incarnation))

    # --- silence

    def connected(self, now: float) -> None:
        """This node can hear from now on."""
        self._listen_from(now)

    def disconnected(self, now: float) -> None:
        """What was heard last was the broker's end and no death of a node."""
        self.flaps.forgive(now - _LAST_WORDS_S)
        self.changes += 1

    def _listen_from(self, now: float) -> None:
        self._hearing_since = self.look_at = now

    def silent(self, now: float) -> list[Peer]:
        """Nodes that have just been silent for too long; they are not alive until heard again."""
        if now <= self.look_at:
            return []  # none can have been silent for so long since the last look at all of them
        if now - self.look_at > _OWN_PAUSE_S and self._hearing_since < self.look_at:
            self._listen_from(now)
        gone, look_at = [], now + self._patience.least_s
        for peer in self:
            if not peer.alive or (self.hears is not None and peer.status.node not in self.hears):
                continue
            due_at = max(peer.heard_at, self._hearing_since) + peer.rhythm.limit_s(self._patience)
            if now > due_at:
                peer.alive = False
                self.flaps.died(now, peer.name)
                self._note(peer)
                gone.append(peer)
            else:
                look_at = min(look_at, due_at)
        self.look_at = look_at
        return gone

    def release(self, now: float) -> list[Peer]:
        """Nodes that may be given work again, after they were held back for coming and going."""
        over = [self.peers[name] for name in self.flaps.release(now)] if self.flaps.held else []
        self.changes += len(over)
        return over

    # --- links

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
        return list(self._spans)

    def held(self) -> frozenset[int]:
        """Layers that the nodes that take tasks now hold, and do not merely leave."""
        return frozenset(layer for peer in self if peer.ready and peer.span is not None for layer in peer.span)
