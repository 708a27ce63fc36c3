"""A simulated scenario is what arithmetic says it is, is the same each time, and loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.simulation.efficiency import efficiency_of, frontier_of
from mdi_exit.simulation.run import Simulated, Simulation, simulate
from mdi_exit.simulation.scenario import Scenario, read_scenario
from mdi_exit.snapshot import read_timeline
from mdi_exit.trace import Trace
from mdi_exit.trial.simulate import main
from mdi_exit.trial.speed import measured

SAMPLES = 400
EARLY = 0.6
COSTS = """
name = "three"
layer_macs = [1, 1, 1]
layer_bytes = [1000, 1000, 2000]
feature_bytes = [4000, 2000, 1000]
exit_layers = [0, 2]
exit_macs = [1, 1]
exit_bytes = [100, 100]
"""


def model(folder: Path) -> str:
    """Costs and outcomes: 60 % of the samples are sure at exit 0, and 90 % of the labels are right."""
    (folder / "three.toml").write_text(COSTS)
    scores_NS = np.array([[0.9 if n < EARLY * SAMPLES else 0.2, 0.95] for n in range(SAMPLES)], np.float32)
    truth_N = np.array([n % 10 > 0 for n in range(SAMPLES)], np.int32)
    ones_L, ones_S = np.ones(3, np.int64), np.ones(2, np.int64)
    Trace(
        measure="max-probability", scores_NS=scores_NS, labels_NS=np.ones((SAMPLES, 2), np.int32), truth_N=truth_N,
        layer_macs_L=ones_L, layer_bytes_L=ones_L, head_macs_S=ones_S, exit_layers_S=np.array([0, 2]), about={},
    ).save(folder / "trace.npz")  # fmt: skip
    return f'[model]\ncosts = "{folder}/three.toml"\ntrace = "{folder}/trace.npz"\n'


def node(name: str, layers: str, seconds: tuple[float, ...], more: str = "") -> str:
    head = "[source]\n" if name == "source" else f'[[agents]]\nname = "{name}"\n'
    return head + f'layers = "{layers}"\nlayer_seconds = {list(seconds)}\n{more}'


def scenario(folder: Path, text: str, run: str) -> Scenario:
    file = folder / "trial.toml"
    file.write_text(model(folder) + text + "[run]\n" + run)
    return read_scenario(file)


def run(folder: Path, text: str, run: str) -> Simulated:
    found = simulate(scenario(folder, text, run))
    summary = found.summary
    assert summary.balanced
    assert summary.pending == 0
    return found


TWO = node("source", "0", (0.01, 9, 9)) + node("a", "1-2", (9, 0.01, 0.02))


def test_two_nodes_reach_their_capacity(tmp_path: Path) -> None:
    """Without early exits the agent needs 30 ms an item; with them it sees two in five, and the source's 10 ms bind."""
    plain = run(tmp_path, TWO, 'rate = "max"\nexit_threshold = 1\nduration = "30s"\n').summary
    assert plain.rate_per_s == pytest.approx(1 / 0.03, rel=0.02)
    assert plain.accuracy == pytest.approx(0.9, abs=0.01)
    early = run(tmp_path, TWO, 'rate = "max"\nexit_threshold = 0.5\nduration = "30s"\n').summary
    assert early.rate_per_s == pytest.approx(min(1 / 0.01, 1 / ((1 - EARLY) * 0.03)), rel=0.04)
    assert early.exits[0] / early.completed == pytest.approx(EARLY, abs=0.02)


@pytest.mark.parametrize("threshold", [0.5, 1.0])
@pytest.mark.parametrize("rate", ["max", "20/s", "200/s"])
def test_no_run_passes_the_bound(tmp_path: Path, threshold: float, rate: str) -> None:
    found = scenario(tmp_path, TWO, f'rate = "{rate}"\nexit_threshold = {threshold}\nduration = "20s"\n')
    reached = efficiency_of(found, simulate(found))
    assert reached is not None
    assert 0.2 < reached.efficiency < 1 + 1e-6
    if rate == "20/s":
        assert reached.efficiency > 0.97, "what is offered is the bound"


def test_a_run_stands_within_its_frontier(tmp_path: Path) -> None:
    found = scenario(tmp_path, TWO, 'rate = "max"\nexit_threshold = 0.5\nduration = "20s"\n')
    done = simulate(found)
    edge = frontier_of(found, done)
    assert [rate for rate, _ in edge] == sorted((rate for rate, _ in edge), reverse=True)
    assert done.summary.accuracy is not None
    best = max(rate for rate, accuracy in edge if accuracy >= done.summary.accuracy - 1e-9)
    assert done.summary.rate_per_s <= best * (1 + 1e-6)


def test_at_light_load_latency_is_the_way_and_the_work(tmp_path: Path) -> None:
    text = '[links]\ndelay = "20ms"\n' + TWO
    found = run(tmp_path, text, 'rate = "2/s"\nexit_threshold = 1\nduration = "60s"\n').summary
    assert found.latency_s is not None
    # Up and down to the agent, its 30 ms after the source's 10 ms, and the result's way back.
    assert found.latency_s.p50 == pytest.approx(0.01 + 0.04 + 0.03 + 0.04, abs=0.002)


def test_a_shared_medium_halves_what_a_message_between_stations_can_have(tmp_path: Path) -> None:
    nodes = "[source]\n" + node("a", "0-2", (1e-5, 1e-5, 1e-5))
    saturated = 'rate = "max"\nexit_threshold = 1\nduration = "20s"\n'
    own = run(tmp_path, '[links]\nbandwidth = "1MB/s"\n' + nodes, saturated).summary.rate_per_s
    medium = '[[media]]\nname = "wifi"\nbandwidth = "1MB/s"\n[links]\nmedium = "wifi"\n'
    shared = run(tmp_path, medium + nodes, saturated).summary.rate_per_s
    assert own == pytest.approx(1e6 / 4240, rel=0.05)  # 4000 bytes and the header
    assert shared == pytest.approx(own / 2, rel=0.1)


@pytest.mark.parametrize(
    ("limit", "most"),
    [('messages = "100/s"', 100 / 2), ('messages = "200/s"', 200 / 2), ('bandwidth = "100kB/s"', 23.7)],
)
def test_the_broker_s_limit_binds(tmp_path: Path, limit: str, most: float) -> None:
    """Each item is two messages at least: its features and its result."""
    text = f"[broker]\n{limit}\n[source]\n" + node("a", "0-2", (1e-5, 1e-5, 1e-5))
    rate = run(tmp_path, text, 'rate = "max"\nexit_threshold = 1\nduration = "20s"\n').summary.rate_per_s
    assert 0.45 * most < rate < most


FAULTS = """
[[changes]]
at = "2s"
node = "a"
alive = false
[[changes]]
at = "4s"
node = "a"
alive = true
[[changes]]
at = "5s"
node = "b"
speed = 0.1
[[changes]]
at = "6s"
node = "b"
bandwidth = "100kB/s"
loss = 0.3
[[changes]]
at = "8s"
node = "b"
alive = false
"""


@pytest.mark.parametrize("seed", range(6))
def test_whatever_changes_each_admitted_item_has_one_result(tmp_path: Path, seed: int) -> None:
    text = TWO + node("b", "0-2", (0.02, 0.02, 0.03)) + FAULTS
    found = scenario(tmp_path, text, f'rate = "40/s"\narrivals = "poisson"\nduration = "12s"\nseed = {seed}\n')
    simulation = Simulation(found)
    network = simulation.cells[0].network
    network.validate = True
    summary = simulation.run().summary
    assert summary.balanced
    assert (summary.pending, summary.errors) == (0, 0)
    assert summary.admitted + summary.refused == pytest.approx(40 * 12, rel=0.25)
    assert summary.retried > 0
    samples = [entry.item for entry in (record.row for record in simulation.cells[0].records)]
    assert len(samples) == len(set(samples)) == summary.admitted


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(tmp_path: Path) -> None:
    text = '[links]\nloss = 0.02\nbandwidth = "2MB/s"\n' + TWO + node("b", "1-2", (9, 0.02, 0.03)) + FAULTS

    def written(seed: int) -> str:
        found = run(tmp_path, text, f'rate = "50/s"\narrivals = "poisson"\nduration = "10s"\nseed = {seed}\n')
        lines = [snapshot.to_line() for snapshot in found.timeline]
        return json.dumps(found.summary.to_json()) + "".join(lines) + repr(found.records)

    assert written(1) == written(1)
    assert written(1) != written(2)


def test_a_slower_node_and_a_slower_link_take_effect_when_they_change(tmp_path: Path) -> None:
    slower = '[[changes]]\nat = "10s"\nnode = "a"\nspeed = 0.5\n'
    found = run(tmp_path, TWO + slower, 'rate = "max"\nexit_threshold = 1\nduration = "20s"\n')
    before, after = (found.timeline[at].completed_per_s for at in (18, 38))
    assert before == pytest.approx(1 / 0.03, rel=0.1)
    assert after == pytest.approx(1 / 0.06, rel=0.15)
    throttled = '[[changes]]\nat = "10s"\nnode = "source"\nup = "20kB/s"\n'
    found = run(tmp_path, TWO + throttled, 'rate = "max"\nexit_threshold = 1\nduration = "20s"\n')
    assert found.timeline[38].completed_per_s == pytest.approx(20_000 / 2240, rel=0.25)


@pytest.mark.parametrize("offloading", ["paper", "never", "drift-plus-penalty"])
def test_a_neighbour_whose_only_samples_were_slow_gets_work_again(tmp_path: Path, offloading: str) -> None:
    """Its link is slow for a second, in which it does not leave; its equal alone could do all the work, but not as soon."""
    agents = node("a", "1-2", (9, 0.01, 0.02)) + node("b", "1-2", (9, 0.01, 0.02), 'bandwidth = "{}"\n')
    text = node("source", "0", (0.01, 9, 9)) + agents
    change = '[[changes]]\nat = "1s"\nnode = "b"\nbandwidth = "50Mbit/s"\n'
    load = f'rate = "15/s"\narrivals = "poisson"\nexit_threshold = 1\noffloading = "{offloading}"\nduration = "60s"\n'
    found = {}
    for at_first in ("20kbit/s", "40Mbit/s"):
        records = run(tmp_path, text.format(at_first), load + change).records
        later = records[len(records) // 2 :]
        found[at_first] = sum("b" in record.row.path for record in later) / len(later)
    assert found["40Mbit/s"] > 0.4
    assert found["20kbit/s"] == pytest.approx(found["40Mbit/s"], abs=0.05)


def test_cells_are_deployments_of_their_own_on_one_broker(tmp_path: Path) -> None:
    one = run(tmp_path, TWO, 'rate = "20/s"\nduration = "5s"\n')
    three = run(tmp_path, TWO, 'rate = "20/s"\nduration = "5s"\ncells = 3\n')
    assert three.summary.admitted == 3 * one.summary.admitted
    assert set(three.summary.bytes_sent) == {f"c{n}-{name}" for n in (1, 2, 3) for name in ("source", "a")}
    assert len(three.timeline[-1].nodes) == 6
    assert three.timeline[-1].completed_per_s == pytest.approx(60, rel=0.1)
    limited = "[broker]\nmessages = '20/s'\n" + TWO
    crowd = run(tmp_path, limited, 'rate = "20/s"\nduration = "5s"\nexit_threshold = 1\ncells = 3\n').summary
    assert crowd.rate_per_s < 20, "all three share its messages"


def test_telemetry_goes_only_to_those_who_use_it(tmp_path: Path) -> None:
    """In a ring of 400 nodes everybody's reports to everybody would be 160,000 messages twice a second."""
    ring = node("edge", "0-2", (0.01, 0.01, 0.01), 'count = 400\nneighbours = ["next", "previous"]\n')
    text = '[source]\nneighbours = ["edge-1", "edge-200"]\n' + ring
    found = run(tmp_path, text, 'rate = "50/s"\nduration = "3s"\n')
    assert found.summary.completed == found.summary.admitted > 100
    assert found.handled / 400 / found.virtual_s < 40


def test_recorded_arrivals_and_bursts(tmp_path: Path) -> None:
    (tmp_path / "times.txt").write_text("\n".join(str(n / 10) for n in range(100)))
    recorded = run(tmp_path, TWO, 'arrivals = "recorded"\ntimes = "times.txt"\nduration = "10s"\n').summary
    assert recorded.admitted == 100
    bursts = run(tmp_path, TWO, 'arrivals = "bursts"\nburst = 60\nrate = "30/s"\nduration = "30s"\n').summary
    assert bursts.refused > 0, "a burst of 60 does not fit a queue of 40"


def test_layers_that_come_too_late_are_told(tmp_path: Path) -> None:
    late = TWO + 'join_at = "100s"\n'
    with pytest.raises(MdiExitError, match="all layers held within 60 s"):
        simulate(scenario(tmp_path, late, 'rate = "1/s"\nduration = "1s"\n'))


def test_the_command_writes_what_the_source_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario(tmp_path, TWO, 'rate = "20/s"\nduration = "30s"\n')
    files = {flag: tmp_path / f"{flag}.out" for flag in ("summary", "timeline", "results")}
    flags = [text for flag, file in files.items() for text in (f"--{flag}", str(file))]
    picture = tmp_path / "run.png"
    argv = [str(tmp_path / "trial.toml"), "--duration", "5s", "--threshold", "1", "--seed", "3", *flags]
    assert main([*argv, "--picture", str(picture)]) == 0
    assert "completed" in capsys.readouterr().out
    summary = json.loads(files["summary"].read_text())
    assert (summary["scenario"], summary["seed"], summary["threshold"]) == ("trial", 3, 1.0)
    assert summary["admitted"] == pytest.approx(100, abs=2)
    assert 0.9 < summary["efficiency"] <= 1 + 1e-6
    assert len(files["results"].read_text().splitlines()) == summary["admitted"]
    assert len(read_timeline(files["timeline"])) == 10
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="a new or empty file"):
        main(argv)
    with pytest.raises(UsageError, match="got none"):
        main([])


def test_the_speed_is_measured() -> None:
    ring = 'count = 300\nneighbours = ["next"]\nlayers = "0-8"\n'
    text = f'[source]\nneighbours = ["edge-1"]\n[[agents]]\nname = "edge"\n{ring}[run]\nrate = "5/s"\nduration = "1s"\n'
    row = measured("ring", text)
    assert row.nodes == 301
    assert row.events >= row.items > 0
    assert row.handled_per_s > 0
    assert row.memory_mb < 301 * 0.5, "half a megabyte a node would be too much for ten thousand"


def test_the_order_of_sets_is_not_in_the_results(tmp_path: Path) -> None:
    """Names are hashed anew in each process."""
    scenario(
        tmp_path, TWO + node("b", "1-2", (9, 0.02, 0.03)), 'rate = "60/s"\narrivals = "poisson"\nduration = "5s"\n'
    )
    text = (tmp_path / "trial.toml").read_text().replace("[source]\n", '[source]\nneighbours = ["a", "b"]\n')
    (tmp_path / "trial.toml").write_text(text)
    written = []
    for number in ("1", "2"):
        out = tmp_path / f"{number}.jsonl"
        command = [sys.executable, "-m", "mdi_exit.cli", "simulate", tmp_path / "trial.toml", "--results", out]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONHASHSEED": number})
        written.append(out.read_bytes())
    assert written[0] == written[1]
    assert written[0]
