"""A node goes from one span to another: it serves the old one until others hold it, and forwards what comes late."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from mdi_exit.events import (
    Command,
    ControlReceived,
    HoldSegments,
    ModelKnown,
    Notice,
    SegmentsReady,
    SendResults,
    SendStatus,
    SendTask,
    SpeedKnown,
    StatusReceived,
    Task,
    TaskReceived,
    TransportUp,
)
from mdi_exit.holding import Holding
from mdi_exit.segments import ModelPlan, SegmentKey, needed_segments, runs_in
from mdi_exit.span import LayerSpan
from mdi_exit.wire import Control, Status
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

PLAN = ModelPlan("ab" * 16, 4, (1, 3), (100, 100, 100, 100))
FRONT, BACK = LayerSpan(0, 2), LayerSpan(2, 4)


def control(epoch: int = 1, **spans: tuple[int, int]) -> ControlReceived:
    return ControlReceived(Control(7, 1, "source", epoch, PLAN.digest, 0.5, spans=spans))


def status(name: str, span: LayerSpan, *, leaving: Iterable[LayerSpan] = ()) -> StatusReceived:
    held = tuple((left.first, left.stop) for left in leaving)
    entries = tuple(layer for one in (span, *leaving) for layer in one)
    return StatusReceived(
        Status(name, 5, True, "agent", "ready", (span.first, span.stop), entries, 16, auto=True, leaving=held)
    )


def loaded(*spans: LayerSpan) -> SegmentsReady:
    return SegmentsReady({key: 0.01 for span in spans for key in needed_segments(PLAN, span, [FRONT, BACK])})


def agent() -> WorkerState:
    worker = WorkerState(WorkerConfig("a", 3, None, auto=True, memory_bytes=1000), Random(0))
    for event in (TransportUp(), ModelKnown(PLAN), control()):
        worker.handle(0.0, event)
    return worker


def only(kind: type[Command], commands: list[Command]) -> list[Command]:
    return [command for command in commands if isinstance(command, kind)]


def last_status(commands: list[Command]) -> Status:
    told = only(SendStatus, commands)[-1]
    assert isinstance(told, SendStatus)
    return told.status


def test_it_says_what_it_is_and_waits_for_layers() -> None:
    worker = agent()
    assert worker.state == "waiting for layers"
    told = last_status(worker.handle(0.0, SpeedKnown((0.1, 0.2, 0.3, 0.4))))
    assert (told.auto, told.memory_bytes, told.layer_s, told.span) == (True, 1000, (0.1, 0.2, 0.3, 0.4), None)


def test_it_takes_up_a_span_when_all_of_it_is_there() -> None:
    worker = agent()
    commands = worker.handle(0.0, control(2, a=(0, 2)))
    assert only(HoldSegments, commands) == [HoldSegments((FRONT,))]
    assert worker.state == "waiting for layers"
    head = SegmentKey(0, 2, True)
    assert not only(SendStatus, worker.handle(0.1, SegmentsReady({head: 0.01})))
    told = last_status(worker.handle(0.2, SegmentsReady({SegmentKey(0, 2, False): 0.01})))
    assert (told.state, told.span, told.entries) == ("ready", (0, 2), (0,))
    assert only(HoldSegments, worker.handle(0.3, control(3, a=(0, 2)))) == []


def test_it_is_ready_when_it_has_all_that_may_be_asked_of_it_and_stays_so() -> None:
    """Layers 0 to 3 with an exit at 1: tasks enter at 0 and 2, and at 1 as soon as another node's span ends there."""
    worker = WorkerState(WorkerConfig("a", 3, LayerSpan(0, 4)), Random(0))
    for event in (TransportUp(), ModelKnown(PLAN), control()):
        worker.handle(0.0, event)
    worker.handle(0.1, SegmentsReady({SegmentKey(2, 4, True): 0.01}))
    assert (worker.state, worker.entries) == ("loading segments", (2,))
    told = last_status(worker.handle(0.2, SegmentsReady({SegmentKey(0, 2, head): 0.01 for head in (True, False)})))
    assert (told.state, worker.state) == ("ready", "ready")
    worker.handle(0.3, status("b", LayerSpan(0, 1)))
    assert (worker.state, worker.entries) == ("ready", (0, 2))


def test_fewer_spans_in_force_may_make_it_ready() -> None:
    worker = WorkerState(WorkerConfig("a", 3, FRONT), Random(0))
    for event in (TransportUp(), ModelKnown(PLAN), control(), status("b", LayerSpan(0, 1))):
        worker.handle(0.0, event)
    worker.handle(0.1, loaded(FRONT))
    assert worker.state == "loading segments"
    worker.handle(0.2, StatusReceived(Status("b", 5, False)))
    assert worker.state == "ready"


def moved(worker: WorkerState) -> list[Command]:
    """From layers 0-1 to layers 2-3."""
    worker.handle(0.0, control(2, a=(0, 2)))
    worker.handle(0.1, loaded(FRONT))
    assert only(HoldSegments, worker.handle(1.0, control(3, a=(2, 4)))) == [HoldSegments((FRONT, BACK))]
    assert worker.holding.span == FRONT
    return worker.handle(1.1, loaded(BACK))


def task(layer: int, item: int = 1) -> Task:
    return Task(7, item, 0, layer, None, 100)


def test_the_old_span_is_served_until_another_node_holds_it() -> None:
    worker = agent()
    told = last_status(moved(worker))
    assert (told.span, told.leaving, told.entries) == ((2, 4), ((0, 2),), (0, 2))
    assert worker.handle(1.2, TaskReceived("source", 1, 1, task(0)))
    assert worker.inputs + (worker._running is not None) == 1
    told = last_status(worker.handle(1.3, status("b", FRONT)))
    assert (told.span, told.leaving, told.entries) == ((2, 4), (), (2,))
    assert worker.holding.moves == 1


def test_one_who_only_leaves_a_layer_is_not_counted_on() -> None:
    worker = agent()
    moved(worker)
    worker.handle(1.2, status("b", BACK, leaving=[FRONT]))
    assert worker.holding.leaving == (FRONT,)


def test_what_waits_for_layers_that_are_gone_is_forwarded_and_so_is_what_comes_late() -> None:
    worker = agent()
    worker.handle(0.0, StatusReceived(Status("source", 1, True, "source", "ready", window=16)))
    moved(worker)
    for item in (1, 2, 3):
        worker.handle(1.2, TaskReceived("source", 1, item, task(0, item)))
    assert worker.inputs == 2
    commands = worker.handle(1.3, status("b", FRONT))
    assert [c.task.item for c in only(SendTask, commands)] == [2, 3]
    assert only(HoldSegments, commands) == [HoldSegments((BACK,))]
    late = worker.handle(1.4, TaskReceived("source", 1, 4, task(0, 4)))
    assert [(c.to, c.task.item) for c in only(SendTask, late)] == [("b", 4)]
    assert not [row for c in only(SendResults, late) for row in c.rows if row.refused]
    assert worker.members.inbounds["source"].released[0] == 4
    worker.validate()


def test_a_plan_that_names_it_no_more_changes_nothing() -> None:
    worker = agent()
    moved(worker)
    worker.handle(1.3, status("b", FRONT))
    assert not only(HoldSegments, worker.handle(2.0, control(4, b=(0, 2))))
    assert worker.holding.span == BACK


def test_a_fixed_agent_obeys_no_plan() -> None:
    worker = WorkerState(WorkerConfig("a", 3, FRONT), Random(0))
    for event in (TransportUp(), ModelKnown(PLAN), control(1, a=(2, 4))):
        assert not only(HoldSegments, worker.handle(0.0, event))
    assert worker.holding.span == FRONT


def test_a_move_is_told() -> None:
    worker = agent()
    told = [notice.text for notice in only(Notice, moved(worker)) if isinstance(notice, Notice)]
    assert told == ["a holds layers 2-3"]


def test_back_to_the_span_held_is_no_move() -> None:
    holding = Holding(FRONT, auto=True)
    assert holding.assign(BACK)
    assert holding.assign(FRONT)
    assert holding.coming is None
    assert not holding.assign(FRONT)


def test_segments_of_a_span_are_known() -> None:
    assert runs_in(PLAN, SegmentKey(0, 2, True), [FRONT])
    assert not runs_in(PLAN, SegmentKey(0, 2, True), [BACK])
    assert not runs_in(PLAN, SegmentKey(2, 3, False), [BACK])
    assert not runs_in(PLAN, SegmentKey(0, 2, True), [LayerSpan(0, 9)])
