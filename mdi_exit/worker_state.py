"""The pure core of a node: every decision about tasks, and nothing else (MDI-Exit, arXiv 2408.05247, Alg. 1 and 2).

``WorkerState.handle(now, event) -> list[Command]`` is synchronous, holds all state and makes all decisions. Time comes in as
``now`` (monotonic seconds), randomness as a ``Random`` at construction. After each event the node works down a
priority list: send what it must, offer what it may, take back what it could run itself, run, report.

Settled here, since the paper leaves it open: a node never idles while its output queue holds a task that it could run; a
task whose next layer is not in the node's own span is not an offer and goes to the least delay plus backlog; offers
are drawn once per decision epoch.
"""

from __future__ import annotations

from collections import Counter, deque
from random import Random
from typing import Final, assert_never

from msgspec.structs import replace

from mdi_exit.errors import IllegalEventError
from mdi_exit.events import (
    AckReceived,
    Command,
    ControlReceived,
    Drain,
    Drained,
    Event,
    GiveUp,
    Inject,
    InputEnded,
    InputOffered,
    InputSkipped,
    ModelKnown,
    Notice,
    OrderReceived,
    Outcome,
    ProbeReceived,
    RequestEvent,
    ResultsReceived,
    RunSegment,
    SegmentDone,
    SegmentFailed,
    SegmentsReady,
    SendAck,
    SendFailed,
    SendProbe,
    SendResults,
    SendStatus,
    SendTask,
    SendTelemetry,
    SetAdmission,
    StatusReceived,
    Task,
    TaskReceived,
    TelemetryReceived,
    Tick,
    TransportDown,
    TransportUp,
)
from mdi_exit.measured import SegmentSeconds
from mdi_exit.membership import Change, Members, Peer
from mdi_exit.policy.exiting import early_exits_wanted, should_exit
from mdi_exit.policy.offloading import Candidate, Own, forward
from mdi_exit.policy.queueing import keeps_here
from mdi_exit.queues import Held, Origin, Running, TaskStore
from mdi_exit.segments import ModelPlan, SegmentKey
from mdi_exit.standing import Standing
from mdi_exit.wire import Best, Control, Moved, Probe, ResultRow, Status, Telemetry
from mdi_exit.worker_config import Totals, WorkerConfig

__all__ = ["WorkerState"]

_STORY_LENGTH: Final = 40
_ROWS_KEPT: Final = 4096
_GREETING_DELAY_S: Final = 0.02


class WorkerState:
    """One node's queues, links and engine bookkeeping. See the module's docstring."""

    def __init__(self, config: WorkerConfig, rng: Random) -> None:
        self.config = config
        self.members = Members(config.name, config.dead_after_s)
        self.store = TaskStore(config.window)
        self.plan: ModelPlan | None = None
        self.control: Control | None = None
        self.connected = False
        self.draining = False
        self.standing = Standing(config.name, config.offloading)
        self.totals = Totals()
        self.story: deque[str] = deque(maxlen=_STORY_LENGTH)
        self._rng = rng
        self._entries: tuple[int, ...] = ()
        self._keys: dict[tuple[int, bool], SegmentKey] = {}
        self._seconds = SegmentSeconds()
        self._running: Running | None = None
        self._batches = 0
        self._rows: deque[ResultRow] = deque(maxlen=_ROWS_KEPT)
        self._moved: deque[Moved] = deque(maxlen=_ROWS_KEPT)
        self._moved_due_at: float | None = None
        self._telemetry_at = 0.0
        self._status: Status | None = None
        self._drained_told = False
        self._out: list[Command] = []

    # --- the one mutating method

    def handle(self, now: float, event: Event) -> list[Command]:
        """Take in one event at ``now`` (monotonic seconds); returns what to do, in order."""
        self.story.append(f"{now:.4f} {type(event).__name__}")
        epoch = self._take_in(now, event)
        self._announce()
        if self.connected:
            self._forward_mandatory(now)
            if epoch:
                self._offer(now)
        self._run(now)
        if self._running is None and self._reclaim():
            self._run(now)
        self._report(now)
        out, self._out = self._out, []
        return out

    def _take_in(self, now: float, event: Event) -> bool:
        """Change the state by ``event``; True if it is a decision epoch for offers."""
        match event:
            case Tick():
                self._tick(now)
                return True
            case TaskReceived():
                self._task_received(now, event)
            case SegmentDone():
                self._segment_done(now, event)
                return True
            case SegmentFailed():
                self._segment_failed(now, event)
                return True
            case SendFailed(command):
                self._send_failed(command)
            case TelemetryReceived(telemetry):
                self._notice_change(self.members.telemetry(now, telemetry), telemetry.node)
                return True
            case StatusReceived(status, retained):
                self._status_received(now, status, retained=retained)
            case AckReceived(sender, ack):
                if ack.to_incarnation == self.config.incarnation:
                    self._notice_change(self.members.heard(now, sender, ack.incarnation), sender)
                    if (peer := self.members.get(sender)) and peer.status.incarnation == ack.incarnation:
                        peer.out.acknowledged(now, ack)
            case ProbeReceived(sender, probe):
                self._notice_change(self.members.heard(now, sender, probe.incarnation), sender)
                if inbound := self.members.inbound(sender, probe.incarnation):
                    inbound.probe = probe.number
                    inbound.due_at = now
            case ControlReceived(control):
                self._control_received(now, control)
            case OrderReceived(order, retained):
                self._out += self.standing.order(order, retained=retained)
                return True
            case Inject(task):
                self.totals.injected += 1
                self._place(Held(replace(task, since=now), Origin.INJECTED))
            case ModelKnown(plan):
                if self.plan is not None and plan.digest != self.plan.digest:
                    self._seconds.clear()
                    self._keys.clear()
                    self._flush()
                self.plan = plan
                self._entries = self._find_entries()
            case SegmentsReady(seconds):
                self._seconds.ready(seconds)
                self._entries = self._find_entries()
            case TransportUp():
                self._transport_up(now)
            case TransportDown():
                self.connected = False
            case Drain():
                self.draining = True
            case (
                InputOffered()
                | InputEnded()
                | InputSkipped()
                | ResultsReceived()
                | SetAdmission()
                | GiveUp()
                | RequestEvent()
            ):
                raise IllegalEventError(f"expected an event of a worker, got {event}", tuple(self.story))
            case _:
                assert_never(event)
        return False

    # --- reading the state

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def inputs(self) -> int:
        """I_n: tasks that wait to be run here."""
        return self.store.inputs.length

    @property
    def outputs(self) -> int:
        """O_n: tasks that wait to be sent."""
        return self.store.outputs.length

    @property
    def threshold(self) -> float:
        return self.control.threshold if self.control else 1.0

    @property
    def run(self) -> int | None:
        return self.control.run if self.control else None

    @property
    def entries(self) -> tuple[int, ...]:
        """Layers at which this node takes tasks now: its segments with and without heads are loaded."""
        return self._entries

    def _find_entries(self) -> tuple[int, ...]:
        span, plan = self.config.span, self.plan
        if span is None or plan is None or self.control is None or self.control.model != plan.digest:
            return ()
        return tuple(
            layer
            for layer in span
            if layer < plan.layer_count
            and all(plan.segment(layer, span, early_exits=early) in self._seconds for early in (True, False))
        )

    @property
    def state(self) -> str:
        """One or two words for people and for other nodes: only ``ready`` means that tasks are taken."""
        if self.draining:
            return "draining"
        if self.control is None or self.plan is None:
            return "waiting for source"
        if self.config.span is None:
            return "ready"
        if self.standing.set_aside:
            return "draining" if self._running or self.inputs + self.outputs else "drained"
        return "ready" if self.entries else "loading segments"

    @property
    def leaving(self) -> bool:
        """What it has goes, and it takes nothing new: for good, or as ordered."""
        return self.draining or self.standing.set_aside

    def holds(self, item: int, attempt: int) -> bool:
        """Whether this attempt waits or runs here."""
        running = self._running.tasks if self._running else ()
        return self.store.holds(item, attempt) or any((t.item, t.attempt) == (item, attempt) for t in running)

    def seconds(self, layer: int, waiting: int = 1) -> float:
        """Γ: expected seconds a task for the segment that starts at ``layer``, when ``waiting`` tasks are there."""
        key = self._key(layer)
        if key is None:
            return self.config.unmeasured_s
        return self._seconds.per_task(key, waiting, self.config.unmeasured_s)

    def backlog_by_layer_s(self) -> dict[int, float]:
        """Expected seconds of what waits in I_n, by next layer."""
        inputs = self.store.inputs
        waiting = {layer: inputs.waiting(layer) for layer in inputs.latest_first()}
        return {layer: count * self.seconds(layer, count) for layer, count in waiting.items()}

    def backlog_s(self, now: float) -> float:
        """I_n Γ_n: expected seconds of what waits in I_n, the running task's remainder included."""
        return sum(self.backlog_by_layer_s().values()) + self._remainder_s(now)

    def _remainder_s(self, now: float) -> float:
        running = self._running
        return max(running.expected_s - (now - running.started_at), 0.0) if running else 0.0

    def next_wakeup(self) -> float:
        """When ``Tick`` is wanted next, monotonic seconds."""
        due = [self._telemetry_at]
        if self.connected:
            due += [inbound.due_at for inbound in self.members.inbounds.values() if inbound.due_at is not None]
            if self._moved_due_at is not None:
                due.append(self._moved_due_at)
        return min(due)

    def validate(self) -> None:
        """Check every invariant; raises ``IllegalEventError`` that names the broken ones."""
        running: Counter[int] = Counter()
        if self._running and not self._running.last:
            running[self._running.key.stop] = len(self._running.tasks)
        problems = self.store.problems(running)
        here = self.inputs + self.outputs + (len(self._running.tasks) if self._running else 0)
        came = self.totals.received + self.totals.injected
        went = self.totals.exited + self.totals.failed + self.totals.dropped + sum(self.totals.sent.values())
        if came != here + went:
            problems.append(f"items: {came} came, {went} went, {here} are here")
        problems += [
            f"link to {p.name}: negative use {dict(p.out.used)}"
            for p in self.members
            if min(p.out.used.values(), default=0) < 0
        ]
        if problems:
            raise IllegalEventError("; ".join(problems), tuple(self.story))

    # --- taking in events

    def _task_received(self, now: float, event: TaskReceived) -> None:
        task = event.task
        inbound = self.members.inbound(event.sender, event.incarnation)
        if inbound is None:
            return
        self._notice_change(self.members.heard(now, event.sender, event.incarnation), event.sender)
        fresh = inbound.receive(now, event.seq)
        inbound.owe(now, self.config.ack_delay_s)
        if not fresh:
            self.totals.duplicates += 1
            return
        why_not = self._why_not(event.sender, task)
        if why_not is None:
            self.totals.received += 1
            self.store.add(Held(replace(task, since=now), Origin.RECEIVED, event.sender))
            return
        inbound.released[task.next_layer] += 1
        if self.store.holds(task.item, task.attempt):
            self.totals.duplicates += 1
        elif task.run == self.run:
            self.totals.refused += 1
            self._row(ResultRow(task.item, task.attempt, task.path, error=why_not, refused=True))
        else:
            self._out.append(Notice("stale-run", f"dropped a task of another run from {event.sender}"))

    def _why_not(self, sender: str, task: Task) -> str | None:
        """Why a received task is not taken; None if it is."""
        if task.run != self.run:
            return "of another run"
        if self.store.holds(task.item, task.attempt):
            return "here already"
        if self.leaving:
            return f"{self.name} is {self.state}"
        if task.next_layer not in self.entries:
            return f"{self.name} does not take layer {task.next_layer}"
        if self.store.held_for(sender, task.next_layer) >= 2 * self.config.window:
            return f"{self.name} has no slot left for {sender}"
        return None

    def _place(self, held: Held) -> None:
        """Alg. 1: a new task goes into I_n or, where a neighbour could take it, into O_n to be offered."""
        layer = held.task.next_layer
        offerable = any(peer.takes(layer) and self._may_send_to(peer.name) for peer in self.members)
        stays = not offerable or keeps_here(self.inputs, self.outputs, self.config.output_limit)
        self.store.add(held, output=not (self._mine(layer) and stays))

    def _segment_done(self, now: float, event: SegmentDone) -> None:
        running = self._batch(event.batch)
        if len(event.outcomes) != len(running.tasks):
            raise IllegalEventError(
                f"expected {len(running.tasks)} outcomes, got {len(event.outcomes)}", tuple(self.story)
            )
        if running.last and any(outcome.label is None for outcome in event.outcomes):
            raise IllegalEventError("the last segment gave no label", tuple(self.story))
        self._running = None
        self._seconds.add(running.key, len(running.tasks), event.seconds)
        self.totals.ran(running.key.entry, len(running.tasks), event.seconds)
        share_s = event.seconds / len(running.tasks)
        for task, outcome in zip(running.tasks, event.outcomes, strict=True):
            if task.run != self.run or self.plan is None or running.plan.digest != self.plan.digest:
                self.totals.dropped += 1
                self._free_output(running)
            else:
                self._continue(now, running, self._advance(running, task, share_s), outcome)

    def _advance(self, running: Running, task: Task, share_s: float) -> Task:
        path = task.path if task.path[-1:] == (self.name,) else (*task.path, self.name)
        waited_s = max(running.started_at - task.since, 0.0)
        return replace(task, path=path, compute_s=task.compute_s + share_s, wait_s=task.wait_s + waited_s)

    def _continue(self, now: float, running: Running, task: Task, outcome: Outcome) -> None:
        """Alg. 1 after a segment: exit, or go on with the next task."""
        key, plan, best = running.key, running.plan, task.best
        if outcome.label is not None and key.stop - 1 in plan.exit_layers:
            here = Best(plan.exit_index(key.stop - 1), outcome.label, outcome.score)
            best = here if best is None or here.score >= best.score else best
            threshold = plan.threshold_at(here.exit, self.threshold)
            if should_exit(outcome.score, threshold, last=running.last, inclusive=plan.inclusive):
                self._free_output(running)
                self.totals.exited += 1
                self.totals.exits[here.exit] += 1
                times = (task.compute_s, task.wait_s)
                self._row(ResultRow(task.item, task.attempt, task.path, here.exit, here.label, here.score, times=times))
                return
        follower = replace(
            task,
            next_layer=key.stop,
            payload=outcome.payload,
            size_bytes=outcome.size_bytes,
            best=best,
            exit_state=outcome.exit_state,
            since=now,
        )
        self._place(Held(follower, Origin.PRODUCED))

    def _segment_failed(self, now: float, event: SegmentFailed) -> None:
        del now
        running = self._batch(event.batch)
        self._running = None
        for task in running.tasks:
            self._free_output(running)
            self.totals.failed += 1
            if task.run == self.run:
                text = f"{self.name}: {event.reason}"[:400]
                self._row(ResultRow(task.item, task.attempt, task.path, error=text, refused=True))
        self._out.append(Notice("segment-failed", f"{running.key.file}: {event.reason}"))

    def _batch(self, batch: int) -> Running:
        running = self._running
        if running is None or running.batch != batch:
            raise IllegalEventError(f"expected the end of the running batch, got {batch}", tuple(self.story))
        return running

    def _free_output(self, running: Running) -> None:
        if not running.last:
            self.store.release(running.key.stop)

    def _send_failed(self, command: SendTask | SendResults) -> None:
        """The transport did not take it: results are kept, a task goes back to the head of O_n, its credit to the link."""
        if isinstance(command, SendResults):
            if command.run == self.run:
                self._rows.extend(command.rows)
                self._moved.extend(command.moved)
            return
        self.totals.sent[command.to] -= 1
        self.totals.unsent[command.to] += 1
        if peer := self.members.get(command.to):
            peer.out.unsent(command.seq, command.task.item)
        if command.task.run != self.run:
            self.totals.dropped += 1
            return
        self.store.add(Held(command.task, Origin.INJECTED), output=True, front=True)

    def _status_received(self, now: float, status: Status, *, retained: bool) -> None:
        if status.node == self.name:
            return
        known = self.members.get(status.node)
        before = known.status.state if known else ""
        change = self.members.status(now, status, retained=retained)
        if known is None:
            self._telemetry_at = min(self._telemetry_at, now + _GREETING_DELAY_S)
        self._notice_change(change, status.node)
        if change is Change.UPDATED and status.state != before:
            self._out.append(Notice("state", f"{status.node} is {status.state}"))

    def _notice_change(self, change: Change, node: str) -> None:
        if change is Change.JOINED and (peer := self.members.get(node)):
            span = f" with layers {peer.span}" if peer.span else ""
            self._out.append(Notice("joined", f"{node} joined{span} ({peer.status.state})"))
        elif change is Change.LEFT:
            self._out.append(Notice("left", f"{node} left"))

    def _control_received(self, now: float, control: Control) -> None:
        del now
        before, self.control = self.control, control
        self._entries = self._find_entries()
        self._out += self.standing.control(before, control)
        if before is not None and before.run != control.run:
            self._flush()

    def _flush(self) -> None:
        """A new run: tasks of the old one are nobody's any more."""
        dropped = self.store.clear()
        self.totals.dropped += len(dropped)
        self._rows.clear()
        self._moved.clear()
        for held in dropped:
            self._released(held)
        if dropped:
            self._out.append(Notice("flushed", f"dropped {len(dropped)} tasks of an earlier run"))

    def _transport_up(self, now: float) -> None:
        self.connected = True
        self._status = None
        self._telemetry_at = now
        for peer in self.members:
            peer.probed_at = float("-inf")

    def _tick(self, now: float) -> None:
        if self.connected:
            for peer in self.members.silent(now):
                self._out.append(Notice("silent", f"{peer.name} has been silent for {self.config.dead_after_s:g} s"))

    # --- the priority list

    def _announce(self) -> None:
        """Publish the own status when it is another than the last one published."""
        told = self._status
        if not self.connected or (told and (told.state, told.entries) == (self.state, self.entries)):
            return
        span = self.config.span
        self._status = Status(
            node=self.name,
            incarnation=self.config.incarnation,
            online=True,
            role=self.config.role,
            state=self.state,
            span=(span.first, span.stop) if span else None,
            entries=self.entries,
            window=self.config.window,
            engine=self.config.engine,
            emulated=self.config.emulated,
            version=self.config.version,
        )
        self._out.append(SendStatus(self._status))

    def _forward_mandatory(self, now: float) -> None:
        """Send what this node cannot run to whoever can finish it soonest, as far as there is room."""
        for layer in self.store.outputs.latest_first():
            if self._mine(layer) and not self.leaving:
                continue
            while self.store.outputs.waiting(layer):
                candidates = self._candidates(now, layer)
                to = forward(candidates, self._rng)
                if to is None:
                    break
                self._send(now, layer, to)

    def _offer(self, now: float) -> None:
        """Alg. 2, one decision epoch: the head of each layer's queue is drawn for until one draw keeps it."""
        for layer in self.store.outputs.latest_first():
            while self._mine(layer) and self.store.outputs.waiting(layer):
                own = Own(self.inputs, self.outputs, self.backlog_s(now))
                to = self.standing.policy(own, self._candidates(now, layer), self._rng)
                if to is None:
                    break
                self._send(now, layer, to)

    def _mine(self, layer: int) -> bool:
        return self.config.span is not None and layer in self.config.span

    def _candidates(self, now: float, layer: int) -> list[Candidate]:
        size = self.store.outputs.by_layer[layer][0].task.size_bytes
        found = []
        for peer in self.members:
            if peer.takes(layer) and self._may_send_to(peer.name) and peer.out.room(layer) > 0:
                speed = peer.telemetry.speed_s if peer.telemetry else {}
                inputs, backlog_s = peer.out.load(now, speed, self.config.unmeasured_s)
                found.append(Candidate(peer.name, inputs, backlog_s, peer.out.delay.delay_s(size)))
        return found

    def _may_send_to(self, name: str) -> bool:
        return self.config.neighbours is None or name in self.config.neighbours

    def _send(self, now: float, layer: int, to: str) -> None:
        peer = self.members.peers[to]
        (held,) = self.store.take(layer, output=True)
        task = held.task
        seq = peer.out.sent(now, layer, task.item, task.size_bytes)
        self.totals.sent[to] += 1
        self._moved.append(Moved(task.item, task.attempt, to))
        if self._moved_due_at is None:
            self._moved_due_at = now + self.config.moved_delay_s
        waited_s = max(now - task.since, 0.0)
        task = replace(task, wait_s=task.wait_s + waited_s, since=now)
        epoch = self.control.epoch if self.control else 0
        span = peer.span
        if span is None:
            raise IllegalEventError(f"{to} has no span", tuple(self.story))
        self._out.append(SendTask(to, span, seq, epoch, task))

    def _reclaim(self) -> bool:
        """Work conservation: an idle node takes the head of O_n back if it can run it."""
        for layer in self.store.outputs.latest_first():
            if self._batch_for(layer, self.store.outputs.waiting(layer)):
                self.store.reclaim(layer)
                return True
        return False

    def _key(self, layer: int) -> SegmentKey | None:
        span, plan = self.config.span, self.plan
        if span is None or plan is None or layer not in span or layer >= plan.layer_count:
            return None
        wanted = layer, early_exits_wanted(self.threshold)
        if wanted not in self._keys:
            self._keys[wanted] = plan.segment(layer, span, early_exits=wanted[1])
        return self._keys[wanted]

    def _batch_for(self, layer: int, waiting: int) -> tuple[SegmentKey, int] | None:
        """The segment for ``layer`` and how many of the waiting tasks it can take now; None if it cannot run."""
        key = self._key(layer)
        if key is None or key not in self._seconds or self.plan is None:
            return None
        if key.stop < self.plan.layer_count:
            waiting = min(waiting, self.store.room(key.stop))
        return (key, self._seconds.batch(key, waiting)) if waiting > 0 else None

    def _run(self, now: float) -> None:
        """Start the latest layer's waiting tasks whose product has a slot, as a batch when that is faster."""
        if self._running is not None:
            return
        for layer in self.store.inputs.latest_first():
            if batch := self._batch_for(layer, self.store.inputs.waiting(layer)):
                self._start(now, *batch)
                return

    def _start(self, now: float, key: SegmentKey, count: int) -> None:
        plan = self.plan
        if plan is None:
            raise IllegalEventError("a segment starts without a model", tuple(self.story))
        helds = self.store.take(key.entry, count)
        for held in helds:
            self._released(held, now)
        tasks = tuple(held.task for held in helds)
        expected_s = count * self.seconds(key.entry, count)
        self._batches += 1
        self._running = Running(self._batches, plan, key, tasks, now, expected_s)
        if not self._running.last:
            self.store.reserve(key.stop, count)
        self._out.append(RunSegment(self._batches, key, tasks))

    def _released(self, held: Held, now: float | None = None) -> None:
        """A received task has left its slot: its sender gets the credit back with the next acknowledgement."""
        inbound = self.members.inbounds.get(held.sender) if held.origin is Origin.RECEIVED else None
        if inbound is not None:
            inbound.released[held.task.next_layer] += 1
            inbound.owe(now if now is not None else inbound.received_at, self.config.ack_delay_s)

    # --- reports

    def _row(self, row: ResultRow) -> None:
        self._rows.append(row)

    def _report(self, now: float) -> None:
        if self.connected or self.config.role == "source":
            self._send_results(now)
        if not self.connected:
            if now >= self._telemetry_at:
                self._telemetry_at = now + self.config.telemetry_period_s
            return
        self._send_acks(now)
        if now >= self._telemetry_at:
            self._telemetry_at = now + self.config.telemetry_period_s
            self._probe_peers(now)
            self._out.append(SendTelemetry(self.telemetry(now)))
        if self.draining and not self._drained_told and self._running is None and not self.inputs + self.outputs:
            self._drained_told = True
            self._out.append(Drained())

    def _send_results(self, now: float) -> None:
        due = self._moved_due_at is not None and now >= self._moved_due_at
        if self._rows or due:
            self._out.append(SendResults(tuple(self._rows), tuple(self._moved), self.run))
            self._rows.clear()
            self._moved.clear()
            self._moved_due_at = None

    def _send_acks(self, now: float) -> None:
        backlog: float | None = None
        for sender, inbound in self.members.inbounds.items():
            if inbound.due_at is None or (now < inbound.due_at and inbound.unreported < self.config.window // 2):
                continue
            backlog = self.backlog_s(now) if backlog is None else backlog
            self._out.append(SendAck(sender, inbound.ack(now, self.config.incarnation, self.inputs, backlog)))

    def _probe_peers(self, now: float) -> None:
        """Measure delays now and then; ask at once where an acknowledgement is overdue or life is in doubt."""
        for peer in self.members:
            if self._may_send_to(peer.name) and peer.status.online and self._probe_due(now, peer):
                peer.probed_at = now
                number = peer.out.probe(now)
                self._out.append(SendProbe(peer.name, Probe(self.config.incarnation, number, peer.out.seq)))

    def _probe_due(self, now: float, peer: Peer) -> bool:
        overdue_s = max(0.25, 4 * peer.out.delay.round_trip_s)
        waiting = peer.out.unacknowledged
        return now - peer.probed_at >= self.config.probe_period_s or bool(waiting and now - waiting[0].at > overdue_s)

    def telemetry(self, now: float) -> Telemetry:
        """The load report as of ``now``."""
        inputs, outputs = self.store.inputs, self.store.outputs
        totals, by_layer = self.totals, self.backlog_by_layer_s()
        return Telemetry(
            run=self.run or 0,
            incarnation=self.config.incarnation,
            node=self.name,
            inputs=self.inputs,
            outputs=self.outputs,
            backlog_s=sum(by_layer.values()) + self._remainder_s(now),
            backlog_by_layer_s=by_layer,
            speed_s={layer: self.seconds(layer, inputs.waiting(layer)) for layer in self.entries},
            free_slots={layer: max(self.store.room(layer), 0) for layer in self.entries},
            received={sender: inbound.seq for sender, inbound in self.members.inbounds.items()},
            counters=totals.counters(),
            exits=dict(totals.exits),
            stranded={
                layer: outputs.waiting(layer)
                for layer in outputs.latest_first()
                if not self._mine(layer) and not any(peer.takes(layer) for peer in self.members)
            },
            links={peer.name: peer.out.load_report(peer.status.entries) for peer in self.members if peer.out.seq},
        )
