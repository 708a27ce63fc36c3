"""A node's credits, probes, decision epochs and work conservation; its exits and refusals are in test_states."""

from __future__ import annotations

from random import Random

import pytest

from mdi_exit.errors import IllegalEventError
from mdi_exit.events import (
    AckReceived,
    ControlReceived,
    Drain,
    Inject,
    ModelKnown,
    Notice,
    Outcome,
    ProbeReceived,
    RunSegment,
    SegmentDone,
    SegmentsReady,
    SendAck,
    SendFailed,
    SendProbe,
    SendResults,
    SendTask,
    SendTelemetry,
    StatusReceived,
    Task,
    TaskReceived,
    TelemetryReceived,
    Tick,
    TransportDown,
    TransportUp,
)
from mdi_exit.outgoing import MOST_TO_TELL
from mdi_exit.segments import ModelPlan, SegmentKey
from mdi_exit.span import LayerSpan
from mdi_exit.wire import Ack, Control, Probe, ResultRow, Status, Telemetry
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

PLAN = ModelPlan("ab" * 16, 6, (1, 3, 5), (100,) * 6)


def of(commands, kind):
    return [command for command in commands if isinstance(command, kind)]


def ready(span: LayerSpan, plan: ModelPlan = PLAN) -> SegmentsReady:
    return SegmentsReady(
        {plan.segment(layer, span, early_exits=early): 0.01 for layer in span for early in (True, False)}
    )


def control(threshold: float = 0.8, run: int = 7, model: str = PLAN.digest) -> ControlReceived:
    return ControlReceived(Control(run, 1, "source", 0, model, threshold))


def node(span: str, *, threshold: float = 0.8, **config) -> WorkerState:
    layers = LayerSpan.parse(span)
    state = WorkerState(WorkerConfig("me", 5, layers, **config), Random(0))
    for event in (ModelKnown(PLAN), TransportUp(), control(threshold), ready(layers)):
        state.handle(0.0, event)
    return state


def meet(
    state: WorkerState, name: str, span: str, *, now: float = 0.0, incarnation: int = 50, window: int = 4, load: int = 0
):
    layers = LayerSpan.parse(span)
    status = Status(name, incarnation, True, "agent", "ready", (layers.first, layers.stop), tuple(layers), window)
    return [
        *state.handle(now, StatusReceived(status)),
        *report(state, name, now=now, incarnation=incarnation, load=load),
    ]


def report(state: WorkerState, name: str, *, now: float = 0.0, incarnation: int = 50, load: int = 0, seen: int = 0):
    layers = dict.fromkeys(range(6), 0.01)
    telemetry = Telemetry(7, incarnation, name, load, 0, load * 0.01, speed_s=layers, received={"me": seen})
    return state.handle(now, TelemetryReceived(telemetry))


def task(item: int, layer: int = 0, run: int = 7) -> Task:
    return Task(run, item, 0, layer, None, 100)


def received(seq: int, item: int, layer: int, sender: str = "other") -> TaskReceived:
    return TaskReceived(sender, 9, seq, task(item, layer))


def done(run: RunSegment, label: int | None = 1, score: float = 0.1) -> SegmentDone:
    return SegmentDone(run.batch, 0.01, (Outcome(label, score, None, 100),) * len(run.tasks))


def produce(state: WorkerState, count: int, *, now: float = 1.0) -> list[SendTask]:
    """Inject ``count`` unsure items one by one, run each to the end of the node's segments; what was sent."""
    sent = []
    for item in range(1, count + 1):
        commands = state.handle(now, Inject(task(item)))
        sent += of(commands, SendTask)
        while runs := of(commands, RunSegment):
            commands = state.handle(now, done(runs[0]))
            sent += of(commands, SendTask)
        state.validate()
    return sent


# --- strictness


def test_a_score_of_one_does_not_exit_at_threshold_one_even_if_a_head_was_running() -> None:
    state = node("0-5", threshold=0.9)
    (run,) = of(state.handle(1.0, received(1, 1, 0)), RunSegment)
    assert run.key.head
    state.handle(1.0, control(1.0))
    commands = state.handle(1.1, done(run, 1, 1.0))
    assert not of(commands, SendResults)
    assert [r.key for r in of(commands, RunSegment)] == [SegmentKey(2, 4, False)]


def test_a_result_tells_its_way_and_its_times() -> None:
    state = node("0-5")
    (run,) = of(state.handle(1.0, received(1, 1, 4)), RunSegment)
    state.handle(1.0, received(2, 2, 4))
    commands = state.handle(1.25, SegmentDone(run.batch, 0.25, (Outcome(1, 0.1, None, 0),)))
    (first,) = of(commands, SendResults)
    (second,) = of(commands, RunSegment)
    (last,) = of(state.handle(1.5, SegmentDone(second.batch, 0.25, (Outcome(1, 0.1, None, 0),))), SendResults)
    assert first.rows[0].path == ("me",)
    assert first.rows[0].times == (0.25, 0.0)
    assert last.rows[0].times == (0.25, 0.25)


# --- forwarding and credits


def test_what_was_sent_since_the_last_report_counts_as_load() -> None:
    """Both report one task; the second task sees the first on its way, although no new report has come."""
    state = node("0-1")
    meet(state, "a", "2-5", now=1.0, load=1)
    meet(state, "b", "2-5", now=1.0, incarnation=51, load=1)
    to = [command.to for command in produce(state, 4)]
    assert sorted(to) == ["a", "a", "b", "b"]
    assert to[0] != to[1]
    assert to[2] != to[3]


def test_forwarding_stops_at_the_window_and_goes_on_with_the_credit() -> None:
    state = node("0-1", window=8)
    meet(state, "a", "2-5", window=2)
    assert len(produce(state, 5)) == 2
    assert state.outputs == 3
    commands = state.handle(1.1, AckReceived("a", Ack(50, 5, 2, 0.0)))
    assert not of(commands, SendTask), "received is not released"
    commands = state.handle(1.2, AckReceived("a", Ack(50, 5, 2, 0.0, {2: 1})))
    assert [command.task.item for command in of(commands, SendTask)] == [3]
    commands = state.handle(1.3, AckReceived("a", Ack(50, 5, 3, 0.0, {2: 3})))
    assert [command.task.item for command in of(commands, SendTask)] == [4, 5], "the total makes good what was missed"
    assert [command.seq for command in of(commands, SendTask)] == [4, 5]
    state.validate()


def test_acknowledgements_of_or_to_another_start_give_no_credit() -> None:
    state = node("0-1")
    meet(state, "a", "2-5", window=1)
    produce(state, 2)
    for ack in (Ack(49, 5, 1, 0.0, {2: 1}), Ack(50, 4, 1, 0.0, {2: 1})):
        assert not of(state.handle(1.1, AckReceived("a", ack)), SendTask)
    assert of(state.handle(1.1, AckReceived("a", Ack(50, 5, 1, 0.0, {2: 1}))), SendTask)


def test_a_loss_found_by_a_gap_gives_its_credit_to_the_next_task() -> None:
    state = node("0-1")
    meet(state, "a", "2-5", window=2)
    produce(state, 3)
    commands = state.handle(1.1, AckReceived("a", Ack(50, 5, 2, 0.0, {}, (1,))))
    assert [command.task.item for command in of(commands, SendTask)] == [3]


def test_an_overdue_acknowledgement_is_probed_for_and_a_loss_at_the_tail_is_found() -> None:
    state = node("0-1")
    meet(state, "a", "2-5", window=1)
    state.handle(0.0, Tick())
    produce(state, 2)
    probes = []
    for tenth in range(11, 31):
        probes += of(state.handle(tenth / 10, Tick()), SendProbe)
        report(state, "a", now=tenth / 10)
    assert probes
    assert probes[-1].probe.last_seq == 1
    commands = state.handle(3.1, AckReceived("a", Ack(50, 5, 0, 0.0, probe=probes[-1].probe.number)))
    assert [command.task.item for command in of(commands, SendTask)] == [2]


def test_only_neighbours_are_sent_to() -> None:
    state = node("0-1", neighbours=frozenset({"b"}))
    meet(state, "a", "2-5")
    assert produce(state, 1) == []
    assert [command.to for command in meet(state, "b", "2-5", incarnation=51) if isinstance(command, SendTask)] == ["b"]


def test_a_node_that_falls_silent_gets_nothing_more() -> None:
    state = node("0-1", dead_after_s=1.0)
    meet(state, "a", "2-5")
    state.handle(1.5, Tick())
    assert produce(state, 1, now=1.6) == []
    assert state.telemetry(1.6).stranded == {2: 1}
    assert [command.to for command in of(report(state, "a", now=1.7), SendTask)] == ["a"]


def test_a_new_start_of_a_neighbour_is_numbered_from_one_again() -> None:
    state = node("0-1")
    meet(state, "a", "2-5", window=1)
    assert [command.seq for command in produce(state, 2)] == [1]
    (again,) = of(meet(state, "a", "2-5", incarnation=51, window=1), SendTask)
    assert again.seq == 1


# --- offers


class Draws:
    """An offloading policy that counts, and says what it is told."""

    def __init__(self, *answers: str | None) -> None:
        self.answers, self.count = list(answers), 0

    def __call__(self, own, candidates, rng):
        del own, candidates, rng
        self.count += 1
        return self.answers.pop(0) if self.answers else None


def loaded(draws: Draws) -> WorkerState:
    """A node that runs one task and has three more on offer for layer 2."""
    state = node("0-5", output_limit=9)
    meet(state, "a", "0-5", window=9)
    state.standing.policy = draws
    for item in range(1, 5):
        state.handle(1.0, received(item, item, 0))
    for seq in range(3):
        (run,) = of(state.handle(1.0, received(10 + seq, 10 + seq, 0)), RunSegment) or [current(state)]
        state.handle(1.0, done(run))
    return state


def current(state: WorkerState) -> RunSegment:
    running = state._running
    assert running is not None
    return RunSegment(running.batch, running.key, running.tasks)


def test_offers_are_drawn_once_in_each_epoch_until_one_is_kept() -> None:
    draws = Draws()
    state = loaded(draws)
    assert state.outputs >= 2
    for event, thrown in (
        (Tick(), 1),
        (TelemetryReceived(Telemetry(7, 50, "a", 0, 0, 0.0)), 1),
        (AckReceived("a", Ack(50, 5, 0, 0.0)), 0),
        (received(99, 99, 0), 0),
        (ProbeReceived("a", Probe(50, 1, 0)), 0),
        (done(current(state)), 1),
    ):
        before = draws.count
        state.handle(1.1, event)
        assert draws.count - before == thrown, event
    waiting, before = state.outputs, draws.count
    draws.answers = ["a", "a", None]
    assert len(of(state.handle(1.2, Tick()), SendTask)) == min(2, waiting)
    assert draws.count - before == min(3, waiting)
    state.validate()


def test_a_new_task_is_offered_only_if_somebody_could_take_it() -> None:
    state = node("0-5")
    (run,) = of(state.handle(1.0, received(1, 1, 0)), RunSegment)
    state.handle(1.0, received(2, 2, 0))
    state.handle(1.0, done(run))
    assert (state.inputs, state.outputs) == (1, 0), "nobody is there: it waits here"


def test_a_node_is_never_idle_while_anything_here_can_be_run() -> None:
    """Any order of arrivals and ends: if nothing runs, then nothing waits."""
    rng = Random(3)
    state = node("0-5", window=2)
    meet(state, "a", "2-5", load=50)
    for number in range(1, 400):
        if state._running is not None and rng.random() < 0.6:
            run = current(state)
            state.handle(number / 100, done(run, 1, rng.random()))
        else:
            state.handle(number / 100, received(number, number, rng.choice((0, 2, 4)), sender=rng.choice("xyz")))
        assert state._running is not None or state.inputs + state.outputs == 0
        state.validate()


def test_later_layers_may_starve_no_slot_of_earlier_ones() -> None:
    """Without a neighbour for layer 4, layer 2 runs as far as its product has slots, then waits and goes on later."""
    state = node("0-3", window=2, slots=2)
    for item in range(1, 6):
        state.handle(1.0, Inject(task(item)))
    while state._running is not None:
        state.handle(1.0, done(current(state)))
        state.validate()
    assert state.telemetry(1.0).stranded == {4: 2}
    waiting = {
        layer: state.store.inputs.waiting(layer) + (state.store.outputs.waiting(layer) if layer != 4 else 0)
        for layer in (0, 2)
    }
    assert waiting == {0: 1, 2: 2}
    sent = of(meet(state, "a", "4-5", window=9), SendTask)
    assert len(sent) == 2
    assert state._running is not None


def test_a_leaving_node_hands_on_what_others_can_run() -> None:
    state = node("0-5", output_limit=9)
    meet(state, "a", "0-5", window=9, load=100)
    state.standing.policy = Draws()
    for item in range(1, 4):
        state.handle(1.0, received(item, item, 0))
    state.handle(1.0, done(current(state)))
    assert state.outputs == 1
    commands = state.handle(1.0, Drain())
    assert len(of(commands, SendTask)) == 1


# --- the receiving side


def test_a_sender_beyond_its_slots_is_refused_and_others_are_not() -> None:
    state = node("0-5", window=2)
    refusals = [
        row for seq in range(1, 8) for c in of(state.handle(1.0, received(seq, seq, 0)), SendResults) for row in c.rows
    ]
    assert state.totals.received == 5, "one runs, and twice the window waits"
    assert [row.item for row in refusals] == [6, 7]
    assert all(row.refused and "no slot left for other" in row.error for row in refusals)
    assert not of(state.handle(1.0, received(1, 50, 0, sender="polite")), SendResults)
    state.validate()


def test_acknowledgements_are_gathered_but_not_for_long() -> None:
    state = node("0-5", window=8)
    assert not of(state.handle(1.0, received(1, 1, 0)), SendAck)
    assert state.next_wakeup() == pytest.approx(1.02)
    (ack,) = of(state.handle(1.021, Tick()), SendAck)
    assert (ack.to, ack.ack.seq, ack.ack.to_incarnation, ack.ack.released) == ("other", 1, 9, {0: 1})
    early = [of(state.handle(1.03, received(seq, seq, 0)), SendAck) for seq in range(2, 6)]
    assert [len(acks) for acks in early] == [0, 0, 0, 1], "half a window is answered at once"


def test_a_probe_is_answered_at_once_with_its_number() -> None:
    state = node("0-5")
    (answer,) = of(state.handle(1.0, ProbeReceived("other", Probe(9, 17, 3))), SendAck)
    assert (answer.to, answer.ack.probe, answer.ack.seq) == ("other", 17, 0)


def test_messages_of_a_start_that_is_over_are_not_taken() -> None:
    state = node("0-5")
    meet(state, "other", "0-1", incarnation=10)
    state.handle(1.0, received(1, 1, 0))
    assert (state.totals.received, state.inputs, state._running) == (0, 0, None)


def test_load_reports_hold_backlog_with_the_rest_of_what_runs() -> None:
    state = node("0-5")
    state.handle(1.0, received(1, 1, 0))
    state.handle(1.0, received(2, 2, 0))
    telemetry = state.telemetry(1.004)
    assert (telemetry.inputs, telemetry.outputs) == (1, 0)
    assert telemetry.backlog_s == pytest.approx(0.01 + 0.006)
    assert telemetry.backlog_by_layer_s == {0: pytest.approx(0.01)}
    assert telemetry.received == {"other": 2}
    reports = [t for tick in range(1, 41) for t in of(state.handle(1 + tick / 10, Tick()), SendTelemetry)]
    assert 7 <= len(reports) <= 9, "every half second"


# --- what must leave the state as it was


@pytest.mark.parametrize("outcomes", [(), (Outcome(1, 0.5, None, 100),) * 2])
def test_outcomes_that_do_not_fit_the_batch_change_nothing(outcomes: tuple[Outcome, ...]) -> None:
    state = node("0-5")
    (run,) = of(state.handle(1.0, received(1, 1, 0)), RunSegment)
    with pytest.raises(IllegalEventError, match="expected 1 outcomes"):
        state.handle(1.1, SegmentDone(run.batch, 0.1, outcomes))
    state.validate()
    assert of(state.handle(1.2, done(run, 1, 0.9)), SendResults), "the right answer is still taken"


def test_a_network_that_ends_without_a_label_changes_nothing() -> None:
    state = node("0-5")
    (run,) = of(state.handle(1.0, received(1, 1, 4)), RunSegment)
    with pytest.raises(IllegalEventError, match="no label"):
        state.handle(1.1, done(run, None))
    state.validate()
    assert of(state.handle(1.2, done(run, 1, 0.1)), SendResults)


# --- another model, another run


def test_another_model_drops_what_is_here_and_leaves_no_slot_taken() -> None:
    state = node("0-5")
    for seq in range(1, 4):
        state.handle(1.0, received(seq, seq, 2))
    run = current(state)
    other = ModelPlan("cd" * 16, run.key.stop, (run.key.stop - 1,), (100,) * run.key.stop)
    state.handle(1.1, ModelKnown(other))
    state.validate()
    assert not of(state.handle(1.2, done(run, 1, 0.99)), SendResults), "its label is of a model no longer in force"
    state.validate()
    assert state.store.room(run.key.stop) == state.config.slots
    assert (state.inputs, state.outputs, state.entries) == (0, 0, ())


def test_what_the_transport_gave_back_after_a_new_run_began_is_forgotten() -> None:
    state = node("0-1")
    meet(state, "a", "2-5")
    (sent,) = produce(state, 1)
    (run,) = of(state.handle(1.0, received(1, 60, 0)), RunSegment)
    (results,) = of(state.handle(1.0, done(run, 1, 0.9)), SendResults)
    state.handle(1.1, control(run=8))
    for command in (sent, results):
        commands = state.handle(1.2, SendFailed(command))
        assert not of(commands, SendTask)
        assert not of(commands, SendResults), "items of two runs have the same numbers"
    assert state.outputs == 0
    state.validate()


def test_results_that_are_too_many_to_keep_are_counted_and_told_once_an_outage() -> None:
    state = node("0-1")
    meet(state, "a", "2-5")
    rows = tuple(ResultRow(item, 1, ("me",), 0, 3, 0.9) for item in range(MOST_TO_TELL))
    lost = SendResults(rows, (), 7)
    state.handle(1.0, TransportDown())
    assert not of(state.handle(1.0, SendFailed(lost)), Notice)
    assert state.totals.untold == 0
    for _ in range(2):
        assert not of(state.handle(1.1, SendFailed(SendResults(rows[:5], (), 7))), Notice)
    assert state.totals.untold == 10
    back = state.handle(2.0, TransportUp())
    assert [(notice.kind, notice.text.split(",")[0]) for notice in of(back, Notice)] == [
        ("untold", "dropped 10 results and hand-overs")
    ]
    (told,) = of(back, SendResults)
    assert [row.item for row in told.rows] == [*range(10, MOST_TO_TELL), *range(5), *range(5)]
    state.handle(3.0, TransportDown())
    assert not of(state.handle(4.0, TransportUp()), Notice), "nothing was lost this time"


@pytest.mark.parametrize(("now", "entry"), [(0.51, 0), (0.61, 2)])
def test_a_later_layer_lets_earlier_ones_go_first_to_be_run_in_a_larger_batch(now: float, entry: int) -> None:
    """Two at once are known to be faster at layer 2, where one task waits; it does so for at most a tenth of a second."""
    state = node("0-3", window=8)
    state._seconds.add(PLAN.segment(2, LayerSpan(0, 4), early_exits=True), 2, 0.011)
    (run,) = of(state.handle(0.5, Inject(task(1))), RunSegment)
    for item in range(2, 7):
        state.handle(0.5, Inject(task(item)))
    state.handle(0.5, received(1, 7, 2))
    state.validate()
    (after,) = of(state.handle(now, done(run, score=0.9)), RunSegment)
    assert after.key.entry == entry


def test_speeds_are_told_anew_when_something_was_learnt_or_another_head_is_run() -> None:
    state = node("0-3")
    first = state.telemetry(0.5).speed_s
    assert state.telemetry(1.0).speed_s is first, "nothing has happened"
    produce(state, 1)
    again = state.telemetry(1.5).speed_s
    assert again is not first
    keys = {PLAN.segment(layer, LayerSpan(0, 4), early_exits=False): 0.5 for layer in range(4)}
    state.handle(2.0, SegmentsReady(keys))
    state.handle(2.0, control(1.0))
    assert set(state.telemetry(2.5).speed_s.values()) == {0.5}
