"""The baselines are configurations of the same system: spans and rules by name, and all of them finish their items."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit.errors import UsageError
from mdi_exit.policy.baselines import BASELINES, best_split, even_split
from mdi_exit.policy.offloading import OFFLOADING
from mdi_exit.simulation.arrivals import Arrivals, Phase
from mdi_exit.simulation.baselines import as_baseline
from mdi_exit.simulation.run import simulate
from mdi_exit.simulation.scenario import read_scenario
from mdi_exit.span import LayerSpan

SCENARIO = Path(__file__).parents[2] / "benchmarks" / "scenarios" / "three-node-mesh-overlapping.toml"


def spans(found: object) -> list[str]:
    return [str(span) for span in found]  # type: ignore[attr-defined]


def test_an_even_split_is_as_even_as_can_be() -> None:
    assert spans(even_split(9, 3)) == ["0-2", "3-5", "6-8"]
    assert spans(even_split(9, 4)) == ["0-1", "2-3", "4-5", "6-8"]
    assert spans(even_split(2, 3)) == ["0-0", "1-1", "None"]


@given(
    seconds=st.lists(st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5), min_size=1, max_size=3),
    cuts=st.lists(st.floats(0.0, 0.5), min_size=5, max_size=5),
)
def test_no_other_chain_is_better_than_the_best_split(seconds, cuts) -> None:
    reach = [1.0, 1.0, 0.6, 0.6, 0.2]

    def slowest(ends: tuple[int, ...]) -> float:
        parts = [
            sum(seconds[node][layer] * reach[layer] for layer in range(first, stop))
            for node, (first, stop) in enumerate(itertools.pairwise(ends))
        ]
        return max([*parts, *(cuts[cut] * reach[cut] for cut in ends[1:-1])])

    best = [span for span in best_split(seconds, cuts, reach) if span is not None]
    ends = (0, *(span.stop for span in best))
    assert ends[-1] == 5
    every = ((0, *inner, 5) for used in range(len(seconds)) for inner in itertools.combinations(range(1, 5), used))
    assert slowest(ends) == pytest.approx(min(map(slowest, every)))


def test_their_offloading_policies_exist() -> None:
    assert {baseline.offloading for baseline in BASELINES.values()} <= OFFLOADING.keys()


@pytest.mark.parametrize("name", BASELINES)
def test_a_scenario_runs_under_each(name: str) -> None:
    scenario = replace(
        read_scenario(SCENARIO), duration_s=4.0, arrivals=Arrivals("fixed", (Phase(0.0, 5.0),))
    )  # fmt: skip
    made = as_baseline(scenario, name)
    done = simulate(made).summary
    assert done.completed == done.admitted > 0
    if name == "source-only":
        assert [node.span for node in made.nodes] == [LayerSpan(0, 9)]
    if name == "no-early-exit":
        assert set(done.exits) == {len(scenario.model.plan.exit_layers) - 1}
    if name == "data-distributed":
        assert all(node.span == LayerSpan(0, 9) for node in made.nodes)


def test_what_fits_no_memory_is_refused() -> None:
    scenario = read_scenario(SCENARIO)
    small = replace(scenario, agents=tuple(replace(node, memory_bytes=10_000) for node in scenario.agents))
    with pytest.raises(UsageError, match="weights of at most"):
        as_baseline(small, "data-distributed")
    with pytest.raises(UsageError, match="one of"):
        as_baseline(scenario, "best")
