"""``mdi-exit testbed SCENARIO.toml``: the scenario live, one process for each node, on an emulated testbed.

Compute is stretched to each node's device, links are shaped by the kernel or paced in user space, the broker is a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Final

from rich.console import Console

from broker.embedded import embedded_broker
from mdi_exit import __version__, values
from mdi_exit.config import resolve, setting
from mdi_exit.demo.fleet import Fleet
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.plot.command import draw_run
from mdi_exit.plot.files import read_run
from mdi_exit.simulation.record import trace_of
from mdi_exit.simulation.run import simulate
from mdi_exit.simulation.scenario import Change, Node, Scenario
from mdi_exit.snapshot import Snapshot, read_timeline
from mdi_exit.trial.busy import BusyMeter
from mdi_exit.trial.compare import Comparison, compared, ready_at_s, stretch_of
from mdi_exit.trial.config import TrialSettings
from mdi_exit.trial.files import item_of
from mdi_exit.trial.shaping import SHAPINGS, Shaped, shaped

__all__ = ["TestbedSettings", "main", "run_live", "shuffled"]

_DEPLOYMENT: Final = "testbed"
_MOST_NODES: Final = 16
_USUAL_POLICY: Final = "paper"
_START_S: Final = 90.0
_OVERTIME_S: Final = 60.0
_POLL_S: Final = 0.1
_FILES: Final = {"results": "results.jsonl", "timeline": "timeline.jsonl"}


def _until_filled(warm_up_s: object) -> str:
    return "5s, or a quarter of the run" if warm_up_s is None else f"{warm_up_s:g}s"


@dataclass(frozen=True, slots=True, kw_only=True)
class TestbedSettings(TrialSettings):
    """One live run; ``compare``: simulate the same and say how far apart the two are."""

    __test__ = False  # not one of pytest's

    compare: bool = setting(False, help="simulate the same scenario and compare", parse=values.switch)
    warm_up: float | None = setting(
        None, help="what is compared begins so long after all nodes are ready (default: until queues have filled)",
        parse=values.duration, metavar="TIME", show=_until_filled,
    )  # fmt: skip
    shaping: str = setting(
        "auto", help="what shapes the links: the kernel (needs root) or relays in user space; auto: whichever can",
        choices=SHAPINGS,
    )  # fmt: skip
    out: Path | None = setting(None, help="folder for the raw comparison (JSON)", parse=values.path, metavar="DIR")


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    resolved = resolve(
        TestbedSettings,
        argv,
        os.environ,
        prog="mdi-exit testbed",
        section="testbed",
        description="Runs a scenario live: one process for each node, stretched to its device, links shaped, a real broker.",
        words="SCENARIO.toml",
        epilog="Emulated: compute is stretched by waiting; the summary says what shapes the links: docs/simulator.md.",
    )
    settings = resolved.settings
    scenario = settings.scenario(resolved.only_word("mdi-exit testbed", "SCENARIO.toml"))
    _refuse(scenario)
    _taken(settings)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="mdi-exit-testbed-") as folder:
        summary = asyncio.run(run_live(scenario, Path(folder), settings.shaping))
        comparison = _comparison(scenario, summary, Path(folder), settings.warm_up) if settings.compare else None
        if comparison is not None and settings.out is not None:
            _write_record(settings.out, argv, scenario, summary)
        _write(settings, summary, Path(folder), scenario)
    _show(console, summary, comparison)
    return 0


def _refuse(scenario: Scenario) -> None:
    """What cannot be had live. Raises ``UsageError``."""
    if scenario.artifact is None:
        raise UsageError("mdi-exit testbed", "a scenario with an artifact", "one with a table of costs")
    if scenario.cells > 1 or len(scenario.nodes) > _MOST_NODES:
        count = len(scenario.nodes) * scenario.cells
        raise UsageError("mdi-exit testbed", f"one cell of at most {_MOST_NODES} nodes", f"{count} nodes")
    if scenario.arrivals.kind not in ("fixed", "poisson"):
        raise UsageError("mdi-exit testbed", "arrivals fixed or poisson", scenario.arrivals.kind)
    if bare := next((node.name for node in scenario.nodes if node.profile is None), None):
        raise UsageError("mdi-exit testbed", "a profile at each node", f"seconds of its own at {bare}")
    if any(change.speed is not None for change in scenario.changes):
        raise UsageError("mdi-exit testbed", "changes of links, and nodes that die and return", "a change of speed")
    if any(change.alive is not None and change.node == scenario.source.name for change in scenario.changes):
        raise UsageError("mdi-exit testbed", "a source that lives", "its death")


def _taken(settings: TestbedSettings) -> None:
    path = settings.results
    if path is not None and path.is_file() and path.stat().st_size and not settings.overwrite:
        raise UsageError("--results", "a new or empty file (or --overwrite)", path)


# --- the run


async def run_live(scenario: Scenario, folder: Path, shaping: str = "auto") -> dict[str, Any]:
    """Run it, with the files of the run in ``folder``; returns the summary. Raises ``MdiExitError``."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with embedded_broker() as broker, shaped(scenario, shaping, broker.url) as links:
        run = _Run(scenario, Fleet(folder), links)
        try:
            await run.go(stop)
        finally:
            with contextlib.suppress(*((MdiExitError,) if stop.is_set() else ())):  # told to end while it began
                await run.fleet.stop()
        if stop.is_set():
            raise MdiExitError("stopped before the end")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary | {
        "scenario": scenario.name,
        "seed": scenario.seed,
        "links": links.text,
        "shaping": links.by,
        "broker": broker.kind,
        "machine_busy": run.busy.machine,
        "own_busy": run.busy.own,
        "load_average": os.getloadavg(),
    }


class _Run:
    """The processes of one run, and what is to happen to them when."""

    def __init__(self, scenario: Scenario, fleet: Fleet, links: Shaped) -> None:
        self.scenario, self.fleet, self.links = scenario, fleet, links
        self.busy = BusyMeter()
        self._killed: set[str] = set()

    async def go(self, stop: asyncio.Event) -> None:
        scenario = self.scenario
        await self._start(scenario.source, "source.cli", self._source_flags())
        begin = time.monotonic()
        joining = sorted(scenario.agents, key=lambda node: node.join_at_s)
        changes = list(scenario.changes)
        started_at: float | None = None
        source = self.fleet.processes[scenario.source.name]
        while source.returncode is None and not stop.is_set():
            now = time.monotonic()
            while joining and now - begin >= joining[0].join_at_s:
                node = joining.pop(0)
                await self._start(node, "edge_agent.cli")
            if started_at is None and (elapsed_s := self._elapsed_s()) is not None:
                started_at = now - elapsed_s
                await self._order_policy()
            while started_at is not None and changes and now - started_at >= changes[0].at_s:
                await self._change(changes.pop(0))
            self._look(now, begin, started_at)
            if started_at is not None and now - started_at < scenario.duration_s:
                self._measure_busy()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), _POLL_S)
        if not stop.is_set() and source.returncode != 0:
            raise MdiExitError(f"the source ended early: {self.fleet.complaint(scenario.source.name)}")

    async def _start(self, node: Node, module: str, flags: Sequence[str] = ()) -> None:
        await self.fleet.start(node.name, module, [*self._flags(node), *flags], inside=self.links.inside(node.name))

    def _look(self, now: float, begin: float, started_at: float | None) -> None:
        """Raises ``MdiExitError`` if it cannot end well."""
        fallen = self.fleet.fallen()
        if fallen is not None and fallen not in self._killed:
            raise MdiExitError(f"{fallen} ended early: {self.fleet.complaint(fallen)}")
        source = self.fleet.complaint(self.scenario.source.name)
        if started_at is None and now - begin > _START_S:
            raise MdiExitError(f"nothing began in {_START_S:g} s: {source}")
        if started_at is not None and now - started_at > self.scenario.duration_s + _OVERTIME_S:
            raise MdiExitError(f"no end {_OVERTIME_S:g} s after the last arrival: {source}")

    def _measure_busy(self) -> None:
        """From the moment on at which all nodes are ready."""
        if self.busy.started:
            self.busy.read()
        elif ready_at_s(self._timeline(), _names(self.scenario)) is not None:
            self.busy.start()

    def _timeline(self) -> list[Snapshot]:
        path = self.fleet.folder / _FILES["timeline"]
        return read_timeline(path) if path.exists() else []

    def _elapsed_s(self) -> float | None:
        """How long items have been admitted; None before the first."""
        moments = self._timeline()
        return moments[-1].elapsed_s if moments and moments[-1].admitted else None

    async def _order_policy(self) -> None:
        """The offloading policy is no setting but an order."""
        policy = self.scenario.policy.offloading
        if policy == _USUAL_POLICY:
            return
        source = self.scenario.source.name
        command = [*self.links.inside(source), sys.executable, "-m", "mdi_exit.cli", "control"]
        command += ["--broker", self.links.urls[source], "--deployment", _DEPLOYMENT, "policy", "offloading", policy]
        order = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        if await order.wait():
            raise MdiExitError(f"the order of the policy {policy} was not obeyed")

    async def _change(self, change: Change) -> None:
        if change.link is not None:
            self.links.change(change.node, change.link)
        if change.alive is False:
            process = self.fleet.processes[change.node]
            self._killed.add(change.node)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        elif change.alive:
            node = next(node for node in self.scenario.nodes if node.name == change.node)
            self._killed.discard(change.node)
            await self._start(node, "edge_agent.cli")

    def _flags(self, node: Node) -> list[str]:
        flags = [
            "--broker",
            self.links.urls[node.name],
            "--name",
            node.name,
            "--deployment",
            _DEPLOYMENT,
            "--metrics",
            "off",
        ]
        layers = "auto" if node.auto else str(node.span or "")
        flags += ["--layers", layers] if layers else []
        flags += [f"--neighbours={','.join(node.neighbours)}"] if node.neighbours is not None else []
        flags += ["--profile", str(node.profile), "--window", str(node.window)]
        return [*flags, "--telemetry-period", f"{self.scenario.policy.telemetry_period_s:g}s"]

    def _source_flags(self) -> list[str]:
        scenario, policy, folder = self.scenario, self.scenario.policy, self.fleet.folder
        return [
            *("--input", "shipped", "--repeat", "--shuffle", "--model", str(scenario.artifact)),
            *("--codec", scenario.codec, "--seed", str(scenario.seed), "--duration", f"{scenario.duration_s:g}s"),
            *("--adapt", policy.adapt, "--exit-threshold", f"{policy.threshold:g}"),
            *("--min-threshold", f"{min(policy.floor, policy.threshold):g}"),
            *("--max-queue", str(policy.max_queue), "--max-pending", str(policy.max_pending)),
            *("--arrivals", scenario.arrivals.kind, *self._rate()),
            *("--results", str(folder / _FILES["results"]), "--timeline", str(folder / _FILES["timeline"])),
            *("--summary", str(folder / "summary.json"), "--overwrite"),
        ]

    def _rate(self) -> list[str]:
        phases = self.scenario.arrivals.phases
        if len(phases) > 1:
            named = [f"p{number}={one.rate_per_s:g}/s@{one.start_s:g}s" for number, one in enumerate(phases)]
            return ["--schedule", ",".join(named)]
        return ["--rate", f"{phases[0].rate_per_s:g}/s" if phases else "max"]


# --- results


def _names(scenario: Scenario) -> frozenset[str]:
    return frozenset(node.name for node in scenario.nodes)


def _comparison(scenario: Scenario, summary: dict[str, Any], folder: Path, warm_up_s: float | None) -> Comparison:
    """The same on the same images, in the same order; puts what it finds into ``summary``.

    Compared is the stretch in which all nodes were ready, or all of both runs where things change or there was none.
    """
    order = shuffled(scenario)
    done = simulate(replace(scenario, trace=None), order=order)
    live, names, until_s = read_run(folder), _names(scenario), scenario.duration_s
    measured = simulated = None
    if not scenario.changes:
        measured = stretch_of(live.timeline, live.items, names, until_s, warm_up_s=warm_up_s)
    if measured is not None:
        items = tuple(map(item_of, done.records))
        simulated = stretch_of(done.timeline, items, names, until_s, measured.end_s - measured.begin_s, warm_up_s)
    if measured is None or simulated is None:
        found = compared(summary, done.summary.to_json())
        stretches: dict[str, Any] = {}
    else:
        found = compared(measured.to_json(), simulated.to_json())
        stretches = {"stretch": {"measured": measured.to_json(), "simulated": simulated.to_json()}}
    summary["simulated"] = found.to_json() | stretches
    return found


def shuffled(scenario: Scenario) -> tuple[int, ...]:
    """The order in which a live source offers the shipped images (``--shuffle``), again and again."""
    order = list(range(len(trace_of(replace(scenario, trace=None)))))
    Random(scenario.seed).shuffle(order)
    return tuple(order)


def _write_record(folder: Path, argv: Sequence[str], scenario: Scenario, summary: dict[str, Any]) -> None:
    now = datetime.now(UTC)
    record = {
        "benchmark": "testbed",
        "command": ["mdi-exit", "testbed", *argv],
        "when": now.isoformat(),
        "version": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "nice": os.nice(0),
        "nodes": len(scenario.nodes),
        "summary": summary,
    }
    path = folder / f"testbed-{scenario.name}-{now:%Y-%m-%dT%H%M%SZ}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise MdiExitError(f"--out: could not write {path}: {error.strerror}") from None


def _write(settings: TestbedSettings, summary: dict[str, Any], folder: Path, scenario: Scenario) -> None:
    try:
        for name, file in _FILES.items():
            path: Path | None = getattr(settings, name)
            if path is not None:
                shutil.copyfile(folder / file, path)
        (folder / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        if settings.summary is not None:
            shutil.copyfile(folder / "summary.json", settings.summary)
    except OSError as error:
        raise MdiExitError(f"could not write {error.filename}: {error.strerror}") from None
    if settings.picture is not None:
        draw_run(replace(read_run(folder), name=f"{scenario.name} (testbed)"), settings.picture)


def _show(console: Console, summary: dict[str, Any], comparison: Comparison | None) -> None:
    accuracy = "unknown" if summary["accuracy"] is None else f"{100 * summary['accuracy']:.1f} %"
    console.print(
        f"{summary['completed']:,} of {summary['admitted']:,} items completed, {summary['errors']} errors, "
        f"{summary['rate_per_s']:.1f}/s, accuracy {accuracy}",
        highlight=False,
    )
    console.print(f"links: {summary['links']}", highlight=False)
    busy, own = summary["machine_busy"], summary["own_busy"]
    if busy is not None:
        console.print(f"machine: {100 * busy:.0f} % busy, {100 * own:.0f} % by this run", highlight=False)
    if comparison is not None:
        comparison.render(console)
    sys.stdout.flush()
