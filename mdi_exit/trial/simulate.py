"""``mdi-exit simulate SCENARIO.toml``: a scenario in virtual time, with the files of a live run."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mdi_exit.config import resolve
from mdi_exit.simulation.efficiency import efficiency_of, frontier_of
from mdi_exit.simulation.record import trace_of
from mdi_exit.simulation.run import Simulated, Simulation
from mdi_exit.simulation.scenario import Scenario
from mdi_exit.trial.config import TrialSettings
from mdi_exit.trial.files import write_trial

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    resolved = resolve(
        TrialSettings,
        argv,
        os.environ,
        prog="mdi-exit simulate",
        section="simulate",
        description="Runs a scenario in virtual time: the same states as live, a star of links, recorded outcomes.",
        words="SCENARIO.toml",
        epilog="Scenarios: benchmarks/scenarios/*.toml; how to write one: docs/simulator.md.",
    )
    settings = resolved.settings
    scenario = settings.scenario(resolved.only_word("mdi-exit simulate", "SCENARIO.toml"))
    console = Console()
    trace_of(scenario)  # may take a second, which is not the simulation's
    begin = time.perf_counter()
    done = run_with_bar(scenario, Console(stderr=True))
    wall_s = time.perf_counter() - begin
    found = efficiency_of(scenario, done)
    more: dict[str, Any] = {
        "bound_per_s": found.bound_per_s if found else None,
        "efficiency": found.efficiency if found else None,
        "simulated_s": done.virtual_s,
        "events": done.events,
    }
    if settings.picture is not None or settings.summary is not None:
        more["frontier"] = frontier_of(scenario, done)
    write_trial(scenario, settings, done.summary, done.timeline, done.records, **more)
    done.summary.render(console)
    if found is None:
        console.print("bound: not computed (needs right answers and the extra offline)", highlight=False)
    else:
        console.print(
            f"bound: {found.bound_per_s:.1f}/s at this accuracy, which no policy can pass; "
            f"reached {found.efficiency:.1%}".replace("%", " %"),
            highlight=False,
        )
    nodes = f"{len(scenario.nodes) * scenario.cells:,} nodes"
    console.print(
        f"simulated: {done.virtual_s:.1f} s of {nodes} in {wall_s:.1f} s, {done.events:,} events "
        f"({done.events / wall_s:,.0f} a second)",
        highlight=False,
    )
    return 0


def run_with_bar(scenario: Scenario, console: Console) -> Simulated:
    """Simulate with a bar on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(scenario.name, total=1.0)
        return Simulation(scenario).run(lambda share: bar.update(task, completed=share))
