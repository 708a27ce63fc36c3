"""The pure core of the source: admission, the one result of each item, retries, threshold (arXiv 2408.05247, Alg. 3 and 4).

``SourceState`` holds the source's own ``WorkerState`` and shares its members; one ``handle`` serves both. The source keeps
every admitted item until exactly one result for it is recorded: a label, or an error that says why. What it records
first stands; a later answer is counted and not recorded. Loss, duplicates and dead agents are repaired from here.
"""

from __future__ import annotations

from typing import Final

from mdi_exit.events import (
    Command,
    Drain,
    Drained,
    Event,
    GiveUp,
    InputEnded,
    InputOffered,
    InputSkipped,
    ModelKnown,
    Notice,
    OrderReceived,
    PlanMade,
    RecordingHeld,
    ReplyFailed,
    RequestPrepared,
    RequestReceived,
    RequestUnusable,
    Restored,
    ResultsReceived,
    RoutesSolved,
    SendReport,
    SendResults,
    SetAdmission,
    StatusReceived,
    TelemetryReceived,
    Tick,
    TransportUp,
)
from mdi_exit.item_keeping import LEAVING
from mdi_exit.source_config import SourceConfig
from mdi_exit.steering import Steering
from mdi_exit.wire import Happening, ResultRow

__all__ = ["SourceConfig", "SourceState"]

_PAUSED: Final = "the source is paused"
_TELLING: Final = (Tick, StatusReceived, TelemetryReceived, ModelKnown)
"""Events after which the nodes that are there may be others, or may be known for longer."""


class SourceState(Steering):
    """Decisions of the source. ``worker`` is its own node's state, with or without a span."""

    def handle(self, now: float, event: Event) -> list[Command]:
        """Take in one event at ``now`` (monotonic seconds); returns what to do, in order."""
        match event:
            case InputOffered():
                self._offered(now, event)
            case InputEnded():
                self._end(now)
                self._turns.draws = 0
            case InputSkipped(count):
                self._skipped(count)
            case RequestReceived():
                self.desk.receive(now, event, self._unwilling)
            case RequestPrepared(ticket, payload, size_bytes):
                self._prepared(now, ticket, payload, size_bytes)
            case RequestUnusable(ticket, reason):
                if request := self.desk.prepared(ticket):
                    self.desk.reply(now, request, error="bad-request", reason=reason)
            case ReplyFailed():
                self.desk.failed(now, event)
            case ResultsReceived(sender, results):
                self._results(now, sender, SendResults(results.rows, results.moved, results.run))
            case SetAdmission():
                self._set_admission(now, event)
            case RoutesSolved():
                self._routes_solved(now, event)
            case OrderReceived():
                self._order_received(now, event)
            case GiveUp(reason):
                self._end(now)
                for item in list(self.pending):
                    attempt = self.pending[item].attempt
                    self._record(now, item, ResultRow(item, attempt, (), error=reason))
            case PlanMade(decision):
                self._planned(now, decision)
            case RecordingHeld(reason):
                self._hold(reason)
            case Restored():
                self._restored(now, event)
            case Drain():
                self._end(now)
                self._out.append(Drained())
            case ModelKnown(plan):
                self.plan = plan
                self._work(now, event)
                self._say_promise()
                self._command(now)
            case TransportUp():
                self._work(now, event)
                self._command(now)
            case _:
                self._work(now, event)
        if isinstance(event, _TELLING):
            self._look_around(now)
        if isinstance(event, Tick):
            self._adapt(now)
            self._retry_due(now)
        self._expire(now)
        self._draw(now)
        if self.desk.to_keep:
            self._out += self.desk.to_keep
            self.desk.to_keep.clear()
        if self.worker.connected:
            self._out += self.desk.outgoing(now)
        self._note(now)
        if isinstance(event, OrderReceived) and self.plan is not None and self.worker.connected:
            self._out.append(SendReport(self.report(now, self.plan)))  # whoever gave the order waits for it
        out, self._out = self._out, []
        return out

    @property
    def _unwilling(self) -> str:
        """Why no request is taken now."""
        return LEAVING if self._ended else _PAUSED if self.stopped else self.held[:300]

    def _hold(self, reason: str) -> None:
        if bool(reason) != bool(self.held):
            text = f"{reason}: nothing new is admitted" if reason else "results can be recorded again"
            self._out.append(Notice("held", text[:400]))
        self.held = reason

    def _note(self, now: float) -> None:
        """Keep what people want to know, for the reports to come."""
        for command in self._out:
            if isinstance(command, Notice):
                self._happenings += 1
                self.noticed[command.kind] += 1
                kept = Happening(self._happenings, 0.0, command.kind[:40], command.text[:400], command.order)
                self.happened.append((now, kept))

    def next_wakeup(self) -> float:
        """When ``Tick`` is wanted next, monotonic seconds."""
        worker = self.worker
        due = min(worker.next_wakeup(), self._period_at, self.desk.next_wakeup(connected=worker.connected))
        for heap in (self._timers, self._expiring):
            if heap and heap[0][0] < due:
                due = heap[0][0]
        drawing = self._started and not self._ended and not self.stopped and not self.held
        if drawing and self._arrival_at < due and self._paced and self._turns.may_arrive:
            due = self._arrival_at
        return due
