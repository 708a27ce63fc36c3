"""``mdi-exit plan`` of a scenario: a table, the rate, what limits it; mistakes are one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.placement import best_placement, valued
from mdi_exit.simulation.bound import ScenarioBound, exit_table
from mdi_exit.simulation.record import trace_of
from mdi_exit.simulation.scenario import read_scenario
from mdi_exit.trial.plan import main, problem_of

SCENARIOS = Path(__file__).parents[2] / "benchmarks" / "scenarios"
FILE = SCENARIOS / "placement-one-slow.toml"


def test_a_plan_is_printed_with_its_rate_and_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(FILE)]) == 0
    told = capsys.readouterr().out
    rate = best_placement(problem_of(read_scenario(FILE))).rate_per_s
    assert f"plan: {rate:.4g} items/s at most; limited by " in told
    assert "even split: " in told
    assert all(name in told for name in ("board-1", "slow", "jetson-nanox0.25"))


def test_spans_as_they_are_stand_beside_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(SCENARIOS / "three-node-mesh-disjoint.toml")]) == 0
    told = capsys.readouterr().out
    assert "as it is: " in told


def test_a_plan_keeps_to_the_neighbours_of_the_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    scenario = read_scenario(SCENARIOS / "three-node-circular-disjoint.toml")
    problem = problem_of(scenario)
    assert {device.name: device.neighbours for device in problem.devices} == {
        node.name: frozenset(node.neighbours or ()) for node in scenario.nodes
    }
    found = best_placement(problem)
    free = replace(problem, devices=tuple(replace(device, neighbours=None) for device in problem.devices))
    assert (
        0 < valued(problem, problem.present()).rate_per_s <= found.rate_per_s <= best_placement(free).rate_per_s * 1.01
    )
    assert main([str(SCENARIOS / "three-node-circular-disjoint.toml")]) == 0
    assert f"plan: {found.rate_per_s:.4g} items/s" in capsys.readouterr().out


def test_nodes_may_keep_their_layers() -> None:
    scenario = read_scenario(SCENARIOS / "three-node-mesh-disjoint.toml")
    names = [node.name for node in scenario.agents]
    free, held = problem_of(scenario), problem_of(scenario, names)
    assert {device.name for device in free.movable} == set(names)
    assert held.movable == ()
    assert best_placement(held).spans == held.present()
    with pytest.raises(UsageError, match="agents of the scenario"):
        problem_of(scenario, ["nobody"])


def test_fewer_items_reach_the_later_layers_and_the_threshold_says_how_many() -> None:
    scenario = read_scenario(FILE)
    low, high = (problem_of(scenario.outranked(threshold=threshold)).reach for threshold in (0.5, 0.99))
    assert low[0] == high[0] == 1.0
    assert list(low) == sorted(low, reverse=True)
    assert low[-1] < high[-1] < 1.0


def test_no_memory_is_no_plan(tmp_path: Path) -> None:
    small = tmp_path / "small.toml"
    small.write_text('[[agents]]\nname = "a"\nlayers = "auto"\nmemory = "1kB"\n')
    with pytest.raises(MdiExitError, match="cannot hold all layers"):
        main([str(small)])


def test_two_files_are_one_too_many() -> None:
    with pytest.raises(UsageError, match="one SCENARIO"):
        main(["a.toml", "b.toml"])


@pytest.mark.parametrize(
    "name",
    ["placement-one-slow", "three-node-mesh-overlapping", "three-node-circular-overlapping", "two-node-disjoint"],
)
def test_no_plan_promises_more_than_the_bound(name: str) -> None:
    pytest.importorskip("scipy", reason="needs the extra 'bound'")
    scenario = read_scenario(SCENARIOS / f"{name}.toml")
    scenario = replace(scenario, changes=(), agents=tuple(replace(agent, join_at_s=0.0) for agent in scenario.agents))
    fixed = [agent.name for agent in scenario.agents if not agent.auto]
    bound = ScenarioBound(scenario, exit_table(trace_of(scenario))).rate()
    assert bound is not None
    for threshold in (0.3, 0.8, 1.0):
        plan = best_placement(problem_of(scenario.outranked(threshold=threshold), fixed))
        assert 0 < plan.rate_per_s <= bound * (1 + 1e-6)
