"""More speed and more capacity never make the bound smaller, a faster world is a world with more, and no run passes it."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi_exit.events import InputEnded, InputOffered
from mdi_exit.optimum.bound import efficiency, largest_rate
from mdi_exit.optimum.exits import ExitTable
from mdi_exit.optimum.problem import Medium, Node, Problem, Work, mesh
from mdi_exit.policy.offloading import OFFLOADING
from mdi_exit.segments import ModelPlan
from mdi_exit.simulation import SimulatedNetwork, SimulatedNode
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

EXITS = (0, 2)
RNG = np.random.default_rng(0)
SCORES_NK = np.sort(RNG.random((60, 2)), axis=1)
RIGHT_NK = RNG.random((60, 2)) < SCORES_NK
TABLE = ExitTable.of_outcomes(SCORES_NK, RIGHT_NK, settings=40)

speeds = st.lists(st.floats(0.2, 5.0), min_size=3, max_size=3)
capacities = st.lists(st.floats(200.0, 20_000.0), min_size=3, max_size=3)


def problem(speed: list[float], capacity: list[float]) -> Problem:
    names = "sab"
    nodes = tuple(
        Node(name, tuple(Work(layer, layer + 1, 0.02 / s, 0.002 / s) for layer in range(3)))
        for name, s in zip(names, speed, strict=True)
    )
    media = tuple(Medium(name, frozenset(name), frozenset(name), c) for name, c in zip(names, capacity, strict=True))
    return Problem("s", EXITS, (400.0, 800.0, 200.0), nodes, (mesh(names),), media)


def rate(of: Problem, accuracy: float = 0.0) -> float:
    bound = largest_rate(of, TABLE, accuracy=accuracy)
    assert bound is not None
    return bound.rate


@settings(max_examples=25, deadline=None)
@given(speed=speeds, capacity=capacities, which=st.integers(0, 2), factor=st.floats(1.1, 4.0))
def test_more_is_never_less(speed, capacity, which, factor) -> None:
    before = rate(problem(speed, capacity), 0.6)
    faster = [s * (factor if i == which else 1) for i, s in enumerate(speed)]
    wider = [c * (factor if i == which else 1) for i, c in enumerate(capacity)]
    assert rate(problem(faster, capacity), 0.6) >= before * (1 - 1e-4)
    assert rate(problem(speed, wider), 0.6) >= before * (1 - 1e-4)
    assert rate(problem(speed, capacity), 0.65) <= before * (1 + 1e-4)


@settings(max_examples=15, deadline=None)
@given(speed=speeds, capacity=capacities, factor=st.floats(0.1, 10.0))
def test_everything_faster_is_so_much_faster(speed, capacity, factor) -> None:
    scaled = problem([s * factor for s in speed], [c * factor for c in capacity])
    assert rate(scaled, 0.6) == pytest.approx(factor * rate(problem(speed, capacity), 0.6), rel=1e-3)


@settings(max_examples=10, deadline=None)
@given(speed=speeds, capacity=capacities)
def test_equal_nodes_may_be_counted_as_one(speed, capacity) -> None:
    one = problem(speed, capacity)
    twins = replace(
        one,
        nodes=(*one.nodes, replace(one.nodes[1], name="c")),
        groups=(mesh("sabc"),),
        media=tuple(
            replace(m, senders=m.senders | {"c"}, receivers=m.receivers | {"c"}) if m.name == "a" else m
            for m in one.media
        ),
    )
    counted = replace(one, nodes=(one.nodes[0], replace(one.nodes[1], count=2), one.nodes[2]))
    assert rate(twins) == pytest.approx(rate(counted), rel=1e-3)


@pytest.mark.parametrize("name", OFFLOADING)
@pytest.mark.parametrize("threshold", [0.3, 0.7, 1.0])
def test_no_run_passes_the_bound(name: str, threshold: float) -> None:
    """Every recorded item three times through three nodes, as fast as they can; delays but no limit on the links."""
    plan = ModelPlan("ab" * 16, 3, EXITS, (400, 800, 200))
    speed = {"source": 1.0, "a": 0.5, "b": 3.0}
    spans = {"source": "0-2", "a": "0-2", "b": "1-2"}
    total = 3 * len(SCORES_NK)
    rng, numbers = Random(2), count()

    def says(item: int, exit_number: int) -> tuple[int, float]:
        sample = (item - 1) % len(SCORES_NK)
        return int(RIGHT_NK[sample, exit_number]), float(SCORES_NK[sample, exit_number])

    net = SimulatedNetwork(plan, says, rng)
    net.draw = lambda: InputOffered(str(n), None, 400, 1) if (n := next(numbers)) < total else InputEnded()

    def seconds_on(node: str):
        return lambda key, batch: batch * 0.02 * (key.stop - key.entry) / speed[node]

    for number, (node, span) in enumerate(spans.items(), start=1):
        config = WorkerConfig(node, number, LayerSpan.parse(span), offloading=name)
        is_source = node == "source"
        state = (
            SourceState(SourceConfig(7, threshold=threshold), config, rng) if is_source else WorkerState(config, rng)
        )
        net.add(SimulatedNode(state, seconds_on(node)))
        if isinstance(state, SourceState):
            source = state
    net.run(600.0, while_=lambda: not source.done)
    assert source.completed == total
    nodes = tuple(
        Node(n, tuple(Work(layer, layer + 1, 0.02 / speed[n]) for layer in LayerSpan.parse(span)))
        for n, span in spans.items()
    )
    bound = Problem("source", EXITS, (400.0, 800.0, 200.0), nodes, (mesh(spans),))
    accuracy = source.right / source.judged
    reached = efficiency(bound, TABLE, rate=total / net.now, accuracy=accuracy)
    assert reached is not None
    assert 0.2 < reached <= 1.0
