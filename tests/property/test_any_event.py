"""Given any events in any order, a node takes each in and stays sound, or says that it is illegal and stays as it was."""

from __future__ import annotations

from collections import Counter, deque
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi_exit.errors import IllegalEventError
from mdi_exit.events import (
    AckReceived,
    Command,
    ControlReceived,
    Drain,
    Event,
    GiveUp,
    Inject,
    InputEnded,
    InputOffered,
    InputSkipped,
    ModelKnown,
    OrderReceived,
    Outcome,
    ProbeReceived,
    Record,
    RequestEvent,
    RequestPrepared,
    RequestReceived,
    ResultsReceived,
    RunSegment,
    SegmentDone,
    SegmentFailed,
    SegmentsReady,
    SendFailed,
    SendResults,
    SendTask,
    SetAdmission,
    StatusReceived,
    Task,
    TaskReceived,
    TelemetryReceived,
    Tick,
    TransportDown,
    TransportUp,
)
from mdi_exit.orders import ORDERS
from mdi_exit.segments import ModelPlan
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.wire import Ack, Control, Moved, Order, Probe, ResultRow, Results, Status, Telemetry
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

PLAN = ModelPlan("ab" * 16, 6, (1, 3, 5), (10,) * 6)
OTHER_PLAN = ModelPlan("cd" * 16, 4, (1, 3), (10,) * 4)
NAMES = ("a", "b", "source", "me")


def picture(thing: object) -> object:
    """A value that is equal for equal states; the story, which is a log, is left out."""
    if isinstance(thing, Random):
        return thing.getstate()
    if isinstance(thing, dict):
        return {key: picture(value) for key, value in thing.items() if value or not isinstance(thing, Counter)}
    if isinstance(thing, list | tuple | deque):
        return [picture(value) for value in thing]
    if type(thing).__module__.startswith("mdi_exit"):
        names = [*getattr(thing, "__slots__", ()), *getattr(thing, "__dict__", ())]
        return {name: picture(getattr(thing, name)) for name in names if name != "_story"} or thing
    return thing


class Fuzz:
    """Draws events from a seed; answers of engine and transport fit what the state has asked for, most of the time."""

    def __init__(self, seed: int, name: str = "me") -> None:
        self.rng = Random(seed)
        self.name = name
        self.running: RunSegment | None = None
        self.sent: list[SendTask | SendResults] = []
        self.seqs: Counter[tuple[str, int]] = Counter()
        self.injected = 0

    def note(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, RunSegment):
                assert self.running is None, "one batch at a time"
                assert command.tasks
                assert {task.next_layer for task in command.tasks} == {command.key.entry}
                self.running = command
            elif isinstance(command, SendTask | SendResults):
                self.sent.append(command)

    def task(self) -> Task:
        rng = self.rng
        return Task(rng.choice((7, 7, 7, 8)), rng.randrange(1, 12), rng.randrange(3), rng.randrange(7), None, 10)

    def status(self) -> Status:
        rng = self.rng
        first = rng.randrange(6)
        span = rng.choice(((first, rng.randrange(first + 1, 7)), None, (4, 4)))
        entries = tuple(range(*span)) if span else ()
        state = rng.choice(("ready", "ready", "ready", "draining"))
        return Status(
            rng.choice(NAMES), rng.randrange(1, 4), rng.random() < 0.8, "agent", state, span, entries, rng.randrange(4)
        )

    def any(self) -> Event:
        rng = self.rng
        sender = rng.choice(NAMES)
        incarnation = rng.randrange(1, 4)
        choices = [
            lambda: Tick(),
            lambda: TaskReceived(sender, incarnation, self.seq(sender, incarnation), self.task()),
            lambda: TaskReceived(sender, incarnation, self.seq(sender, incarnation), self.task()),
            lambda: StatusReceived(self.status(), rng.random() < 0.3),
            lambda: TelemetryReceived(self.telemetry(sender, incarnation)),
            lambda: AckReceived(sender, self.ack(incarnation)),
            lambda: ProbeReceived(sender, Probe(incarnation, rng.randrange(5), rng.randrange(9))),
            lambda: rng.choice((TransportUp(), TransportUp(), TransportDown())),
            lambda: ControlReceived(self.control()),
            lambda: rng.choice((*[ModelKnown(PLAN)] * 9, ModelKnown(OTHER_PLAN), *[Drain()] * (rng.random() < 0.1))),
            lambda: self.ready(),
            lambda: OrderReceived(self.order(), rng.random() < 0.2),
            *[self.engine] * 4,
            lambda: SendFailed(self.sent.pop(rng.randrange(len(self.sent)))) if self.sent else Tick(),
            self.illegal,
        ]
        return rng.choice(choices)()

    def seq(self, sender: str, incarnation: int) -> int:
        if self.rng.random() < 0.2:
            return self.rng.randrange(1, 400)
        self.seqs[sender, incarnation] += self.rng.choice((1, 1, 1, 2))
        return self.seqs[sender, incarnation]

    def control(self) -> Control:
        run = self.rng.choice((7, 7, 7, 7, 8))
        model = self.rng.choice((PLAN.digest, PLAN.digest, PLAN.digest, OTHER_PLAN.digest))
        ordered = self.rng.choice(("", "", "never", "of a newer version"))
        level = self.rng.choice(("", "debug", "loud"))
        threshold = self.rng.choice((0.0, 0.5, 1.0))
        return Control(run, 1, "source", 0, model, threshold, offloading=ordered, log_level=level)

    def order(self) -> Order:
        rng = self.rng
        values = ("", "0.7", "0.2 force", "1.7", "25/s", "max", "rate", "none", "offloading never", "debug", "nonsense")
        node = rng.choice(("", "", *NAMES))
        what = rng.choice((*ORDERS, "pause", "resume", "undrain", "dance"))
        return Order(rng.choice(("desk", "shelf")), rng.randrange(200), what, rng.choice(values), node)

    def telemetry(self, node: str, incarnation: int) -> Telemetry:
        rng = self.rng
        speed = {layer: rng.random() for layer in range(rng.randrange(6))}
        received = {self.name: rng.randrange(10)}
        return Telemetry(7, incarnation, node, rng.randrange(9), 0, rng.random(), speed_s=speed, received=received)

    def ack(self, incarnation: int) -> Ack:
        rng = self.rng
        released = {rng.randrange(6): rng.randrange(9) for _ in range(rng.randrange(3))}
        missing = tuple(rng.randrange(1, 12) for _ in range(rng.randrange(3)))
        return Ack(
            incarnation,
            rng.choice((5, 5, 6)),
            rng.randrange(12),
            rng.random(),
            released,
            missing,
            probe=rng.choice((None, 1, 2)),
        )

    def ready(self) -> SegmentsReady:
        span, plan = LayerSpan(1, 5), self.rng.choice((PLAN, PLAN, PLAN, OTHER_PLAN))
        keys = [
            plan.segment(layer, span, early_exits=early)
            for layer in span
            for early in (True, False)
            if layer < plan.layer_count
        ]
        return SegmentsReady(
            {key: self.rng.random() for key in self.rng.sample(keys, self.rng.randrange(len(keys)) + 1)}
        )

    def engine(self) -> Event:
        if self.running is None:
            self.injected += 1
            return Inject(Task(7, self.injected, 9, self.rng.randrange(6), None, 10))
        running, self.running = self.running, None
        if self.rng.random() < 0.1:
            return SegmentFailed(running.batch, "out of memory")
        label = self.rng.randrange(10) if running.key.head else None
        return SegmentDone(
            running.batch, 0.01, tuple(Outcome(label, self.rng.random(), None, 10) for _ in running.tasks)
        )

    def illegal(self) -> Event:
        """Not for a worker, or an answer to nothing."""
        events: list[Event] = [
            InputOffered("x", None, 1),
            InputEnded(),
            InputSkipped(3),
            ResultsReceived("a", Results(7, 1)),
            SetAdmission(threshold=0.5),
            GiveUp("no"),
            RequestReceived("a", "1", None, 1),
            RequestPrepared(1, None, 1),
            SegmentDone(99_999, 0.1, ()),
            SegmentFailed(99_999, "no"),
        ]
        if self.running is not None:
            run = self.running
            good = Outcome(1, 0.5, None, 10)
            events += [SegmentDone(run.batch, 0.1, (good,) * (len(run.tasks) + 1)), SegmentDone(run.batch, 0.1, ())]
        return self.rng.choice(events)


def legal(fuzz: Fuzz, event: Event, running: RunSegment | None) -> bool:
    if isinstance(
        event, InputOffered | InputEnded | InputSkipped | ResultsReceived | SetAdmission | GiveUp | RequestEvent
    ):
        return False
    if isinstance(event, SegmentDone | SegmentFailed):
        if running is None or event.batch != running.batch:
            return False
        return isinstance(event, SegmentFailed) or len(event.outcomes) == len(running.tasks)
    return True


@given(seed=st.integers(0, 2**32), length=st.integers(1, 250), span=st.sampled_from(["1-4", None, "1-4", "1-4"]))
@settings(max_examples=150, deadline=None)
def test_a_worker_stays_sound_under_any_events(seed: int, length: int, span: str | None) -> None:
    fuzz = Fuzz(seed)
    state = WorkerState(WorkerConfig("me", 5, LayerSpan.parse(span) if span else None, window=3), Random(seed))
    for event in (ModelKnown(PLAN), TransportUp(), ControlReceived(Control(7, 1, "source", 0, PLAN.digest, 0.7))):
        fuzz.note(state.handle(0.0, event))
    now = 0.0
    for _ in range(length):
        now += fuzz.rng.random() * fuzz.rng.choice((0.0, 0.01, 0.5))
        running = fuzz.running
        event = fuzz.any()
        if legal(fuzz, event, running):
            fuzz.note(state.handle(now, event))
        else:
            before = picture(state)
            with pytest.raises(IllegalEventError, match="last events"):
                state.handle(now, event)
            assert picture(state) == before
        state.validate()
        assert state.next_wakeup() < now + 10


@given(seed=st.integers(0, 2**32), length=st.integers(1, 250), span=st.sampled_from([None, "1-4"]))
@settings(max_examples=100, deadline=None)
def test_a_source_records_each_admitted_item_at_most_once_under_any_events(
    seed: int, length: int, span: str | None
) -> None:
    fuzz = Fuzz(seed, "source")
    rng = fuzz.rng
    own = WorkerConfig("source", 5, LayerSpan.parse(span) if span else None, window=3)
    source = SourceState(SourceConfig(run=7, max_pending=9, max_queue=8, max_attempts=3), own, Random(seed))
    fuzz.note(source.handle(0.0, ModelKnown(PLAN)))
    fuzz.note(source.handle(0.0, TransportUp()))
    now, offered, recorded = 0.0, 0, Counter[str]()

    def results() -> ResultsReceived:
        item, attempt = rng.randrange(1, offered + 3), rng.randrange(4)
        label, refused = rng.choice(((3, False), (None, True), (None, False)))
        row = ResultRow(item, attempt, ("a",), 0, label, 0.5, None if label else "no", refused)
        return ResultsReceived(rng.choice(NAMES), Results(7, 1, (row,), (Moved(item, attempt, rng.choice(NAMES)),)))

    for number in range(length):
        now += rng.random() * rng.choice((0.0, 0.01, 0.5))
        kind = rng.random()
        if kind < 0.25:
            offered += 1
            event: Event = InputOffered(str(offered), None, 10)
        elif kind < 0.5:
            event = results()
        elif kind < 0.52:
            event = SetAdmission(rate_per_s=rng.choice((None, 5.0)), threshold=rng.choice((None, 0.5)))
        elif kind < 0.53 and number > 200:
            event = GiveUp("interrupted")
        else:
            event = fuzz.any()
            if isinstance(
                event,
                InputOffered | InputEnded | InputSkipped | ResultsReceived | SetAdmission | GiveUp | ControlReceived,
            ):
                continue
            if isinstance(event, RequestReceived):
                event = RequestReceived(rng.choice("ab"), "", None, 10, rng.choice((None, 0.5)))
            if isinstance(event, SegmentDone | SegmentFailed) and event.batch == 99_999:
                continue
            if isinstance(event, SegmentDone) and fuzz.running and event.batch == fuzz.running.batch:
                continue
            if isinstance(event, Inject | Drain) or (isinstance(event, ModelKnown) and event.plan is OTHER_PLAN):
                continue
        commands = source.handle(now, event)
        fuzz.note(commands)
        for command in commands:
            if isinstance(command, Record):
                recorded[command.sample] += 1
        source.validate()
        assert set(recorded.values()) <= {1}
        assert recorded.total() == source.completed + source.errors
        assert not recorded.keys() & {entry.sample for entry in source.pending.values()}
    source.handle(now, InputEnded())
    source.handle(now, GiveUp("the end"))
    assert source.done
    assert source.admitted == source.completed + source.errors
