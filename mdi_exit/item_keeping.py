"""The source's items from admission to their one result: what is drawn, kept, answered, tried again (Alg. 3's admission)."""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from dataclasses import replace
from random import Random
from typing import Final

from mdi_exit.admission import Admission, Room
from mdi_exit.errors import IllegalEventError
from mdi_exit.events import (
    Command,
    Drained,
    DrawInput,
    Event,
    Inject,
    InputOffered,
    KeepItem,
    LifeTotals,
    Record,
    Restored,
    RestoredItem,
    SendReport,
    SendResults,
    SendTelemetry,
    Task,
)
from mdi_exit.histogram import ItemHistograms
from mdi_exit.items import Forecast, Pending, RetryTimer, final_error, quantiles
from mdi_exit.orders import OrderBook
from mdi_exit.planning import Planning
from mdi_exit.policy.batching import MAX_BATCH
from mdi_exit.requests import OWN, RequestDesk
from mdi_exit.segments import ModelPlan
from mdi_exit.source_config import SourceConfig
from mdi_exit.wire import Happening, ResultRow, SourceReport
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

__all__ = ["LEAVING", "ItemKeeping"]

_RETRY_TOKENS: Final = 20.0
_IDLE_RETRIES_PER_S: Final = 2.0
_HAPPENED_KEPT: Final = 16
_TOLD_FOR_S: Final = 10.0
LEAVING: Final = "the source is leaving"


class ItemKeeping:
    """The state of the source; ``Steering`` adds what it decides, ``SourceState`` what happens to it.

    ``adapt``, ``floor``, ``rate_per_s`` and ``threshold`` begin as configured and follow orders; ``stopped``: paused.
    """

    def __init__(self, config: SourceConfig, worker: WorkerConfig, rng: Random) -> None:
        self.config = config
        self.worker = WorkerState(replace(worker, role="source"), rng)
        self.plan: ModelPlan | None = None
        self.rate_per_s = config.rate_per_s
        self.interval_s = 1.0 / config.rate_per_s if config.rate_per_s else config.start_interval_s
        self.threshold = config.threshold
        self.floor = config.floor
        self.adapt = config.adapt
        self.admitted = self.completed = self.errors = 0
        self.duplicates = self.retried = self.unknown = 0
        self.right = self.judged = 0
        self.exits: Counter[int] = Counter()
        self.items = ItemHistograms()
        self.noticed: Counter[str] = Counter()
        self.missing: tuple[int, ...] | None = None
        self._missing_since = 0.0
        self._looked_at: tuple[int, tuple[int, ...], str] | None = None
        self._held_by_none: tuple[int, ...] = ()
        self._dead: frozenset[str] = frozenset()
        self._restarts = 0
        self._astray = False  # whether an item may be held by one of the dead
        self._told_missing: tuple[int, ...] | None = None
        self._told_floor = False
        self.latencies_s: deque[float] = deque(maxlen=200)
        self.forecast = Forecast()
        self.pending: dict[int, Pending] = {}
        self.retry_timer = RetryTimer(config.min_retry_s)
        self.stopped = False
        self.held = ""  # why nothing can be recorded now
        self._left: deque[int] = deque()  # items of an earlier life that wait to be run again
        self.happened: deque[tuple[float, Happening]] = deque(maxlen=_HAPPENED_KEPT)
        self._happenings = 0
        self._book = OrderBook()
        self._offloading, self._log_level = config.offloading, ""
        self._rng = rng
        self._ended = False
        self._started = False
        self.desk = RequestDesk(config.requests, journalled=config.journalled)
        self._own_offered = self._own_refused = 0
        self._turns = Admission(config, self.desk)
        self._next_item = 1
        self._arrival_at = 0.0
        self._period_at = 0.0
        self._queue = 0.0
        self.planning = Planning(worker.name, config.placement)
        self._timers: list[tuple[float, int, int]] = []
        self._waiting: deque[tuple[int, int]] = deque()
        self._expiring: list[tuple[float, int]] = []
        self._tokens = _RETRY_TOKENS
        self._tokens_at = 0.0
        self._out: list[Command] = []

    def _work(self, now: float, event: Event) -> None:
        """Hand an event to the own worker; its results come back here and not over the broker."""
        for command in self.worker.handle(now, event):
            if isinstance(command, SendResults):
                self._results(now, self.worker.name, command)
            elif not isinstance(command, Drained):
                self._out.append(command)
                if isinstance(command, SendTelemetry) and self.plan is not None:
                    self._out.append(SendReport(self.report(now, self.plan)))

    # --- reading the state

    @property
    def queue(self) -> int:
        """Q = I + O at the source; for a source without layers, the items that wait for credit."""
        return self.worker.inputs + self.worker.outputs

    @property
    def offered(self) -> int:
        """Samples of the own input and requests of others that came."""
        return self._own_offered + self.desk.received

    @property
    def refused(self) -> int:
        """Those of them that were turned away before they became items."""
        return self._own_refused + self.desk.turned_away

    @property
    def done(self) -> bool:
        """No input will come and every admitted item has its result."""
        return self._ended and not self.pending and not self._turns.draws

    @property
    def ended(self) -> bool:
        """Nothing new is taken any more."""
        return self._ended

    @property
    def started(self) -> bool:
        """All layers have been held once: items are asked for."""
        return self._started

    def validate(self) -> None:
        """Check every invariant; raises ``IllegalEventError``."""
        self.worker.validate()
        if self.admitted != self.completed + self.errors + len(self.pending):
            raise IllegalEventError(
                f"{self.admitted} admitted, {self.completed} completed, {self.errors} errors, {len(self.pending)} pending",
                self.worker.story,
            )
        if len(self.pending) > self.config.max_pending:
            raise IllegalEventError(f"{len(self.pending)} pending", self.worker.story)
        problems = self.desk.problems(sum(entry.request is not None for entry in self.pending.values()))
        if self.offered != self.admitted + self.refused + self.desk.unadmitted:
            problems.append(f"{self.offered} offered, {self.admitted} admitted, {self.refused} refused")
        if problems:
            raise IllegalEventError("; ".join(problems), self.worker.story)

    def report(self, now: float, plan: ModelPlan) -> SourceReport:
        """The source's report as of ``now``."""
        worker = self.worker
        return SourceReport(
            run=self.config.run,
            incarnation=worker.config.incarnation,
            node=worker.name,
            model=plan.digest,
            offered=self.offered,
            admitted=self.admitted,
            completed=self.completed,
            errors=self.errors,
            refused=self.refused,
            retried=self.retried,
            duplicates=self.duplicates,
            pending=len(self.pending),
            right=self.right,
            judged=self.judged,
            exits=dict(self.exits),
            threshold=self.threshold,
            floor=self.floor,
            adapt=self.adapt,
            rate_per_s=1.0 / self.interval_s if self._paced else None,
            paused=self.stopped,
            latency_s=quantiles(self.latencies_s),
            happened=tuple(
                Happening(told.number, now - at, told.kind, told.text, told.order)
                for at, told in self.happened
                if now - at <= _TOLD_FOR_S
            ),
        )

    # --- admission

    @property
    def _paced(self) -> bool:
        return self.rate_per_s is not None or self.adapt == "rate"

    @property
    def _full(self) -> bool:
        return self.queue >= self.config.max_queue or len(self.pending) >= self._turns.most

    def _draw(self, now: float) -> None:
        """Ask for the samples that are due and prepare the requests that there is room for, in turn."""
        self._run_again(now)
        if not self._started or self._ended or self.stopped or self.held or self._left:
            return
        paced = self._paced
        self._turns.batch = 1
        if paced:
            self._arrive(now)
        elif self.adapt not in ("threshold", "latency"):  # which go by the queue
            later = self.queue - self.worker.waiting(0)
            self._turns.batch = self.worker.batch_wanted(0) + min(later, MAX_BATCH)
        if not self.desk.waiting:  # nobody to take turns with
            if paced and not self._turns.due:
                return
            while self._turns.own_may(self.queue, len(self.pending), paced=paced):
                self._want()
            return
        while (party := self._turns.next_party(room := self._room(now))) is not None:
            if party == OWN:
                self.desk.count_turn(OWN)
                self._want()
                continue
            request = self.desk.take(party)
            if now + room.expected_s >= request.deadline_at:
                self.forecast.dare()
                self.desk.reply(now, request, error="deadline", reason="it would pass before an answer can be had")
            else:
                self._out.append(self.desk.prepare(request))

    def _room(self, now: float) -> Room:
        pending = len(self.pending)
        nodes = 1 + sum(bool(peer.ready and peer.status.entries) for peer in self.worker.members)
        ahead = pending + len(self.desk.preparing)
        expected_s = self.forecast.expected_s(now, ahead, self.retry_timer.mean_s) if pending else 0.0  # one can try
        return Room(self.queue, pending, nodes * self.worker.config.window // 2, expected_s, self._paced)

    def _arrive(self, now: float) -> None:
        """Count the arrivals of the own input that are due by the clock."""
        external = self.adapt != "rate"
        while now >= self._arrival_at and self._turns.may_arrive:
            if not external and (self._turns.due or self._full or not self._turns.room_for_draw(len(self.pending))):
                self._arrival_at = now + self.interval_s
                return
            if self._turns.arrived():
                self._want()
            poisson = external and self.config.arrivals == "poisson"
            gap_s = self._rng.expovariate(1 / self.interval_s) if poisson else self.interval_s
            self._arrival_at = max(self._arrival_at + gap_s, now - 1.0)

    def _want(self) -> None:
        self._turns.want(paced=self._paced)
        self._out.append(DrawInput())

    def _offered(self, now: float, event: InputOffered) -> None:
        self._own_offered += 1
        deadline_at = now + self.config.deadline_s if self.config.deadline_s else math.inf
        # Without a pace a sample was asked for because there was room in the queue, whatever a batch made of that.
        full = self._full if self._paced else len(self.pending) >= self._turns.most
        if not self._turns.offered() or full or self._ended or now + self._expected_s(now) >= deadline_at:
            self._own_refused += 1
            return
        entry = Pending(
            event.sample, event.truth, event.payload, event.size_bytes, now,
            deadline_at=deadline_at, position=event.position,
        )  # fmt: skip
        self._admit(now, entry)

    def _expected_s(self, now: float) -> float:
        """How long an item that comes in now will take, where that matters."""
        if self.config.deadline_s is None or not self.pending:
            return 0.0
        return self.forecast.expected_s(now, len(self.pending), self.retry_timer.mean_s)

    def _admit(self, now: float, entry: Pending) -> None:
        item, self._next_item = self._next_item, self._next_item + 1
        self.admitted += 1
        self._tokens = min(self._tokens + self.config.retry_share, _RETRY_TOKENS)
        self.pending[item] = entry
        if self.config.journalled:
            self._out.append(_kept(item, entry))
        if entry.deadline_at < math.inf and entry.request is None:
            heapq.heappush(self._expiring, (entry.expires_at, item))
        self._inject(now, item)

    def _skipped(self, count: int) -> None:
        """Where nothing but the queue decides when to draw, what was not drawn was turned away; else it was not asked for."""
        if self._started and not self._ended and not self._paced and not self.stopped:
            self._own_offered += count
            self._own_refused += count

    def _inject(self, now: float, item: int) -> None:
        entry = self.pending[item]
        entry.sent_at, entry.holder, entry.overdue, entry.waits = now, self.worker.name, False, False
        self._arm(now, item)
        task = Task(
            self.config.run, item, entry.attempt, 0, entry.payload, entry.size_bytes,
            deadline_at=entry.deadline_at if entry.deadline_at < math.inf else None,
        )  # fmt: skip
        self._work(now, Inject(task))

    # --- from one life to the next

    def life_totals(self) -> LifeTotals:
        """The counts of all lives so far."""
        return LifeTotals(
            self.admitted, self.completed, self.errors, self.right, self.judged, dict(self.exits), self.retried,
            self.duplicates, self._own_refused, self.desk.turned_away, dict(self.desk.replies), self.desk.tickets,
        )  # fmt: skip

    def _restored(self, now: float, event: Restored) -> None:
        """Go on where an earlier life stopped; the first event of this one."""
        if self._next_item > 1 or self.pending:
            raise IllegalEventError("restored after the first item", self.worker.story)
        totals = event.totals
        self.admitted, self.completed, self.errors = totals.admitted, totals.completed, totals.errors
        self.right, self.judged, self.exits = totals.right, totals.judged, Counter(totals.exits)
        self.retried, self.duplicates, self._own_refused = totals.retried, totals.duplicates, totals.own_refused
        self._next_item = event.next_item
        for left in event.items:
            self._restore_item(now, left)
        self.desk.restore(now, event)
        self._own_offered = self.admitted + self.refused + self.desk.unadmitted - self.desk.received
        for left in event.items:
            if left.lost:
                self._record(now, left.item, ResultRow(left.item, 0, (), error=left.lost[:400]))

    def _restore_item(self, now: float, left: RestoredItem) -> None:
        request = self.desk.reopen(now, left.request, left.item) if left.request is not None else None
        begin = now - left.age_s
        entry = Pending(left.sample, left.truth, left.payload, left.size_bytes, begin, request=request)
        if request is not None:
            entry.deadline_at = request.deadline_at
        elif left.deadline_s is not None:
            entry.deadline_at = begin + left.deadline_s
            heapq.heappush(self._expiring, (entry.expires_at, left.item))
        self.pending[left.item] = entry
        self._left.append(left.item)

    def _run_again(self, now: float) -> None:
        """Items of an earlier life come before new ones, as the queue has room."""
        while self._left and self._started and self.queue < self.config.bands.high:
            item = self._left.popleft()
            if item in self.pending:
                self._inject(now, item)

    # --- requests of other programs

    def _prepared(self, now: float, ticket: int, payload: object, size_bytes: int) -> None:
        request = self.desk.prepared(ticket)
        if request is None:
            return
        if len(self.pending) >= self._turns.most:
            self.desk.reply(
                now, request, error="refused", reason=f"overloaded: {len(self.pending)} items are under way"
            )
        else:
            request.item = self._next_item
            entry = Pending(
                request.sample, None, payload, size_bytes, now, request=request, deadline_at=request.deadline_at
            )
            self._admit(now, entry)

    def _expire(self, now: float) -> None:
        """Requests whose deadline has passed are answered, wherever they are; of the own input, a moment later.

        A client is promised an answer by its deadline, so nodes answer in time for the way back; nobody waits for an item
        of the own input, so that an answer that is under way is not made an error.
        """
        for request in self.desk.expired(now):
            if request.item is None:
                self.desk.reply(now, request, error="deadline", reason=request.deadline_passed)
            else:
                attempt = self.pending[request.item].attempt
                self._record(now, request.item, ResultRow(request.item, attempt, (), error=request.deadline_passed))
        while self._expiring and self._expiring[0][0] <= now:
            _, item = heapq.heappop(self._expiring)
            if (entry := self.pending.get(item)) is not None:
                self._record(now, item, ResultRow(item, entry.attempt, (), error=entry.deadline_passed))

    def _end(self, now: float) -> None:
        """Nothing new is taken any more."""
        self._ended = True
        self.desk.refuse_all(now, LEAVING)

    # --- results

    def _results(self, now: float, sender: str, results: SendResults) -> None:
        for moved in results.moved:
            entry = self.pending.get(moved.item)
            if entry is not None and entry.attempt == moved.attempt and sender in (entry.holder, self.worker.name):
                peer = self.worker.members.get(moved.to)
                entry.holder, entry.holder_start = moved.to, peer.status.incarnation if peer else 0
                self._astray |= moved.to in self._dead
        for row in results.rows:
            entry = self.pending.get(row.item)
            if entry is None or row.attempt > entry.attempt:
                known = row.item < self._next_item and entry is None
                self.duplicates += known
                self.unknown += not known
            elif row.refused or row.label is None:
                self._refused_attempt(now, row, entry)
            elif row.path[-1:] != (sender,) and entry.deadline_at == math.inf:
                self.unknown += 1  # only in a hurry does a node answer for an exit that another has run
            else:
                if row.attempt == entry.attempt:
                    self.retry_timer.measured(now - entry.sent_at)
                self._record(now, row.item, row)

    def _refused_attempt(self, now: float, row: ResultRow, entry: Pending) -> None:
        """An attempt was given back: try again, unless it was an older one or the last."""
        if row.attempt != entry.attempt:
            return
        if entry.attempt + 1 >= self.config.max_attempts:
            self._record(now, row.item, final_error(row, f"{row.error or 'refused'} (attempt {row.attempt + 1})"))
        else:
            self._let_wait(row.item, entry)

    def _let_wait(self, item: int, entry: Pending) -> None:
        """Its turn to be tried again comes once, however often it is said that it failed."""
        if not entry.waits:
            entry.waits = True
            self._waiting.append((item, entry.attempt))

    def _record(self, now: float, item: int, row: ResultRow) -> None:
        entry = self.pending.pop(item)
        request = entry.request
        if entry.deadline_at < math.inf:
            self.forecast.learn(missed=now >= entry.deadline_at)
        if request is not None:
            if row.label is not None and request.too_late(now):
                row = final_error(row, request.deadline_passed)
            self.desk.result(now, request, row)
        if row.label is None:
            self.errors += 1
        else:
            self.completed += 1
            self.forecast.recorded(now)
            self.exits[row.exit] += 1
            self.latencies_s.append(now - entry.admitted_at)
            self.items.add(now - entry.admitted_at, *row.times, row.exit, row.score)
            if entry.truth is not None:
                self.judged += 1
                self.right += row.label == entry.truth
        self._out.append(Record(entry.sample, entry.truth, row, now - entry.admitted_at))

    # --- retries

    def _arm(self, now: float, item: int) -> None:
        attempt = self.pending[item].attempt
        heapq.heappush(self._timers, (now + self.retry_timer.after_s(attempt), item, attempt))

    def _retry_due(self, now: float) -> None:
        """Overdue attempts, refused ones, and those whose holder is known dead are tried again, within the budget."""
        while self._timers and self._timers[0][0] <= now:
            _, item, attempt = heapq.heappop(self._timers)
            entry = self.pending.get(item)
            if entry is None or entry.attempt != attempt:
                continue
            if self.missing or self.worker.holds(item, attempt):
                self._arm(now, item)  # it waits for a node that is not there, or here: it is not lost
            elif not entry.overdue:
                entry.overdue = True  # a long wait in a live node's queue looks the same: learn from it before acting
                if attempt == 0:
                    self.retry_timer.measured(now - entry.sent_at)
                self._arm(now, item)
            else:
                self._let_wait(item, entry)
        self._tokens = min(self._tokens + _IDLE_RETRIES_PER_S * (now - self._tokens_at), _RETRY_TOKENS)
        self._tokens_at = now
        while self._waiting and self._tokens >= 1.0 and not self.missing:
            item, attempt = self._waiting.popleft()
            if (entry := self.pending.get(item)) and entry.attempt == attempt:
                self._tokens -= 1.0
                self._again(now, item, f"no answer in {self.config.max_attempts} attempts")

    def _again(self, now: float, item: int, why: str) -> None:
        entry = self.pending[item]
        if entry.attempt + 1 >= self.config.max_attempts:
            self._record(now, item, ResultRow(item, entry.attempt, (), error=why))
            return
        entry.attempt += 1
        self.retried += 1
        self._inject(now, item)

    def _retry_from_dead(self, now: float) -> None:
        """Attempts held by a node that is gone are no load on anybody: they are tried again at once."""
        if not self._astray:
            return
        self._astray = False
        gone = self.worker.members.is_gone
        for item in [item for item, entry in self.pending.items() if gone(entry.holder, entry.holder_start)]:
            self._again(now, item, "its node died, again and again")


def _kept(item: int, entry: Pending) -> KeepItem:
    """What a later life has to know of an item."""
    request = entry.request
    return KeepItem(
        item, entry.sample, entry.truth, entry.payload, entry.size_bytes, entry.position,
        entry.deadline_at - entry.admitted_at if entry.deadline_at < math.inf else None,
        request.client if request is not None else "", request.id if request is not None else "",
    )  # fmt: skip
