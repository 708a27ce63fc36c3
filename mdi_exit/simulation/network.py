"""Nodes, links and a clock that does not tick by itself: drives ``WorkerState`` and ``SourceState`` in virtual time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from mdi_exit.events import (
    AckReceived,
    Command,
    ControlReceived,
    DrawInput,
    Event,
    InputEnded,
    InputOffered,
    ModelKnown,
    Notice,
    Outcome,
    PrepareRequest,
    ProbeReceived,
    Record,
    RequestPrepared,
    ResultsReceived,
    RoutesSolved,
    RunSegment,
    SegmentDone,
    SegmentsReady,
    SendAck,
    SendControl,
    SendProbe,
    SendReply,
    SendResults,
    SendStatus,
    SendTask,
    SendTelemetry,
    SolveRoutes,
    StatusReceived,
    Task,
    TaskReceived,
    TelemetryReceived,
    Tick,
    TransportUp,
)
from mdi_exit.optimum.routes import RouteSolver
from mdi_exit.segments import ModelPlan, SegmentKey
from mdi_exit.source_state import SourceState
from mdi_exit.wire import Control, Results, Status
from mdi_exit.worker_state import WorkerState

__all__ = ["Exits", "SimulatedNetwork", "SimulatedNode"]

_SOLVER_S = 0.05

Exits = Callable[[int, int], tuple[int, float]]
"""(item, exit number) -> (class, score): what the exit says of the item."""


@dataclass(slots=True, eq=False)
class SimulatedNode:
    """A state and how fast its device is. ``seconds``: of one batch of a segment."""

    state: WorkerState | SourceState
    seconds: Callable[[SegmentKey, int], float]
    up: bool = True
    wake_at: float = float("inf")

    @property
    def worker(self) -> WorkerState:
        return self.state.worker if isinstance(self.state, SourceState) else self.state


@dataclass(slots=True)
class SimulatedNetwork:
    """``delay_s(sender, receiver, bytes)``; ``loss``: share of features and link messages that vanish."""

    plan: ModelPlan
    exits: Exits
    rng: Random
    delay_s: Callable[[str, str, int], float] = lambda _a, _b, _n: 0.002
    loss: float = 0.0
    draw: Callable[[], InputOffered | InputEnded] = InputEnded
    validate: bool = False
    solver: RouteSolver = field(default_factory=RouteSolver)
    now: float = 0.0
    nodes: dict[str, SimulatedNode] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    notices: list[tuple[float, Notice]] = field(default_factory=list)
    replies: list[tuple[float, SendReply]] = field(default_factory=list)
    events: int = 0
    _statuses: dict[str, Status] = field(default_factory=dict)
    _control: Control | None = None
    _heap: list[tuple[float, int, str, Event, SimulatedNode | None]] = field(default_factory=list)
    _number: int = 0

    def add(self, node: SimulatedNode) -> None:
        """A node comes up now."""
        worker = node.worker
        self.nodes[worker.name] = node
        node.up = True
        self._give(worker.name, ModelKnown(self.plan))
        self._give(worker.name, TransportUp())
        if worker.config.span is not None:
            span = worker.config.span
            keys = {self.plan.segment(layer, span, early_exits=early) for layer in span for early in (True, False)}
            self._give(worker.name, SegmentsReady({key: node.seconds(key, 1) for key in keys}))

    def kill(self, name: str) -> None:
        """The node's power fails; the broker tells the others with its last will."""
        self.nodes[name].up = False
        status = self._statuses.get(name)
        if status is not None:
            will = Status(node=name, incarnation=status.incarnation, online=False)
            self._statuses[name] = will
            self._broadcast(name, StatusReceived(will))

    def at(self, when: float, name: str, event: Event, start: SimulatedNode | None = None) -> None:
        """Schedule an event for a node; with ``start``, only for that start of it."""
        self._number += 1
        heapq.heappush(self._heap, (when, self._number, name, event, start))

    def run(self, until: float, *, while_: Callable[[], bool] = lambda: True) -> None:
        """Process events up to virtual time ``until``, as long as ``while_()`` holds."""
        while self._heap and self._heap[0][0] <= until and while_():
            self.now, _, name, event, start = heapq.heappop(self._heap)
            node = self.nodes.get(name)
            if node is None or not node.up or start not in (None, node):
                continue
            if isinstance(event, Tick) and self.now < node.wake_at:
                continue
            self._give(name, event)
        if while_():
            self.now = until

    def _give(self, name: str, event: Event) -> None:
        node = self.nodes[name]
        self.events += 1
        if isinstance(event, Tick):
            node.wake_at = float("inf")
        commands = node.state.handle(self.now, event)
        if self.validate:
            node.state.validate()
        for command in commands:
            self._do(name, node, command)
        wake = max(node.state.next_wakeup(), self.now + 1e-6)
        if wake < node.wake_at:
            node.wake_at = wake
            self.at(wake, name, Tick(), node)
        if isinstance(event, TransportUp):
            self._subscribed(name, node)

    def _subscribed(self, name: str, node: SimulatedNode) -> None:
        """The broker's retained messages as of this moment: never older than what was heard live."""
        for status in list(self._statuses.values()):
            self._give(name, StatusReceived(status, retained=True))
        if self._control is not None and isinstance(node.state, WorkerState):
            self._give(name, ControlReceived(self._control))

    def _do(self, name: str, node: SimulatedNode, command: Command) -> None:
        match command:
            case RunSegment(batch, key, tasks):
                seconds = node.seconds(key, len(tasks))
                outcomes = tuple(self._outcome(key, task) for task in tasks)
                self.at(self.now + seconds, name, SegmentDone(batch, seconds, outcomes), node)
            case SendTask(to, _, seq, _, task):
                incarnation = node.worker.config.incarnation
                self._send(name, to, TaskReceived(name, incarnation, seq, task), task.size_bytes, lossy=True)
            case SendResults(rows, moved, run):
                message = Results(run or 0, node.worker.config.incarnation, rows, moved)
                for other, peer in self.nodes.items():
                    if isinstance(peer.state, SourceState):
                        self._send(name, other, ResultsReceived(name, message), 100)
            case SendAck(to, ack):
                self._send(name, to, AckReceived(name, ack), 100, lossy=True)
            case SendProbe(to, probe):
                self._send(name, to, ProbeReceived(name, probe), 100, lossy=True)
            case SendTelemetry(telemetry):
                self._broadcast(name, TelemetryReceived(telemetry))
            case SendStatus(status):
                self._statuses[name] = status
                self._broadcast(name, StatusReceived(status))
            case SendControl(control):
                self._control = control
                self._broadcast(name, ControlReceived(control))
            case DrawInput():
                self.at(self.now, name, self.draw(), node)
            case SolveRoutes(problem):
                self.at(self.now + _SOLVER_S, name, RoutesSolved(self.solver.solve(problem)), node)
            case PrepareRequest(ticket):
                self.at(self.now, name, RequestPrepared(ticket, None, self.plan.feature_bytes[0]), node)
            case SendReply():
                self.replies.append((self.now, command))
            case Record():
                self.records.append(command)
            case Notice():
                self.notices.append((self.now, command))
            case _:
                pass

    def _outcome(self, key: SegmentKey, task: Task) -> Outcome:
        label: int | None = None
        score = 0.0
        if key.head:
            label, score = self.exits(task.item, self.plan.exit_index(key.stop - 1))
        size = self.plan.feature_bytes[key.stop] if key.stop < self.plan.layer_count else 0
        return Outcome(label, score, None, size)

    def _send(self, sender: str, to: str, event: Event, size: int, *, lossy: bool = False) -> None:
        if to in self.nodes and not (lossy and self.rng.random() < self.loss):
            self.at(self.now + self.delay_s(sender, to, size), to, event)

    def _broadcast(self, sender: str, event: Event) -> None:
        for other in self.nodes:
            if other != sender:
                self._send(sender, other, event, 200)
