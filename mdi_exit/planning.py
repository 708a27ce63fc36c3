"""The source's placement of layers on the agents that let it choose: when to look again, on what figures, what came of it.

The planner itself is ``mdi_exit.placement``; it takes tens to hundreds of milliseconds, so a look is a ``MakePlan`` command
and its answer comes back as an event. It is asked for when nodes join, leave, or are measured faster or slower than the plan
took them for, when another share of the items reaches the later layers, at once when a layer is lost, and now and then
since resting nodes may move again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from mdi_exit.events import Command, MakePlan, Notice
from mdi_exit.membership import Members, Peer
from mdi_exit.placement import Decision, Device, PlacementRules, Problem
from mdi_exit.segments import ModelPlan
from mdi_exit.span import LayerSpan
from mdi_exit.wire import Span, Status, Telemetry

__all__ = ["ExitMix", "Planning", "devices_of"]

_LOOK_S: Final = 0.2
_ENOUGH_ITEMS: Final = 20
_MEMORY: Final = 0.98
_ABSENT: Final = ("draining", "drained")


@dataclass(slots=True)
class ExitMix:
    """Share of recent items by exit; older ones count less. Until enough are known, every item is taken to go all the way."""

    _recent: dict[int, float] = field(default_factory=dict)
    _known: Counter[int] = field(default_factory=Counter)

    def seen(self, exits: Counter[int]) -> None:
        """``exits``: totals of the run so far."""
        new = exits - self._known
        if new:
            self._known = Counter(exits)
            kept = _MEMORY ** new.total()
            self._recent = {
                number: kept * self._recent.get(number, 0.0) + new[number] for number in {*self._recent, *new}
            }

    def reach(self, plan: ModelPlan) -> tuple[float, ...]:
        """For each layer, the share of items that enter it."""
        total = sum(self._recent.values())
        if self._known.total() < _ENOUGH_ITEMS or total <= 0:
            return (1.0,) * plan.layer_count
        shares = {plan.exit_layers[n]: count / total for n, count in self._recent.items() if n < len(plan.exit_layers)}
        left, reach = 1.0, []
        for layer in range(plan.layer_count):
            reach.append(max(left, 1e-3))
            left -= shares.get(layer, 0.0)
        return tuple(reach)


@dataclass(frozen=True, slots=True)
class _Basis:
    """What a plan was made on."""

    nodes: frozenset[tuple[str, int, LayerSpan | None]]
    speeds: Mapping[str, float]
    reach: tuple[float, ...]


@dataclass(slots=True)
class Planning:
    """``spans``: of the plan in force, by node; ``epoch``: its number; ``moves``: spans given to nodes that had others.

    ``forced``: those of them because a layer was lost. ``rate_per_s``: what the plan promises, ``bottleneck`` its limit.
    """

    source: str
    rules: PlacementRules
    spans: dict[str, LayerSpan] = field(default_factory=dict)
    epoch: int = 0
    moves: int = 0
    forced: int = 0
    rate_per_s: float = 0.0
    bottleneck: str = ""
    mix: ExitMix = field(default_factory=ExitMix)
    moved_at: dict[str, float] = field(default_factory=dict)
    _starts: dict[str, int] = field(default_factory=dict)
    _basis: _Basis | None = None
    _asked: _Basis | None = None
    _look_at: float = 0.0
    _due_at: float | None = None
    _again_at: float = math.inf
    _told: str = ""
    _factors: dict[str, float] = field(default_factory=dict)
    _measured_at: float = 0.0

    def on_wire(self) -> dict[str, Span]:
        """For ``Control.spans``."""
        return {name: (span.first, span.stop) for name, span in sorted(self.spans.items())}

    # --- when

    def due(self, now: float, members: Members) -> bool:
        """Whether it is time to ``look``: asked at most events, so a deployment without such agents costs nothing."""
        if now < self._look_at or self._asked is not None:
            return False
        return bool(members.autos)

    def look(self, now: float, members: Members, own: Device, plan: ModelPlan, exits: Counter[int]) -> MakePlan | None:
        """What to ask of the planner now, if anything. ``own``: the source's own part."""
        if not self.due(now, members):
            return None
        self._look_at = now + _LOOK_S
        peers = [peer for peer in members if _is_there(peer)]
        self._forget_absent(peers)
        self.mix.seen(exits)
        reach = self.mix.reach(plan)
        self._measure(now, peers, plan)
        reports = [(peer.status, peer.telemetry, self.spans.get(peer.name)) for peer in peers]
        devices = [own, *devices_of(reports, plan, self._factors)]
        basis = _Basis(
            frozenset(
                (device.name, self._starts[device.name], device.span if device.fixed else None)
                for device in devices[1:]
            ),
            {device.name: sum(device.layer_s) for device in devices},
            reach,
        )
        problem = Problem(plan, reach, tuple(devices), self.source)
        if not self._is_due(now, basis, lost=not problem.covered(problem.present().values())):
            return None
        self._asked, self._due_at = basis, None
        resting = tuple(name for name, at in self.moved_at.items() if now - at < self.rules.rest_s)
        return MakePlan(problem, resting, self.rules)

    def _is_due(self, now: float, basis: _Basis, *, lost: bool) -> bool:
        news = self._is_news(basis) or now >= self._again_at
        if not news:
            self._due_at = None
            return False
        if lost and self._basis is not None and basis.nodes != self._basis.nodes:
            return True
        if self._due_at is None:
            self._due_at = now + self.rules.settle_s
        return now >= self._due_at

    def _is_news(self, basis: _Basis) -> bool:
        known, rules = self._basis, self.rules
        if known is None or basis.nodes != known.nodes:
            return True
        for name, seconds in basis.speeds.items():
            before = known.speeds.get(name, seconds)
            if not 1 / (1 + rules.speed_band) <= seconds / max(before, 1e-12) <= 1 + rules.speed_band:
                return True
        return any(abs(a - b) > rules.mix_band for a, b in zip(basis.reach, known.reach, strict=False))

    def _forget_absent(self, peers: Iterable[Peer]) -> None:
        """A node that is gone, or that has started anew, holds nothing of the plan."""
        starts = {peer.name: peer.status.incarnation for peer in peers}
        for name in [name for name in self.spans if starts.get(name) != self._starts.get(name)]:
            del self.spans[name]
        for known in (self.moved_at, self._factors):
            for name in [name for name in known if starts.get(name) != self._starts.get(name)]:
                del known[name]
        self._starts = starts

    def _measure(self, now: float, peers: Iterable[Peer], plan: ModelPlan) -> None:
        """Follow the measured speeds slowly: a busy moment is no reason to move a model."""
        weight = min((now - self._measured_at) / self.rules.smooth_s, 1.0)
        self._measured_at = now
        for peer in peers:
            factor = _measured(peer.status, peer.telemetry, plan)
            if factor is not None:
                before = self._factors.get(peer.name, factor)
                self._factors[peer.name] = before + weight * (factor - before)

    # --- what came of it

    def made(self, now: float, decision: Decision, members: Members) -> list[Command]:
        """Take the planner's answer; lines for people. The plan in force is then ``spans``.

        An answer that counts on a node that has gone meanwhile is not taken: the question is put again.
        """
        asked, self._asked = self._asked, None
        there = {(peer.name, peer.status.incarnation) for peer in members if _is_there(peer)}
        if asked is not None and any((name, start) not in there for name, start, _ in asked.nodes):
            self._look_at = now
            return []
        self._basis, self._again_at = asked, now + self.rules.rest_s
        told: list[Command] = []
        if decision.rate_per_s == 0.0:
            return self._tell(
                "unplaced", "no placement: the agents of --layers auto cannot hold all layers between them"
            )
        self.rate_per_s, self.bottleneck = decision.rate_per_s, decision.bottleneck
        changed = [name for name in (*decision.moved, *decision.joined) if name in self._starts]
        for name in sorted(decision.spans.keys() & self._starts.keys()):
            self.spans[name] = decision.spans[name]
        if not changed:
            return told
        self.epoch += 1
        for name in changed:
            if name in decision.moved:
                self.moved_at[name] = now
                self.moves += 1
                self.forced += decision.forced
        given = ", ".join(f"{name} {decision.spans[name]}" for name in sorted(changed))
        why = " (layers were lost)" if decision.forced else ""
        return self._tell("plan", f"plan {self.epoch}{why}: {given}; {decision.rate_per_s:.3g} items/s expected")

    def _tell(self, kind: str, text: str) -> list[Command]:
        if text == self._told:
            return []
        self._told = text
        return [Notice(kind, text)]


def _is_there(peer: Peer) -> bool:
    status = peer.status
    return peer.alive and status.online and status.role == "agent" and status.state not in _ABSENT


def devices_of(
    reports: Iterable[tuple[Status, Telemetry | None, LayerSpan | None]],
    plan: ModelPlan,
    factors: Mapping[str, float] | None = None,
) -> list[Device]:
    """Nodes as the planner sees them, of their own reports; with each the span that it is to have, None: as it says.

    Stated times are corrected by the measured ones (``factors``: how many times longer a node takes than stated; None: as
    in the reports); where a node has measured nothing yet, as much as those of the others.
    """
    known = [(status, telemetry, span) for status, telemetry, span in reports if _stated(status, plan) is not None]
    if factors is None:
        found = ((status.node, _measured(status, telemetry, plan)) for status, telemetry, _ in known)
        factors = {name: factor for name, factor in found if factor is not None}
    usual = median(factors.values()) if factors else 1.0
    devices = []
    for status, telemetry, given in known:
        span = given if given is not None and status.auto else _span(status)
        if span is not None and span.stop > plan.layer_count:
            continue
        factor = factors.get(status.node, usual)
        rates = [link.bytes_per_s for link in telemetry.links.values()] if telemetry else []
        devices.append(
            Device(
                name=status.node,
                layer_s=tuple(factor * s for s in _stated(status, plan) or ()),
                memory_bytes=status.memory_bytes or math.inf,
                bytes_per_s=max(rates, default=0.0) or math.inf,
                span=span,
                fixed=not status.auto,
                neighbours=None if status.neighbours is None else frozenset(status.neighbours),
            )
        )
    return devices


def _span(status: Status) -> LayerSpan | None:
    return LayerSpan(*status.span) if status.span is not None and status.span[0] < status.span[1] else None


def _stated(status: Status, plan: ModelPlan) -> tuple[float, ...] | None:
    """Seconds by layer before measurement; for a node that states none, in proportion to the work. None: not known yet."""
    if len(status.layer_s) == plan.layer_count and min(status.layer_s) > 0:
        return status.layer_s
    if status.auto:
        return None
    return tuple(max(macs, 1) * 1e-9 for macs in plan.layer_macs or (1,) * plan.layer_count)


def _measured(status: Status, telemetry: Telemetry | None, plan: ModelPlan) -> float | None:
    """How many times longer its segments take than stated; None: nothing measured."""
    stated, held = _stated(status, plan), _span(status)
    if stated is None or telemetry is None or held is None:
        return None
    spans = [held, *(LayerSpan(*span) for span in status.leaving if span[0] < span[1])]
    took = expected = 0.0
    for entry, seconds in telemetry.speed_s.items():
        span = next((span for span in spans if entry in span), None)
        if span is not None and span.stop <= plan.layer_count:
            took += seconds
            expected += sum(stated[entry : plan.segment(entry, span, early_exits=True).stop])
    return took / expected if took > 0 and expected > 0 else None
