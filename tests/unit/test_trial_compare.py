"""What of a live and a simulated run is compared, how busy the machine was, and that both draw the same samples."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from mdi_exit.errors import UsageError
from mdi_exit.events import Record
from mdi_exit.plot.files import Item
from mdi_exit.simulation.run import simulate
from mdi_exit.simulation.scenario import read_scenario
from mdi_exit.snapshot import NodeSnapshot, Snapshot
from mdi_exit.trial.busy import BusyMeter
from mdi_exit.trial.compare import ready_at_s, stretch_of
from mdi_exit.trial.files import item_of
from mdi_exit.trial.testbed import shuffled
from mdi_exit.wire import ResultRow

NAMES = frozenset({"source", "a"})


def moment(number: int, state: str) -> Snapshot:
    """Every half second; 5 items a half second are completed, one of ten is an error."""
    node = NodeSnapshot("", "ready", "0-3", 0, 0, 0.0, 0.0, 0.0, 0, 0)
    return Snapshot(
        elapsed_s=number / 2, phase="", offered_per_s=0, admitted_per_s=0, completed_per_s=0, admitted=6 * number,
        completed=5 * number, errors=number, refused=0, pending=0, accuracy=None, threshold=0.9, source_queue=0,
        latency_p50_s=None, exits={}, nodes=(replace(node, name="source"), replace(node, name="a", state=state)),
    )  # fmt: skip


def timeline(ready_at: int) -> list[Snapshot]:
    return [moment(number, "ready" if number >= ready_at else "loading segments") for number in range(81)]


def items() -> list[Item]:
    """Until 11.5 s all are wrong and at exit 0; then 5 of 6 are right, at exit 1, and one is an error."""
    late = [Item(str(n), 0.1, label=1, exit=1, truth=1) for n in range(5)] + [Item("e", 0.1, error="lost")]
    return [Item(str(n), 0.1, label=1, exit=0, truth=2) for n in range(6 * 23)] + late * 60


def test_the_stretch_begins_when_all_nodes_are_ready_and_queues_have_filled() -> None:
    found = stretch_of(timeline(13), items(), NAMES, until_s=40.0)
    assert found is not None
    assert ready_at_s(timeline(13), NAMES) == 6.5
    assert (found.begin_s, found.end_s) == (11.5, 40.0), "5 s later, to the last arrival"
    assert found.rate_per_s == 10.0
    assert found.completed == 285
    assert found.accuracy == 1.0, "items that were completed before do not count"
    assert found.exits == {1: 285}


def test_the_other_run_s_stretch_is_as_long() -> None:
    found = stretch_of(timeline(0), items(), NAMES, until_s=40.0, most_s=20.0)
    assert found is not None
    assert (found.begin_s, found.end_s) == (5.5, 25.5), "nothing is admitted at 0 s"


def test_a_longer_warm_up_can_be_asked_for() -> None:
    found = stretch_of(timeline(13), items(), NAMES, until_s=40.0, warm_up_s=20.0)
    assert found is not None
    assert (found.begin_s, found.end_s) == (26.5, 40.0)


def test_without_all_nodes_or_enough_time_there_is_no_stretch() -> None:
    assert stretch_of(timeline(0), items(), NAMES | {"b"}, until_s=40.0) is None
    assert stretch_of(timeline(79), items(), NAMES, until_s=40.0) is None


def test_the_machine_is_at_least_as_busy_as_the_run() -> None:
    meter = BusyMeter()
    meter.read()
    assert meter.machine is None, "not started"
    meter.start()
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    meter.read()
    assert meter.machine is not None
    assert meter.own is not None
    assert 0 < meter.own <= 1
    assert 0 < meter.machine <= 1


def test_the_simulated_run_takes_the_samples_in_the_order_of_the_live_one(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('[source]\nlayers = "0-8"\n[run]\nrate = "20/s"\nduration = "3s"\nseed = 5\n')
    scenario = read_scenario(file)
    order = list(range(2000))
    Random(5).shuffle(order)
    assert list(shuffled(scenario)) == order
    done = simulate(scenario, order=shuffled(scenario))
    taken = [int(record.sample) for record in done.records]
    assert len(taken) > 50
    assert sorted(taken) == sorted(order[: len(taken)])


def test_a_record_is_the_line_of_a_results_file() -> None:
    row = ResultRow(7, 0, ("source",), exit=1, label=3, score=0.5)
    assert item_of(Record("x", 3, row, 0.25)) == Item(
        "x", 0.25, path=("source",), label=3, confidence=0.5, exit=1, truth=3
    )


@pytest.mark.parametrize("name", ["two-node", "three-node-mesh", "three-node-circular", "unequal", "slow-link"])
def test_the_scenarios_of_the_comparison_can_be_had_live(name: str, tmp_path: Path) -> None:
    from mdi_exit.trial.testbed import main

    path = Path(__file__).parents[2] / "benchmarks" / "scenarios" / f"live-{name}.toml"
    taken = tmp_path / "r.jsonl"
    taken.write_text("x\n")
    with pytest.raises(UsageError, match="--results"):
        main([str(path), "--results", str(taken)])
