"""Admission, notices, retries and their bounds; recording and refusals are in test_states."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from mdi_exit.errors import IllegalEventError
from mdi_exit.events import (
    Drain,
    Drained,
    DrawInput,
    GiveUp,
    InputEnded,
    InputOffered,
    InputSkipped,
    ModelKnown,
    Notice,
    Record,
    ResultsReceived,
    SegmentDone,
    SegmentsReady,
    SendControl,
    SendReport,
    SendTask,
    SetAdmission,
    StatusReceived,
    TelemetryReceived,
    Tick,
    TransportUp,
)
from mdi_exit.segments import ModelPlan
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.wire import Moved, ResultRow, Results, Status, Telemetry
from mdi_exit.worker_config import WorkerConfig

PLAN = ModelPlan("ab" * 16, 9, (1, 3, 5, 6, 8), (100,) * 9)


def of(commands, kind):
    return [command for command in commands if isinstance(command, kind)]


def bare(*, span: str | None = None, window: int = 16, **config) -> SourceState:
    """A connected source that knows its model and nobody else."""
    layers = LayerSpan.parse(span) if span else None
    state = SourceState(SourceConfig(run=7, **config), WorkerConfig("source", 1, layers, window=window), Random(0))
    state.handle(0.0, ModelKnown(PLAN))
    state.handle(0.0, TransportUp())
    if layers:
        keys = {PLAN.segment(layer, layers, early_exits=early): 0.01 for layer in layers for early in (True, False)}
        state.handle(0.0, SegmentsReady(keys))
    return state


def meet(state: SourceState, name: str, span: str, *, now: float = 0.0, incarnation: int = 50, online: bool = True):
    layers = LayerSpan.parse(span)
    entries = tuple(layers)
    status = Status(name, incarnation, online, "agent", "ready", (layers.first, layers.stop), entries, 100)
    return state.handle(now, StatusReceived(status))


def source(**config) -> SourceState:
    state = bare(**config)
    meet(state, "a", "0-8")
    state.handle(0.0, Tick())
    return state


def offer(state: SourceState, now: float, sample: str):
    return state.handle(now, InputOffered(sample, None, 100))


def answer(item: int, *, attempt: int = 0, label: int | None = 1, sender: str = "a", **fields) -> ResultsReceived:
    return ResultsReceived(sender, Results(7, 50, (ResultRow(item, attempt, (sender,), 0, label, 0.9, **fields),)))


def alive(state: SourceState, now: float, name: str = "a", incarnation: int = 50):
    return state.handle(now, TelemetryReceived(Telemetry(7, incarnation, name, 0, 0, 0.0)))


def run_clock(
    state: SourceState, start: float, stop: float, *, answer_draws: bool = True, names: tuple[str, ...] = ("a",)
):
    """Tick twenty times a second with ``names`` alive; each draw is answered. All commands, with their times."""
    seen = []
    for step in range(round(start * 20) + 1, round(stop * 20) + 1):
        now = step / 20
        commands = [command for name in names for command in alive(state, now, name)] + state.handle(now, Tick())
        for command in commands:
            seen.append((now, command))
            if isinstance(command, DrawInput) and answer_draws:
                seen += [(now, more) for more in offer(state, now, f"drawn {now} {len(seen)}")]
        state.validate()
    return seen


# --- reports


def test_each_telemetry_of_the_source_comes_with_a_report_of_the_run() -> None:
    state = source(rate_per_s=4.0, threshold=0.9, floor=0.6)
    for number, (truth, label) in enumerate([(1, 1), (1, 2), (None, 3)], start=1):
        state.handle(0.1 * number, InputOffered(f"s{number}", None, 100, truth))
        state.handle(0.1 * number + 0.02 * number, answer(number, label=label))
    state.handle(0.6, InputOffered("s4", None, 100, 1))
    (report,) = [c.report for _, c in run_clock(state, 0.6, 1.2, answer_draws=False) if isinstance(c, SendReport)]
    assert (report.node, report.run, report.model) == ("source", 7, PLAN.digest)
    assert (report.admitted, report.completed, report.errors, report.pending) == (4, 3, 0, 1)
    assert (report.right, report.judged) == (1, 2), "an item without a truth is not judged"
    assert report.exits == {0: 3}
    assert (report.threshold, report.floor, report.adapt) == (0.9, 0.6, "none")
    assert report.rate_per_s == pytest.approx(4.0)
    assert report.latency_s == pytest.approx((0.04, 0.06, 0.06))
    assert [(told.kind, told.number) for told in report.happened] == [("joined", 1), ("covered", 2)]
    assert 0.5 < report.happened[0].age_s < 1.3


def test_what_happened_long_ago_is_not_told_again() -> None:
    state = source()
    run_clock(state, 0.0, 11.0, answer_draws=False)
    meet(state, "b", "0-8", now=11.2)
    assert [told.kind for told in state.report(11.5, PLAN).happened] == ["joined"]
    assert state.report(11.5, PLAN).happened[0].number == 3


# --- gaps


def test_a_gap_is_told_once_after_a_moment_and_its_end_once() -> None:
    state = bare(span="0-3")
    notices = [n for t in range(1, 60) for n in of(state.handle(t / 10, Tick()), Notice)]
    assert [n.kind for n in notices] == ["gap"]
    assert "layers 4-8" in notices[0].text
    notices = of(meet(state, "a", "4-6", now=6.0), Notice)
    assert "gap" not in {n.kind for n in notices}, "another gap needs its moment too"
    notices = [
        n for t in range(61, 90) for n in [*of(alive(state, t / 10), Notice), *of(state.handle(t / 10, Tick()), Notice)]
    ]
    assert [(n.kind, "layers 7-8" in n.text) for n in notices] == [("gap", True)]
    notices = of(meet(state, "b", "7-8", now=9.0, incarnation=60), Notice)
    assert [n.kind for n in notices if n.kind in ("gap", "covered")] == ["covered"]
    state.handle(9.1, Tick())
    assert state.missing == ()


def test_a_gap_of_an_instant_is_not_told() -> None:
    state = source()
    state.handle(0.5, Tick())
    notices = of(meet(state, "a", "0-8", now=0.6, online=False), Notice)
    notices += of(meet(state, "a", "0-8", now=0.7, incarnation=51), Notice)
    notices += of(state.handle(1.5, Tick()), Notice)
    assert {n.kind for n in notices} == {"left", "joined"}


def test_nothing_is_drawn_until_all_layers_are_held() -> None:
    state = bare(span="0-3")
    assert not of(state.handle(1.0, Tick()), DrawInput)
    assert of(meet(state, "a", "4-8", now=1.1), DrawInput)


def test_while_layers_are_missing_nothing_is_retried() -> None:
    state = source(max_attempts=5)
    offer(state, 1.0, "x")
    meet(state, "a", "0-8", now=1.1, online=False)
    state.handle(1.2, answer(1, attempt=state.pending[1].attempt, label=None, error="full", refused=True))
    attempt = state.pending[1].attempt
    for second in range(2, 100):
        state.handle(float(second), Tick())
    assert state.pending[1].attempt == attempt
    assert state.errors == 0
    state.validate()


# --- admission


def test_a_fixed_rate_is_kept_to() -> None:
    state = source(rate_per_s=10.0, max_queue=10_000, max_pending=10_000)
    seen = run_clock(state, 0.0, 10.0)
    draws = [now for now, command in seen if isinstance(command, DrawInput)]
    assert len(draws) == pytest.approx(100, abs=2)
    assert max(b - a for a, b in pairwise(draws)) <= 0.15


def test_poisson_arrivals_have_the_rate_and_vary() -> None:
    state = source(rate_per_s=10.0, arrivals="poisson", max_queue=10_000, max_pending=10_000)
    draws = [now for now, command in run_clock(state, 0.0, 60.0) if isinstance(command, DrawInput)]
    assert len(draws) == pytest.approx(600, rel=0.15)
    gaps = [b - a for a, b in pairwise(draws)]
    mean = sum(gaps) / len(gaps)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.4)


def test_without_a_rate_draws_are_bounded_and_follow_the_queue() -> None:
    state = source()
    first = of(state.handle(0.1, Tick()), DrawInput)
    assert len(first) + state._turns.draws <= 16 + len(first)
    assert 0 < state._turns.draws <= 16
    drawn = state._turns.draws
    assert not of(state.handle(0.2, Tick()), DrawInput), "unanswered draws are not asked for again"
    assert state._turns.draws == drawn
    offer(state, 0.3, "x")
    assert state._turns.draws <= 16


@pytest.mark.parametrize(
    ("config", "refused"), [({}, 5), ({"rate_per_s": 2.0}, 0), ({"adapt": "rate"}, 0)], ids=["max", "paced", "adaptive"]
)
def test_what_a_live_input_passed_over_was_refused_only_if_nothing_but_the_queue_paces(config, refused) -> None:
    state = bare(span="0-8", **config)
    state.handle(0.5, InputSkipped(3))
    assert state.refused == state.offered == (0 if not state._started else refused and 3)
    state.handle(1.0, Tick())
    before = state.refused
    state.handle(1.1, InputSkipped(5))
    assert state.refused - before == refused
    state.stopped = True
    state.handle(1.1, InputSkipped(50))
    state.stopped = False
    state.handle(1.2, InputEnded())
    state.handle(1.3, InputSkipped(7))
    assert state.refused - before == refused
    state.validate()


def test_what_was_asked_for_without_a_pace_is_never_refused() -> None:
    state = bare(max_queue=4)  # fewer than are asked for at once
    asked = len(of(meet(state, "a", "0-8"), DrawInput)) + len(of(state.handle(0.0, Tick()), DrawInput))
    assert asked > 4
    meet(state, "a", "0-8", online=False, now=0.1)  # nothing leaves the queue any more
    for number in range(asked):
        offer(state, 0.2, f"s{number}")
    assert (state.admitted, state.refused) == (asked, 0)


def test_an_arrival_at_a_full_queue_is_refused_and_counted() -> None:
    state = bare(span="0-3", max_queue=3, rate_per_s=100.0)
    meet(state, "slow", "4-8")
    state.handle(0.0, Tick())
    for number in range(9):
        offer(state, 1.0, str(number))
        assert state.queue <= 3
    assert state.refused == 9 - state.admitted > 0
    state.validate()


def test_no_sample_is_taken_after_the_end() -> None:
    state = source()
    state.handle(1.0, InputEnded())
    assert state.done
    offer(state, 1.1, "late")
    assert (state.admitted, state.refused) == (0, 1)
    assert not of(state.handle(1.2, Tick()), DrawInput)


def test_draining_ends_input_and_is_answered_once_by_the_source() -> None:
    state = source()
    offer(state, 1.0, "x")
    assert len(of(state.handle(1.0, Drain()), Drained)) == 1
    offer(state, 1.1, "y")
    assert state.admitted == 1


# --- threshold and rate


def test_a_change_of_threshold_is_published_once_and_obeyed() -> None:
    state = source(threshold=0.9)
    (command,) = of(state.handle(1.0, SetAdmission(threshold=0.6)), SendControl)
    assert (command.control.threshold, command.control.run, command.control.model) == (0.6, 7, PLAN.digest)
    assert state.worker.threshold == 0.6
    assert not of(state.handle(1.1, SetAdmission(threshold=0.6)), SendControl)


def test_the_threshold_adapts_once_a_period_and_its_floor_is_told_once() -> None:
    state = bare(span="0-3", adapt="threshold", threshold=0.8, floor=0.7, rate_per_s=50.0, period_s=0.5)
    meet(state, "a", "4-8")
    seen = run_clock(state, 0.0, 10.0)  # nothing is ever run, so the queue is full
    changes = [(now, command.control.threshold) for now, command in seen if isinstance(command, SendControl)]
    falling = [change for change in changes if change[1] < 0.8]
    assert state.threshold == 0.7
    assert all(b[0] - a[0] >= 0.45 for a, b in pairwise(falling))
    assert all(0.7 <= threshold <= 1.0 for _, threshold in changes)
    floors = [command for _, command in seen if isinstance(command, Notice) and command.kind == "floor"]
    assert len(floors) == 1
    assert state.refused > 0


def test_the_interval_adapts_within_its_bounds_and_the_threshold_stays() -> None:
    state = bare(span="0-3", adapt="rate", threshold=0.8, start_interval_s=0.01)
    meet(state, "a", "4-8")
    run_clock(state, 0.0, 60.0)
    assert state.threshold == 0.8
    assert state.interval_s > 1.0
    assert state.interval_s <= state.config.rate_steps.longest_s
    assert state.refused == 0
    assert state.queue <= state.config.max_queue


# --- retries


def test_a_dead_holder_means_a_retry_at_once_and_a_last_attempt_an_error() -> None:
    state = source(max_attempts=3)
    offer(state, 1.0, "x")
    records = []
    for start in range(2, 8):
        state.handle(float(start), Tick())
        records += of(meet(state, "a", "0-8", now=start + 0.1, incarnation=48 + start, online=False), Record)
        records += of(meet(state, "a", "0-8", now=start + 0.2, incarnation=49 + start), Record)
    assert [record.row.label for record in records] == [None]
    assert "died" in records[0].row.error
    assert (state.errors, state.retried) == (1, 2)
    state.handle(9.0, answer(1))
    assert (state.duplicates, state.completed) == (1, 0), "what is recorded first stands"
    state.validate()


def test_only_the_present_holder_or_the_source_says_who_has_an_attempt() -> None:
    state = source()
    meet(state, "b", "0-8", incarnation=60)
    offer(state, 1.0, "x")
    state.handle(1.2, Tick())
    holder = state.pending[1].holder
    stranger = "b" if holder == "a" else "a"
    for moved in (Moved(1, 0, "nowhere"), Moved(1, 1, "nowhere"), Moved(9, 0, "nowhere")):
        state.handle(1.3, ResultsReceived(stranger, Results(7, 50, (), (moved,))))
    assert state.pending[1].holder == holder
    state.handle(1.3, ResultsReceived(holder, Results(7, 50, (), (Moved(1, 1, "nowhere"),))))
    assert state.pending[1].holder == holder, "another attempt"


def test_refusals_are_retried_within_the_budget_which_grows_with_admissions_and_time() -> None:
    state = source(max_pending=1000, max_queue=1000, max_attempts=100)
    for number in range(60):
        offer(state, 1.0, str(number))
    state.handle(1.05, Tick())
    for item in list(state.pending):
        state.handle(1.1, answer(item, label=None, error="full", refused=True))
    state.handle(1.1, Tick())
    assert state.retried == 20
    state.handle(2.1, Tick())
    assert state.retried == 22, "two a second when nothing is admitted"
    for number in range(11):
        offer(state, 2.1, f"more {number}")
    state.handle(2.1, Tick())
    assert state.retried == 23, "one for ten admissions"
    state.validate()


def test_who_says_over_and_over_that_an_item_failed_is_heard_once() -> None:
    state = source(max_attempts=100)
    offer(state, 1.0, "x")
    state.handle(1.05, Tick())
    meet(state, "a", "0-8", now=1.1, online=False)  # while layers are missing nothing is tried again
    for _ in range(500):
        state.handle(1.2, answer(1, label=None, error="full", refused=True))
    assert len(state._waiting) == 1
    meet(state, "a", "0-8", now=1.3)
    state.handle(1.4, Tick())
    assert state.retried == 1
    state.validate()


def test_a_refusal_of_an_earlier_attempt_is_no_news() -> None:
    state = source(max_attempts=3)
    offer(state, 1.0, "x")
    state.handle(1.1, answer(1, label=None, error="full", refused=True))
    state.handle(1.2, Tick())
    for _ in range(5):
        state.handle(1.3, answer(1, label=None, error="full", refused=True))
        state.handle(1.4, Tick())
    assert (state.pending[1].attempt, state.errors) == (1, 0)


def test_an_item_that_waits_at_the_source_itself_is_not_lost() -> None:
    state = bare(span="0-3")
    meet(state, "a", "4-8")
    state.handle(0.0, Tick())
    offer(state, 1.0, "x")
    run_clock(state, 1.0, 60.0, answer_draws=False)
    assert state.retried == 0


def test_an_item_that_nobody_answers_ends_as_an_error_within_its_attempts() -> None:
    state = source(max_attempts=3)
    (sent,) = of(offer(state, 1.0, "x"), SendTask)
    assert sent.task.attempt == 0
    seen = run_clock(state, 1.0, 200.0, answer_draws=False)
    attempts = [(now, command.task.attempt) for now, command in seen if isinstance(command, SendTask)]
    assert [attempt for _, attempt in attempts] == [1, 2]
    assert attempts[1][0] - attempts[0][0] > attempts[0][0] - 1.0, "each wait is longer than the one before"
    (record,) = [command for _, command in seen if isinstance(command, Record)]
    assert "no answer in 3 attempts" in record.row.error
    assert (state.errors, state.completed, len(state.pending)) == (1, 0, 0)


# --- giving up, and what is illegal


def test_giving_up_records_every_pending_item_once_and_late_answers_are_counted() -> None:
    state = source()
    for number in range(5):
        offer(state, 1.0, str(number))
    state.handle(1.1, answer(2))
    state.handle(1.1, InputEnded())
    records = of(state.handle(1.2, GiveUp("interrupted")), Record)
    assert sorted(record.sample for record in records) == ["0", "2", "3", "4"]
    assert {record.row.error for record in records} == {"interrupted"}
    assert state.done
    assert not of(state.handle(1.3, answer(1)), Record)
    assert not of(state.handle(1.3, GiveUp("again")), Record)
    assert (state.completed, state.errors, state.duplicates) == (1, 4, 1)
    state.validate()


def test_an_answer_of_an_engine_that_was_not_asked_is_illegal_and_changes_nothing() -> None:
    state = source()
    offer(state, 1.0, "x")
    before = (state.admitted, dict(state.pending), state.queue, state.worker.totals.executed)
    with pytest.raises(IllegalEventError, match="running batch"):
        state.handle(1.1, SegmentDone(4, 0.1, ()))
    assert before == (state.admitted, dict(state.pending), state.queue, state.worker.totals.executed)
    state.validate()


@pytest.mark.parametrize("path", [(), ("b",), ("a", "b"), ("source",)])
def test_a_label_is_taken_only_from_the_node_that_its_path_ends_at(path: tuple[str, ...]) -> None:
    state = source(rate_per_s=10.0)
    offer(state, 0.1, "x")
    (item,) = state.pending
    forged = ResultsReceived("a", Results(7, 50, (ResultRow(item, 0, path, 0, 3, 0.99),)))
    assert of(state.handle(0.2, forged), Record) == []
    assert (state.unknown, list(state.pending)) == (1, [item])
    (record,) = of(state.handle(0.3, answer(item, label=2)), Record)
    assert record.row.label == 2


def test_with_a_deadline_a_node_may_answer_for_an_exit_that_another_has_run() -> None:
    state = source(rate_per_s=10.0, deadline_s=5.0)
    offer(state, 0.1, "x")
    (item,) = state.pending
    hurried = ResultsReceived("a", Results(7, 50, (ResultRow(item, 0, ("b",), 0, 3, 0.99),)))
    (record,) = of(state.handle(0.2, hurried), Record)
    assert record.row.label == 3
