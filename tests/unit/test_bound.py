"""The bound on small cases whose answer is known: by hand, by trying everything, or from the programme of all settings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mdi_exit.errors import MdiExitError
from mdi_exit.optimum.bound import best_accuracy, efficiency, frontier, largest_rate
from mdi_exit.optimum.exits import ExitTable, fixed_table
from mdi_exit.optimum.problem import Group, Medium, Node, Problem, Work, mesh
from mdi_exit.optimum.programme import Layout, Target, solve

NEVER = fixed_table((1.0,), 0.9)
HALF = fixed_table((1.0, 0.5), 0.9)


def layers(*seconds: float, first: int = 0, head_s: float = 0.0) -> tuple[Work, ...]:
    return tuple(Work(first + i, first + i + 1, s, head_s) for i, s in enumerate(seconds))


def rate(problem: Problem, exits: ExitTable, accuracy: float = 0.0) -> float:
    bound = largest_rate(problem, exits, accuracy=accuracy)
    assert bound is not None
    return bound.rate


def star(name: str, bytes_per_s: float) -> tuple[Medium, Medium]:
    here = frozenset({name})
    return Medium(f"{name} up", here, frozenset(), bytes_per_s), Medium(f"{name} down", frozenset(), here, bytes_per_s)


def test_one_node_does_what_its_layers_allow() -> None:
    alone = Problem("s", (0, 1), (8.0, 4.0), (Node("s", layers(0.1, 0.2)),))
    assert rate(alone, HALF) == pytest.approx(1 / (0.1 + 0.5 * 0.2))


def test_equal_nodes_add_up_and_may_be_counted_as_one() -> None:
    nodes = (Node("s", layers(0.1)), Node("a", layers(0.05)), Node("b", layers(0.2), count=3))
    together = Problem("s", (0,), (8.0,), nodes, (mesh("sab"),))
    assert rate(together, NEVER) == pytest.approx(10 + 20 + 15)


def test_a_split_runs_at_the_rate_of_its_slowest_part() -> None:
    nodes = (Node("s", layers(0.1)), Node("a", layers(0.4, first=1)))
    split = Problem("s", (0, 1), (8.0, 4.0), nodes, (Group(frozenset("s"), frozenset("a")),))
    assert rate(split, HALF) == pytest.approx(min(10, 1 / (0.5 * 0.4)))


def test_no_way_to_a_layer_is_no_rate() -> None:
    nodes = (Node("s", layers(0.1)), Node("a", layers(0.4, first=1)))
    cut = Problem("s", (1,), (8.0, 4.0), nodes, (Group(frozenset("a"), frozenset("s")),))
    with pytest.raises(MdiExitError, match="held by nobody"):
        largest_rate(cut, NEVER)


def test_nothing_to_do_has_no_bound() -> None:
    with pytest.raises(MdiExitError, match="expected some limit"):
        largest_rate(Problem("s", (0,), (8.0,), (Node("s", layers(0.0)),)), NEVER)


@pytest.mark.parametrize(("channel", "times"), [(False, 1), (True, 2)])
def test_a_transfer_takes_of_uplink_and_downlink_and_twice_of_one_channel(channel: bool, times: int) -> None:
    both = frozenset("sa")
    media = (Medium("wifi", both, both, 1000.0),) if channel else (*star("s", 1000.0), *star("a", 4000.0))
    nodes = (Node("s"), Node("a", layers(1e-6)))
    sent = Problem("s", (0,), (100.0,), nodes, (mesh("sa"),), media)
    bound = largest_rate(sent, NEVER)
    assert bound is not None
    assert bound.rate == pytest.approx(1000 / 100 / times)
    assert bound.limits == ("bytes wifi" if channel else "bytes s up",)


def test_the_answer_of_what_ends_away_takes_its_part_of_the_channel() -> None:
    """Half of the items end behind layer 0, at s; the others at a: 100 bytes there and 25 back, each twice."""
    both = frozenset("sa")
    media = (Medium("wifi", both, both, 1000.0, answer_bytes=25.0),)
    nodes = (Node("s", layers(1e-6)), Node("a", layers(1e-6, first=1)))
    half = fixed_table((1.0, 0.5), 0.9)
    assert rate(Problem("s", (0, 1), (100.0, 100.0), nodes, (mesh("sa"),), media), half) == pytest.approx(8.0)


def test_where_only_raw_items_are_sent_a_task_ends_where_it_began() -> None:
    nodes = (Node("s", layers(0.1)), Node("a", layers(0.1, 0.1)))
    group = Group(frozenset("sa"), frozenset("sa"), only_raw=True)
    assert rate(Problem("s", (0, 1), (8.0, 4.0), nodes, (group,)), fixed_table((1.0, 1.0), 0.9)) == pytest.approx(5.0)


def test_the_broker_counts_each_message_once() -> None:
    nodes = (Node("s"), Node("a", layers(1e-6)), Node("b", layers(1e-6, first=1)))
    broker = Medium("broker", frozenset("sab"), messages_per_s=100.0)
    relayed = Problem("s", (0, 1), (1.0, 1.0), nodes, (mesh("sab"),), (broker,))
    assert rate(relayed, HALF) == pytest.approx(100 / 1.5)


def test_a_task_may_take_two_hops_where_one_is_not_allowed() -> None:
    nodes = (Node("s"), Node("a", layers(1.0)), Node("b", layers(0.1)))
    chain = (Group(frozenset("s"), frozenset("a")), Group(frozenset("a"), frozenset("b")))
    assert rate(Problem("s", (0,), (1.0,), nodes, chain), NEVER) == pytest.approx(1 + 10)


def test_an_exit_that_is_switched_off_costs_no_head() -> None:
    scores, right = [[0.2, 1.0], [0.9, 1.0]], [[False, True], [False, True]]
    alone = Problem("s", (0, 1), (1.0, 1.0), (Node("s", layers(0.1, 0.1, head_s=0.3)),))
    exits = ExitTable.of_outcomes(scores, right)
    assert rate(alone, exits, accuracy=1.0) == pytest.approx(1 / 0.2)
    assert rate(alone, exits) == pytest.approx(1 / 0.2), "the head costs more than it saves"


def test_two_settings_side_by_side_are_better_than_each() -> None:
    """At 0.75, half of the items stop at the first exit (right half of the time) and half go on."""
    scores, right = [[0.5, 1.0], [0.5, 1.0]], [[True, True], [False, True]]
    nodes = (Node("s", layers(0.1)), Node("a", layers(0.4, first=1)))
    problem = Problem("s", (0, 1), (1.0, 1.0), nodes, (mesh("sa"),))
    exits = ExitTable.of_outcomes(scores, right)
    assert rate(problem, exits, accuracy=1.0) == pytest.approx(2.5)
    assert rate(problem, exits, accuracy=0.75) == pytest.approx(5.0)
    assert rate(problem, exits, accuracy=0.5) == pytest.approx(10.0)
    best = best_accuracy(problem, exits, 5.0)
    assert best is not None
    assert best.accuracy == pytest.approx(0.75)
    assert best_accuracy(problem, exits, 10.5) is None
    assert largest_rate(problem, exits, accuracy=1.01) is None
    assert efficiency(problem, exits, rate=4.0, accuracy=0.75) == pytest.approx(0.8)
    assert efficiency(problem, exits, rate=4.0, accuracy=0.75, offered=4.0) == pytest.approx(1.0)


def outcomes(seed: int, samples: int, exits: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = np.round(np.sort(rng.random((samples, exits)), axis=1), 3)
    return scores, rng.random((samples, exits)) < scores


def uneven(exits: tuple[int, ...]) -> Problem:
    nodes = tuple(
        Node(name, layers(*(speed * s for s in (0.02, 0.05, 0.03)), head_s=0.002 * speed))
        for name, speed in zip("sab", (1.0, 2.0, 0.3), strict=True)
    )
    media = tuple(medium for name in "sab" for medium in star(name, 2000.0))
    return Problem("s", exits, (90.0, 60.0, 30.0), nodes, (mesh("sab"),), media)


@pytest.mark.parametrize("accuracy", [0.0, 0.7, 0.75])
def test_column_generation_finds_what_the_programme_of_all_settings_finds(accuracy: float) -> None:
    scores, right = outcomes(3, 12, 3)
    exits, problem = ExitTable.of_outcomes(scores, right), uneven((0, 1, 2))
    every = [sorted({0.0, 1.0, *scores[:, k]}) for k in range(2)]
    settings = [exits.at(thresholds) for thresholds in itertools.product(*every)]
    whole = solve(Layout(problem), settings, Target(accuracy=accuracy)).value
    assert rate(problem, exits, accuracy) == pytest.approx(whole, rel=2e-4)


def test_the_table_counts_as_each_sample_goes() -> None:
    scores, right = outcomes(5, 300, 4)
    exits = ExitTable.of_outcomes(scores, right, settings=500)
    for number in np.random.default_rng(1).integers(0, len(exits), 50):
        setting = exits.setting(int(number))
        exact = exits.at(setting.thresholds)
        assert setting.reach == pytest.approx(exact.reach)
        assert setting.accuracy == pytest.approx(exact.accuracy)
        assert setting.heads == exact.heads


def test_thresholds_are_moved_to_the_best_scores_near() -> None:
    scores, right = outcomes(7, 400, 4)
    exits = ExitTable.of_outcomes(scores, right, settings=30)
    costs = np.array([0.1, 0.2, 0.3, 0.4])
    start = exits.setting(7)

    def profit(thresholds: tuple[float, ...]) -> float:
        at = exits.at(thresholds)
        leaves = -np.diff([*at.reach, 0.0])
        return float(at.accuracy - leaves @ costs)

    finer = exits.finer(start, 1.0, costs.tolist())
    assert profit(finer.thresholds) >= profit(start.thresholds)
    for k, step in itertools.product(range(3), np.unique(scores)):
        one_moved = tuple(float(step) if k == i else t for i, t in enumerate(finer.thresholds))
        assert profit(one_moved) <= profit(finer.thresholds) + 1e-9


def test_finer_thresholds_leave_heads_off_and_keep_to_the_least() -> None:
    scores, right = outcomes(7, 400, 4)
    exits = ExitTable.of_outcomes(scores, right, settings=30, least=0.3)
    finer = exits.finer(exits.at((1.0, 0.9, 0.5)), 0.0, (0.0, 0.2, 0.3, 0.4))
    assert finer.thresholds == (1.0, 0.3, 0.3), "accuracy is worth nothing: all leave as soon as they may"
    assert finer == exits.at(finer.thresholds)


def test_memory_limits_what_free_nodes_can_do_as_no_placement_does_better() -> None:
    works, sizes = layers(0.1, 0.2, 0.1), (5.0, 5.0, 8.0)
    memory = {"s": 5.0, "a": 8.0, "b": 5.0}
    nodes = tuple(Node(name, works, memory_bytes=size) for name, size in memory.items())
    free = Problem("s", (2,), (1.0,) * 3, nodes, (mesh("sab"),), (), sizes)
    subsets = [s for n in range(4) for s in itertools.combinations(range(3), n)]
    best = 0.0
    for held in itertools.product(subsets, repeat=3):
        fits = all(sum(sizes[i] for i in own) <= m for own, m in zip(held, memory.values(), strict=True))
        if fits and set().union(*map(set, held)) == {0, 1, 2}:
            fixed = tuple(Node(n, tuple(works[i] for i in own)) for n, own in zip("sab", held, strict=True))
            best = max(best, rate(Problem("s", (2,), (1.0,) * 3, fixed, (mesh("sab"),)), NEVER))
    assert best == pytest.approx(5.0)
    assert rate(free, NEVER) >= best
    small = tuple(Node(name, works, memory_bytes=size) for name, size in {"s": 2.5, "a": 8.0, "b": 2.5}.items())
    in_part = Problem("s", (2,), (1.0,) * 3, small, (mesh("sab"),), (), sizes)
    assert rate(in_part, NEVER) == pytest.approx(2 / 0.4), "a layer may be held in part"
    assert rate(Problem("s", (2,), (1.0,) * 3, nodes, (mesh("sab"),)), NEVER) == pytest.approx(7.5)


def test_the_frontier_falls_from_the_fastest_to_the_most_accurate() -> None:
    exits = ExitTable.of_outcomes(*outcomes(9, 200, 3))
    bounds = frontier(uneven((0, 1, 2)), exits, points=6)
    rates = [bound.rate for bound in bounds]
    assert len(bounds) == 6
    assert rates == sorted(rates, reverse=True)
    assert bounds[-1].accuracy == pytest.approx(float(exits.accuracy_G.max()), abs=1e-6)
    for bound in bounds:
        assert max(bound.busy.values()) == pytest.approx(1.0, abs=1e-4)
        assert sum(share for _, share in bound.mixture) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Problem("x", (0,), (1.0,), (Node("s"),)),
        lambda: Problem("s", (0,), (1.0, 1.0), (Node("s"),)),
        lambda: Problem("s", (0, 1), (1.0, 1.0), (Node("s", (Work(0, 2, 1.0),)),)),
        lambda: Problem("s", (0,), (1.0,), (Node("s"),), layer_bytes=(1.0, 2.0)),
        lambda: Work(1, 1, 0.1),
        lambda: Work(0, 1, -0.1),
        lambda: Medium("m", bytes_per_s=0.0),
        lambda: ExitTable.of_outcomes([[0.5]], [[True], [False]]),
        lambda: largest_rate(Problem("s", (0,), (1.0,), (Node("s", (Work(0, 1, 1.0),)),)), HALF),
    ],
)
def test_nonsense_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match="expected"):
        wrong()
