"""One node's state, event by event."""

from __future__ import annotations

import copy
from random import Random

import pytest

from mdi_exit.errors import IllegalEventError
from mdi_exit.events import (
    ControlReceived,
    Drain,
    Drained,
    GiveUp,
    Inject,
    InputEnded,
    InputOffered,
    ModelKnown,
    Outcome,
    Record,
    ResultsReceived,
    RunSegment,
    SegmentDone,
    SegmentFailed,
    SegmentsReady,
    SendAck,
    SendFailed,
    SendResults,
    SendStatus,
    SendTask,
    StatusReceived,
    Task,
    TaskReceived,
    TelemetryReceived,
    Tick,
    TransportDown,
    TransportUp,
)
from mdi_exit.items import RetryTimer
from mdi_exit.segments import ModelPlan, SegmentKey
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.wire import Control, Moved, ResultRow, Results, Status, Telemetry
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

PLAN = ModelPlan("ab" * 16, 4, (1, 3), (100, 100, 100, 100))


def of(commands, kind):
    return [command for command in commands if isinstance(command, kind)]


def control(threshold: float = 0.8, run: int = 7) -> ControlReceived:
    return ControlReceived(Control(run, 1, "source", 0, PLAN.digest, threshold))


def worker(span: str, *, threshold: float = 0.8, **config) -> WorkerState:
    """A ready, connected node that holds ``span`` of a four-layer model with exits at layers 1 and 3."""
    layers = LayerSpan.parse(span)
    state = WorkerState(WorkerConfig("me", 5, layers, **config), Random(0))
    keys = {PLAN.segment(layer, layers, early_exits=early): 0.01 for layer in layers for early in (True, False)}
    for event in (ModelKnown(PLAN), TransportUp(), control(threshold), SegmentsReady(keys)):
        state.handle(0.0, event)
    return state


def peer(state: WorkerState, name: str, span: str, *, incarnation: int = 50, window: int = 4, backlog_s: float = 0.0):
    layers = LayerSpan.parse(span)
    status = Status(name, incarnation, True, "agent", "ready", (layers.first, layers.stop), tuple(layers), window)
    commands = state.handle(0.0, StatusReceived(status))
    inputs = round(backlog_s / 0.01)
    report = Telemetry(7, incarnation, name, inputs, 0, backlog_s, speed_s=dict.fromkeys(layers, 0.01))
    return [*commands, *state.handle(0.0, TelemetryReceived(report))]


def task(item: int, layer: int = 0, attempt: int = 0, run: int = 7) -> Task:
    return Task(run, item, attempt, layer, None, 100)


def received(seq: int, item: int, layer: int, **fields) -> TaskReceived:
    return TaskReceived("other", 9, seq, task(item, layer, **fields))


def done(command: RunSegment, *outcomes: tuple[int | None, float]) -> SegmentDone:
    return SegmentDone(command.batch, 0.01, tuple(Outcome(label, score, None, 100) for label, score in outcomes))


def test_a_sure_item_exits_and_an_unsure_one_goes_on() -> None:
    state = worker("0-3")
    (run,) = of(state.handle(1.0, received(1, 1, 0)), RunSegment)
    assert run.key == SegmentKey(0, 2, True)
    (sent,) = of(state.handle(1.1, done(run, (3, 0.81))), SendResults)
    assert (sent.rows[0].label, sent.rows[0].exit, sent.rows[0].path) == (3, 0, ("me",))
    (run,) = of(state.handle(1.2, received(2, 2, 0)), RunSegment)
    commands = state.handle(1.3, done(run, (3, 0.8)))
    assert not of(commands, SendResults), "0.8 is not above 0.8"
    (run,) = of(commands, RunSegment)
    assert run.key == SegmentKey(2, 4, True)
    (sent,) = of(state.handle(1.4, done(run, (4, 0.1))), SendResults)
    assert (sent.rows[0].label, sent.rows[0].exit) == (4, 1)
    state.validate()


def test_at_threshold_one_no_head_is_run() -> None:
    state = worker("0-3", threshold=1.0)
    (run,) = of(state.handle(1.0, received(1, 1, 0)), RunSegment)
    assert run.key == SegmentKey(0, 2, False)
    (run,) = of(state.handle(1.1, done(run, (None, 0.0))), RunSegment)
    assert run.key == SegmentKey(2, 4, True), "the last head always is"


def test_what_is_not_in_the_span_goes_to_the_least_delay_plus_backlog() -> None:
    state = worker("0-1")
    peer(state, "busy", "2-3", backlog_s=5.0)
    peer(state, "idle", "2-3", incarnation=51)
    (run,) = of(state.handle(1.0, received(1, 1, 0)), RunSegment)
    (sent,) = of(state.handle(1.0, done(run, (1, 0.1))), SendTask)
    assert (sent.to, sent.task.next_layer) == ("idle", 2)


def test_credit_bounds_what_is_sent_and_later_goes_when_it_comes_back() -> None:
    state = worker("0-1")
    peer(state, "a", "2-3", window=2)
    sent = []
    for item in range(5):
        commands = state.handle(1.0, Inject(task(item)))
        while runs := of(commands, RunSegment):
            commands = state.handle(1.0, done(runs[0], *[(1, 0.1)] * len(runs[0].tasks)))
            sent += of(commands, SendTask)
    assert len(sent) == 2
    assert state.outputs == 3
    state.validate()


def test_a_task_for_which_nobody_is_there_waits_and_is_reported() -> None:
    state = worker("0-1")
    (run,) = of(state.handle(1.0, received(1, 1, 0)), RunSegment)
    assert not of(state.handle(1.0, done(run, (1, 0.1))), SendTask)
    assert state.telemetry(1.0).stranded == {2: 1}
    assert of(peer(state, "a", "2-3"), SendTask)


def test_an_idle_node_takes_back_what_it_can_run_itself() -> None:
    state = worker("0-3")
    peer(state, "a", "2-3", backlog_s=100.0)
    (run,) = of(state.handle(1.0, received(1, 1, 0)), RunSegment)
    state.handle(1.0, received(2, 2, 0))
    commands = state.handle(1.0, done(run, (1, 0.1)))
    assert (state.inputs, state.outputs) == (0, 1)
    (second,) = of(commands, RunSegment)
    (third,) = of(state.handle(1.0, done(second, (1, 0.9))), RunSegment)
    assert third.key.entry == 2, "nothing else waits, so the offer is taken back"


def test_the_latest_layer_runs_first() -> None:
    state = worker("0-3")
    (run,) = of(state.handle(1.0, received(1, 1, 0)), RunSegment)
    state.handle(1.0, received(2, 2, 0))
    state.handle(1.0, received(3, 3, 2))
    (following,) = of(state.handle(1.0, done(run, (1, 0.9))), RunSegment)
    assert following.key.entry == 2


def test_illegal_events_raise_with_the_story_and_change_nothing() -> None:
    state = worker("0-3")
    state.handle(1.0, received(1, 1, 0))
    before = copy.deepcopy((state.totals, state.inputs, state.outputs, state._running))
    for event in (SegmentDone(99, 0.1, ()), InputEnded(), SegmentFailed(99, "x")):
        with pytest.raises(IllegalEventError, match="last events"):
            state.handle(1.1, event)
    assert before == (state.totals, state.inputs, state.outputs, state._running)
    state.validate()


def test_a_failed_segment_gives_its_tasks_back() -> None:
    state = worker("0-3")
    (run,) = of(state.handle(1.0, received(1, 1, 0)), RunSegment)
    (sent,) = of(state.handle(1.1, SegmentFailed(run.batch, "out of memory")), SendResults)
    assert sent.rows[0].refused
    assert "out of memory" in sent.rows[0].error
    state.validate()


def test_tasks_of_another_run_are_dropped_and_a_new_run_flushes() -> None:
    state = worker("0-3")
    state.handle(1.0, received(1, 1, 0, run=6))
    assert state.inputs == 0
    (run,) = of(state.handle(1.0, received(2, 2, 0)), RunSegment)
    state.handle(1.0, received(3, 3, 0))
    state.handle(1.0, control(run=8))
    assert state.inputs == 0
    assert not of(state.handle(1.1, done(run, (1, 0.99))), SendResults)
    state.validate()


def test_what_cannot_be_taken_is_refused_and_its_credit_returned() -> None:
    state = worker("2-3")
    (sent,) = of(state.handle(1.0, received(1, 1, 0)), SendResults)
    assert sent.rows[0].refused
    assert "does not take layer 0" in sent.rows[0].error
    (answer,) = of(state.handle(1.1, Tick()), SendAck)
    assert answer.ack.released == {0: 1}


def test_a_duplicate_of_a_message_is_dropped() -> None:
    state = worker("0-3")
    state.handle(1.0, received(1, 1, 0))
    state.handle(1.0, received(1, 1, 0))
    state.handle(1.0, received(2, 1, 0, attempt=1))
    assert state.totals.received == 2, "the same message once, another attempt as well"


def test_a_task_that_was_not_taken_by_the_transport_goes_back_to_the_head() -> None:
    state = worker("0-1")
    peer(state, "a", "2-3")
    (run,) = of(state.handle(1.0, received(1, 1, 0)), RunSegment)
    (sent,) = of(state.handle(1.0, done(run, (1, 0.1))), SendTask)
    state.handle(1.0, TransportDown())
    state.handle(1.0, SendFailed(sent))
    assert state.outputs == 1
    state.validate()
    (again,) = of(state.handle(1.5, TransportUp()), SendTask)
    assert again.task.item == 1


def test_results_wait_for_the_connection() -> None:
    state = worker("0-3")
    (run,) = of(state.handle(1.0, received(1, 1, 0)), RunSegment)
    state.handle(1.0, TransportDown())
    assert not of(state.handle(1.1, done(run, (1, 0.9))), SendResults)
    (sent,) = of(state.handle(1.2, TransportUp()), SendResults)
    assert sent.rows[0].item == 1


def test_a_late_will_of_another_start_is_ignored_and_a_remembered_status_is_not_trusted() -> None:
    state = worker("0-1")
    peer(state, "a", "2-3", incarnation=51)
    state.handle(1.0, StatusReceived(Status("a", 50, False)))
    assert state.members.get("a").ready
    state.handle(1.0, StatusReceived(Status("a", 51, False)))
    assert not state.members.get("a").ready
    ghost = Status("ghost", 60, True, "agent", "ready", (2, 4), (2, 3), 4)
    state.handle(1.0, StatusReceived(ghost, retained=True))
    assert not state.members.get("ghost").ready
    state.handle(1.1, TelemetryReceived(Telemetry(7, 60, "ghost", 0, 0, 0.0)))
    assert state.members.get("ghost").ready


def test_silence_is_death_until_a_sign_of_life() -> None:
    state = worker("0-1", dead_after_s=2.0)
    peer(state, "a", "2-3")
    state.handle(2.5, Tick())
    assert not state.members.get("a").ready
    state.handle(2.6, TelemetryReceived(Telemetry(7, 50, "a", 0, 0, 0.0)))
    assert state.members.get("a").ready


def test_a_leaving_node_takes_nothing_finishes_and_says_so() -> None:
    state = worker("0-3")
    (run,) = of(state.handle(1.0, received(1, 1, 0)), RunSegment)
    commands = state.handle(1.0, Drain())
    assert of(commands, SendStatus)[0].status.state == "draining"
    assert not of(commands, Drained)
    (refusal,) = of(state.handle(1.0, received(2, 2, 0)), SendResults)
    assert refusal.rows[0].refused
    assert of(state.handle(1.1, done(run, (1, 0.9))), Drained)


# --- the source


def source(**config) -> SourceState:
    """A source without layers, and an agent with all of them."""
    state = SourceState(SourceConfig(run=7, **config), WorkerConfig("source", 1, None), Random(0))
    for event in (ModelKnown(PLAN), TransportUp()):
        state.handle(0.0, event)
    peer(state, "a", "0-3", window=100)
    state.handle(0.01, Tick())
    return state


def offer(state: SourceState, now: float, sample: str):
    return state.handle(now, InputOffered(sample, None, 100, truth=1))


def result(item: int, *, attempt: int = 0, label: int | None = 1, **fields) -> ResultsReceived:
    return ResultsReceived("a", Results(7, 50, (ResultRow(item, attempt, ("a",), 0, label, 0.9, **fields),)))


def test_one_result_is_recorded_and_a_second_one_counted() -> None:
    state = source()
    offer(state, 1.0, "x")
    (record,) = of(state.handle(1.5, result(1)), Record)
    assert (record.sample, record.truth, record.row.label, record.latency_s) == ("x", 1, 1, 0.5)
    assert not of(state.handle(1.6, result(1, label=2)), Record)
    assert not of(state.handle(1.7, result(99)), Record)
    assert (state.completed, state.duplicates, state.unknown) == (1, 1, 1)
    state.validate()


def test_a_refused_attempt_is_made_again_and_in_the_end_is_an_error() -> None:
    state = source(max_attempts=3)
    offer(state, 1.0, "x")
    for attempt in (0, 1):
        state.handle(1.0 + attempt, result(1, attempt=attempt, label=None, error="full", refused=True))
        state.handle(1.1 + attempt, Tick())
        assert state.pending[1].attempt == attempt + 1
    (record,) = of(state.handle(5.0, result(1, attempt=2, label=None, error="full", refused=True)), Record)
    assert "full" in record.row.error
    assert (state.errors, state.completed) == (1, 0)
    state.validate()


def test_an_older_attempts_label_counts_as_the_first_result() -> None:
    state = source()
    offer(state, 1.0, "x")
    state.handle(1.1, result(1, label=None, error="full", refused=True))
    state.handle(1.2, Tick())
    assert state.pending[1].attempt == 1
    (record,) = of(state.handle(1.3, result(1, attempt=0, label=4)), Record)
    assert record.row.label == 4
    state.handle(1.4, result(1, attempt=1))
    assert state.duplicates == 1


def test_what_a_dead_node_held_is_made_again_at_once_and_outside_the_budget() -> None:
    state = source(retry_share=0.0)
    state._tokens = 0.0
    for number in range(5):
        offer(state, 1.0, str(number))
    state.handle(1.2, Tick())
    assert {entry.holder for entry in state.pending.values()} == {"a"}
    peer(state, "b", "0-3", incarnation=70, window=100)
    commands = state.handle(1.3, StatusReceived(Status("a", 50, False)))
    assert len([c for c in of(commands, SendTask) if c.to == "b"]) == 5
    assert state.retried == 5


def test_where_a_node_handed_an_attempt_on_is_known() -> None:
    state = source()
    peer(state, "b", "0-3", incarnation=70)
    offer(state, 1.0, "x")
    state.handle(1.2, Tick())
    holder = state.pending[1].holder
    other = "b" if holder == "a" else "a"
    state.handle(1.3, ResultsReceived(holder, Results(7, 50, (), (Moved(1, 0, other),))))
    assert state.pending[1].holder == other


def test_an_overdue_attempt_first_teaches_the_timer_and_then_is_made_again() -> None:
    state = source()
    offer(state, 1.0, "x")
    now = 1.0
    for _ in range(200):
        now += 0.1
        state.handle(now, TelemetryReceived(Telemetry(7, 50, "a", 0, 0, 0.0)))
        state.handle(now, Tick())
        if state.retried:
            break
    assert state.retried == 1
    assert 2.0 < now < 10.0
    assert state.pending[1].attempt == 1


def test_retries_do_not_exceed_their_budget() -> None:
    state = source(max_pending=1000, max_queue=1000)
    for number in range(100):
        offer(state, 1.0, str(number))
    for number in range(1, 101):
        state.handle(1.1, result(number, label=None, error="full", refused=True))
    state.handle(1.2, Tick())
    assert state.retried <= 0.1 * 100 + 20


def test_the_retry_timer_is_bounded() -> None:
    timer = RetryTimer(1.0)
    assert timer.after_s(0) == 1.0
    assert timer.after_s(2) == 4.0
    timer.measured(0.1)
    assert timer.after_s(0) == 1.0, "never less than a second"
    for _ in range(20):
        timer.measured(100.0)
    assert timer.after_s(5) == 30.0


def test_full_queues_refuse_and_giving_up_leaves_nothing_pending() -> None:
    state = source(max_pending=3)
    for number in range(5):
        offer(state, 1.0, str(number))
    assert (state.admitted, state.refused) == (3, 2)
    records = of(state.handle(2.0, GiveUp("interrupted")), Record)
    assert [record.row.error for record in records] == ["interrupted"] * 3
    assert state.done
    state.validate()
