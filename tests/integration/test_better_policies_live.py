"""Deadlines and the optimiser with real agents on a real broker."""

from __future__ import annotations

import signal

from live import System, until

SLOW = ("--profile", "jetson-nanox0.25")


def test_an_item_that_runs_out_of_time_gets_the_best_exit_that_it_has_reached(system: System) -> None:
    """All layers take 0.5 s on this device, the first exit is 0.07 s away: at threshold 1 only the deadline ends an item."""
    system.agent("a", "2-8", *SLOW)
    source = system.source(
        *("--layers", "0-3", *SLOW, "--exit-threshold", "0.999999", "--deadline", "300ms"),
        *("--rate", "3/s", "--limit", "24"),
    )
    assert source.until_ends() == 0, source.log
    rows = source.rows
    assert len(rows) == source.summary["admitted"]
    labelled = [row for row in rows if "label" in row]
    assert len(labelled) >= 0.8 * len(rows), source.log
    assert all(row["latency_s"] < 0.5 for row in rows), [row["latency_s"] for row in rows]
    assert {row["exit"] for row in labelled} <= {0, 1, 2, 3}, "the last exit is out of reach"
    assert all("deadline" in row["error"] for row in rows if "error" in row)


def test_the_optimiser_tells_all_nodes_where_tasks_go(system: System) -> None:
    system.agent("a", "2-8", "--profile", "jetson-nano")
    system.agent("b", "2-8", "--profile", "jetson-nano")
    source = system.source(
        *("--layers", "0-3", "--profile", "jetson-nano", "--adapt", "optimiser", "--exit-threshold", "0.8"),
        *("--rate", "20/s", "--duration", "60s"),
    )
    until(
        lambda: any(snapshot["threshold"] != 0.8 for snapshot in source.timeline),
        lambda: f"a threshold that follows from the routes: {source.log}",
    )
    source.signal(signal.SIGTERM)
    summary = source.until_completed()
    assert summary["completed"] > 0
    assert {"source"} < {node for row in source.rows for node in row["path"]}
