"""Nodes, messages and a clock that does not tick by itself: drives ``WorkerState`` and ``SourceState`` in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from mdi_exit.events import (
    AckReceived,
    Command,
    ControlReceived,
    DrawInput,
    Event,
    HoldSegments,
    InputEnded,
    InputOffered,
    MakePlan,
    ModelKnown,
    Notice,
    Outcome,
    PlanMade,
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
    SpeedKnown,
    StatusReceived,
    Task,
    TaskReceived,
    TelemetryReceived,
    Tick,
    TransportDown,
    TransportUp,
)
from mdi_exit.optimum.routes import RouteSolver
from mdi_exit.placement import decide
from mdi_exit.segments import ModelPlan, SegmentKey
from mdi_exit.simulation.clock import Clock
from mdi_exit.source_state import SourceState
from mdi_exit.wire import Control, Results, Status
from mdi_exit.worker_state import WorkerState

__all__ = [
    "ACK_BYTES",
    "FEATURES_BYTES",
    "Exits",
    "SimulatedNetwork",
    "SimulatedNode",
]

Exits = Callable[[int, int], tuple[int, float]]
"""(item, exit number) -> (class, score): what the exit says of the item."""

# Bytes of a message beside its tensor: header, topic, MQTT, TCP and IP, as ``wire.encode`` makes it in a small deployment.
FEATURES_BYTES = 240
ACK_BYTES = 150
PROBE_BYTES = 110
RESULTS_BYTES = 120
ROW_BYTES = 45
TELEMETRY_BYTES = 330
STATUS_BYTES = 240
CONTROL_BYTES = 200

SOLVER_S = 0.1
_NEVER = float("inf")
_TICK = Tick()
_MESSAGES = (
    SendTask, SendResults, SendAck, SendProbe, SendTelemetry, SendStatus, SendControl, SendReply,
)  # fmt: skip


@dataclass(slots=True, eq=False)
class SimulatedNode:
    """A state and how fast its device is. ``seconds``: of one batch of a segment.

    ``wake_at``: when the state wants to look at the clock; ``tick_at``: the earliest tick on its way.
    """

    state: WorkerState | SourceState
    seconds: Callable[[SegmentKey, int], float]
    up: bool = True
    wake_at: float = _NEVER
    tick_at: float = _NEVER
    sent_bytes: int = 0
    worker: WorkerState = field(init=False)

    def __post_init__(self) -> None:
        self.worker = self.state.worker if isinstance(self.state, SourceState) else self.state


@dataclass(slots=True)
class SimulatedNetwork:
    """One deployment. ``delay_s(sender, receiver, bytes)``; ``loss``: share of features and link messages that vanish;
    ``load_s``: until the segments of another span are there.

    ``solver``: of the policy ``optimiser``; its answers come ``SOLVER_S`` later.

    ``frozen``: nodes that are stopped, and what waits for them; ``cut_off``: those whose messages go nowhere, either way.
    A subclass may carry messages otherwise (``_carry``).
    """

    plan: ModelPlan
    exits: Exits
    rng: Random
    delay_s: Callable[[str, str, int], float] = lambda _a, _b, _n: 0.002
    loss: float = 0.0
    load_s: float = 0.3
    draw: Callable[[], InputOffered | InputEnded] = InputEnded
    validate: bool = False
    solver: RouteSolver = field(default_factory=RouteSolver)
    clock: Clock = field(default_factory=Clock)
    nodes: dict[str, SimulatedNode] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    notices: list[tuple[float, Notice]] = field(default_factory=list)
    replies: list[tuple[float, SendReply]] = field(default_factory=list)
    frozen: dict[str, list[tuple[Event, SimulatedNode | None]]] = field(default_factory=dict)
    cut_off: set[str] = field(default_factory=set)
    events: int = 0
    _statuses: dict[str, Status] = field(default_factory=dict)
    _control: Control | None = None
    _sources: list[str] = field(default_factory=list)
    _doers: dict[type, Callable[[str, SimulatedNode, Any], None]] = field(init=False)

    def __post_init__(self) -> None:
        self._doers = {
            RunSegment: self._run_segment,
            HoldSegments: self._hold_segments,
            MakePlan: self._make_plan,
            SendTask: self._send_task,
            SendResults: self._send_results,
            SendAck: self._send_ack,
            SendProbe: self._send_probe,
            SendTelemetry: self._send_telemetry,
            SendStatus: self._send_status,
            SendControl: self._send_control,
            DrawInput: self._draw_input,
            SolveRoutes: self._solve_routes,
            PrepareRequest: self._prepare_request,
            SendReply: self._send_reply,
            Record: self._record,
            Notice: self._notice,
        }

    @property
    def now(self) -> float:
        return self.clock.now

    def add(self, node: SimulatedNode) -> None:
        """A node comes up now."""
        worker = node.worker
        self.nodes[worker.name] = node
        node.up = True
        if isinstance(node.state, SourceState) and worker.name not in self._sources:
            self._sources.append(worker.name)
        self._give(worker.name, ModelKnown(self.plan))
        self._give(worker.name, TransportUp())
        if worker.config.auto:
            layers = range(self.plan.layer_count)
            alone = [SegmentKey(layer, layer + 1, layer in self.plan.exit_layers) for layer in layers]
            self._give(worker.name, SpeedKnown(tuple(node.seconds(key, 1) for key in alone)))
        if worker.config.span is not None:
            span = worker.config.span
            keys = {self.plan.segment(layer, span, early_exits=early) for layer in span for early in (True, False)}
            self._give(worker.name, SegmentsReady({key: node.seconds(key, 1) for key in keys}))

    def kill(self, name: str) -> None:
        """The node's power fails; the broker tells the others with its last will."""
        self.nodes[name].up = False
        self.publish_will(name)

    def publish_will(self, name: str) -> None:
        """The broker takes the node for dead."""
        status = self._statuses.get(name)
        if status is not None:
            will = Status(node=name, incarnation=status.incarnation, online=False)
            self._statuses[name] = will
            self._broadcast(name, StatusReceived(will))

    def freeze(self, name: str) -> None:
        """The node is stopped as by SIGSTOP: nothing happens in it, and what comes waits."""
        self.frozen[name] = []

    def thaw(self, name: str) -> None:
        """It goes on: first come the messages that have waited, then its clock."""
        node = self.nodes[name]
        for event, start in self.frozen.pop(name):
            self._deliver(name, event, start)
        node.wake_at = max(node.wake_at, self.now)
        self._plan_tick(name, node)

    def cut(self, name: str) -> None:
        """Its network is gone, and nobody is told."""
        self.cut_off.add(name)

    def rejoin(self, name: str) -> None:
        """Its network is back; it connects anew."""
        self.cut_off.discard(name)
        self._give(name, TransportDown())
        self._give(name, TransportUp())

    def at(self, when: float, name: str, event: Event, start: SimulatedNode | None = None) -> None:
        """Schedule an event for a node; with ``start``, only for that start of it."""
        self.clock.call_at(when, self._deliver, name, event, start)

    def run(self, until: float, *, while_: Callable[[], bool] | None = None) -> None:
        """Process events up to virtual time ``until``, as long as ``while_()`` holds."""
        self.clock.run(until, while_)

    # --- events for the nodes

    def _deliver(self, name: str, event: Event, start: SimulatedNode | None) -> None:
        node = self.nodes.get(name)
        if node is None or not node.up or (start is not None and start is not node):
            return
        if start is None and name in self.cut_off:
            return
        if name in self.frozen:
            self.frozen[name].append((event, start))
        else:
            self._give(name, event)

    def _tick(self, name: str, node: SimulatedNode, when: float) -> None:
        if when != node.tick_at or not node.up or self.nodes[name] is not node:
            return  # overtaken by an earlier one, or of a start that is over
        node.tick_at = _NEVER
        if name in self.frozen:
            return
        if node.wake_at > self.now:
            self._plan_tick(name, node)
        else:
            self._give(name, _TICK)

    def _plan_tick(self, name: str, node: SimulatedNode) -> None:
        """A tick that comes too early waits for the right moment; one too late is overtaken by another."""
        if node.wake_at < node.tick_at:
            node.tick_at = node.wake_at
            self.clock.call_at(node.wake_at, self._tick, name, node, node.wake_at)

    def _give(self, name: str, event: Event) -> None:
        node = self.nodes[name]
        self.events += 1
        state, now = node.state, self.clock.now
        commands = state.handle(now, event)
        if self.validate:
            state.validate()
        for command in commands:
            self._do(name, node, command)
        wake = state.next_wakeup()
        node.wake_at = wake if wake > now else now + 1e-6
        if node.wake_at < node.tick_at:
            self._plan_tick(name, node)
        if type(event) is TransportUp:
            self._subscribed(name, node)

    def _subscribed(self, name: str, node: SimulatedNode) -> None:
        """The broker's retained messages as of this moment: never older than what was heard live."""
        for other in [other for other in self._heard_by(name) if other in self._statuses]:
            self._give(name, StatusReceived(self._statuses[other], retained=True))
        if self._control is not None and isinstance(node.state, WorkerState):
            self._give(name, ControlReceived(self._control))

    # --- commands of the nodes

    def _do(self, name: str, node: SimulatedNode, command: Command) -> None:
        doer = self._doers.get(type(command))
        if doer is not None and not (name in self.cut_off and isinstance(command, _MESSAGES)):
            doer(name, node, command)

    def _run_segment(self, name: str, node: SimulatedNode, command: RunSegment) -> None:
        key, tasks = command.key, command.tasks
        seconds = node.seconds(key, len(tasks))
        outcomes = tuple(self._outcome(key, task) for task in tasks)
        self.at(self.now + seconds, name, SegmentDone(command.batch, seconds, outcomes), node)

    def _hold_segments(self, name: str, node: SimulatedNode, command: HoldSegments) -> None:
        """All segments of these spans, ``load_s`` later."""
        keys = {
            self.plan.segment(layer, span, early_exits=early)
            for span in command.spans
            for layer in span
            for early in (True, False)
        }
        self.at(self.now + self.load_s, name, SegmentsReady({key: node.seconds(key, 1) for key in keys}), node)

    def _make_plan(self, name: str, node: SimulatedNode, command: MakePlan) -> None:
        self.at(self.now, name, PlanMade(decide(command.problem, command.resting, command.rules)), node)

    def _outcome(self, key: SegmentKey, task: Task) -> Outcome:
        label: int | None = None
        score = 0.0
        if key.head:
            label, score = self.exits(task.item, self.plan.exit_index(key.stop - 1))
        size = self.plan.feature_bytes[key.stop] if key.stop < self.plan.layer_count else 0
        return Outcome(label, score, task.payload, size)

    def _send_task(self, name: str, node: SimulatedNode, command: SendTask) -> None:
        task = command.task
        event = TaskReceived(name, node.worker.config.incarnation, command.seq, task)
        self._send(name, command.to, event, FEATURES_BYTES + task.size_bytes, lossy=True)

    def _send_results(self, name: str, node: SimulatedNode, command: SendResults) -> None:
        message = Results(command.run or 0, node.worker.config.incarnation, command.rows, command.moved)
        size = RESULTS_BYTES + ROW_BYTES * (len(command.rows) + len(command.moved))
        for source in self._sources:
            self._send(name, source, ResultsReceived(name, message), size)

    def _send_ack(self, name: str, node: SimulatedNode, command: SendAck) -> None:
        self._send(name, command.to, AckReceived(name, command.ack), ACK_BYTES, lossy=True)

    def _send_probe(self, name: str, node: SimulatedNode, command: SendProbe) -> None:
        self._send(name, command.to, ProbeReceived(name, command.probe), PROBE_BYTES, lossy=True)

    def _send_telemetry(self, name: str, node: SimulatedNode, command: SendTelemetry) -> None:
        self._broadcast(name, TelemetryReceived(command.telemetry), TELEMETRY_BYTES)

    def _send_status(self, name: str, node: SimulatedNode, command: SendStatus) -> None:
        self._statuses[name] = command.status
        self._broadcast(name, StatusReceived(command.status), STATUS_BYTES)

    def _send_control(self, name: str, node: SimulatedNode, command: SendControl) -> None:
        self._control = command.control
        self._broadcast(name, ControlReceived(command.control), CONTROL_BYTES, to_all=True)

    def _solve_routes(self, name: str, node: SimulatedNode, command: SolveRoutes) -> None:
        answer = RoutesSolved(self.solver.solve(command.problem), "no layout of it carries any load")
        self.at(self.now + SOLVER_S, name, answer, node)

    def _draw_input(self, name: str, node: SimulatedNode, command: DrawInput) -> None:
        self.at(self.now, name, self.draw(), node)

    def _prepare_request(self, name: str, node: SimulatedNode, command: PrepareRequest) -> None:
        self.at(self.now, name, RequestPrepared(command.ticket, None, self.plan.feature_bytes[0]), node)

    def _send_reply(self, name: str, node: SimulatedNode, command: SendReply) -> None:
        self.replies.append((self.now, command))

    def _record(self, name: str, node: SimulatedNode, command: Record) -> None:
        self.records.append(command)

    def _notice(self, name: str, node: SimulatedNode, command: Notice) -> None:
        self.notices.append((self.now, command))

    # --- messages

    def _send(self, sender: str, to: str, event: Event, size: int, *, lossy: bool = False) -> None:
        if to in self.nodes and not (lossy and self.loss and self.rng.random() < self.loss):
            self.at(self.now + self.delay_s(sender, to, size), to, event)

    def _broadcast(self, sender: str, event: Event, size: int = STATUS_BYTES, *, to_all: bool = False) -> None:
        """To those who listen to ``sender``, or to all others; here everybody listens to everybody."""
        for other in self.nodes:
            if other != sender:
                self._send(sender, other, event, size)

    def _heard_by(self, name: str) -> Iterable[str]:
        """The nodes whose statuses and telemetry ``name`` listens to."""
        return self.nodes
