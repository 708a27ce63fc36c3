"""The planner: its predictor against the linear programme written out, its plans against all plans, its patience."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from mdi_exit.benchmark.placement import best_of_all, random_problem
from mdi_exit.placement import Device, PlacementRules, Problem, best_placement, decide, even_split, predict, valued
from mdi_exit.placement.rate import rate_limit
from mdi_exit.segments import ModelPlan, segment_stop
from mdi_exit.span import LayerSpan

PLAN = ModelPlan("a" * 32, 4, (1, 3), (100, 100, 100, 100), layer_bytes=(10, 10, 10, 10))
EVEN = (1.0, 1.0, 1.0, 1.0)


def device(
    name: str, layer_s: float = 0.01, *, layers: int = 4, span: str | None = None, fixed: bool = False
) -> Device:
    held = None if span is None else LayerSpan.parse(span)
    return Device(name, (layer_s,) * 4, 10 * layers, span=held, fixed=fixed)


def problem(*devices: Device, reach: tuple[float, ...] = EVEN) -> Problem:
    source = Device("source", (0.01,) * 4, 0, fixed=True)
    return Problem(PLAN, reach, (source, *devices), "source")


def written_out(given: Problem, spans: dict[str, LayerSpan]) -> float:
    """The linear programme of flows, by HiGHS: variables (\"run\", node, start) and (\"move\", start, from, to)."""
    optimize = pytest.importorskip("scipy.optimize")
    plan, last = given.plan, given.plan.layer_count
    runs: dict[tuple[str, int], int] = {}
    starts, waiting = set(), [0]
    while waiting:
        start = waiting.pop()
        if start in starts or start == last:
            continue
        starts.add(start)
        for name, span in spans.items():
            if start in span:
                runs[name, start] = segment_stop(start, span, plan.exit_layers)
                waiting.append(runs[name, start])
    where = list(dict.fromkeys([*spans, given.source]))
    moves = [
        ("move", start, a, b)
        for start in sorted(starts)
        for a in where
        for b in spans
        if (b, start) in runs and given.may_send(a, b)
    ]
    index = {name: i for i, name in enumerate([("rate",), *(("run", *run) for run in runs), *moves])}

    def row(terms: list[tuple[tuple[object, ...], float]]) -> np.ndarray:
        made = np.zeros(len(index))
        for name, factor in terms:
            made[index[name]] += factor
        return made

    limits, most, balances = [], [], []
    for name in where:
        own = given.by_name[name]
        used = [
            (("run", n, start), sum(given.reach[layer] * own.layer_s[layer] for layer in range(start, stop)))
            for (n, start), stop in runs.items()
            if n == name
        ]
        limits.append(row(used))
        most.append(1.0)
        if own.bytes_per_s < math.inf:
            sizes = [(move, given.reach[move[1]] * plan.feature_bytes[move[1]]) for move in moves if move[2] != move[3]]
            for side in (2, 3):
                limits.append(row([(move, size) for move, size in sizes if move[side] == name]))
                most.append(own.bytes_per_s)
        for start in starts:
            leaving = [(move, -1.0) for move in moves if (move[1], move[2]) == (start, name)]
            coming = [(("run", n, s), 1.0) for (n, s), stop in runs.items() if n == name and stop == start]
            coming += [(("rate",), 1.0)] if (start, name) == (0, given.source) else []
            balances.append(row(leaving + coming))
    for name, start in runs:
        arrived = [(move, -1.0) for move in moves if (move[1], move[3]) == (start, name)]
        balances.append(row([(("run", name, start), 1.0), *arrived]))
    done = optimize.linprog(
        -row([(("rate",), 1.0)]), A_ub=np.array(limits), b_ub=most, A_eq=np.array(balances), b_eq=[0.0] * len(balances)
    )
    return float(-done.fun) if done.status == 0 else 0.0


def test_the_rate_of_a_chain_is_that_of_its_slowest_stage() -> None:
    spans = {"a": LayerSpan(0, 1), "b": LayerSpan(1, 4)}
    found = predict(problem(device("a"), device("b")), spans)
    assert found.rate_per_s == pytest.approx(100 / 3)
    assert found.busy == {"a": pytest.approx(1 / 3), "b": pytest.approx(1.0)}
    assert found.bottleneck == "b"


def test_exits_and_replicas_count() -> None:
    two = problem(device("a"), device("b"), reach=(1.0, 1.0, 0.5, 0.5))
    whole = {"a": LayerSpan(0, 4), "b": LayerSpan(0, 4)}
    assert predict(two, whole).rate_per_s == pytest.approx(2 / 0.03)
    assert predict(two, {"a": LayerSpan(0, 2), "b": LayerSpan(2, 4)}).rate_per_s == pytest.approx(50.0)


def test_a_link_is_a_limit_and_names_itself() -> None:
    slow = Device("b", (0.01,) * 4, 40, bytes_per_s=1000.0)
    found = predict(problem(device("a"), slow), {"a": LayerSpan(0, 2), "b": LayerSpan(2, 4)})
    assert found.rate_per_s == pytest.approx(10.0)
    assert found.bottleneck == "link of b"


def test_a_task_moves_only_where_a_segment_ends() -> None:
    """No exit and no span ends at layer 3, so who has begun layer 2 must end layer 3 as well."""
    spans = {"a": LayerSpan(0, 4), "b": LayerSpan(3, 4)}
    found = predict(problem(device("a"), device("b")), spans)
    assert found.busy["b"] == 0.0
    assert found.rate_per_s == pytest.approx(25.0)


def test_layers_that_nobody_holds_have_no_rate() -> None:
    found = predict(problem(device("a")), {"a": LayerSpan(0, 3)})
    assert found.rate_per_s == 0.0
    assert rate_limit(problem(device("a")), {"a": LayerSpan(0, 3)}) == 0.0


@pytest.mark.parametrize("seed", range(60))
def test_the_predictor_solves_the_linear_programme(seed: int) -> None:
    rng = Random(seed)
    given = random_problem(rng, links=seed % 2 == 0)
    spans = {one.name: rng.choice(given.spans_of(one)) for one in given.movable if given.spans_of(one)}
    rate = written_out(given, spans)
    found = predict(given, spans)
    assert found.rate_per_s == pytest.approx(rate, rel=1e-6, abs=1e-9)
    assert found.upper_per_s >= rate * (1 - 1e-6)
    assert rate_limit(given, spans) >= rate * (1 - 1e-9)
    assert all(share <= 1 + 1e-6 for share in [*found.busy.values(), *found.link_busy.values()])


def restricted(given: Problem, rng: Random, chance: float = 0.5) -> Problem:
    """The same with neighbours by chance."""
    names = [one.name for one in given.devices]
    return replace(
        given,
        devices=tuple(
            replace(one, neighbours=frozenset(name for name in names if rng.random() < chance)) for one in given.devices
        ),
    )


@pytest.mark.parametrize("seed", range(60))
def test_the_predictor_keeps_to_neighbours(seed: int) -> None:
    rng = Random(seed)
    free = random_problem(rng, links=seed % 2 == 0)
    given = restricted(free, rng)
    spans = {one.name: rng.choice(given.spans_of(one)) for one in given.movable if given.spans_of(one)}
    rate = predict(given, spans).rate_per_s
    assert rate == pytest.approx(written_out(given, spans), rel=1e-6, abs=1e-9)
    assert rate <= predict(free, spans).rate_per_s * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_a_plan_among_neighbours_is_close_to_the_best_of_all(seed: int) -> None:
    rng = Random(seed)
    given = restricted(random_problem(rng, links=seed % 2 == 0, combinations=3000), rng, 0.7)
    found = best_placement(given)
    best, _ = best_of_all(given, found.rate_per_s)
    assert found.rate_per_s >= 0.95 * best


def test_on_a_ring_each_stage_is_on_the_next_node() -> None:
    """In the order of names the ring goes the other way, so that plans of free nodes would have no path."""
    ring = {"source": "c", "c": "b", "b": "a", "a": "source"}
    nodes = [replace(device(name, layers=2), neighbours=frozenset({ring[name]})) for name in "abc"]
    source = Device("source", (0.01,) * 4, 0, fixed=True, neighbours=frozenset({"c"}))
    given = Problem(PLAN, EVEN, (source, *nodes), "source")
    found = best_placement(given)
    assert found.rate_per_s >= 50.0 * (1 - 1e-9), "as a chain of two has"
    assert found.spans["c"].first == 0
    assert predict(given, {"a": LayerSpan(0, 2), "b": LayerSpan(2, 4)}).rate_per_s == 0.0
    assert decide(given, (), PlacementRules()).rate_per_s == found.rate_per_s


@pytest.mark.parametrize("seed", range(12))
def test_a_plan_is_close_to_the_best_of_all_and_fits(seed: int) -> None:
    given = random_problem(Random(seed), links=seed % 2 == 0, combinations=3000)
    found = best_placement(given)
    best, _ = best_of_all(given, found.rate_per_s)
    assert found.rate_per_s >= 0.95 * best
    assert found.spans == best_placement(given).spans
    for name, span in found.spans.items():
        assert given.fits(given.by_name[name], span)


def test_one_slow_node_among_fast_ones_gets_less() -> None:
    given = problem(device("a", layers=2), device("b", layers=2), device("slow", 0.04, layers=2))
    auto, even = best_placement(given), valued(given, even_split(given))
    assert auto.rate_per_s >= 1.3 * even.rate_per_s


def test_fixed_nodes_are_planned_around() -> None:
    given = problem(device("fixed", span="0-2", fixed=True), device("spare", layers=1))
    found = best_placement(given)
    assert found.spans == {"fixed": LayerSpan(0, 3), "spare": LayerSpan(3, 4)}


def test_memory_that_is_not_enough_is_a_rate_of_nothing() -> None:
    given = problem(device("a", layers=1), device("b", layers=2))
    assert best_placement(given).rate_per_s == 0.0
    assert decide(given, (), PlacementRules()).spans == {}


# --- patience


def test_a_small_gain_moves_nobody() -> None:
    given = problem(device("a", 0.0100, layers=2, span="0-1"), device("b", 0.0102, layers=2, span="2-3"))
    found = decide(given, (), PlacementRules())
    assert (found.moved, found.joined) == ((), ())
    assert found.rate_per_s == pytest.approx(found.before_per_s)


def test_a_large_gain_moves_those_who_have_rested_only() -> None:
    given = problem(device("a", 0.01, layers=3, span="0"), device("b", 0.01, layers=3, span="1-3"))
    assert decide(given, (), PlacementRules()).moved
    assert decide(given, ("a", "b"), PlacementRules()).moved == ()


def test_a_newcomer_moves_nobody_for_little() -> None:
    given = problem(device("a", layers=2, span="0-1"), device("b", layers=2, span="2-3"), device("new", 1.0, layers=2))
    found = decide(given, (), PlacementRules())
    assert found.joined == ("new",)
    assert found.moved == ()


def test_lost_layers_move_even_who_rests_when_nobody_else_can() -> None:
    given = problem(device("a", layers=2, span="0-1"), device("b", layers=2, span="0-1"))
    found = decide(given, ("a", "b"), PlacementRules())
    assert found.forced
    assert len(found.moved) == 1
    assert found.resting == found.moved
    assert found.rate_per_s > 0
    rested = decide(given, ("a",), PlacementRules())
    assert rested.moved == ("b",)
    assert not rested.resting


def test_costs_of_other_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="4 layers"):
        Problem(PLAN, EVEN, (Device("source", (1.0,)),), "source")
    with pytest.raises(ValueError, match="source"):
        Problem(PLAN, EVEN, (Device("a", EVEN),), "source")
    assert math.isinf(Device("a", EVEN).memory_bytes)
