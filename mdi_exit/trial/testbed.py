"""``mdi-exit testbed SCENARIO.toml``: the scenario live, one process for each node, on an emulated testbed.

Compute is stretched to each node's device, links are paced by relays in user space, the broker is a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console

from broker.embedded import embedded_broker
from mdi_exit import values
from mdi_exit.config import resolve, setting
from mdi_exit.demo.fleet import Fleet
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.plot.command import draw_run
from mdi_exit.plot.files import read_run
from mdi_exit.simulation.run import simulate
from mdi_exit.simulation.scenario import Change, Node, Scenario, read_scenario
from mdi_exit.simulation.star import Wires
from mdi_exit.snapshot import read_timeline
from mdi_exit.trial.compare import Comparison, compared
from mdi_exit.trial.config import TrialSettings
from mdi_exit.trial.relay import relays

__all__ = ["TestbedSettings", "main", "run_live"]

_DEPLOYMENT: Final = "testbed"
_MOST_NODES: Final = 16
_USUAL_POLICY: Final = "paper"
_START_S: Final = 90.0
_OVERTIME_S: Final = 60.0
_POLL_S: Final = 0.1
_FILES: Final = {"results": "results.jsonl", "timeline": "timeline.jsonl"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TestbedSettings(TrialSettings):
    """One live run; ``compare``: simulate the same and say how far apart the two are."""

    __test__ = False  # not one of pytest's

    compare: bool = setting(False, help="simulate the same scenario and compare", parse=values.switch)


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    resolved = resolve(
        TestbedSettings,
        argv,
        os.environ,
        prog="mdi-exit testbed",
        section="testbed",
        description="Runs a scenario live: one process for each node, stretched to its device, links paced, a real broker.",
        words="SCENARIO.toml",
        epilog="Emulated: compute is stretched by waiting, links are paced in user space; packets are not lost.",
    )
    if len(resolved.words) != 1:
        raise UsageError("mdi-exit testbed", "one SCENARIO.toml", " ".join(resolved.words) or "none (see --help)")
    settings = resolved.settings
    scenario = settings.applied(read_scenario(Path(resolved.words[0]).expanduser()))
    _refuse(scenario)
    _taken(settings)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="mdi-exit-testbed-") as folder:
        summary = asyncio.run(run_live(scenario, Path(folder)))
        comparison = _comparison(scenario, summary) if settings.compare else None
        if comparison is not None:
            summary["simulated"] = comparison.to_json()
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


async def run_live(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """Run it, with the files of the run in ``folder``; returns the summary. Raises ``MdiExitError``."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    wires = Wires({node.name: node.link for node in scenario.nodes}, scenario.media, Wires.broker_pipe(scenario.broker))
    names = [node.name for node in scenario.nodes]
    async with embedded_broker() as broker, relays(wires, names, values.broker_address(broker.url).port) as ports:
        run = _Run(scenario, Fleet(folder), wires, {name: f"mqtt://127.0.0.1:{port}" for name, port in ports.items()})
        try:
            await run.go(stop)
        finally:
            await run.fleet.stop()
        if stop.is_set():
            raise MdiExitError("stopped before the end")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary | {
        "scenario": scenario.name,
        "seed": scenario.seed,
        "links": f"paced in user space ({broker.kind}): rates, delays, shared media; no packet is lost",
        "machine_busy": run.busy,
    }


class _Run:
    """The processes of one run, and what is to happen to them when."""

    def __init__(self, scenario: Scenario, fleet: Fleet, wires: Wires, urls: dict[str, str]) -> None:
        self.scenario, self.fleet, self.wires, self.urls = scenario, fleet, wires, urls
        self.busy = 0.0
        self._killed: set[str] = set()

    async def go(self, stop: asyncio.Event) -> None:
        scenario = self.scenario
        await self.fleet.start(
            scenario.source.name, "source.cli", [*self._flags(scenario.source), *self._source_flags()]
        )
        begin = time.monotonic()
        joining = sorted(scenario.agents, key=lambda node: node.join_at_s)
        changes = list(scenario.changes)
        started_at: float | None = None
        psutil.cpu_percent()
        source = self.fleet.processes[scenario.source.name]
        while source.returncode is None and not stop.is_set():
            now = time.monotonic()
            while joining and now - begin >= joining[0].join_at_s:
                node = joining.pop(0)
                await self.fleet.start(node.name, "edge_agent.cli", self._flags(node))
            if started_at is None and (elapsed_s := self._elapsed_s()) is not None:
                started_at = now - elapsed_s
                psutil.cpu_percent()  # from here on
                await self._order_policy()
            while started_at is not None and changes and now - started_at >= changes[0].at_s:
                await self._change(changes.pop(0))
            self._look(now, begin, started_at)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), _POLL_S)
        self.busy = psutil.cpu_percent() / 100
        if not stop.is_set() and source.returncode != 0:
            raise MdiExitError(f"the source ended early: {self.fleet.complaint(scenario.source.name)}")

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

    def _elapsed_s(self) -> float | None:
        """How long items have been admitted; None before the first."""
        path = self.fleet.folder / _FILES["timeline"]
        moments = read_timeline(path) if path.exists() else []
        return moments[-1].elapsed_s if moments and moments[-1].admitted else None

    async def _order_policy(self) -> None:
        """The offloading policy is no setting but an order."""
        policy = self.scenario.policy.offloading
        if policy == _USUAL_POLICY:
            return
        flags = ("--broker", self.urls[self.scenario.source.name], "--deployment", _DEPLOYMENT)
        words = ("policy", "offloading", policy)
        order = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mdi_exit.cli", "control", *flags, *words, stdout=asyncio.subprocess.DEVNULL
        )
        if await order.wait():
            raise MdiExitError(f"the order of the policy {policy} was not obeyed")

    async def _change(self, change: Change) -> None:
        if change.link is not None:
            self.wires.change(change.node, change.link)
        if change.alive is False:
            process = self.fleet.processes[change.node]
            self._killed.add(change.node)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        elif change.alive:
            node = next(node for node in self.scenario.nodes if node.name == change.node)
            self._killed.discard(change.node)
            await self.fleet.start(node.name, "edge_agent.cli", self._flags(node))

    def _flags(self, node: Node) -> list[str]:
        flags = ["--broker", self.urls[node.name], "--name", node.name, "--deployment", _DEPLOYMENT, "--metrics", "off"]
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


def _comparison(scenario: Scenario, summary: dict[str, Any]) -> Comparison:
    """The same on the same images."""
    return compared(summary, simulate(replace(scenario, trace=None)).summary.to_json())


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
    console.print(f"machine: {100 * summary['machine_busy']:.0f} % busy", highlight=False)
    if comparison is not None:
        comparison.render(console)
    sys.stdout.flush()
