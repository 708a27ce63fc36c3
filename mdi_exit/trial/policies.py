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

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from mdi_exit import __version__
from mdi_exit.config import nearest
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.policy.baselines import BASELINES
from mdi_exit.simulation.arrivals import Arrivals
from mdi_exit.simulation.baselines import as_baseline
from mdi_exit.simulation.bound import ScenarioBound, exit_table
from mdi_exit.simulation.efficiency import efficiency_of
from mdi_exit.simulation.record import trace_of
from mdi_exit.simulation.run import Simulated, simulate
from mdi_exit.simulation.scenario import Scenario, read_scenario
from mdi_exit.trial.break_even import BreakEven, break_even

__all__ = ["Row", "main", "markdown", "tried"]

Sweep = Literal["threshold", "rate"]

THRESHOLDS: Final = (0.6, 0.7, 0.8, 0.9)
RATES: Final = (0.5, 1.0)
_LEAST_S: Final = 3.0
_FRONTIER_POINTS: Final = 8
_SETTINGS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Row:
    """One run. ``at``: the threshold or the offered items a second; ``efficiency`` None: no bound was found.

    ``whole_accuracy``: of the network without early exits, on the very samples that the run had.
    """

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
    whole_accuracy: float = 0.0

    @property
    def right_of_offered(self) -> float:
        """Share of the items offered that got the right label: what was refused or failed did not."""
        offered = self.completed + self.refused + self.errors
        return self.accuracy * self.completed / offered if offered else 0.0


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
    scenario = as_baseline(
        replace(scenario, arrivals=Arrivals()),
        job.arm,
        threshold=threshold,
        rate_per_s=job.at if job.sweep == "rate" else None,
    )
    done = simulate(scenario)
    summary = done.summary
    reached = efficiency_of(scenario, done) if job.sweep == "threshold" else None
    return Row(
        job.file.stem, job.arm, job.sweep, job.at, summary.rate_per_s, summary.accuracy or 0.0, summary.refused,
        summary.completed, summary.errors, summary.latency_s.p99 if summary.latency_s else None,
        reached.efficiency if reached else None, _whole_accuracy(scenario, done),
    )  # fmt: skip


def _whole_accuracy(scenario: Scenario, done: Simulated) -> float:
    used = np.array([int(record.sample) for record in done.records if record.row.label is not None], np.int64)
    return float(trace_of(scenario).right_NS[used, -1].mean()) if len(used) else 0.0


def bound_of(file: Path) -> list[tuple[float, float]]:
    """(rate, accuracy) that no policy with the scenario's placement can pass, as far as thresholds go."""
    scenario = read_scenario(file)
    found = ScenarioBound(scenario, exit_table(trace_of(scenario), settings=_SETTINGS)).frontier(_FRONTIER_POINTS)
    return [(one.rate * scenario.cells, one.accuracy) for one in found]


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    parser = argparse.ArgumentParser(
        prog="mdi-exit benchmark policies", description="Simulates scenarios under policies, and draws them."
    )
    parser.add_argument("scenarios", nargs="+", type=Path, metavar="SCENARIO.toml")
    parser.add_argument("--policies", default=",".join(BASELINES), metavar="NAMES", help="default: %(default)s")
    parser.add_argument("--duration", type=float, default=60.0, help="most simulated seconds of a run (%(default)s)")
    parser.add_argument(
        "--items",
        type=float,
        default=3000.0,
        help="a run ends when the bound's rate would have done so many (%(default)g)",
    )
    parser.add_argument("--break-even", action="store_true", help="also where source-only and data-distributed win")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table, the raw rows and the pictures")
    args = parser.parse_args(argv)
    names = args.policies.split(",")
    for name in names:
        if name not in BASELINES:
            raise UsageError("--policies", "of " + ", ".join(BASELINES), name + nearest(name, BASELINES))
    if not args.duration > 0 or not args.items > 0 or args.jobs < 1:
        raise UsageError("--duration, --items, --jobs", "values above 0", (args.duration, args.items, args.jobs))
    for file in args.scenarios:
        read_scenario(file)
    rows, bounds, evens = _run_all(args, names)
    text = markdown(rows, bounds) + "\n" + at_equal_rate(rows, bounds)
    if evens:
        text += "\n" + "\n".join([*BreakEven.HEAD, *(one.line() for one in evens)]) + "\n"
    stem = _write(args.out, argv, rows, bounds, evens, text)
    from mdi_exit.trial.policy_picture import draw_policies

    for file in args.scenarios:
        draw_policies(
            [row for row in rows if row.scenario == file.stem],
            bounds[file.stem],
            float(trace_of(read_scenario(file)).right_NS[:, -1].mean()),
            Path(f"{stem}-{file.stem}.png"),
        )
    sys.stdout.write(text + f"\n{stem}.json\n")
    return 0


def _run_all(
    args: argparse.Namespace, names: Sequence[str]
) -> tuple[list[Row], dict[str, list[tuple[float, float]]], list[BreakEven]]:
    """The bounds first, since the rates offered are shares of them."""
    context = multiprocessing.get_context("spawn")
    console = Console(stderr=True)
    files, rows = args.scenarios, []
    with (
        ProcessPoolExecutor(args.jobs, mp_context=context) as pool,
        Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        as bar,
    ):  # fmt: skip
        bounds = {file.stem: found for file, found in zip(files, pool.map(bound_of, files), strict=True)}
        evens = pool.map(break_even, files if args.break_even else [])
        planned = [job for file in files for job in _jobs(file, names, bounds[file.stem], args)]
        task = bar.add_task("runs", total=len(planned))
        for future in as_completed([pool.submit(tried, job) for job in planned]):
            rows.append(future.result())
            bar.advance(task)
        found = [one for of_file in evens for one in of_file]
    rows.sort(key=lambda row: (row.scenario, row.sweep, names.index(row.policy), row.at))
    return rows, bounds, found


def _jobs(
    file: Path, names: Sequence[str], bound: Sequence[tuple[float, float]], args: argparse.Namespace
) -> Iterator[_Job]:
    if not bound:
        raise MdiExitError(f"{file}: expected a bound, got none")
    most = max(rate for rate, _ in bound)
    duration_s, seed = min(args.duration, max(args.items / most, _LEAST_S)), args.seed
    for name in names:
        for threshold in THRESHOLDS if BASELINES[name].early_exits else (1.0,):
            yield _Job(file, name, "threshold", threshold, duration_s, seed)
        for share in RATES:
            yield _Job(file, name, "rate", share * most, duration_s, seed)


# --- the table


def markdown(rows: Sequence[Row], bounds: dict[str, list[tuple[float, float]]]) -> str:
    """For each scenario and policy: the best rate within a point of what the whole network gets right of the same samples."""
    lines = [
        "| scenario | policy | best rate/s within a point | accuracy % | whole network % | times no-early-exit "
        "| of the bound % |",
        "|---|---|---|---|---|---|---|",
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
    near = (row for row in ran if row.accuracy >= row.whole_accuracy - 0.01)
    best = max(near, key=lambda row: row.rate_per_s, default=None)
    if best is None:
        return f"| {scenario} | {policy} | none | | | | |"
    times = f"{best.rate_per_s / plain.rate_per_s:.2f}" if plain and plain.rate_per_s else ""
    share = "" if best.efficiency is None else f"{100 * best.efficiency:.0f}"
    accuracies = f"{100 * best.accuracy:.1f} | {100 * best.whole_accuracy:.1f}"
    return f"| {scenario} | {policy} | {best.rate_per_s:.1f} | {accuracies} | {times} | {share} |"


def at_equal_rate(rows: Sequence[Row], bounds: dict[str, list[tuple[float, float]]]) -> str:
    """For each scenario and rate offered: the share of items that got the right label, by policy."""
    paced = [row for row in rows if row.sweep == "rate"]
    names = list(dict.fromkeys(row.policy for row in paced))
    lines = [
        f"| scenario | offered/s | {' | '.join(names)} |",
        "|---|---|" + "---|" * len(names),
    ]
    for scenario in bounds:
        here = [row for row in paced if row.scenario == scenario]
        for at in sorted({row.at for row in here}):
            right = {row.policy: f"{100 * row.right_of_offered:.1f}" for row in here if row.at == at}
            lines.append(f"| {scenario} | {at:.1f} | {' | '.join(right.get(name, '') for name in names)} |")
    return "Right labels in 100 items offered:\n\n" + "\n".join(lines) + "\n"


def _write(
    folder: Path,
    argv: Sequence[str],
    rows: Sequence[Row],
    bounds: dict[str, list[tuple[float, float]]],
    evens: Sequence[BreakEven],
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
        "break_even": [asdict(one) for one in evens],
        "rows": [asdict(row) for row in rows],
    }
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    return stem
