"""From a scenario to the numbers of its bound: segments, neighbours, links, and what changes over the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mdi_exit.optimum.problem import Problem
from mdi_exit.simulation.bound import ScenarioBound, exit_table, problem_of
from mdi_exit.simulation.scenario import read_scenario
from mdi_exit.trace import Trace

SCENARIOS = Path(__file__).parents[2] / "benchmarks" / "scenarios"
TWO = """
[source]
layers = "0-3"
layer_seconds = [0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01]

[[agents]]
name = "a"
layers = "2-8"
layer_seconds = [0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01]
exit_seconds = [0.001, 0.002, 0.003, 0.004, 0.005]
overhead = "32ms"
bandwidth = "8kbit/s"
medium = "wifi"
neighbours = ["source"]

[[media]]
name = "wifi"
bandwidth = "16kbit/s"
frame = "1ms"

[broker]
messages = "100/s"

[run]
cells = 2
duration = "100s"
"""


def built(tmp_path: Path, more: str = "") -> Problem:
    path = tmp_path / "two.toml"
    path.write_text(TWO + more)
    return problem_of(read_scenario(path))


def all_right(samples: int = 50, exits: int = 5) -> Trace:
    return Trace(
        measure="max-probability",
        scores_NS=np.linspace(0.01, 0.99, samples * exits).reshape(samples, exits),
        labels_NS=np.ones((samples, exits), np.int32),
        truth_N=np.ones(samples, np.int32),
        layer_macs_L=np.ones(exits, np.int64),
        layer_bytes_L=np.ones(exits, np.int64),
        head_macs_S=np.ones(exits, np.int64),
        exit_layers_S=np.arange(exits),
        about={},
    )


def test_works_are_the_segments_at_the_largest_batch(tmp_path: Path) -> None:
    _, agent = built(tmp_path).nodes
    works = {(work.entry, work.stop): work for work in agent.works}
    assert set(works) == {(2, 4), (4, 6), (6, 7), (7, 9)}
    assert works[4, 6].seconds == pytest.approx(2 * 0.01 + 2 * 0.001), "a 32nd of the overhead of each layer"
    assert works[4, 6].head_s == pytest.approx(0.003)
    assert works[7, 9].seconds == pytest.approx(2 * 0.011 + 0.005), "the last head is always run"


def test_links_media_and_broker_become_limits(tmp_path: Path) -> None:
    media = {medium.name: medium for medium in built(tmp_path).media}
    assert set(media) == {"a up", "a down", "wifi", "broker"}
    assert media["a up"].bytes_per_s == 1000
    assert media["a up"].senders == media["a down"].receivers == {"a"}
    assert media["wifi"].senders == media["wifi"].receivers == {"a"}
    assert media["wifi"].overhead_bytes == pytest.approx(2.0 + 240)
    assert media["wifi"].answer_bytes == pytest.approx(45 + (120 + 2.0) / 32), "32 results in a message at most"
    assert media["a up"].answer_bytes == pytest.approx(45 + 120 / 32)
    assert media["broker"].answer_bytes == 0
    assert media["broker"].messages_per_s == 50, "each of two cells has half of the broker"


def test_neighbours_become_groups(tmp_path: Path) -> None:
    groups = {group.senders: group.receivers for group in built(tmp_path).groups}
    assert groups == {frozenset({"source"}): {"source", "a"}, frozenset({"a"}): {"source", "a"}}


def test_what_changes_counts_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    more = """
[[changes]]
at = "20s"
node = "a"
speed = 0.5
bandwidth = "16kbit/s"
[[changes]]
at = "60s"
node = "a"
alive = false
[[changes]]
at = "80s"
node = "a"
alive = true
"""
    problem = built(tmp_path, more)
    assert problem.nodes[1].count == pytest.approx(0.2 + 0.4 * 0.5 + 0.2 * 0.5)
    media = {medium.name: medium for medium in problem.media}
    assert media["a up"].bytes_per_s == pytest.approx(0.2 * 1000 + 0.8 * 2000)
    (tmp_path / "again.toml").write_text(TWO + more)
    later = problem_of(read_scenario(tmp_path / "again.toml"), 70.0, 90.0)
    assert later.nodes[1].count == pytest.approx(0.25)


def test_a_node_counts_from_when_it_joins(tmp_path: Path) -> None:
    text = TWO.replace('name = "a"\n', 'name = "a"\njoin_at = "75s"\n')
    (tmp_path / "late.toml").write_text(text)
    assert problem_of(read_scenario(tmp_path / "late.toml")).nodes[1].count == pytest.approx(0.25)


def test_cells_add_up(tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(TWO)
    scenario = read_scenario(tmp_path / "two.toml")
    bound = ScenarioBound(scenario, exit_table(all_right()))
    fastest = bound.rate()
    assert fastest is not None
    assert fastest == pytest.approx(2 * bound.frontier(2)[0].rate, rel=1e-3)
    assert bound.rate(offered=1.0) == pytest.approx(1.0)
    assert bound.efficiency(fastest / 2, 1.0) == pytest.approx(0.5, rel=1e-3)


def test_unknown_truth_is_left_out() -> None:
    trace = all_right()
    half = replace(trace, truth_N=np.where(np.arange(50) < 25, 1, -1))
    assert exit_table(half).accuracy_G.max() == 1.0
    assert exit_table(half, least=0.4).setting(0).thresholds[0] == pytest.approx(0.4)


@pytest.mark.parametrize("name", sorted(path.stem for path in SCENARIOS.glob("*.toml")))
def test_every_scenario_has_a_bound(name: str) -> None:
    scenario = read_scenario(SCENARIOS / f"{name}.toml")
    exits = len(scenario.model.plan.exit_layers)
    trace = scenario.trace or all_right(exits=exits)
    assert (ScenarioBound(scenario, exit_table(trace)).rate() or 0) > 0
