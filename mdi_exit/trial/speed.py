"""``mdi-exit benchmark simulator``: events a second, and memory, of runs of 3 to 10,000 nodes."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console
from rich.table import Table

from mdi_exit import __version__
from mdi_exit.simulation.record import trace_of
from mdi_exit.simulation.run import Simulation
from mdi_exit.simulation.scenario import read_scenario

__all__ = ["SpeedRow", "main", "measured"]

_MESH: Final = """
[source]
layers = "0-3"
[[agents]]
name = "a"
layers = "2-8"
[[agents]]
name = "b"
layers = "4-8"
[run]
rate = "max"
exit_threshold = 0.9
duration = "120s"
"""
_CELLS: Final = """
[source]
layers = "0-1"
neighbours = ["edge"]
[[agents]]
name = "edge"
count = 19
layers = "0-8"
neighbours = ["next", "previous"]
[run]
rate = "20/s"
arrivals = "poisson"
duration = "4s"
cells = {cells}
"""
_RING: Final = """
[source]
layers = "0-1"
neighbours = ["edge-1", "edge-2500", "edge-5000", "edge-7500"]
[[agents]]
name = "edge"
count = 9999
layers = "0-8"
neighbours = ["next", "previous"]
[run]
rate = "200/s"
arrivals = "poisson"
duration = "2s"
"""
_CASES: Final = {
    "mesh of 3": _MESH,
    "50 cells of 20": _CELLS.format(cells=50),
    "500 cells of 20": _CELLS.format(cells=500),
    "ring of 10,000": _RING,
}


@dataclass(frozen=True, slots=True)
class SpeedRow:
    """``events``: things that happened in virtual time; ``handled``: those of them that a node's state took.

    ``cpu_s``: of the run, building included. ``memory_mb``: what the process has grown by, 10⁶ bytes.
    """

    name: str
    nodes: int
    virtual_s: float
    items: int
    events: int
    handled: int
    cpu_s: float
    wall_s: float
    memory_mb: float

    @property
    def events_per_s(self) -> float:
        return self.events / self.cpu_s

    @property
    def handled_per_s(self) -> float:
        return self.handled / self.cpu_s


def measured(name: str, text: str) -> SpeedRow:
    """Run a scenario in this process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "case.toml"
        file.write_text(text)
        scenario = read_scenario(file)
    trace_of(scenario)
    process = psutil.Process()
    before, wall, cpu = process.memory_info().rss, time.perf_counter(), time.process_time()
    done = Simulation(scenario).run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    grown = (process.memory_info().rss - before) / 1e6
    nodes = len(scenario.nodes) * scenario.cells
    return SpeedRow(
        name, nodes, done.virtual_s, done.summary.completed, done.events, done.handled, cpu, wall, grown
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    parser = argparse.ArgumentParser(
        prog="mdi-exit benchmark simulator", description="How fast the simulator is: one process for each case."
    )
    parser.add_argument("--out", type=Path, help="folder for the raw rows (JSON)")
    parser.add_argument("--rounds", type=int, default=3, help="whole rounds; the best of each counts (%(default)s)")
    args = parser.parse_args(argv)
    rows = []
    context = multiprocessing.get_context("spawn")
    for _ in range(max(args.rounds, 1)):
        for name, text in _CASES.items():
            with context.Pool(1) as pool:
                rows.append(pool.apply(measured, (name, text)))
    _show(rows)
    if args.out is not None:
        _write(args.out, argv, rows)
    return 0


def _show(rows: Sequence[SpeedRow]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("case", "nodes", "events/s", "handled/s", "µs an event", "memory MB", "kB a node"):
        table.add_column(title, justify="left" if title == "case" else "right")
    for name in _CASES:
        best = max((row for row in rows if row.name == name), key=lambda row: row.events_per_s)
        table.add_row(
            name,
            f"{best.nodes:,}",
            f"{best.events_per_s:,.0f}",
            f"{best.handled_per_s:,.0f}",
            f"{1e6 / best.events_per_s:.1f}",
            f"{best.memory_mb:.0f}",
            f"{1000 * best.memory_mb / best.nodes:.0f}",
        )
    Console().print(table)
    sys.stdout.write("per second of one core's time, building the nodes included; best of the rounds\n")


def _write(folder: Path, argv: Sequence[str], rows: Sequence[SpeedRow]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    record = {
        "benchmark": "simulator",
        "command": ["mdi-exit", "benchmark", "simulator", *argv],
        "when": now.isoformat(),
        "version": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg(),
        "rows": [asdict(row) for row in rows],
    }
    path = folder / f"simulator-{now:%Y-%m-%dT%H%M%SZ}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    sys.stdout.write(f"{path}\n")
