"""What a node sends: its status, tasks to other nodes, results, acknowledgements, probes, load reports."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, TypeVar

from msgspec.structs import replace

from mdi_exit.errors import IllegalEventError
from mdi_exit.events import (
    Drained,
    Notice,
    SendAck,
    SendProbe,
    SendResults,
    SendStatus,
    SendTask,
    SendTelemetry,
)
from mdi_exit.membership import Peer
from mdi_exit.node_state import NodeState
from mdi_exit.policy.offloading import HERE, Candidate, Own, forward
from mdi_exit.queues import Held, Origin
from mdi_exit.wire import Moved, Probe, ResultRow, Status, Telemetry

__all__ = ["MOST_TO_TELL", "Outgoing"]

MOST_TO_TELL: Final = 4096
"""Results, and hand-overs, that wait to be told to the source."""

T = TypeVar("T")


class Outgoing(NodeState):
    """Each method puts commands into ``_out``; when they are called is ``WorkerState``'s to say."""

    def _announce(self) -> None:
        """Publish the own status when it is another than the last one published."""
        told = self._status
        if not self.connected:
            return
        if told is not None and told.entries == self._entries and told.state == self.state:
            return
        span = self.holding.span
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
            auto=self.holding.auto,
            memory_bytes=self.config.memory_bytes,
            layer_s=self.layer_s,
            leaving=tuple((left.first, left.stop) for left in self.holding.leaving),
            neighbours=None if self.config.neighbours is None else tuple(sorted(self.config.neighbours)),
        )
        self._out.append(SendStatus(self._status))

    # --- tasks

    def _forward_mandatory(self, now: float) -> None:
        """Send what this node cannot run to whoever can finish it soonest, as far as there is room."""
        for layer in self.store.outputs.latest_first():
            if self._mine(layer) and not self.leaving:
                continue
            while self.store.outputs.waiting(layer):
                parties = self._parties(now, layer)
                to = forward(self._candidates(now, layer), self._rng, self.standing.routes.due(layer, parties))
                if to is None:
                    break
                self._send(now, layer, to)
                self.standing.routes.took(layer, to, parties)

    def _offer(self, now: float) -> None:
        """Alg. 2, one decision epoch: the head of each layer's queue is drawn for until one draw keeps it."""
        for layer in self.store.outputs.latest_first():
            while self._mine(layer) and self.store.outputs.waiting(layer):
                parties = self._parties(now, layer)
                to = self.standing.policy(self._own(now, layer, parties), self._candidates(now, layer), self._rng)
                if to is None:
                    break
                if to == HERE:
                    self.store.reclaim(layer)
                else:
                    self._send(now, layer, to)
                self.standing.routes.took(layer, to, parties)

    def _own(self, now: float, layer: int, parties: Sequence[str]) -> Own:
        return Own(
            self.inputs, self.outputs, self.backlog_s(now), self.standing.routes.due(layer, parties),
            self.store.inputs.waiting(layer), layer > 0,
        )  # fmt: skip

    def _parties(self, now: float, layer: int) -> list[str]:
        """Who takes tasks at this layer, with or without room, this node included, where there are shares for it."""
        if not self.standing.keeps_shares(now, layer):
            return []
        return [
            *([HERE] if self._mine(layer) and not self.leaving else []),
            *(peer.name for peer in self.takers(layer)),
        ]

    def _candidates(self, now: float, layer: int) -> list[Candidate]:
        size = self.store.outputs.by_layer[layer][0].task.size_bytes
        found = []
        for peer in self.takers(layer):
            if peer.out.is_open(layer):
                speed = peer.telemetry.speed_s if peer.telemetry else {}
                inputs, backlog_s = peer.out.load(now, speed, self.config.unmeasured_s)
                found.append(Candidate(peer.name, inputs, backlog_s, peer.out.delay_s(now, size)))
        return found

    def _send(self, now: float, layer: int, to: str) -> None:
        peer = self.members.peers[to]
        (held,) = self.store.take(layer, output=True)
        if held.origin is Origin.RECEIVED:
            self._released(held, now)
        task = held.task
        seq = peer.out.sent(now, layer, task.item, task.size_bytes)
        self.totals.sent[to] += 1
        self._keep_to_tell(self._moved, [Moved(task.item, task.attempt, to)])
        if self._moved_due_at is None:
            self._moved_due_at = now + self.config.moved_delay_s
        waited_s = max(now - task.since, 0.0)
        task = replace(task, wait_s=task.wait_s + waited_s, since=now)
        epoch = self.control.epoch if self.control else 0
        span = peer.span
        if span is None:
            raise IllegalEventError(f"{to} has no span", self.story)
        self._out.append(SendTask(to, span, seq, epoch, task))

    def _send_failed(self, command: SendTask | SendResults) -> None:
        """The transport did not take it: results are kept, a task goes back to the head of O_n, its credit to the link."""
        if isinstance(command, SendResults):
            if command.run == self.run:
                self._keep_to_tell(self._rows, command.rows)
                self._keep_to_tell(self._moved, command.moved)
            return
        self.totals.sent[command.to] -= 1
        self.totals.unsent[command.to] += 1
        if peer := self.members.get(command.to):
            peer.out.unsent(command.seq, command.task.item)
        if command.task.run != self.run:
            self.totals.dropped += 1
            return
        self.store.add(Held(command.task, Origin.INJECTED), output=True, front=True)

    def _released(self, held: Held, now: float | None = None) -> None:
        """A received task has left its slot: its sender gets the credit back with the next acknowledgement."""
        inbound = self.members.inbounds.get(held.sender) if held.origin is Origin.RECEIVED else None
        if inbound is not None:
            inbound.released[held.task.next_layer] += 1
            since = now if now is not None else inbound.received_at
            self.members.owe(since, held.sender, inbound, self.config.ack_delay_s)

    # --- reports

    def _row(self, row: ResultRow) -> None:
        self._keep_to_tell(self._rows, [row])

    def _keep_to_tell(self, waiting: deque[T], news: Sequence[T]) -> None:
        """Keep what the source is to be told; the oldest of too much is dropped and counted."""
        waiting.extend(news)
        while len(waiting) > MOST_TO_TELL:
            waiting.popleft()
            self.totals.untold += 1

    def _own_up(self) -> None:
        """Say how much was dropped since the last time."""
        if lost := self.totals.untold - self._untold:
            self._untold = self.totals.untold
            text = f"dropped {lost:,} results and hand-overs, since more than {MOST_TO_TELL:,} waited to be sent"
            self._out.append(Notice("untold", f"{text}: the source has their items done again"))

    def _report(self, now: float) -> None:
        if (self._rows or self._moved_due_at is not None) and (self.connected or self.config.role == "source"):
            self._send_results(now)
        if not self.connected:
            if now >= self._telemetry_at:
                self._telemetry_at = now + self.config.telemetry_period_s
            return
        if self.members.owing:
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
        owing = self.members.owing
        backlog: float | None = None
        for sender, inbound in list(owing.items()):
            if inbound.due_at is None or (now < inbound.due_at and inbound.unreported < self.config.window // 2):
                continue
            backlog = self.backlog_s(now) if backlog is None else backlog
            del owing[sender]
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

    def _speeds(self) -> dict[int, float]:
        """Γ by entry layer; what was told last where nothing waits and nothing was learnt, as at most nodes of many."""
        inputs, known = self.store.inputs, self._speeds_of
        learnt = self._seconds.changes
        if not inputs.length and known is not None:
            entries, control, changes = known
            if entries is self._entries and control is self.control and changes == learnt:
                return self._speeds_told
        self._speeds_told = {layer: self.seconds(layer, inputs.waiting(layer)) for layer in self.entries}
        self._speeds_of = None if inputs.length else (self._entries, self.control, learnt)
        return self._speeds_told

    def telemetry(self, now: float) -> Telemetry:
        """The load report as of ``now``."""
        outputs = self.store.outputs
        totals, by_layer = self.totals, self.backlog_by_layer_s()
        return Telemetry(
            run=self.run or 0,
            incarnation=self.config.incarnation,
            node=self.name,
            inputs=self.inputs,
            outputs=self.outputs,
            backlog_s=sum(by_layer.values()) + self._remainder_s(now),
            backlog_by_layer_s=by_layer,
            speed_s=self._speeds(),
            free_slots={layer: max(self.store.room(layer), 0) for layer in self.entries},
            received={sender: inbound.seq for sender, inbound in self.members.inbounds.items()},
            counters=totals.counters(),
            exits=dict(totals.exits),
            stranded={
                layer: outputs.waiting(layer)
                for layer in outputs.latest_first()
                if not self._mine(layer) and not any(peer.takes(layer) for peer in self.members)
            }
            if outputs.length
            else {},
            links={peer.name: peer.out.load_report(peer.status.entries) for peer in self.members if peer.out.seq},
            scores=self.totals.scores_told() if self.control and self.control.census else {},
        )
