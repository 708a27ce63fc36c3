"""Drift plus penalty, latency target, mix of exits, shares and routes on worked examples."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit.events import (
    ModelKnown,
    OrderReceived,
    RoutesSolved,
    SegmentsReady,
    SendControl,
    SolveRoutes,
    StatusReceived,
    TelemetryReceived,
    Tick,
    TransportUp,
)
from mdi_exit.guidance import _capacities
from mdi_exit.optimum.exits import ExitTable
from mdi_exit.optimum.routes import RouteSolver
from mdi_exit.policy.blind import anyone, shortest_queue
from mdi_exit.policy.candidates import HERE, Candidate, Own
from mdi_exit.policy.drift import Choice, best_choice, most_relief, most_under_way
from mdi_exit.policy.latency import LatencyControl
from mdi_exit.policy.mix import BINS, ExitMix, bin_of
from mdi_exit.policy.shares import Routes, by_share
from mdi_exit.routes import Channel, NodeLoad, RoutingAnswer, RoutingChoice, RoutingProblem
from mdi_exit.segments import ModelPlan
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.wire import Order, Status, Telemetry
from mdi_exit.worker_config import WorkerConfig

PLAN = ModelPlan("ab" * 16, 4, (1, 3), (1000,) * 4)


def of(commands, kind):
    return [command for command in commands if isinstance(command, kind)]


# --- baselines and drift plus penalty


def test_the_shortest_queue_is_joined_and_here_is_one_of_them() -> None:
    near = [Candidate("a", 3, 9.0, 0.0), Candidate("b", 1, 9.0, 0.0)]
    assert shortest_queue(Own(2, 0, 0.0), near, Random(0)) == "b"
    assert shortest_queue(Own(1, 0, 0.0), near, Random(0)) == HERE


def test_anyone_is_as_likely() -> None:
    near, rng = [Candidate(name, 0, 0.0, 0.0) for name in "abc"], Random(0)
    chosen = Counter(anyone(Own(0, 0, 0.0), near, rng) for _ in range(4000))
    assert set(chosen) == {HERE, "a", "b", "c"}
    assert min(chosen.values()) > 850


def test_a_task_goes_where_it_relieves_most() -> None:
    near = [Candidate("a", 0, 0.5, 0.1), Candidate("b", 9, 0.2, 0.1)]
    assert most_relief(Own(0, 0, 0.31), near, Random(0)) == "b"
    assert most_relief(Own(0, 0, 0.3), near, Random(0)) is None


def test_the_threshold_falls_as_the_backlog_grows() -> None:
    choices = [Choice(1.0, 0.92, 1.0), Choice(0.9, 0.915, 0.6), Choice(0.5, 0.88, 0.3)]
    chosen = [best_choice(backlog, choices, 400.0).threshold for backlog in (0, 4, 6, 40, 60)]
    assert chosen == [1.0, 1.0, 0.9, 0.9, 0.5]


def test_more_may_be_under_way_where_an_item_is_less_work() -> None:
    assert most_under_way(Choice(1.0, 0.92, 1.0), 120.0) == 111
    assert most_under_way(Choice(0.5, 0.92, 0.5), 120.0) == 221
    assert most_under_way(Choice(0.0, 0.92, 0.0), 120.0) == 2208, "work is taken as a twentieth of the whole at least"
    assert most_under_way(Choice(1.0, 0.0, 1.0), 120.0) == 1, "one item always may"


# --- latency


def fed(latency_s: float, *, per_s: int = 50, target_s: float = 0.2) -> LatencyControl:
    control = LatencyControl(target_s)
    for step in range(3 * per_s):
        control.answered(step / per_s, latency_s)
    return control


def test_the_threshold_follows_the_target() -> None:
    def after(latency_s: float, *, refused: int = 0, crowded: bool = False, floor: float = 0.5) -> float:
        return fed(latency_s).next_threshold(3.0, 0.8, floor, turned_away=refused, crowded=crowded)

    assert after(0.3) < 0.8
    assert after(0.3, floor=0.79) == 0.79
    assert after(0.05) > 0.8
    assert after(0.05, refused=1) < 0.8, "accuracy is given up before items are"
    assert after(0.05, crowded=True) == after(0.15) == 0.8
    assert LatencyControl(0.2).next_threshold(0.0, 0.8, 0.5, turned_away=9, crowded=True) == 0.8, "nothing known"


def test_so_many_are_let_in_as_the_target_allows() -> None:
    control = fed(0.3)
    assert control.under_way(512) == 4, "nothing measured yet"
    assert control.under_way(512, 100.0) == 12, "six tenths of the target at the rate that is expected"
    control.next_threshold(3.0, 0.8, 0.5, turned_away=0, crowded=False)
    first = control.under_way(512)
    assert 4 <= first <= 50 * 0.2
    for period in range(20):
        control.next_threshold(3.0 + period / 2, 0.8, 0.5, turned_away=0, crowded=False)
    assert control.under_way(512) == 4


# --- mix


def test_scores_fall_into_the_bin_that_they_end() -> None:
    assert [bin_of(score) for score in (0.0, 0.1, 0.11, 0.5, 0.999, 1.0)] == [0, 0, 1, 4, 16, 17]


def test_a_mix_tells_of_other_thresholds_and_of_restarts() -> None:
    rng = np.random.default_rng(0)
    scores = np.sort(rng.random((4000, 2)), axis=1)
    counts = {exit_number: [0] * BINS for exit_number in range(2)}
    for exit_number in range(2):
        for score in scores[:, exit_number]:
            counts[exit_number][bin_of(float(score))] += 1
    mix = ExitMix(2)
    assert not mix.known
    mix.told("a", 1, counts)
    mix.told("a", 1, counts)
    assert sum(mix.counts[0]) == 4000, "counts are since the start, not since the last time"
    mix.told("a", 2, {0: tuple(counts[0])})
    assert sum(mix.counts[0]) == 8000, "another start counts anew"
    for threshold in (0.25, 0.6, 0.9):
        share = float((scores[:, 0] <= threshold).mean())
        assert mix.reach([threshold]) == (1.0, pytest.approx(share, abs=0.02))
    assert mix.reach([1.0]) == (1.0, 1.0)
    assert mix.sureness([0.9]) > 0.6
    mix.fade(0.001)
    assert not mix.known


# --- shares


@given(
    shares=st.lists(st.floats(0.05, 1.0), min_size=2, max_size=5),
    tasks=st.integers(50, 200),
    seed=st.integers(0, 100),
)
def test_tasks_go_by_shares(shares: list[float], tasks: int, seed: int) -> None:
    names = [HERE, *(f"n{number}" for number in range(len(shares) - 1))]
    total = sum(shares)
    routes, rng, went = Routes(), Random(seed), Counter()
    routes.told(0.0, {2: {name: share / total for name, share in zip(names, shares, strict=True)}})
    near = [Candidate(name, 0, 0.0, 0.0) for name in names[1:]]
    for _ in range(tasks):
        to = by_share(Own(0, 1, 0.0, routes.due(2, names)), near, rng)
        assert to is not None
        routes.took(2, to, names)
        went[to] += 1
    for name, share in zip(names, shares, strict=True):
        assert abs(went[name] - tasks * share / total) <= len(names) + 1


def test_the_share_of_who_is_gone_is_the_others_and_stale_shares_count_for_nothing() -> None:
    routes = Routes()
    routes.told(0.0, {2: {"a": 0.5, "b": 0.5}})
    assert routes.hold(9.0, 2)
    assert not routes.hold(11.0, 2)
    assert not routes.hold(1.0, 3)
    assert routes.due(2, ["a"]) == {"a": 1.0}
    for _ in range(10):
        routes.took(2, "a", ["a"])
    assert routes.due(2, ["a", "b"])["a"] == pytest.approx(0.5)


def test_who_was_far_ahead_under_other_shares_is_not_kept_waiting_under_new_ones() -> None:
    routes = Routes()
    routes.told(0.0, {2: {"a": 0.9, "b": 0.1}})
    for _ in range(10):
        routes.took(2, "b", ["a", "b"])
    assert routes.due(2, ["a", "b"])["b"] < -2.0
    routes.told(1.0, {2: {"b": 1.0}})
    assert routes.due(2, ["a", "b"]) == {"b": 1.0}


def test_who_is_far_ahead_of_its_share_waits() -> None:
    due = {"a": -2.5, "b": 3.0}
    assert by_share(Own(0, 1, 0.0, due), [Candidate("a", 0, 0.0, 0.0)], Random(0)) is None
    full_here = Own(64, 1, 0.0, {HERE: 3.0, "a": 0.1}, alike=64)
    assert by_share(full_here, [Candidate("a", 0, 0.0, 0.0)], Random(0)) == "a"


# --- routes


def asked(wanted: float | None = None, knobs: tuple[float, ...] = (0.9,)) -> RoutingProblem:
    """The source takes 0.1 s for each of two blocks, node a half of that and only the second."""
    reach = {1.0: 1.0, 0.9: 0.5, 0.5: 0.2}
    return RoutingProblem(
        source="s",
        exits=(1, 3),
        cut_bytes=(100, 100, 100, 100),
        nodes=(NodeLoad("s", ((0, 2, 0.1, 0.0), (2, 4, 0.1, 0.0))), NodeLoad("a", ((2, 4, 0.05, 0.0),))),
        choices=tuple(RoutingChoice(knob, (1.0, reach[knob]), (knob,)) for knob in knobs),
        lowest=(0.5,),
        wanted=wanted,
    )


def test_routes_use_all_nodes_as_the_bound_says() -> None:
    answer = RouteSolver().solve(asked(knobs=(1.0,)))
    assert answer is not None
    assert answer.rate == pytest.approx(10.0), "all of the source for the first block, the second at a"
    assert answer.shares == ((2, "s", {"a": 1.0}),)
    assert answer.thresholds == ()


def test_on_a_channel_a_task_takes_its_airtime_twice() -> None:
    """Of 5.5 items a second all need s for the first block and 4.5 for the second, one is sent: 2 × 250 bytes."""
    slow = replace(asked(knobs=(1.0,)), channel=Channel(500.0, message_bytes=150.0))
    answer = RouteSolver().solve(slow)
    assert answer is not None
    assert answer.rate == pytest.approx(5.5)
    assert answer.shares == (
        (2, "s", {"a": pytest.approx(1 / 5.5, abs=1e-4), "s": pytest.approx(4.5 / 5.5, abs=1e-4)}),
    )


def test_the_highest_threshold_with_room_is_chosen() -> None:
    slow = asked(9.5, knobs=(1.0, 0.9, 0.5))
    answer = RouteSolver().solve(slow)
    assert answer is not None
    assert answer.threshold == 1.0
    worst = RouteSolver().solve(asked(99.0, knobs=(1.0, 0.9, 0.5)))
    assert worst is not None
    assert worst.threshold == 0.5, "none has room: the lowest"


def test_with_outcomes_each_exit_has_its_own_threshold() -> None:
    scores = np.column_stack([np.linspace(0.0, 0.99, 100), np.ones(100)])
    right = np.column_stack([np.arange(100) >= 50, np.ones(100)]) > 0
    answer = RouteSolver(ExitTable.of_outcomes(scores, right)).solve(asked(None, knobs=(0.5,)))
    assert answer is not None
    assert len(answer.thresholds) == 1
    assert answer.rate == pytest.approx(10.0)


def test_nothing_can_be_carried_without_the_last_layers() -> None:
    alone = asked()
    cut = RoutingProblem(
        "s", alone.exits, alone.cut_bytes, (NodeLoad("s", ((0, 2, 0.1, 0.0),)),), alone.choices, alone.lowest
    )
    assert RouteSolver().solve(cut) is None


# --- the source


def guided(adapt: str, **config) -> SourceState:
    span = LayerSpan(0, 2)
    source_config = SourceConfig(7, adapt=adapt, threshold=0.9, **config)
    state = SourceState(source_config, WorkerConfig("source", 1, span), Random(0))
    state.handle(0.0, ModelKnown(PLAN))
    state.handle(0.0, TransportUp())
    keys = {PLAN.segment(layer, span, early_exits=early): 0.01 for layer in span for early in (True, False)}
    state.handle(0.0, SegmentsReady(keys))
    state.handle(0.0, StatusReceived(Status("a", 50, True, "agent", "ready", (2, 4), (2, 3), 16)))
    bins = tuple([0] * 9 + [60] + [0] * (BINS - 11) + [40])
    report = Telemetry(7, 50, "a", 0, 0, 0.0, speed_s={2: 0.02, 3: 0.01}, scores={0: bins, 1: bins})
    state.handle(0.1, TelemetryReceived(report))
    return state


def test_routes_are_asked_for_and_told_to_all() -> None:
    state = guided("optimiser")
    (solve,) = of(state.handle(0.6, Tick()), SolveRoutes)
    assert {node.name: node.works for node in solve.problem.nodes}["a"] == ((2, 4, 0.02, 0.0), (3, 4, 0.01, 0.0))
    assert not of(state.handle(3.0, Tick()), SolveRoutes), "one at a time"
    answer = RoutingAnswer(0.9, 10.0, ((2, "source", {"a": 1.0}),), (0.7,))
    (told,) = of(state.handle(3.1, RoutesSolved(answer)), SendControl)
    assert told.control.offloading == "optimiser"
    assert told.control.census
    assert [(share.layer, share.node, share.to) for share in told.control.shares] == [(2, "source", {"a": 1.0})]
    assert state.worker.threshold_of(0) == 0.7
    state.handle(3.5, TelemetryReceived(Telemetry(7, 50, "a", 0, 0, 0.0, speed_s={2: 0.08})))
    (again,) = of(state.handle(4.0, Tick()), SolveRoutes)
    assert again.problem.nodes[1].works == ((2, 4, 0.08, 0.0),)
    state.validate()


def test_without_a_solver_it_says_so_once() -> None:
    state = guided("optimiser")
    for now in (0.6, 3.0):
        state.handle(now, Tick())
        state.handle(now + 0.1, RoutesSolved(None, "no SciPy"))
    assert state.noticed["optimiser"] == 1


def test_a_given_rate_lets_the_optimiser_choose_the_threshold() -> None:
    state = guided("optimiser", rate_per_s=20.0)
    (solve,) = of(state.handle(0.6, Tick()), SolveRoutes)
    assert solve.problem.wanted == pytest.approx(20.6)
    assert len(solve.problem.choices) == 40
    reaches = [choice.reach[1] for choice in solve.problem.choices]
    assert reaches == sorted(reaches, reverse=True)


def test_drift_moves_the_threshold_with_what_is_under_way() -> None:
    state = guided("drift-plus-penalty")
    state.handle(0.6, Tick())
    calm = state.threshold
    state._queue = 0.0
    state.pending = dict.fromkeys(range(1, 400))  # type: ignore[assignment] # only their number matters here
    assert state._guide(1.0) < calm
    assert state._turns.most < 400


def test_a_slow_link_is_told_from_a_fast_one() -> None:
    """Ten bytes a second at one, a hundred at the two others: up the one, down the other."""
    slow, fast = 0.1, 0.01
    found = _capacities({("s", "a"): 1 / (fast + fast), ("s", "b"): 1 / (fast + slow), ("a", "s"): 0.0})
    assert found == {"s": pytest.approx(100), "a": pytest.approx(100), "b": pytest.approx(10)}
    assert _capacities({}) == {}


@pytest.mark.parametrize(
    ("adapt", "way"), [("latency", "drift-plus-penalty"), ("optimiser", "optimiser"), ("none", "")]
)
def test_a_policy_brings_the_way_of_the_tasks_that_suits_it(adapt: str, way: str) -> None:
    state = guided(adapt, target_p99_s=0.2)
    assert state.worker.control is not None
    assert state.worker.control.offloading == way
    state.handle(0.2, OrderReceived(Order("top", 1, "policy", "offloading jsq")))
    assert state.worker.control.offloading == "jsq", "who says otherwise is obeyed"
