"""An item that cannot meet its deadline takes the best exit that it has reached: an answer always, never silence."""

from __future__ import annotations

from itertools import count
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi_exit.events import (
    ControlReceived,
    InputEnded,
    InputOffered,
    ModelKnown,
    Outcome,
    Record,
    ResultsReceived,
    RunSegment,
    SegmentDone,
    SegmentsReady,
    SendResults,
    StatusReceived,
    Task,
    TaskReceived,
    Tick,
    TransportUp,
)
from mdi_exit.policy.deadline import answer_by, grace_s, is_hopeless
from mdi_exit.segments import ModelPlan
from mdi_exit.simulation import SimulatedNetwork, SimulatedNode
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.wire import Best, Control, ResultRow, Results, Status
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

PLAN = ModelPlan("ab" * 16, 6, (1, 3, 5), (100,) * 6)


def of(commands, kind):
    return [command for command in commands if isinstance(command, kind)]


def node(span: str = "0-5") -> WorkerState:
    """Each segment takes 10 ms; no exit but the last is sure enough."""
    layers = LayerSpan.parse(span)
    state = WorkerState(WorkerConfig("me", 5, layers), Random(0))
    keys = {PLAN.segment(layer, layers, early_exits=early): 0.01 for layer in layers for early in (True, False)}
    control = ControlReceived(Control(7, 1, "source", 0, PLAN.digest, 0.95))
    for event in (ModelKnown(PLAN), TransportUp(), control, SegmentsReady(keys)):
        state.handle(0.0, event)
    return state


def task(item: int, layer: int, deadline_at: float | None, best: Best | None = None) -> Task:
    return Task(7, item, 0, layer, None, 100, best=best, deadline_at=deadline_at)


def rows(commands) -> list[ResultRow]:
    return [row for command in of(commands, SendResults) for row in command.rows]


def receive(state: WorkerState, now: float, seq: int, received: Task):
    return state.handle(now, TaskReceived("other", 9, seq, received))


def done(run: RunSegment, label: int, score: float) -> SegmentDone:
    return SegmentDone(run.batch, 0.01, (Outcome(label, score, None, 100),) * len(run.tasks))


def test_it_goes_on_while_there_is_time_and_takes_the_surest_exit_when_there_is_none() -> None:
    state = node()
    (run,) = of(receive(state, 0.0, 1, task(1, 0, 0.025)), RunSegment)
    commands = state.handle(0.01, done(run, 3, 0.7))
    (run,) = of(commands, RunSegment)
    assert not rows(commands)
    commands = state.handle(0.02, done(run, 4, 0.6))
    (row,) = rows(commands)
    assert (row.label, row.exit, row.score, row.error) == (3, 0, 0.7, None), "the surer of the two that it had"
    assert not of(commands, RunSegment)
    assert state.totals.hurried == 1
    state.validate()


def test_without_a_deadline_nothing_is_cut_short() -> None:
    state = node()
    (run,) = of(receive(state, 0.0, 1, task(1, 0, None)), RunSegment)
    commands = state.handle(5.0, done(run, 3, 0.7))
    assert of(commands, RunSegment)
    assert not rows(commands)


def test_what_waits_is_answered_at_the_last_moment() -> None:
    state = node()
    receive(state, 0.0, 1, task(1, 2, None))
    best = Best(0, 8, 0.5)
    assert not rows(receive(state, 0.0, 2, task(2, 2, 0.5, best)))
    due = answer_by(0.5, 0.0)
    assert state.next_wakeup() <= due
    commands = state.handle(due, Tick())
    assert [(row.item, row.label, row.exit) for row in rows(commands)] == [(2, 8, 0)]
    state.validate()


def test_a_run_that_would_come_too_late_is_not_begun() -> None:
    state = node()
    (run,) = of(receive(state, 0.0, 1, task(1, 2, None)), RunSegment)
    receive(state, 0.0, 2, task(2, 2, 0.019, Best(0, 8, 0.5)))
    receive(state, 0.0, 3, task(3, 2, 9.0, Best(0, 7, 0.5)))
    commands = state.handle(0.0101, done(run, 1, 0.99))
    (again,) = of(commands, RunSegment)
    assert 2 not in [started.item for started in again.tasks]
    assert [row.item for row in rows(commands)] == [1, 2]
    state.validate()


def test_without_any_exit_it_runs_to_its_first() -> None:
    state = node()
    (run,) = of(receive(state, 1.0, 1, task(1, 0, 0.5)), RunSegment)
    (row,) = rows(state.handle(1.01, done(run, 6, 0.2)))
    assert (row.label, row.exit) == (6, 0)


def test_the_way_back_and_the_way_here_are_allowed_for() -> None:
    assert answer_by(1.0, 0.1) < 0.8
    assert is_hopeless(0.5, 0.6, 0.2)
    assert not is_hopeless(0.5, 0.8, 0.2)
    assert grace_s(0.01) == 0.02
    assert grace_s(0.4) == pytest.approx(0.1)
    assert grace_s(60.0) == 0.25


# --- the source


def source(**config) -> SourceState:
    state = SourceState(SourceConfig(run=7, **config), WorkerConfig("source", 1, None), Random(0))
    state.handle(0.0, ModelKnown(PLAN))
    state.handle(0.0, TransportUp())
    status = Status("a", 50, True, "agent", "ready", (0, 6), tuple(range(6)), 16)
    state.handle(0.0, StatusReceived(status))
    state.handle(0.0, Tick())
    return state


def answer(state: SourceState, now: float, label: int | None = 4):
    row = ResultRow(1, 0, ("a",), 0, label, 0.6)
    return of(state.handle(now, ResultsReceived("a", Results(7, 50, (row,)))), Record)


def test_an_answer_that_is_a_little_late_is_taken_and_a_later_one_is_an_error() -> None:
    for when, label, error in ((0.19, 4, None), (0.22, 4, None), (0.3, None, "the deadline of 0.2 s has passed")):
        state = source(deadline_s=0.2)
        state.handle(0.0, InputOffered("x", None, 100, 4))
        assert state.next_wakeup() <= 0.25
        found = of(state.handle(when - 1e-3, Tick()), Record) + answer(state, when)
        (record,) = found
        assert (record.row.label, record.row.error) == (label, error)
        state.validate()
        assert not state.pending


def test_items_of_its_own_carry_their_deadline() -> None:
    state = source(deadline_s=0.2)
    state.handle(1.0, InputOffered("x", None, 100))
    assert state.pending[1].deadline_at == pytest.approx(1.2)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1000), deadline_s=st.sampled_from([0.05, 0.15, 0.5]), rate=st.sampled_from([20.0, 80.0]))
def test_every_item_is_answered_or_refused_and_nearly_all_in_time(seed: int, deadline_s: float, rate: float) -> None:
    """Three nodes, up to four times their capacity; the first exit is 20 ms away."""
    rng, numbers = Random(seed), count()
    net = SimulatedNetwork(PLAN, lambda item, number: (number, 0.3 + 0.2 * number), rng, validate=True)
    net.draw = lambda: InputOffered(str(n), None, 100, 2) if (n := next(numbers)) < 150 else InputEnded()
    config = SourceConfig(7, threshold=0.95, rate_per_s=rate, deadline_s=deadline_s)
    state = SourceState(config, WorkerConfig("source", 1, LayerSpan(0, 2)), rng)
    net.add(SimulatedNode(state, lambda key, batch: 0.01 * batch * (key.stop - key.entry)))
    for number, span in ((2, "2-5"), (3, "0-5")):
        worker = WorkerState(WorkerConfig(f"n{number}", number, LayerSpan.parse(span)), rng)
        net.add(SimulatedNode(worker, lambda key, batch: 0.01 * batch * (key.stop - key.entry)))
    net.run(60.0, while_=lambda: not state.done)
    assert state.done
    assert len(net.records) == state.admitted
    assert state.admitted + state.refused == state.offered == 150
    labelled = [record for record in net.records if record.row.label is not None]
    assert max(record.latency_s for record in net.records) <= deadline_s + grace_s(deadline_s) + 1e-6
    assert all(record.row.error for record in net.records if record.row.label is None)
    if deadline_s >= 0.15:
        assert len(labelled) >= 0.8 * state.admitted
    late = [record for record in labelled if record.latency_s > deadline_s]
    assert len(late) <= 0.2 * len(labelled) + 3, "their first exit came in the moment of grace"
