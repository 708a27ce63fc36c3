"""Orders: their words, that none is obeyed twice, and what source and agents do about them."""

from __future__ import annotations

import contextlib
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit import logs
from mdi_exit.errors import UsageError
from mdi_exit.events import (
    ControlReceived,
    DrawInput,
    Event,
    InputOffered,
    ModelKnown,
    Notice,
    OrderReceived,
    Outcome,
    RequestReceived,
    RunSegment,
    SegmentDone,
    SegmentsReady,
    SendControl,
    SendReply,
    SendReport,
    SendResults,
    SendStatus,
    SendTask,
    SetLogLevel,
    StatusReceived,
    Task,
    TaskReceived,
    TelemetryReceived,
    Tick,
    TransportUp,
)
from mdi_exit.orders import (
    LOG_LEVELS,
    ORDERS,
    DrainNode,
    OrderBook,
    PauseAdmission,
    SetAdapt,
    SetLevel,
    SetOffloading,
    SetRate,
    SetThreshold,
    order_of,
    parse,
    sentence,
)
from mdi_exit.policy.offloading import OFFLOADING
from mdi_exit.segments import ModelPlan
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.wire import Control, Order, Status, Telemetry
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

PLAN = ModelPlan("ab" * 16, 6, (1, 3, 5), (100,) * 6)


def of(commands, kind):
    return [command for command in commands if isinstance(command, kind)]


def offered(state: SourceState | WorkerState, now: float, event: Event) -> list:
    """Give the event, and a sample for each draw."""
    commands = state.handle(now, event)
    for command in commands:  # which grow
        if isinstance(command, DrawInput):
            commands += state.handle(now, InputOffered(str(now), None, 100))
    state.validate()
    return commands


class Desk:
    """Gives orders to a state, each with the next number, at the time that the test is at."""

    def __init__(self, state: SourceState | WorkerState) -> None:
        self.state, self.number, self.now = state, 0, 1.0

    def __call__(self, words: str, *, retained: bool = False) -> list:
        self.number += 1
        what, _, value = words.partition(" ")
        order = Order("desk", self.number, what, value)
        if words.startswith(("drain ", "undrain ")) or words.count(" ") > (2 if what == "policy" else 1):
            order = order_of("desk", self.number, words.split())
        return self.give(order, retained=retained)

    def give(self, order: Order, *, retained: bool = False) -> list:
        return offered(self.state, self.now, OrderReceived(order, retained))

    def says(self, words: str) -> str:
        """The one line that answers, which carries the order's number."""
        (notice,) = [notice for notice in of(self(words), Notice) if notice.kind == "order"]
        assert notice.order == self.number
        return notice.text


def source(**config) -> SourceState:
    state = SourceState(SourceConfig(run=7, **config), WorkerConfig("source", 1, None), Random(0))
    statuses = [Status(name, 50, True, "agent", "ready", (0, 6), tuple(range(6)), 100) for name in ("a", "b")]
    for event in (ModelKnown(PLAN), TransportUp(), *map(StatusReceived, statuses), Tick()):
        offered(state, 0.0, event)
    return state


def agent(**config) -> WorkerState:
    state = WorkerState(WorkerConfig("a", 5, LayerSpan(0, 6), **config), Random(0))
    keys = {
        PLAN.segment(layer, LayerSpan(0, 6), early_exits=early): 0.01 for layer in range(6) for early in (True, False)
    }
    for event in (ModelKnown(PLAN), TransportUp(), ControlReceived(control()), SegmentsReady(keys), Tick()):
        state.handle(0.0, event)
    assert state.state == "ready"
    return state


def control(**fields) -> Control:
    return Control(7, 1, "source", 0, PLAN.digest, 0.8, **fields)


def received(seq: int) -> TaskReceived:
    return TaskReceived("source", 9, seq, Task(7, seq, 0, 0, None, 100))


def clock(state: SourceState, start: float, stop: float) -> list:
    """Tick forty times a second, both agents alive; each draw is answered."""
    seen = []
    for step in range(round(start * 40) + 1, round(stop * 40) + 1):
        now = step / 40
        events = [TelemetryReceived(Telemetry(7, 50, name, 0, 0, 0.0)) for name in ("a", "b")]
        for event in (*events, Tick()):
            seen += offered(state, now, event)
    return seen


# --- words


@pytest.mark.parametrize(
    ("words", "action"),
    [
        ("pause", PauseAdmission(True)),
        ("resume", PauseAdmission(False)),
        ("rate 25/s", SetRate(25.0)),
        ("rate max", SetRate(None)),
        ("threshold 0.7", SetThreshold(0.7, force=False)),
        ("threshold 0.1 force", SetThreshold(0.1, force=True)),
        ("adapt rate", SetAdapt("rate")),
        ("policy offloading never", SetOffloading("never")),
        ("policy offloading never pi", SetOffloading("never")),
        ("drain pi", DrainNode(True)),
        ("undrain pi", DrainNode(False)),
        ("log-level debug", SetLevel("debug")),
        ("log-level debug pi", SetLevel("debug")),
    ],
)
def test_words_make_an_order_and_the_order_says_them_again(words: str, action: object) -> None:
    order = order_of("desk", 3, words.split())
    assert parse(order) == action
    assert sentence(order) == words
    assert order.node == ("pi" if words.endswith("pi") else "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "order: expected one of pause, resume, rate"),
        ("stop", "got stop"),
        ("pause now", "pause: expected no value, got 'now'"),
        ("rate", "items a second such as 25/s, or max, got nothing"),
        ("rate 0", "rate: expected items a second"),
        ("rate nan", "rate: expected items a second"),
        ("threshold 1.7", "threshold: expected a number from 0 to 1, got 1.7"),
        ("threshold nan", "threshold: expected a number from 0 to 1"),
        ("threshold 0.7 please", "force after the number, got please"),
        ("adapt both", "one of none, rate, threshold"),
        ("policy offloading", "one of paper, never, random, jsq"),
        ("policy placing best", "one of offloading, got placing"),
        ("drain", "drain: expected the name of a node, got nothing"),
        ("drain a b", "drain: expected NODE, got a b"),
        ("drain a/b", "drain: expected the name of a node, got 'a/b'"),
        ("log-level loud", "one of debug, info, warning, error, got loud"),
        ("threshold " + "9" * 200, "got 200 characters"),
    ],
)
def test_words_that_make_none_are_told_so(words: str, expected: str) -> None:
    with pytest.raises(UsageError) as error:
        order_of("desk", 3, words.split())
    assert expected in str(error.value)


def test_the_table_of_orders_knows_the_levels_of_the_log_and_the_policies() -> None:
    assert LOG_LEVELS == logs.LEVELS
    assert all(name in ORDERS["policy"].help for name in OFFLOADING)


@given(st.text(max_size=40), st.text(max_size=100), st.sampled_from(["", "a"]), st.sampled_from([*ORDERS]))
def test_an_order_of_any_text_is_parsed_or_refused(what: str, value: str, node: str, known: str) -> None:
    for name in (what, known):
        with contextlib.suppress(UsageError):  # and nothing else
            assert parse(Order("desk", 1, name, value, node))


# --- never twice


def test_the_book_takes_each_number_of_a_client_once_also_out_of_order() -> None:
    book = OrderBook()
    numbers = [5, 3, 4, 9, 7]
    assert all(book.take(Order("desk", number, "pause")) for number in numbers)
    assert not any(book.take(Order("desk", number, "resume")) for number in numbers)
    assert book.take(Order("other", 5, "pause"))


def test_the_book_is_bounded_and_what_it_has_forgotten_of_a_client_is_over() -> None:
    book = OrderBook()
    assert all(book.take(Order("desk", number, "pause")) for number in range(1, 1000))
    assert not any(book.take(Order("desk", number, "pause")) for number in range(1000))
    for other in range(500):
        book.take(Order(f"client-{other}", 1, "pause"))
    assert len(book._clients) <= 64
    assert all(len(numbers.recent) <= 64 for numbers in book._clients.values())


def test_an_order_that_comes_again_is_not_obeyed_again() -> None:
    state = source()
    desk = Desk(state)
    order = Order("desk", 100, "threshold", "0.7")
    desk.give(order)
    desk("threshold 0.8")
    (notice,) = of(desk.give(order), Notice)
    assert "not obeyed twice" in notice.text
    assert state.threshold == 0.8


def test_a_retained_order_is_refused_once_and_then_passed_over() -> None:
    for state in (source(), agent()):
        desk = Desk(state)
        order = order_of("desk", 9, ["drain", "a"])
        (notice,) = of(desk.give(order, retained=True), Notice)
        assert "refused: expected an order of now, got one that the broker had retained" in notice.text
        assert not of(desk.give(order, retained=True), Notice)
        assert not (state if isinstance(state, WorkerState) else state.worker).standing.set_aside


# --- the source


def test_every_order_is_answered_by_a_happening_with_its_number_in_a_report_at_once() -> None:
    state = source(floor=0.5)
    desk = Desk(state)
    *_, sent = of(desk("threshold 0.7"), SendReport)
    assert sent.report.threshold == 0.7
    last = sent.report.happened[-1]
    assert (last.kind, last.text, last.order, last.age_s) == ("order", "desk: threshold 0.7", 1, 0.0)
    *_, sent = of(desk("threshold 1.7"), SendReport)
    last = sent.report.happened[-1]
    assert last.text == "desk: threshold 1.7 refused: expected a number from 0 to 1, got 1.7"
    assert last.order == 2
    assert "refused: expected one of pause" in desk.says("dance")


def test_pause_stops_admission_and_resume_starts_it_without_a_burst() -> None:
    state = source(rate_per_s=10.0, adapt="threshold", threshold=0.6)
    desk = Desk(state)
    clock(state, 0.0, 1.0)
    assert state.admitted > 5
    (sent,) = of(desk("pause"), SendControl)
    assert sent.control.paused
    before, threshold = state.admitted, state.threshold
    clock(state, 1.0, 4.0)
    assert state.admitted == before
    assert state.threshold == threshold, "an idle queue says nothing about the load while paused"
    assert state.next_wakeup() > 4.0
    assert state.report(4.0, PLAN).paused
    desk.now = 4.0
    (sent,) = of(desk("resume"), SendControl)
    assert not sent.control.paused
    clock(state, 4.0, 5.0)
    assert 8 <= state.admitted - before <= 12


def test_pause_holds_for_a_source_without_a_rate() -> None:
    state = source()
    desk = Desk(state)
    clock(state, 0.0, 1.0)
    desk("pause")
    before = state.admitted
    clock(state, 1.0, 2.0)
    assert state.admitted == before > 0


def test_the_rate_can_be_set_and_be_set_free() -> None:
    state = source(rate_per_s=10.0)
    desk = Desk(state)
    clock(state, 0.0, 1.0)
    before = state.admitted
    assert desk.says("rate 40/s") == "desk: rate 40/s"
    clock(state, 1.0, 2.0)
    assert 38 <= state.admitted - before <= 42
    desk("rate max")
    assert state.report(2.0, PLAN).rate_per_s is None
    desk("adapt rate")
    assert "refused: expected a number while the rate follows the load, got max" in desk.says("rate max")


def test_the_threshold_does_not_go_below_the_floor_unless_forced() -> None:
    state = source(threshold=0.9, floor=0.6)
    desk = Desk(state)
    assert (
        desk.says("threshold 0.5") == "desk: threshold 0.5 refused: expected at least the floor 0.6, or force, got 0.5"
    )
    assert state.threshold == 0.9
    assert desk.says("threshold 0.5 force") == "desk: threshold 0.5 force (the floor goes from 0.6 to 0.5)"
    assert (state.threshold, state.floor, state.report(1.0, PLAN).floor) == (0.5, 0.5, 0.5)
    assert "refused" in desk.says("threshold 0.4")
    assert desk.says("threshold 0.8") == "desk: threshold 0.8 (the floor goes from 0.5 to 0.6)"
    (sent,) = of(desk("threshold 0.7"), SendControl)
    assert sent.control.threshold == 0.7


def test_adaptation_goes_on_from_an_ordered_threshold_and_can_be_changed() -> None:
    state = source(rate_per_s=10.0, adapt="threshold", threshold=0.6, floor=0.5)
    desk = Desk(state)
    desk("threshold 0.7")
    clock(state, 1.0, 4.0)
    assert state.threshold > 0.7
    desk.now = 4.0
    desk("adapt none")
    fixed = state.threshold
    clock(state, 4.0, 6.0)
    assert state.threshold == fixed
    assert state.report(6.0, PLAN).adapt == "none"
    desk.now = 6.0
    desk("adapt rate")
    clock(state, 6.0, 9.0)
    assert state.interval_s < 0.1
    desk.now = 9.0
    desk("adapt none")
    assert state.interval_s == pytest.approx(0.1), "back to the rate that was set"


def test_the_source_refuses_to_drain_who_is_not_there_and_itself() -> None:
    desk = Desk(source())
    assert desk.says("drain c") == "desk: drain c refused: expected a node that is there (a, b), got c"
    assert desk.says("drain source").endswith("(a, b), got source (pause stops the source)")
    assert desk.says("drain a") == "desk: drain a"
    assert "refused: expected a node that is there (a, b, source), got x" in desk.says("policy offloading never x")


def test_what_holds_for_all_nodes_goes_into_the_control_message() -> None:
    state = source()
    desk = Desk(state)
    (sent,) = of(desk("policy offloading never"), SendControl)
    assert sent.control.offloading == "never"
    assert state.worker.standing.policy is OFFLOADING["never"]
    desk("policy offloading paper a")
    (sent,) = of(desk("log-level debug"), SendControl)
    assert (sent.control.offloading, sent.control.log_level) == ("never", "debug")


# --- agents


def test_a_drained_agent_finishes_what_it_holds_takes_nothing_new_and_can_come_back() -> None:
    state = agent()
    desk = Desk(state)
    (run,) = of(state.handle(1.0, received(1)), RunSegment)
    commands = desk("drain a")
    assert [sent.status.state for sent in of(commands, SendStatus)] == ["draining"]
    (refusal,) = of(state.handle(1.0, received(2)), SendResults)
    assert refusal.rows[0].refused
    assert refusal.rows[0].error == "a is draining"
    commands = state.handle(1.1, SegmentDone(run.batch, 0.01, (Outcome(3, 0.99, None, 100),)))
    assert of(commands, SendResults)[0].rows[0].label == 3
    assert [sent.status.state for sent in of(commands, SendStatus)] == ["drained"]
    assert not of(state.handle(1.2, received(3)), RunSegment)
    commands = desk("undrain a")
    assert [sent.status.state for sent in of(commands, SendStatus)] == ["ready"]
    assert of(state.handle(1.3, received(4)), RunSegment)


@pytest.mark.parametrize("drained", [True, False])
def test_a_drained_agent_hands_to_others_what_waits_to_be_offered_whatever_its_policy(drained: bool) -> None:
    state = agent(offloading="never")
    state.handle(0.5, StatusReceived(Status("b", 50, True, "agent", "ready", (0, 6), tuple(range(6)), 100)))
    state.handle(0.5, TelemetryReceived(Telemetry(7, 50, "b", 0, 0, 0.0)))
    (run,) = of(state.handle(1.0, received(1)), RunSegment)
    for seq in (2, 3):
        state.handle(1.0, received(seq))
    if drained:
        Desk(state)("drain a")
    commands = state.handle(1.1, SegmentDone(run.batch, 0.01, (Outcome(3, 0.1, None, 100),)))
    assert [sent.to for sent in of(commands, SendTask)] == ["b"] * drained
    state.validate()


def test_an_agent_hears_of_all_orders_and_obeys_its_own() -> None:
    state = agent()
    desk = Desk(state)
    assert desk.says("drain b") == "desk: drain b"
    assert not state.standing.set_aside
    assert desk.says("threshold 0.1") == "desk: threshold 0.1 (for the source)"
    desk("policy offloading never b")
    assert state.standing.policy is OFFLOADING["paper"]
    desk("policy offloading never a")
    assert state.standing.policy is OFFLOADING["never"]
    assert not of(desk("log-level debug b"), SetLogLevel)
    assert of(desk("log-level debug a"), SetLogLevel) == [SetLogLevel("debug")]
    assert of(desk("log-level warning"), SetLogLevel) == [SetLogLevel("warning")]


def test_an_agent_that_joins_later_obeys_what_the_control_message_says() -> None:
    state = agent()
    commands = state.handle(1.0, ControlReceived(control(offloading="never", log_level="debug")))
    assert state.standing.policy is OFFLOADING["never"]
    assert of(commands, SetLogLevel) == [SetLogLevel("debug")]
    Desk(state)("policy offloading paper a")
    commands = state.handle(2.0, ControlReceived(control(offloading="never", log_level="debug", paused=True)))
    assert state.standing.policy is OFFLOADING["paper"], "its own order stands until another one is given to all"
    assert not of(commands, SetLogLevel)
    state.handle(3.0, ControlReceived(control(offloading="of a newer version")))
    assert state.standing.policy is OFFLOADING["paper"]
    state.handle(3.0, ControlReceived(control(offloading="never")))
    state.handle(4.0, ControlReceived(control()))
    assert state.standing.policy is OFFLOADING["paper"], "another source, of which nothing was ordered"


def test_requests_of_other_programs_are_refused_while_paused() -> None:
    state = source()
    desk = Desk(state)
    desk("pause")
    (sent,) = of(state.handle(1.0, RequestReceived("shop", "r1", None, 100)), SendReply)
    assert (sent.reply.error, sent.reply.reason) == ("refused", "the source is paused")
    desk("resume")
    assert not of(state.handle(1.0, RequestReceived("shop", "r2", None, 100)), SendReply)
    state.validate()
