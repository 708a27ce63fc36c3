"""What a node's core knows, and what can be read off it: queues, links, speeds, the model and its part of it."""

from __future__ import annotations

from collections import Counter, deque
from random import Random
from typing import Final

from mdi_exit.errors import IllegalEventError
from mdi_exit.events import Command
from mdi_exit.holding import Holding
from mdi_exit.measured import SegmentSeconds
from mdi_exit.membership import Members, Peer
from mdi_exit.policy.damping import Flaps
from mdi_exit.policy.exiting import early_exits_wanted
from mdi_exit.queues import Running, TaskStore
from mdi_exit.segments import ModelPlan, SegmentKey, needed_segments, segment_stop
from mdi_exit.span import LayerSpan
from mdi_exit.standing import Standing
from mdi_exit.wire import Control, Moved, ResultRow, Status
from mdi_exit.worker_config import Totals, WorkerConfig

__all__ = ["NodeState"]

_STORY_LENGTH: Final = 40


class NodeState:
    """The state of one node; ``Outgoing`` adds what it sends, ``WorkerState`` what happens to it."""

    def __init__(self, config: WorkerConfig, rng: Random) -> None:
        self.config = config
        hears = None if config.role == "source" else config.neighbours
        self.members = Members(config.name, config.dead_after_s, hears, flaps=Flaps(config.damping))
        self.store = TaskStore(config.slots)
        self.plan: ModelPlan | None = None
        self.control: Control | None = None
        self.connected = False
        self.draining = False
        self.refusing = False  # what the source offers is not signed as it should be
        self.holding = Holding(config.span, config.auto)
        self.layer_s: tuple[float, ...] = ()
        self.standing = Standing(config.name, config.offloading)
        self.totals = Totals()
        self._story: deque[tuple[float, str]] = deque(maxlen=_STORY_LENGTH)
        self._taking: dict[int, tuple[Peer, ...]] = {}
        self._taking_of: tuple[int, WorkerConfig] = (-1, config)
        self._rng = rng
        self._entries: tuple[int, ...] = ()
        self._complete = False
        self._keys: dict[int, SegmentKey] = {}
        self._seconds = SegmentSeconds()
        self._running: Running | None = None
        self._batches = 0
        self._rows: deque[ResultRow] = deque()
        self._moved: deque[Moved] = deque()
        self._untold = 0
        self._moved_due_at: float | None = None
        self._telemetry_at = 0.0
        self._status: Status | None = None
        self._drained_told = False
        self._speeds_told: dict[int, float] = {}
        self._speeds_of: tuple[tuple[int, ...], Control | None, int] | None = None
        self._hurried: list[tuple[float, int, int]] = []
        self._out: list[Command] = []

    # --- what it is

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

    def threshold_of(self, exit_number: int) -> float:
        """The threshold in force at one exit."""
        if self.control and exit_number < len(self.control.thresholds):
            return self.control.thresholds[exit_number]
        return self.plan.threshold_at(exit_number, self.threshold) if self.plan else 1.0

    @property
    def early_exits(self) -> bool:
        """Whether any exit but the last can be taken."""
        if self.control and self.control.thresholds:
            return any(map(early_exits_wanted, self.control.thresholds))
        return early_exits_wanted(self.threshold)

    @property
    def run(self) -> int | None:
        return self.control.run if self.control else None

    @property
    def entries(self) -> tuple[int, ...]:
        """Layers at which this node takes tasks now: its segments with and without heads are loaded."""
        return self._entries

    def _find_entries(self) -> tuple[int, ...]:
        plan = self.plan
        self._keys.clear()
        if plan is None or self.control is None or self.control.model != plan.digest:
            self._complete = False
            return ()
        found = {
            layer
            for span in self.holding.served
            for layer in span
            if layer < plan.layer_count
            and all(plan.segment(layer, span, early_exits=early) in self._seconds for early in (True, False))
        }
        self._complete = bool(found) and (self._complete or self._has_all(plan))
        return tuple(sorted(found))

    def _has_all(self, plan: ModelPlan) -> bool:
        """Whether all segments are loaded that the spans in force make possible here."""
        span = self.holding.span
        if span is None or span.stop > plan.layer_count:
            return False
        return all(key in self._seconds for key in needed_segments(plan, span, self.members.announced_spans()))

    @property
    def state(self) -> str:
        """One or two words for people and for other nodes: only ``ready`` means that tasks are taken.

        A node is ready when it has all that its span may be asked for, and stays so when new neighbours make more possible.
        """
        if self.draining:
            return "draining"
        if self.control is None or self.plan is None:
            return "model not signed" if self.refusing else "waiting for source"
        if self.holding.span is None:
            return "waiting for layers" if self.holding.auto else "ready"
        if self.standing.set_aside:
            return "draining" if self._running or self.inputs + self.outputs else "drained"
        if self._complete:
            return "ready"
        return "model not signed" if self.refusing else "loading segments"

    @property
    def leaving(self) -> bool:
        """What it has goes, and it takes nothing new: for good, or as ordered."""
        return self.draining or self.standing.set_aside

    @property
    def story(self) -> tuple[str, ...]:
        """The last events, for the message of an error."""
        return tuple(f"{when:.4f} {what}" for when, what in self._story)

    def takers(self, layer: int) -> tuple[Peer, ...]:
        """Those who take tasks for ``layer`` and may be sent to; those held back only where nobody else can run it."""
        if self._taking_of[0] != self.members.changes or self._taking_of[1] is not self.config:
            self._taking_of = self.members.changes, self.config
            self._taking.clear()
        found = self._taking.get(layer)
        if found is None:
            names = self.config.neighbours
            near = self.members if names is None else filter(None, map(self.members.get, sorted(names)))
            able = tuple(peer for peer in near if peer.takes(layer))
            found = tuple(peer for peer in able if peer.name not in self.members.flaps.held)
            if not found and not self._mine(layer):
                found = able
            self._taking[layer] = found
        return found

    def holds(self, item: int, attempt: int) -> bool:
        """Whether this attempt waits or runs here."""
        running = self._running.tasks if self._running else ()
        return self.store.holds(item, attempt) or any((t.item, t.attempt) == (item, attempt) for t in running)

    def _mine(self, layer: int) -> bool:
        return layer in self.holding.layers

    def _may_send_to(self, name: str) -> bool:
        return self.config.neighbours is None or name in self.config.neighbours

    def _key(self, layer: int) -> SegmentKey | None:
        key = self._keys.get(layer)
        if key is not None:
            return key
        plan = self.plan
        if plan is None or layer not in self.holding.layers or layer >= plan.layer_count:
            return None
        key = self._keys[layer] = self._segment_here(plan, layer)
        return key

    def _head_wanted(self, plan: ModelPlan, layer: int, span: LayerSpan) -> bool:
        """Whether the exit that the segment from ``layer`` comes to can be taken, so that its head must be run."""
        last = segment_stop(layer, span, plan.exit_layers) - 1
        if plan.stateful or last not in plan.exit_layers:
            return self.early_exits
        return early_exits_wanted(self.threshold_of(plan.exit_index(last)))

    def _segment_here(self, plan: ModelPlan, layer: int) -> SegmentKey:
        """Of the held span, or of one that is being left where only that can be run."""
        spans = [span for span in self.holding.served if layer in span]
        keys = [plan.segment(layer, span, early_exits=self._head_wanted(plan, layer, span)) for span in spans]
        return next((key for key in keys if key in self._seconds), keys[0])

    # --- how long things take

    def seconds(self, layer: int, waiting: int = 1) -> float:
        """Γ: expected seconds a task for the segment that starts at ``layer``, when ``waiting`` tasks are there."""
        key = self._key(layer)
        if key is None:
            return self.config.unmeasured_s
        return self._seconds.per_task(key, waiting, self.config.unmeasured_s)

    def waiting(self, layer: int) -> int:
        """Tasks in I_n and O_n whose next layer this is."""
        return self.store.inputs.waiting(layer) + self.store.outputs.waiting(layer)

    def backlog_by_layer_s(self) -> dict[int, float]:
        """Expected seconds of what waits in I_n, by next layer."""
        queues = self.store.inputs.by_layer
        return {
            layer: len(queues[layer]) * self.seconds(layer, len(queues[layer]))
            for layer in self.store.inputs.latest_first()
        }

    def backlog_s(self, now: float) -> float:
        """I_n Γ_n: expected seconds of what waits in I_n, the running task's remainder included."""
        if not self.store.inputs.length:
            return self._remainder_s(now)
        return sum(self.backlog_by_layer_s().values()) + self._remainder_s(now)

    def _remainder_s(self, now: float) -> float:
        running = self._running
        return max(running.expected_s - (now - running.started_at), 0.0) if running else 0.0

    def links(self) -> dict[str, float]:
        """B of each link, bytes a second; 0 where it is not known."""
        return {peer.name: peer.out.delay.bytes_per_s for peer in self.members if peer.out.seq}

    def next_wakeup(self) -> float:
        """When ``Tick`` is wanted next, monotonic seconds."""
        due = self._telemetry_at
        if self.connected:
            members = self.members
            due = min(due, members.look_at if members.peers else due, *members.flaps.held.values())
            for inbound in members.owing.values():
                if inbound.due_at is not None and inbound.due_at < due:
                    due = inbound.due_at
            if self._moved_due_at is not None and self._moved_due_at < due:
                due = self._moved_due_at
        return due

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
            raise IllegalEventError("; ".join(problems), self.story)
