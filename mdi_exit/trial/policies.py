"""``mdi-exit benchmark policies SCENARIO...``: scenarios × policies × thresholds and rates, simulated in parallel.

Two sweeps, as in the paper: rate against accuracy with the threshold fixed and as many items as there is room for; accuracy
against rate with the rate fixed and the threshold following the load.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from mdi_exit import __version__
from mdi_exit.config import nearest
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.simulation.arrivals import Arrivals, Phase
from mdi_exit.simulation.bound import ScenarioBound, exit_table
from mdi_exit.simulation.efficiency import efficiency_of
from mdi_exit.simulation.record import trace_of
from mdi_exit.simulation.run import simulate
from mdi_exit.simulation.scenario import Scenario, read_scenario
from mdi_exit.span import LayerSpan

__all__ = ["ARMS", "Arm", "Row", "main", "markdown", "tried"]

Sweep = Literal["threshold", "rate"]

THRESHOLDS: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
RATES: Final = (0.25, 0.5, 0.75, 1.0, 1.25)
_FRONTIER_POINTS: Final = 8


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to run a scenario. ``adapt``: when the rate is given; ``holds``: what layers the nodes hold."""

    name: str
    offloading: str = "paper"
    adapt: str = "threshold"
    early_exits: bool = True
    holds: Literal["as the scenario says", "all at the source", "all everywhere"] = "as the scenario says"

    def applied(self, scenario: Scenario, threshold: float, rate_per_s: float | None) -> Scenario:
        """``rate_per_s`` None: as many as there is room for, at this threshold; else it is where the threshold begins."""
        adapt = self.adapt if rate_per_s is not None and self.early_exits else "none"
        changed = scenario.outranked(
            threshold=threshold if self.early_exits else 1.0, offloading=self.offloading, adapt=adapt
        )
        arrivals = Arrivals() if rate_per_s is None else Arrivals("poisson", (Phase(0.0, rate_per_s),))
        changed = replace(changed, arrivals=arrivals)
        whole = LayerSpan(0, scenario.model.plan.layer_count)
        if self.holds == "all at the source":
            return replace(changed, source=replace(changed.source, span=whole, neighbours=()))
        if self.holds == "all everywhere":
            agents = tuple(replace(agent, span=whole) for agent in changed.agents)
            return replace(changed, source=replace(changed.source, span=whole), agents=agents)
        return changed


ARMS: Final = {
    arm.name: arm
    for arm in (
        Arm("no-early-exit", early_exits=False),
        Arm("paper"),
        Arm("static", offloading="never"),
        Arm("random", offloading="random"),
        Arm("jsq", offloading="jsq"),
        Arm("drift-plus-penalty", offloading="drift-plus-penalty", adapt="drift-plus-penalty"),
        Arm("optimiser", offloading="optimiser", adapt="optimiser"),
        Arm("source-only", offloading="never", holds="all at the source"),
        Arm("data-distributed", offloading="jsq", holds="all everywhere"),
    )
}


@dataclass(frozen=True, slots=True)
class Row:
    """One run. ``at``: the threshold or the offered items a second; ``efficiency`` None: no bound was found."""

    scenario: str
    policy: str
    sweep: Sweep
    at: float
    rate_per_s: float
    accuracy: float
    refused: int
    completed: int
    errors: int
    p99_s: float | None
    efficiency: float | None


@dataclass(frozen=True, slots=True)
class _Job:
    file: Path
    arm: str
    sweep: Sweep
    at: float
    duration_s: float
    seed: int


def tried(job: _Job) -> Row:
    """Run one. Raises ``MdiExitError``."""
    scenario = read_scenario(job.file).outranked(seed=job.seed, duration_s=job.duration_s)
    threshold = job.at if job.sweep == "threshold" else scenario.policy.threshold
    scenario = ARMS[job.arm].applied(scenario, threshold, job.at if job.sweep == "rate" else None)
    done = simulate(scenario)
    summary, reached = done.summary, efficiency_of(scenario, done)
    return Row(
        job.file.stem, job.arm, job.sweep, job.at, summary.rate_per_s, summary.accuracy or 0.0, summary.refused,
        summary.completed, summary.errors, summary.latency_s.p99 if summary.latency_s else None,
        reached.efficiency if reached else None,
    )  # fmt: skip


def bound_of(file: Path) -> list[tuple[float, float]]:
    """(rate, accuracy) that no policy with the scenario's placement can pass, as far as thresholds go."""
    scenario = read_scenario(file)
    found = ScenarioBound(scenario, exit_table(trace_of(scenario))).frontier(_FRONTIER_POINTS)
    return [(one.rate * scenario.cells, one.accuracy) for one in found]


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    parser = argparse.ArgumentParser(
        prog="mdi-exit benchmark policies", description="Simulates scenarios under policies, and draws them."
    )
    parser.add_argument("scenarios", nargs="+", type=Path, metavar="SCENARIO.toml")
    parser.add_argument("--policies", default=",".join(ARMS), metavar="NAMES", help="default: %(default)s")
    parser.add_argument("--duration", type=float, default=60.0, help="simulated seconds of each run (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table, the raw rows and the pictures")
    args = parser.parse_args(argv)
    names = args.policies.split(",")
    for name in names:
        if name not in ARMS:
            raise UsageError("--policies", "of " + ", ".join(ARMS), name + nearest(name, ARMS))
    if not args.duration > 0 or args.jobs < 1:
        raise UsageError("--duration, --jobs", "values above 0", (args.duration, args.jobs))
    for file in args.scenarios:
        read_scenario(file)
    rows, bounds = _run_all(args.scenarios, names, args.duration, args.seed, args.jobs)
    text = markdown(rows, bounds)
    stem = _write(args.out, argv, rows, bounds, text)
    from mdi_exit.trial.policy_picture import draw_policies

    for file in args.scenarios:
        draw_policies(
            [row for row in rows if row.scenario == file.stem], bounds[file.stem], Path(f"{stem}-{file.stem}.png")
        )
    sys.stdout.write(text + f"\n{stem}.json\n")
    return 0


def _run_all(
    files: Sequence[Path], names: Sequence[str], duration_s: float, seed: int, jobs: int
) -> tuple[list[Row], dict[str, list[tuple[float, float]]]]:
    """The bounds first, since the rates offered are shares of them."""
    context = multiprocessing.get_context("spawn")
    console = Console(stderr=True)
    rows: list[Row] = []
    with (
        ProcessPoolExecutor(jobs, mp_context=context) as pool,
        Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        as bar,
    ):  # fmt: skip
        bounds = {file.stem: found for file, found in zip(files, pool.map(bound_of, files), strict=True)}
        planned = [job for file in files for job in _jobs(file, names, bounds[file.stem], duration_s, seed)]
        task = bar.add_task("runs", total=len(planned))
        for future in as_completed([pool.submit(tried, job) for job in planned]):
            rows.append(future.result())
            bar.advance(task)
    return sorted(rows, key=lambda row: (row.scenario, row.sweep, names.index(row.policy), row.at)), bounds


def _jobs(
    file: Path, names: Sequence[str], bound: Sequence[tuple[float, float]], duration_s: float, seed: int
) -> Iterator[_Job]:
    if not bound:
        raise MdiExitError(f"{file}: expected a bound, got none")
    most = max(rate for rate, _ in bound)
    for name in names:
        for threshold in THRESHOLDS if ARMS[name].early_exits else (1.0,):
            yield _Job(file, name, "threshold", threshold, duration_s, seed)
        for share in RATES:
            yield _Job(file, name, "rate", share * most, duration_s, seed)


# --- the table


def markdown(rows: Sequence[Row], bounds: dict[str, list[tuple[float, float]]]) -> str:
    """For each scenario and policy: the best rate within a point of the accuracy without early exits."""
    lines = [
        "| scenario | policy | best rate/s within a point | accuracy % | times no-early-exit | of the bound % |",
        "|---|---|---|---|---|---|",
    ]
    for scenario in bounds:
        plain = [
            row for row in rows if (row.scenario, row.policy, row.sweep) == (scenario, "no-early-exit", "threshold")
        ]
        for policy in dict.fromkeys(row.policy for row in rows if row.scenario == scenario):
            lines.append(_line(scenario, policy, rows, plain[0] if plain else None))
    return "\n".join(lines) + "\n"


def _line(scenario: str, policy: str, rows: Sequence[Row], plain: Row | None) -> str:
    ran = [row for row in rows if (row.scenario, row.policy, row.sweep) == (scenario, policy, "threshold")]
    least = plain.accuracy - 0.01 if plain else 0.0
    best = max((row for row in ran if row.accuracy >= least), key=lambda row: row.rate_per_s, default=None)
    if best is None:
        return f"| {scenario} | {policy} | none | | | |"
    times = f"{best.rate_per_s / plain.rate_per_s:.2f}" if plain and plain.rate_per_s else ""
    share = "" if best.efficiency is None else f"{100 * best.efficiency:.0f}"
    return f"| {scenario} | {policy} | {best.rate_per_s:.1f} | {100 * best.accuracy:.1f} | {times} | {share} |"


def _write(
    folder: Path,
    argv: Sequence[str],
    rows: Sequence[Row],
    bounds: dict[str, list[tuple[float, float]]],
    text: str,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    stem = folder / f"policies-{now:%Y-%m-%dT%H%M%SZ}"
    record = {
        "command": "mdi-exit benchmark policies " + " ".join(argv),
        "at": now.isoformat(timespec="seconds"),
        "version": __version__,
        "bounds": bounds,
        "rows": [asdict(row) for row in rows],
    }
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    return stem
