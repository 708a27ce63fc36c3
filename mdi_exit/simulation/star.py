"""The way of a message: MQTT is a star, so it goes up the sender's link, through the broker, and down the receiver's.

Each of these is a resource that serves one message at a time, in order of arrival. A shared medium is one resource for
all its stations, so that a message from one to another of them takes its airtime twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mdi_exit.events import Event, Outcome, Task
from mdi_exit.segments import SegmentKey
from mdi_exit.simulation.network import STATUS_BYTES, SimulatedNetwork
from mdi_exit.simulation.scenario import BrokerLimits, Link, Medium

__all__ = ["Pipe", "StarNetwork", "Wires"]


@dataclass(slots=True, eq=False)
class Pipe:
    """A resource: seconds a message and seconds a byte. ``busy_s``: how long it has been in use."""

    message_s: float
    byte_s: float
    free_at: float = 0.0
    busy_s: float = 0.0

    def enter(self, now: float, size: int) -> float:
        """A message of ``size`` bytes comes at ``now``; returns when it is through."""
        took = self.message_s + self.byte_s * size
        self.busy_s += took
        self.free_at = (self.free_at if self.free_at > now else now) + took
        return self.free_at


def _pipe(bytes_per_s: float | None, message_s: float = 0.0) -> Pipe | None:
    return Pipe(message_s, 1.0 / bytes_per_s if bytes_per_s else 0.0) if bytes_per_s or message_s else None


@dataclass(slots=True)
class _Station:
    """One node's two directions."""

    link: Link
    own_up: Pipe | None
    own_down: Pipe | None
    medium: Pipe | None

    @property
    def up(self) -> tuple[Pipe, ...]:
        return tuple(pipe for pipe in (self.own_up, self.medium) if pipe is not None)

    @property
    def down(self) -> tuple[Pipe, ...]:
        return tuple(pipe for pipe in (self.medium, self.own_down) if pipe is not None)


class Wires:
    """The links of one deployment. ``broker``: its limit, which deployments may share."""

    def __init__(self, links: Mapping[str, Link], media: Mapping[str, Medium], broker: tuple[Pipe, ...]) -> None:
        self.media = {name: Pipe(medium.frame_s, 1.0 / medium.bytes_per_s) for name, medium in media.items()}
        self.broker = broker
        self._stations: dict[str, _Station] = {}
        self._ways: dict[tuple[str, str], _Way] = {}
        for name, link in links.items():
            self.change(name, link)

    @staticmethod
    def broker_pipe(limits: BrokerLimits) -> tuple[Pipe, ...]:
        pipe = _pipe(limits.bytes_per_s, 1.0 / limits.messages_per_s if limits.messages_per_s else 0.0)
        return () if pipe is None else (pipe,)

    def change(self, name: str, link: Link) -> None:
        """From now on the node's link is this; what is on it keeps its pace."""
        before = self._stations.get(name)
        up, down = _pipe(link.up_bytes_per_s), _pipe(link.down_bytes_per_s)
        if before is not None:
            for new, old in ((up, before.own_up), (down, before.own_down)):
                if new is not None and old is not None:
                    new.free_at, new.busy_s = old.free_at, old.busy_s
        self._stations[name] = _Station(link, up, down, self.media[link.medium] if link.medium else None)
        self._ways.clear()

    def up(self, name: str) -> tuple[tuple[Pipe, ...], float]:
        """What lies between the node and the receivers' links, and the seconds of delay on its side."""
        station = self._stations[name]
        return (*station.up, *self.broker), station.link.delay_s

    def down(self, name: str) -> tuple[tuple[Pipe, ...], float]:
        """What lies between the broker and the node."""
        station = self._stations[name]
        return station.down, station.link.delay_s

    def way(self, sender: str, to: str) -> _Way:
        found = self._ways.get((sender, to))
        if found is None:
            found = self._ways[sender, to] = self._find_way(self._stations[sender], self._stations[to])
        return found

    def _find_way(self, sender: _Station, to: _Station) -> _Way:
        """The broker lies between ``sender.link.delay_s`` and ``to.link.delay_s``."""
        beyond = (*self.broker, *to.down)
        pipes = (*sender.up, *beyond)
        before = [0.0] * len(pipes)
        after_s = to.link.delay_s
        if beyond:
            before[len(sender.up)] = sender.link.delay_s
        else:
            after_s += sender.link.delay_s
        kept = (1.0 - sender.link.loss) * (1.0 - to.link.loss)
        return _Way(tuple(zip(pipes, before, strict=True)), after_s, 1.0 - kept, len(sender.up))

    @property
    def busy_s(self) -> dict[str, float]:
        """Seconds in use, by resource."""
        found = {f"medium {name}": pipe.busy_s for name, pipe in self.media.items()}
        for name, station in self._stations.items():
            found |= {f"{name} up": station.own_up.busy_s} if station.own_up else {}
            found |= {f"{name} down": station.own_down.busy_s} if station.own_down else {}
        return found


@dataclass(frozen=True, slots=True)
class _Way:
    """Resources in order, each with the seconds that it takes to come there from the one before; then ``after_s``.

    ``up``: how many of them are the sender's.
    """

    steps: tuple[tuple[Pipe, float], ...]
    after_s: float
    loss: float
    up: int


@dataclass(slots=True)
class StarNetwork(SimulatedNetwork):
    """One deployment of a scenario. A task's payload is what the exits will say of it, by exit: (class, score).

    ``hears``: by node, those whose status and telemetry it listens to, None: all others'. Nobody else has a use for them, and
    messages to everybody would grow with the square of the nodes.
    """

    wires: Wires = field(kw_only=True)
    hears: Mapping[str, tuple[str, ...] | None] = field(kw_only=True)
    _listeners: dict[str, tuple[str, ...]] = field(init=False)
    _exit_numbers: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        SimulatedNetwork.__post_init__(self)
        self._exit_numbers = {layer + 1: number for number, layer in enumerate(self.plan.exit_layers)}
        to_all = [name for name, heard in self.hears.items() if heard is None]
        listeners = {name: [other for other in to_all if other != name] for name in self.hears}
        for name, heard in self.hears.items():
            for other in heard or ():
                listeners[other].append(name)
        self._listeners = {name: tuple(found) for name, found in listeners.items()}

    def _outcome(self, key: SegmentKey, task: Task) -> Outcome:
        stop = key.stop
        size = self.plan.feature_bytes[stop] if stop < self.plan.layer_count else 0
        if not key.head:
            return Outcome(None, 0.0, task.payload, size)
        label, score = task.payload[self._exit_numbers[stop]]  # type: ignore[index] # a row of the trace
        return Outcome(label, score, task.payload, size)

    # --- messages

    def _send(self, sender: str, to: str, event: Event, size: int, *, lossy: bool = False) -> None:
        if to not in self.nodes:
            return
        way = self.wires.way(sender, to)
        self.nodes[sender].sent_bytes += size
        target = "" if lossy and way.loss and self.rng.random() < way.loss else to
        if way.steps:
            self._step(way, 0, (target, event, size))
        elif target:
            self.clock.call_at(self.clock.now + way.after_s, self._deliver, target, event)

    def _step(self, way: _Way, number: int, message: tuple[str, Event, int]) -> None:
        """A message comes to a resource. What is lost, to nobody, has taken its way as well."""
        to, event, size = message
        clock, steps = self.clock, way.steps
        done_at = steps[number][0].enter(clock.now, size)
        number += 1
        if number < len(steps):
            clock.call_at(done_at + steps[number][1], self._step, way, number, message)
        elif to:
            clock.call_at(done_at + way.after_s, self._deliver, to, event)

    def _broadcast(self, sender: str, event: Event, size: int = STATUS_BYTES, *, to_all: bool = False) -> None:
        """Up the sender's link once, from the broker on once for each listener."""
        listeners = self.nodes if to_all else self._listeners[sender]
        targets = [name for name in listeners if name in self.nodes and name != sender]
        if not targets:
            return
        node = self.nodes[sender]
        node.sent_bytes += size
        self._up(sender, 0 if node.up else self.wires.way(sender, targets[0]).up, (targets, event, size))

    def _up(self, sender: str, number: int, message: tuple[Sequence[str], Event, int]) -> None:
        """To the broker; a last will begins there."""
        targets, event, size = message
        clock, way_of = self.clock, self.wires.way
        first = way_of(sender, targets[0])
        if number < first.up:
            done_at = first.steps[number][0].enter(clock.now, size)
            clock.call_at(done_at, self._up, sender, number + 1, message)
            return
        for to in targets:
            way = way_of(sender, to)
            if len(way.steps) > way.up:
                clock.call_at(clock.now + way.steps[way.up][1], self._step, way, way.up, (to, event, size))
            else:
                clock.call_at(clock.now + way.after_s, self._deliver, to, event)

    def _heard_by(self, name: str) -> Iterable[str]:
        heard = self.hears[name]
        return self.nodes if heard is None else heard
