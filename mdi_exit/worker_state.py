"""The pure core of a node: every decision about tasks, and nothing else (MDI-Exit, arXiv 2408.05247, Alg. 1 and 2).

``WorkerState.handle(now, event) -> list[Command]`` is synchronous, holds all state and makes all decisions. Time comes in as
``now`` (monotonic seconds), randomness as a ``Random`` at construction. After each event the node works down a
priority list: send what it must, offer what it may, take back what it could run itself, run, report.

Settled here, since the paper leaves it open: a node never idles while its output queue holds a task that it could run; a
task whose next layer is not in the node's own span is not an offer and goes to the least delay plus backlog; offers
are drawn once per decision epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, assert_never

from msgspec.structs import replace

from mdi_exit.errors import IllegalEventError
from mdi_exit.events import (
    AckReceived,
    Command,
    ControlReceived,
    Drain,
    Event,
    GiveUp,
    HoldSegments,
    Inject,
    InputEnded,
    InputOffered,
    InputSkipped,
    ModelKnown,
    ModelRefused,
    Notice,
    OrderReceived,
    Outcome,
    PlanMade,
    ProbeReceived,
    RecordingHeld,
    RequestEvent,
    Restored,
    ResultsReceived,
    RoutesSolved,
    RunSegment,
    SegmentDone,
    SegmentFailed,
    SegmentsReady,
    SendFailed,
    SetAdmission,
    SpeedKnown,
    StatusReceived,
    Task,
    TaskReceived,
    TelemetryReceived,
    Tick,
    TransportDown,
    TransportUp,
)
from mdi_exit.hurrying import Hurrying
from mdi_exit.membership import Change
from mdi_exit.policy.batching import MAX_BATCH
from mdi_exit.policy.exiting import should_exit
from mdi_exit.policy.queueing import keeps_here
from mdi_exit.queues import Held, Origin, Running
from mdi_exit.segments import SegmentKey, runs_in
from mdi_exit.span import LayerSpan
from mdi_exit.wire import Best, Control, ResultRow, Status

__all__ = ["WorkerState"]

_GREETING_DELAY_S: Final = 0.02


class WorkerState(Hurrying):
    """One node's queues, links and engine bookkeeping. See the module's docstring."""

    def handle(self, now: float, event: Event) -> list[Command]:
        """Take in one event at ``now`` (monotonic seconds); returns what to do, in order."""
        self._story.append((now, type(event).__name__))
        epoch = self._take_in(now, event)
        if self.holding.coming is not None or self.holding.leaving:
            self._change_over()
        if self._hurried:
            self._answer_late(now)
        self._announce()
        if self.connected and self.store.outputs.length:
            self._forward_mandatory(now)
            if epoch:
                self._offer(now)
        if self._running is None:
            if self.store.inputs.length:
                self._run(now)
            if self._running is None and self.store.outputs.length and self._reclaim():
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
                self._notice_change(now, self.members.telemetry(now, telemetry), telemetry.node)
                return True
            case StatusReceived(status, retained):
                self._status_received(now, status, retained=retained)
            case AckReceived(sender, ack):
                if ack.to_incarnation == self.config.incarnation:
                    self._notice_change(now, self.members.heard(now, sender, ack.incarnation), sender)
                    if (peer := self.members.get(sender)) and peer.status.incarnation == ack.incarnation:
                        peer.out.acknowledged(now, ack)
            case ProbeReceived(sender, probe):
                self._notice_change(now, self.members.heard(now, sender, probe.incarnation), sender)
                if inbound := self.members.inbound(sender, probe.incarnation):
                    inbound.probe = probe.number
                    inbound.due_at = now
                    self.members.owing[sender] = inbound
            case ControlReceived(control):
                self._control_received(now, control)
            case OrderReceived(order, retained):
                self._out += self.standing.order(order, retained=retained)
                return True
            case Inject(task):
                self.totals.injected += 1
                self._place(now, Held(replace(task, since=now), Origin.INJECTED))
                return self.standing.places(now, task.next_layer)
            case ModelKnown(plan):
                if self.plan is not None and plan.digest != self.plan.digest:
                    self._seconds.clear()
                    self._keys.clear()
                    self._flush()
                self.plan = plan
                self._entries = self._find_entries()
            case ModelRefused(refused):
                self.refusing = refused
            case SegmentsReady(seconds):
                self._seconds.ready(seconds)
                self._entries = self._find_entries()
            case SpeedKnown(layer_s):
                self.layer_s, self._status = layer_s, None
            case TransportUp():
                self._transport_up(now)
            case TransportDown():
                self.connected = False
                self.members.disconnected(now)
            case Drain():
                self.draining = True
            case (
                InputOffered()
                | InputEnded()
                | InputSkipped()
                | PlanMade()
                | ResultsReceived()
                | SetAdmission()
                | GiveUp()
                | RecordingHeld()
                | Restored()
                | RoutesSolved()
                | RequestEvent()
            ):
                raise IllegalEventError(f"expected an event of a worker, got {event}", self.story)
            case _:
                assert_never(event)
        return False

    # --- taking in events

    def _task_received(self, now: float, event: TaskReceived) -> None:
        task = event.task
        inbound = self.members.inbound(event.sender, event.incarnation)
        if inbound is None:
            return
        self._notice_change(now, self.members.heard(now, event.sender, event.incarnation), event.sender)
        fresh = inbound.receive(now, event.seq)
        self.members.owe(now, event.sender, inbound, self.config.ack_delay_s)
        if not fresh:
            self.totals.duplicates += 1
            return
        why_not = self._why_not(event.sender, task)
        if why_not is None:
            self.totals.received += 1
            late = not self._mine(task.next_layer)
            self._keep(Held(replace(task, since=now), Origin.RECEIVED, event.sender), output=late)
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
        if task.next_layer not in self.entries and task.next_layer not in self.holding.left:
            return f"{self.name} does not take layer {task.next_layer}"
        if self.store.held_for(sender, task.next_layer) >= 2 * self.config.window:
            return f"{self.name} has no slot left for {sender}"
        return None

    def _place(self, now: float, held: Held) -> None:
        """Alg. 1: a new task goes into I_n or, where a neighbour could take it, into O_n to be offered.

        Under a policy that decides for each task once it always goes there, for a moment.
        """
        layer = held.task.next_layer
        stays = not self.takers(layer) or (
            keeps_here(self.inputs, self.outputs, self.config.output_limit) and not self.standing.places(now, layer)
        )
        self._keep(held, output=not (self._mine(layer) and stays))

    def _segment_done(self, now: float, event: SegmentDone) -> None:
        running = self._batch(event.batch)
        if len(event.outcomes) != len(running.tasks):
            raise IllegalEventError(f"expected {len(running.tasks)} outcomes, got {len(event.outcomes)}", self.story)
        if running.last and any(outcome.label is None for outcome in event.outcomes):
            raise IllegalEventError("the last segment gave no label", self.story)
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
            self.totals.scored(here.exit, here.score)
            best = here if best is None or here.score >= best.score else best
            threshold = self.threshold_of(here.exit)
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
        if self._is_hopeless(now, follower, self.seconds(key.stop)):
            self._free_output(running)
            self._answer_best(follower)
        else:
            self._place(now, Held(follower, Origin.PRODUCED))

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
            raise IllegalEventError(f"expected the end of the running batch, got {batch}", self.story)
        return running

    def _free_output(self, running: Running) -> None:
        if not running.last:
            self.store.release(running.key.stop)

    def _status_received(self, now: float, status: Status, *, retained: bool) -> None:
        if status.node == self.name:
            return
        known = self.members.get(status.node)
        before = known.status.state if known else ""
        change = self.members.status(now, status, retained=retained)
        if known is None:
            self._telemetry_at = min(self._telemetry_at, now + _GREETING_DELAY_S)
        self._notice_change(now, change, status.node)
        if not self._complete:  # of other spans in force it may need fewer segments
            self._entries = self._find_entries()
        if change is Change.UPDATED and status.state != before:
            self._out.append(Notice("state", f"{status.node} is {status.state}"))

    def _notice_change(self, now: float, change: Change, node: str) -> None:
        if change is Change.NONE:
            return
        if change is Change.JOINED and (peer := self.members.get(node)):
            span = f" with layers {peer.span}" if peer.span else ""
            self._out.append(Notice("joined", f"{node} joined{span} ({peer.status.state})"))
            if hold_s := self.members.flaps.hold_left_s(now, node):
                why = f"{node} comes and goes: no work for {hold_s:.3g} s, unless nobody else can do it"
                self._out.append(Notice("held", why))
        elif change is Change.LEFT:
            self._out.append(Notice("left", f"{node} left"))

    def _control_received(self, now: float, control: Control) -> None:
        peer = self.members.get(control.source)
        if peer is not None and peer.alive and control.incarnation < peer.status.incarnation:
            return  # of a start of the source that is over: a broker remembers it
        before, self.control = self.control, control
        self._entries = self._find_entries()
        if self.holding.auto and (span := control.spans.get(self.name)) is not None and span[0] < span[1]:
            self._assign(LayerSpan(*span))
        self._out += self.standing.control(now, before, control)
        if before is not None and before.run != control.run:
            self._flush()

    # --- from one span to the next

    def _assign(self, span: LayerSpan) -> None:
        """The plan's span for this node: fetch it, serve what is held meanwhile."""
        if self.holding.assign(span):
            self._out.append(HoldSegments(self.holding.wanted))

    def _change_over(self) -> None:
        """Take up the span that was fetched; leave the old ones when others hold their layers."""
        holding, plan = self.holding, self.plan
        if plan is None or self.control is None:
            return
        planned = [LayerSpan(*span) for span in self.control.spans.values() if span[0] < span[1]]
        if holding.coming is not None and holding.ready(
            plan, [*self.members.announced_spans(), *planned], self._seconds
        ):
            holding.take_up()
            self._out.append(Notice("span", f"{self.name} holds layers {holding.span}"))
            self._spans_changed()
        if holding.leaving and holding.abandoned() <= self.members.held():
            for layer in sorted(holding.leave()):
                self.store.hand_over(layer)
            wanted = holding.wanted
            self._seconds.retain(lambda key: runs_in(plan, key, wanted))
            self._out.append(HoldSegments(wanted))
            self._spans_changed()

    def _spans_changed(self) -> None:
        self._taking.clear()
        self._entries = self._find_entries()
        self._status = None

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
        if not self.connected:
            self.members.connected(now)
            self._own_up()
        self.connected = True
        self._status = None
        self._telemetry_at = now
        for peer in self.members:
            peer.probed_at = float("-inf")

    def _tick(self, now: float) -> None:
        if self.connected:
            for peer in self.members.silent(now):
                silence_s = now - peer.heard_at
                self._out.append(Notice("silent", f"{peer.name} has been silent for {silence_s:.2g} s"))
            for peer in self.members.release(now):
                self._out.append(Notice("state", f"{peer.name} gets work again"))

    # --- running

    def _reclaim(self) -> bool:
        """Work conservation: an idle node takes back from O_n as many tasks as it would run at once."""
        for layer in self.store.outputs.latest_first():
            if batch := self._batch_for(layer, self.store.outputs.waiting(layer)):
                for _ in range(batch[1]):
                    self.store.reclaim(layer)
                return True
        return False

    def _batch_for(self, layer: int, waiting: int) -> tuple[SegmentKey, int] | None:
        """The segment for ``layer`` and how many of the waiting tasks it can take now; None if it cannot run."""
        key = self._key(layer)
        if key is None or key not in self._seconds or self.plan is None:
            return None
        if key.stop < self.plan.layer_count:
            waiting = min(waiting, self.store.room(key.stop))
        return (key, self._seconds.batch(key, waiting)) if waiting > 0 else None

    def _run(self, now: float) -> None:
        """Start the latest layer's waiting tasks whose product has a slot, as a batch when that is faster.

        Where a larger batch would be faster still, a layer lets the earlier ones go first for a moment.
        """
        if self._running is not None:
            return
        layers, passed_over = self.store.inputs.latest_first(), []
        for number, layer in enumerate(layers):
            if self._gathers(now, layer, layers[number + 1 :]):
                passed_over.append(layer)
            elif self._run_layer(now, layer):
                return
        for layer in passed_over:
            if self._run_layer(now, layer):
                return

    def _run_layer(self, now: float, layer: int) -> bool:
        while batch := self._batch_for(layer, self.store.inputs.waiting(layer)):
            if self._start(now, *batch):
                return True
        return False

    def _gathers(self, now: float, layer: int, earlier: Sequence[int]) -> bool:
        """Whether a larger batch of this layer would be faster, none of its tasks has waited long, and more wait earlier."""
        inputs, most = self.store.inputs, MAX_BATCH
        waiting = inputs.waiting(layer)
        if waiting >= most or not any(inputs.waiting(other) > waiting for other in earlier):
            return False
        oldest, key = inputs.by_layer[layer][0].task, self._key(layer)
        if now - oldest.since >= self.config.gather_s or oldest.deadline_at is not None:
            return False
        return key is not None and key in self._seconds and waiting < self._seconds.batch(key, most, explore=False)

    def batch_wanted(self, layer: int) -> int:
        """So many tasks at this layer would be run at once, if they were there."""
        key = self._key(layer) if self._mine(layer) else None
        return 1 if key is None else self._seconds.batch(key, MAX_BATCH)

    def _start(self, now: float, key: SegmentKey, count: int) -> bool:
        """Run the oldest tasks for a layer; False if all of them had no time left for it and were answered instead."""
        plan = self.plan
        if plan is None:
            raise IllegalEventError("a segment starts without a model", self.story)
        taken = self.store.take(key.entry, count)
        for held in taken:
            self._released(held, now)
        helds = self._in_time(now, taken, count * self.seconds(key.entry, count))
        if not helds:
            return False
        count = len(helds)
        tasks = tuple(held.task for held in helds)
        expected_s = count * self.seconds(key.entry, count)
        self._batches += 1
        self._running = Running(self._batches, plan, key, tasks, now, expected_s)
        if not self._running.last:
            self.store.reserve(key.stop, count)
        self._out.append(RunSegment(self._batches, key, tasks))
        return True
