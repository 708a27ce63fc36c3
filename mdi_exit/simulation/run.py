"""A scenario run in virtual time, from the first arrival to the last result."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final

import numpy as np

from mdi_exit.errors import MdiExitError
from mdi_exit.events import GiveUp, InputEnded, InputOffered, Record, SetAdmission
from mdi_exit.optimum.routes import RouteSolver
from mdi_exit.results import Summary, SummaryBuilder
from mdi_exit.routes import Channel
from mdi_exit.segments import SegmentKey
from mdi_exit.simulation.bound import exit_table
from mdi_exit.simulation.clock import Clock
from mdi_exit.simulation.network import ACK_BYTES, FEATURES_BYTES, RESULTS_BYTES, ROW_BYTES, SimulatedNode
from mdi_exit.simulation.record import trace_of
from mdi_exit.simulation.scenario import Change, Node, Scenario
from mdi_exit.simulation.star import StarNetwork, Wires
from mdi_exit.snapshot import NodeSnapshot, Snapshot
from mdi_exit.source_config import SourceConfig
from mdi_exit.source_state import SourceState
from mdi_exit.timeline import Timeline
from mdi_exit.trace import Trace
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

__all__ = ["Cell", "Simulated", "Simulation", "simulate"]

SNAPSHOT_S: Final = 0.5
_START_S: Final = 60.0
_DRAIN_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a run leaves. ``events``: things that happened in virtual time; ``handled``: those that a node's state took."""

    summary: Summary
    timeline: tuple[Snapshot, ...]
    records: tuple[Record, ...]
    events: int
    handled: int
    virtual_s: float


@dataclass(frozen=True, slots=True)
class _Samples:
    """A trace in plain numbers: by sample, (class, score) at each exit, and the right class."""

    rows: tuple[tuple[tuple[int, float], ...], ...]
    truth: tuple[int, ...]

    @classmethod
    def of(cls, trace: Trace) -> _Samples:
        both = zip(trace.labels_NS.tolist(), trace.scores_NS.tolist(), strict=True)
        return cls(tuple(tuple(zip(*row, strict=True)) for row in both), tuple(trace.truth_N.tolist()))


class _Device:
    """Seconds of a batch of a segment, at the node's present speed (a factor on its first one)."""

    __slots__ = ("_exit_layers", "_known", "factor", "node")

    def __init__(self, node: Node, exit_layers: tuple[int, ...]) -> None:
        self.node, self.factor = node, 1.0
        self._exit_layers = exit_layers
        self._known: dict[tuple[SegmentKey, int], float] = {}

    def __call__(self, key: SegmentKey, batch: int) -> float:
        seconds = self._known.get((key, batch))
        if seconds is None:
            seconds = self._known[key, batch] = self.node.speed.seconds(key, batch, self._exit_layers)
        return seconds / self.factor


@dataclass(slots=True, kw_only=True)
class _CellNetwork(StarNetwork):
    """Keeps of its records only what it is asked to."""

    keep: Callable[[Record], None]
    last_result_at: float = 0.0

    def _record(self, name: str, node: SimulatedNode, command: Record) -> None:
        self.last_result_at = self.clock.now
        self.keep(command)


class Cell:
    """One deployment of the scenario: its own source, nodes and media. ``number`` 0: the only one."""

    def __init__(
        self, scenario: Scenario, samples: _Samples, wires: Wires, clock: Clock, number: int, solver: RouteSolver,
        order: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.scenario, self._recorded, self._given_order = scenario, samples, order
        self.prefix = f"c{number}-" if number else ""
        self.rng = Random(scenario.seed * 1_000_003 + number)
        self._order = Random(self.rng.random())
        self._arrivals_rng = Random(self.rng.random())
        self.devices = {node.name: _Device(node, scenario.model.plan.exit_layers) for node in scenario.nodes}
        self.builder = SummaryBuilder()
        self.records: list[Record] = []
        self.started_at: float | None = None
        self._incarnation = 0
        self._samples = self._endless_samples()
        self.network = _CellNetwork(
            scenario.model.plan, exits=_from_payload, rng=self.rng, clock=clock, wires=wires, hears=self._hears(),
            draw=self._draw, keep=self._keep, solver=solver,
        )  # fmt: skip
        self.source = SourceState(self._source_config(number + 1), self._worker_config(scenario.source), self.rng)
        self.timeline = Timeline(self.source)

    # --- building

    def _hears(self) -> dict[str, tuple[str, ...] | None]:
        return {
            self.prefix + node.name: None
            if node is self.scenario.source or node.neighbours is None
            else tuple(self.prefix + name for name in node.neighbours)
            for node in self.scenario.nodes
        }

    def _source_config(self, run: int) -> SourceConfig:
        policy, arrivals = self.scenario.policy, self.scenario.arrivals
        return SourceConfig(
            run=run,
            own_input=self.draws,
            rate_per_s=arrivals.rate_at(0.0),
            adapt=policy.adapt,
            threshold=policy.threshold,
            floor=min(policy.floor, policy.threshold),
            max_queue=policy.max_queue,
            max_pending=policy.max_pending,
            target_p99_s=policy.target_p99_s,
            deadline_s=policy.deadline_s,
            channel=_channel(self.scenario),
        )

    @property
    def draws(self) -> bool:
        """Whether the source asks for its input itself; else the arrivals come whether it asks or not."""
        return self.scenario.arrivals.saturating or self.scenario.policy.adapt == "rate"

    def _worker_config(self, node: Node) -> WorkerConfig:
        self._incarnation += 1
        return WorkerConfig(
            name=self.prefix + node.name,
            incarnation=self._incarnation,
            span=node.span,
            neighbours=None if node.neighbours is None else frozenset(self.prefix + name for name in node.neighbours),
            window=node.window,
            offloading=self.scenario.policy.offloading,
            telemetry_period_s=self.scenario.policy.telemetry_period_s,
            dead_after_s=max(2.5, 5 * self.scenario.policy.telemetry_period_s),
            engine="simulated",
            emulated=node.profile or "",
            auto=node.auto,
            memory_bytes=(node.memory_bytes or 0) if node.auto else 0,
        )

    def start(self) -> None:
        """All nodes but those that join later are switched on at once."""
        self.network.add(SimulatedNode(self.source, self.devices[self.scenario.source.name]))
        for node in self.scenario.agents:
            self.network.clock.call_at(node.join_at_s, self._switch_on, node)

    def _switch_on(self, node: Node, _: None = None, __: None = None) -> None:
        state = WorkerState(self._worker_config(node), self.rng)
        self.network.add(SimulatedNode(state, self.devices[node.name]))

    def begin(self) -> None:
        """All layers are held: from now on items arrive and things change."""
        clock, scenario = self.network.clock, self.scenario
        self.started_at = clock.now
        end = clock.now + scenario.duration_s
        clock.call_at(end, self._end)
        for change in scenario.changes:
            clock.call_at(clock.now + change.at_s, self._change, change)
        if self.draws:
            return
        for phase in scenario.arrivals.phases[1:]:
            clock.call_at(clock.now + phase.start_s, self._phase, phase.rate_per_s)
        self._arrive(scenario.arrivals.times(scenario.duration_s, self._arrivals_rng))

    # --- input

    def _endless_samples(self) -> Iterator[int]:
        """All samples in the order that was given, or each time in another random one, again and again."""
        while self._given_order:
            yield from self._given_order
        while True:
            order = list(range(len(self._recorded.truth)))
            self._order.shuffle(order)
            yield from order

    def _draw(self) -> InputOffered | InputEnded:
        sample = next(self._samples)
        size = self.scenario.model.plan.feature_bytes[0]
        return InputOffered(str(sample), self._recorded.rows[sample], size, self._recorded.truth[sample])

    def _arrive(self, times: Iterator[float], _: None = None, __: None = None) -> None:
        """The next arrival is due after those before it: a recorded trace may be long."""
        moment = next(times, None)
        if moment is not None and self.started_at is not None:
            self.network.clock.call_at(self.started_at + moment, self._offer, times)

    def _offer(self, times: Iterator[float], _: None = None, __: None = None) -> None:
        if not self.source.done:
            self.network.at(self.network.now, self.source.worker.name, self._draw())
        self._arrive(times)

    def _phase(self, rate_per_s: float, _: None = None, __: None = None) -> None:
        self.network.at(self.network.now, self.source.worker.name, SetAdmission(rate_per_s=rate_per_s))

    def _end(self, _: None = None, __: None = None, ___: None = None) -> None:
        self.network.at(self.network.now, self.source.worker.name, InputEnded())

    # --- changes

    def _change(self, change: Change, _: None = None, __: None = None) -> None:
        name = self.prefix + change.node
        node = next(node for node in self.scenario.nodes if node.name == change.node)
        if change.speed is not None:
            self.devices[change.node].factor = change.speed
        if change.link is not None:
            self.network.wires.change(name, change.link)
        if change.alive is not None and change.alive != self.network.nodes[name].up:
            if change.alive:
                self._switch_on(node)
            else:
                self.network.kill(name)

    # --- results

    def _keep(self, record: Record) -> None:
        self.builder.add(record)
        self.timeline.add(record)
        self.records.append(record)

    def give_up(self) -> None:
        """Whatever has no result yet ends with an error."""
        self.network.at(self.network.now, self.source.worker.name, GiveUp("the simulation ended"))

    def bytes_sent(self) -> dict[str, int]:
        return {name: node.sent_bytes for name, node in self.network.nodes.items()}


def _from_payload(item: int, exit_number: int) -> tuple[int, float]:
    raise MdiExitError(f"exit {exit_number} of item {item}: expected an outcome in the payload, got none")


def _channel(scenario: Scenario) -> Channel | None:
    """The one medium of all nodes, as a user would state it; two messages share an acknowledgement, each a frame."""
    names = {node.link.medium for node in scenario.nodes}
    if len(names) != 1 or (name := names.pop()) is None:
        return None
    medium = scenario.media[name]
    frame_bytes = medium.frame_s * medium.bytes_per_s
    return Channel(
        medium.bytes_per_s, FEATURES_BYTES + ACK_BYTES / 2 + 1.5 * frame_bytes, RESULTS_BYTES + ROW_BYTES + frame_bytes
    )


def _solver(scenario: Scenario, trace: Trace) -> RouteSolver:
    """The policy ``optimiser`` knows the outcomes of every other sample, as a source does that was given a trace."""
    if scenario.policy.adapt != "optimiser" or not scenario.policy.outcomes:
        return RouteSolver()
    return RouteSolver(exit_table(trace.subset(np.arange(0, len(trace), 2)), settings=RouteSolver.SETTINGS))


class Simulation:
    """All cells of a scenario on one clock and one broker. ``order``: in which samples are drawn; empty: at random."""

    def __init__(self, scenario: Scenario, order: Sequence[int] = ()) -> None:
        self.scenario = scenario
        self.clock = Clock()
        trace = trace_of(scenario)
        samples, solver = _Samples.of(trace), _solver(scenario, trace)
        broker = Wires.broker_pipe(scenario.broker)
        numbers = range(1, scenario.cells + 1) if scenario.cells > 1 else (0,)
        self.cells = []
        for number in numbers:
            prefix = f"c{number}-" if number else ""
            links = {prefix + node.name: node.link for node in scenario.nodes}
            wires = Wires(links, scenario.media, broker)
            self.cells.append(Cell(scenario, samples, wires, self.clock, number, solver, order))
        self.snapshots: list[Snapshot] = []

    def run(self, progress: Callable[[float], None] = lambda _: None) -> Simulated:
        """``progress``: told the share of the run that is over, 0 to 1, now and then.

        Raises ``MdiExitError`` if the layers are not all held within a minute.
        """
        collecting = gc.isenabled()
        gc.disable()  # what a run makes has no cycles, and looking for them takes a tenth of the time
        try:
            self._begin()
            self._snapshots(progress)
            self._drain()
            return self._simulated()
        finally:
            if collecting:
                gc.enable()

    def _begin(self) -> None:
        for cell in self.cells:
            cell.start()
        waiting = list(self.cells)
        while waiting and self.clock.now < _START_S:
            self.clock.run(self.clock.now + 0.01)
            for cell in [cell for cell in waiting if cell.source.started]:
                cell.begin()
                waiting.remove(cell)
        if waiting:
            missing = waiting[0].source.missing
            raise MdiExitError(f"start: expected all layers held within {_START_S:g} s, got none at layers {missing}")

    def _snapshots(self, progress: Callable[[float], None]) -> None:
        start = max(cell.started_at or 0.0 for cell in self.cells)
        steps = max(round(self.scenario.duration_s / SNAPSHOT_S), 1)
        for step in range(1, steps + 1):
            self.clock.run(start + step * SNAPSHOT_S)
            self._take_snapshot(step * SNAPSHOT_S)
            progress(step / steps)
        self.clock.run(start + self.scenario.duration_s)

    def _drain(self) -> None:
        limit = self.clock.now + _DRAIN_S
        while self.clock.now < limit and not all(cell.source.done for cell in self.cells):
            self.clock.run(min(self.clock.now + SNAPSHOT_S, limit))
        for cell in self.cells:
            if not cell.source.done:
                cell.give_up()
        self.clock.run(self.clock.now)

    def _take_snapshot(self, elapsed_s: float) -> None:
        taken = [cell.timeline.snapshot(self.clock.now, elapsed_s, 0.0) for cell in self.cells]
        self.snapshots.append(taken[0] if len(taken) == 1 else _together(taken))

    def _simulated(self) -> Simulated:
        builder = SummaryBuilder()
        records = [record for cell in self.cells for record in cell.records]
        for record in records:
            builder.add(record)
        sources = [cell.source for cell in self.cells]
        profiles = sorted({node.profile for node in self.scenario.nodes if node.profile})
        summary = builder.finish(
            admitted=sum(source.admitted for source in sources),
            pending=sum(len(source.pending) for source in sources),
            refused=sum(source.refused for source in sources),
            duplicates=sum(source.duplicates for source in sources),
            retried=sum(source.retried for source in sources),
            elapsed_s=max(cell.network.last_result_at - (cell.started_at or 0.0) for cell in self.cells),
            bytes_sent={name: sent for cell in self.cells for name, sent in cell.bytes_sent().items()},
            threshold=sum(source.threshold for source in sources) / len(sources),
            emulated=f"{', '.join(profiles) or 'stated speeds'} (simulated)",
        )
        handled = sum(cell.network.events for cell in self.cells)
        return Simulated(summary, tuple(self.snapshots), tuple(records), self.clock.events, handled, self.clock.now)


def _together(taken: list[Snapshot]) -> Snapshot:
    """One moment of several cells: sums, and means where a sum has no sense."""
    judged = [one.accuracy for one in taken if one.accuracy is not None]
    waits = [one.latency_p50_s for one in taken if one.latency_p50_s is not None]
    exits: dict[int, int] = {}
    for one in taken:
        for number, count in one.exits.items():
            exits[number] = exits.get(number, 0) + count
    nodes: tuple[NodeSnapshot, ...] = tuple(node for one in taken for node in one.nodes)
    return replace(
        taken[0],
        offered_per_s=sum(one.offered_per_s for one in taken),
        admitted_per_s=sum(one.admitted_per_s for one in taken),
        completed_per_s=sum(one.completed_per_s for one in taken),
        admitted=sum(one.admitted for one in taken),
        completed=sum(one.completed for one in taken),
        errors=sum(one.errors for one in taken),
        refused=sum(one.refused for one in taken),
        pending=sum(one.pending for one in taken),
        accuracy=sum(judged) / len(judged) if judged else None,
        threshold=sum(one.threshold for one in taken) / len(taken),
        source_queue=sum(one.source_queue for one in taken),
        latency_p50_s=sorted(waits)[len(waits) // 2] if waits else None,
        exits=exits,
        nodes=nodes,
        notices=tuple(notice for one in taken for notice in one.notices),
    )


def simulate(
    scenario: Scenario, progress: Callable[[float], None] = lambda _: None, *, order: Sequence[int] = ()
) -> Simulated:
    """Run it. ``order``: in which samples are drawn; empty: at random. Raises ``MdiExitError``."""
    return Simulation(scenario, order).run(progress)
