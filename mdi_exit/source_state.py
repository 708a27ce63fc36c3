"""The pure core of the source: admission, the one result of each item, retries, threshold (arXiv 2408.05247, Alg. 3 and 4).

``SourceState`` holds the source's own ``WorkerState`` and shares its members; one ``handle`` serves both. The source keeps
every admitted item until exactly one result for it is recorded: a label, or an error that says why. What it records
first stands; a later answer is counted and not recorded. Loss, duplicates and dead agents are repaired from here.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random
from typing import Final, Literal

from mdi_exit.errors import IllegalEventError
from mdi_exit.events import (
    Command,
    ControlReceived,
    Drain,
    Drained,
    DrawInput,
    Event,
    GiveUp,
    Inject,
    InputEnded,
    InputOffered,
    ModelKnown,
    Notice,
    Record,
    ResultsReceived,
    SendControl,
    SendReport,
    SendResults,
    SendTelemetry,
    SetAdmission,
    StatusReceived,
    Task,
    TelemetryReceived,
    Tick,
    TransportUp,
)
from mdi_exit.histogram import ItemHistograms
from mdi_exit.policy.steps import QueueBands, RateSteps, ThresholdSteps, next_interval_s, next_threshold, smoothed
from mdi_exit.segments import ModelPlan
from mdi_exit.span import LayerSpan, missing_layers
from mdi_exit.wire import Control, Happening, ResultRow, SourceReport
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

__all__ = ["SourceConfig", "SourceState"]

_MAX_DRAWS: Final = 16
_RETRY_TOKENS: Final = 20.0
_IDLE_RETRIES_PER_S: Final = 2.0
_HAPPENED_KEPT: Final = 16
_TOLD_FOR_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """What the source is told at start; every constant is ours.

    ``rate_per_s``: arrivals (None: as fast as admission allows); ``max_queue``: Q at which an arrival is refused;
    ``max_pending``: items admitted and not yet answered; ``period_s``: of the step rules; ``retry_share``: retries per
    admission at most. ``floor``: lowest threshold; below it items are refused instead, since a promised accuracy
    outranks throughput.
    """

    run: int
    rate_per_s: float | None = None
    arrivals: Literal["fixed", "poisson"] = "fixed"
    adapt: Literal["none", "rate", "threshold"] = "none"
    threshold: float = 0.9
    floor: float = 0.5
    max_queue: int = 40
    max_pending: int = 512
    period_s: float = 0.5
    max_attempts: int = 6
    min_retry_s: float = 1.0
    retry_share: float = 0.1
    bands: QueueBands = QueueBands()
    rate_steps: RateSteps = RateSteps()
    threshold_steps: ThresholdSteps = ThresholdSteps()
    start_interval_s: float = 0.1


@dataclass(slots=True)
class Pending:
    """An admitted item. ``holder``: the node that has the present attempt, as far as the source knows."""

    sample: str
    truth: int | None
    payload: object
    size_bytes: int
    admitted_at: float
    attempt: int = 0
    sent_at: float = 0.0
    holder: str = ""
    overdue: bool = False


@dataclass(slots=True)
class RetryTimer:
    """Time after which an attempt is taken for lost: max(1 s, SRTT + 4·RTTVAR)·2^attempt, at most 30 s (as in RFC 6298)."""

    least_s: float
    most_s: float = 30.0
    mean_s: float | None = None
    deviation_s: float = 0.0

    def measured(self, latency_s: float) -> None:
        if self.mean_s is None:
            self.mean_s, self.deviation_s = latency_s, latency_s / 2
            return
        self.deviation_s += 0.25 * (abs(latency_s - self.mean_s) - self.deviation_s)
        self.mean_s += 0.125 * (latency_s - self.mean_s)

    def after_s(self, attempt: int) -> float:
        expected_s = self.least_s if self.mean_s is None else self.mean_s + 4 * self.deviation_s
        return min(max(self.least_s, expected_s) * 2.0**attempt, self.most_s)


class SourceState:
    """Decisions of the source. ``worker`` is its own node's state, with or without a span."""

    def __init__(self, config: SourceConfig, worker: WorkerConfig, rng: Random) -> None:
        self.config = config
        self.worker = WorkerState(replace(worker, role="source"), rng)
        self.plan: ModelPlan | None = None
        self.rate_per_s = config.rate_per_s
        self.interval_s = 1.0 / config.rate_per_s if config.rate_per_s else config.start_interval_s
        self.threshold = config.threshold
        self.offered = self.admitted = self.completed = self.errors = 0
        self.refused = self.duplicates = self.retried = self.unknown = 0
        self.right = self.judged = 0
        self.exits: Counter[int] = Counter()
        self.items = ItemHistograms()
        self.noticed: Counter[str] = Counter()
        self.missing: tuple[int, ...] | None = None
        self._missing_since = 0.0
        self._told_missing: tuple[int, ...] | None = None
        self.latencies_s: deque[float] = deque(maxlen=200)
        self.pending: dict[int, Pending] = {}
        self.retry_timer = RetryTimer(config.min_retry_s)
        self.stopped = False
        self.happened: deque[tuple[float, Happening]] = deque(maxlen=_HAPPENED_KEPT)
        self._happenings = 0
        self._rng = rng
        self._ended = False
        self._started = False
        self._draws = 0
        self._next_item = 1
        self._arrival_at = 0.0
        self._period_at = 0.0
        self._queue = 0.0
        self._epoch = 0
        self._timers: list[tuple[float, int, int]] = []
        self._waiting: deque[tuple[int, int]] = deque()
        self._tokens = _RETRY_TOKENS
        self._tokens_at = 0.0
        self._out: list[Command] = []

    # --- the one mutating method

    def handle(self, now: float, event: Event) -> list[Command]:
        """Take in one event at ``now`` (monotonic seconds); returns what to do, in order."""
        match event:
            case InputOffered():
                self._offered(now, event)
            case InputEnded():
                self._ended = True
                self._draws = 0
            case ResultsReceived(sender, results):
                self._results(now, sender, SendResults(results.rows, results.moved, results.run))
            case SetAdmission():
                self._set_admission(now, event)
            case GiveUp(reason):
                self._ended = True
                for item in list(self.pending):
                    attempt = self.pending[item].attempt
                    self._record(now, item, ResultRow(item, attempt, (), error=reason))
            case Drain():
                self._ended = True
                self._out.append(Drained())
            case ModelKnown(plan):
                self.plan = plan
                self._work(now, event)
                self._command(now)
            case TransportUp():
                self._work(now, event)
                self._command(now)
            case _:
                self._work(now, event)
        if isinstance(event, Tick | StatusReceived | TelemetryReceived | ModelKnown):
            self._look_around(now)
        if isinstance(event, Tick):
            self._adapt(now)
            self._retry_due(now)
        self._draw(now)
        self._note(now)
        out, self._out = self._out, []
        return out

    def _note(self, now: float) -> None:
        """Keep what people want to know, for the reports to come."""
        for command in self._out:
            if isinstance(command, Notice):
                self._happenings += 1
                self.noticed[command.kind] += 1
                kept = Happening(self._happenings, 0.0, command.kind[:40], command.text[:400])
                self.happened.append((now, kept))

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
    def done(self) -> bool:
        """No input will come and every admitted item has its result."""
        return self._ended and not self.pending and not self._draws

    def next_wakeup(self) -> float:
        """When ``Tick`` is wanted next, monotonic seconds."""
        due = [self.worker.next_wakeup(), self._period_at]
        if self._timers:
            due.append(self._timers[0][0])
        if self._paced and self._started and not self._ended and self._draws < _MAX_DRAWS:
            due.append(self._arrival_at)
        return min(due)

    def validate(self) -> None:
        """Check every invariant; raises ``IllegalEventError``."""
        self.worker.validate()
        if self.admitted != self.completed + self.errors + len(self.pending):
            raise IllegalEventError(
                f"{self.admitted} admitted, {self.completed} completed, {self.errors} errors, {len(self.pending)} pending",
                tuple(self.worker.story),
            )
        if len(self.pending) > self.config.max_pending:
            raise IllegalEventError(f"{len(self.pending)} pending", tuple(self.worker.story))

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
            floor=self.config.floor,
            adapt=self.config.adapt,
            rate_per_s=self.offered_per_s,
            paused=self.stopped,
            latency_s=_quantiles(self.latencies_s),
            happened=tuple(
                Happening(told.number, now - at, told.kind, told.text, told.order)
                for at, told in self.happened
                if now - at <= _TOLD_FOR_S
            ),
        )

    # --- admission

    @property
    def offered_per_s(self) -> float | None:
        """Items offered a second; None: as fast as admission allows."""
        return 1.0 / self.interval_s if self._paced else None

    @property
    def _paced(self) -> bool:
        return self.rate_per_s is not None or self.config.adapt == "rate"

    @property
    def _full(self) -> bool:
        return self.queue >= self.config.max_queue or len(self.pending) >= self.config.max_pending

    def _draw(self, now: float) -> None:
        """Ask for the samples that are due: by the clock, or as fast as the queue takes them."""
        if not self._started or self._ended or self.stopped:
            return
        if not self._paced:
            while self._draws + self.queue < self.config.bands.high and self._room_for_draw():
                self._want()
            return
        external = self.config.adapt != "rate"
        while now >= self._arrival_at and self._draws < _MAX_DRAWS:
            if not external and (self._full or not self._room_for_draw()):
                self._arrival_at = now + self.interval_s
                return
            self._want()
            poisson = external and self.config.arrivals == "poisson"
            gap_s = self._rng.expovariate(1 / self.interval_s) if poisson else self.interval_s
            self._arrival_at = max(self._arrival_at + gap_s, now - 1.0)

    def _room_for_draw(self) -> bool:
        return self._draws < _MAX_DRAWS and len(self.pending) + self._draws < self.config.max_pending

    def _want(self) -> None:
        self._draws += 1
        self._out.append(DrawInput())

    def _offered(self, now: float, event: InputOffered) -> None:
        self._draws = max(self._draws - 1, 0)
        self.offered += 1
        if self._full or self._ended:
            self.refused += 1
            return
        item, self._next_item = self._next_item, self._next_item + 1
        self.admitted += 1
        self._tokens = min(self._tokens + self.config.retry_share, _RETRY_TOKENS)
        self.pending[item] = Pending(event.sample, event.truth, event.payload, event.size_bytes, now)
        self._inject(now, item)

    def _inject(self, now: float, item: int) -> None:
        entry = self.pending[item]
        entry.sent_at, entry.holder, entry.overdue = now, self.worker.name, False
        self._arm(now, item)
        task = Task(self.config.run, item, entry.attempt, 0, entry.payload, entry.size_bytes)
        self._work(now, Inject(task))

    # --- results

    def _results(self, now: float, sender: str, results: SendResults) -> None:
        for moved in results.moved:
            entry = self.pending.get(moved.item)
            if entry is not None and entry.attempt == moved.attempt and sender in (entry.holder, self.worker.name):
                entry.holder = moved.to
        for row in results.rows:
            entry = self.pending.get(row.item)
            if entry is None or row.attempt > entry.attempt:
                known = row.item < self._next_item and entry is None
                self.duplicates += known
                self.unknown += not known
            elif row.refused or row.label is None:
                self._refused_attempt(now, row, entry)
            else:
                if row.attempt == entry.attempt:
                    self.retry_timer.measured(now - entry.sent_at)
                self._record(now, row.item, row)

    def _refused_attempt(self, now: float, row: ResultRow, entry: Pending) -> None:
        """An attempt was given back: try again, unless it was an older one or the last."""
        if row.attempt != entry.attempt:
            return
        if entry.attempt + 1 >= self.config.max_attempts:
            self._record(now, row.item, _final_error(row, f"{row.error or 'refused'} (attempt {row.attempt + 1})"))
        else:
            self._waiting.append((row.item, row.attempt))

    def _record(self, now: float, item: int, row: ResultRow) -> None:
        entry = self.pending.pop(item)
        if row.label is None:
            self.errors += 1
        else:
            self.completed += 1
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
                self._waiting.append((item, attempt))
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
        members = self.worker.members
        dead = {peer.name for peer in members if not peer.alive}
        if not dead:
            return
        for item in [item for item, entry in self.pending.items() if entry.holder in dead]:
            self._again(now, item, "its node died, again and again")

    # --- the look of the deployment, threshold and rate

    def _look_around(self, now: float) -> None:
        plan = self.plan
        if plan is None:
            return
        self._retry_from_dead(now)
        own = self.worker.config.span
        spans: list[LayerSpan] = self.worker.members.spans()
        if own is not None and self.worker.entries:
            spans.append(own)
        missing = tuple(missing_layers(plan.layer_count, spans))
        if missing != self.missing:
            self.missing, self._missing_since = missing, now
        self._tell_gap(now, missing)
        if not missing and not self._started:
            self._started = True
            self._arrival_at = now

    def _tell_gap(self, now: float, missing: tuple[int, ...]) -> None:
        """Say once which layers nobody holds, when that is no matter of an instant, and once that it is over."""
        if missing == self._told_missing:
            return
        if not missing:
            self._out.append(Notice("covered", "all layers are held"))
        elif now - self._missing_since >= self.config.period_s:
            self._out.append(Notice("gap", f"no node holds {_layers(missing)}; {len(self.pending)} items wait"))
        else:
            return
        self._told_missing = missing

    def _adapt(self, now: float) -> None:
        """Alg. 3 or 4, once per period, on the smoothed queue."""
        if now < self._period_at:
            return
        self._period_at = now + self.config.period_s
        self._queue = smoothed(self._queue, self.queue)
        if not self._started or self.missing:
            return
        config = self.config
        if config.adapt == "rate":
            self.interval_s = next_interval_s(self.interval_s, self._queue, config.bands, config.rate_steps)
        elif config.adapt == "threshold":
            steps = config.threshold_steps
            threshold = next_threshold(self.threshold, self._queue, config.bands, steps, config.floor)
            self._set_threshold(now, threshold)

    def _set_admission(self, now: float, event: SetAdmission) -> None:
        if event.threshold is not None:
            self._set_threshold(now, event.threshold)
        if event.rate_per_s is not None:
            self.rate_per_s = event.rate_per_s
            self.interval_s = 1.0 / event.rate_per_s
            self._arrival_at = min(self._arrival_at, now + self.interval_s)

    def _set_threshold(self, now: float, threshold: float) -> None:
        if threshold == self.threshold:
            return
        at_floor = threshold <= self.config.floor < self.threshold
        self.threshold = threshold
        if at_floor and self.config.adapt == "threshold":
            self._out.append(Notice("floor", f"the threshold is at its floor {threshold:g}: further load is refused"))
        self._command(now)

    def _command(self, now: float) -> None:
        """Publish the desired state, and obey it."""
        if self.plan is None:
            return
        control = Control(
            run=self.config.run,
            incarnation=self.worker.config.incarnation,
            source=self.worker.name,
            epoch=self._epoch,
            model=self.plan.digest,
            threshold=self.threshold,
        )
        if self.worker.connected:
            self._out.append(SendControl(control))
        self._work(now, ControlReceived(control))


def _quantiles(values: Iterable[float]) -> tuple[float, float, float] | None:
    """p50, p90 and p99: the smallest value that so many do not exceed."""
    ordered = sorted(values)
    if not ordered:
        return None
    p50, p90, p99 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9, 0.99))
    return p50, p90, p99


def _final_error(row: ResultRow, error: str) -> ResultRow:
    """``row`` as a final error."""
    return ResultRow(row.item, row.attempt, row.path, error=error[:400])


def _layers(layers: tuple[int, ...]) -> str:
    """``layer 6`` or ``layers 4-6, 8``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"layer{'s' if len(layers) > 1 else ''} {text}"
