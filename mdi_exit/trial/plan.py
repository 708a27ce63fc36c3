"""``mdi-exit plan [SCENARIO.toml]``: which node should hold which layers, and the rate that it would give. Nothing runs.

Of a scenario, with the outcomes of its trace; or of a running deployment, from what its nodes say of themselves.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mdi_exit import values
from mdi_exit.config import resolve, setting
from mdi_exit.desk.control import seen, watching
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.observer import Observer
from mdi_exit.placement import Device, Placement, Problem, best_placement, even_split, valued
from mdi_exit.planning import devices_of
from mdi_exit.segments import ModelPlan
from mdi_exit.settings import BrokerSettings
from mdi_exit.simulation.record import trace_of
from mdi_exit.simulation.scenario import Node, Scenario, read_scenario
from mdi_exit.trace import Trace

__all__ = ["main", "problem_of"]

_LOOK_S = 1.5  # a full report comes once a second


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings(BrokerSettings):
    """One plan. ``threshold`` None: the scenario's; ``timeout``: for the broker and the source of a running deployment."""

    threshold: float | None = setting(
        None, help="exit threshold; default: the scenario's", parse=values.fraction, metavar="T"
    )
    fixed: tuple[str, ...] | None = setting(
        None, help="nodes of the scenario that keep their layers: NAME,NAME", parse=values.names, metavar="NAMES"
    )
    timeout: float = setting(
        5.0, help="how long to wait for a running deployment", parse=values.duration, metavar="TIME",
        show=values.show_seconds,
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    resolved = resolve(
        PlanSettings,
        argv,
        os.environ,
        prog="mdi-exit plan",
        section="plan",
        description="Says which node should hold which layers, and the rate to expect, without running anything.",
        words="[SCENARIO.toml]",
        epilog="Without a scenario: of the running deployment at --broker. How it plans: docs/placement.md.",
    )
    if len(resolved.words) > 1:
        raise UsageError("mdi-exit plan", "one SCENARIO.toml or none", " ".join(resolved.words))
    settings = resolved.settings
    if resolved.words:
        scenario = read_scenario(Path(resolved.words[0]).expanduser()).outranked(threshold=settings.threshold)
        kinds = {node.name: node.profile or "" for node in scenario.nodes}
        _show(Console(), problem_of(scenario, settings.fixed or ()), kinds)
        return 0
    return asyncio.run(_live(settings))


# --- of a scenario


def problem_of(scenario: Scenario, fixed: Sequence[str] = ()) -> Problem:
    """One cell of the scenario; all agents but ``fixed`` may be placed anew. Raises ``UsageError``.

    Links are taken as slow as the slower of their directions and their medium; who shares a medium is not looked at.
    """
    names = {node.name for node in scenario.agents}
    if unknown := sorted(set(fixed) - names):
        raise UsageError("--fixed", "agents of the scenario: " + ", ".join(sorted(names)), ", ".join(unknown))
    plan = scenario.model.plan
    devices = tuple(
        Device(
            name=node.name,
            layer_s=_layer_s(node, plan),
            memory_bytes=math.inf if node.memory_bytes is None else node.memory_bytes,
            bytes_per_s=_bytes_per_s(scenario, node),
            span=node.span,
            fixed=node is scenario.source or node.name in fixed,
            neighbours=None if node.neighbours is None else frozenset(node.neighbours),
        )
        for node in scenario.nodes
    )
    return Problem(plan, reach_of(trace_of(scenario), plan, scenario.policy.threshold), devices, scenario.source.name)


def reach_of(trace: Trace, plan: ModelPlan, threshold: float) -> tuple[float, ...]:
    """For each layer, the share of the trace's samples that enter it at ``threshold``."""
    going = trace.truth_N == trace.truth_N  # all of them
    reach = []
    for layer in range(plan.layer_count):
        reach.append(max(float(going.mean()), 1e-3))
        if layer in plan.exit_layers[:-1]:
            number = plan.exit_index(layer)
            going = going & (trace.scores_NS[:, number] <= plan.threshold_at(number, threshold))
    return tuple(reach)


def _layer_s(node: Node, plan: ModelPlan) -> tuple[float, ...]:
    exits = dict(zip(plan.exit_layers, node.speed.exit_s, strict=True))
    return tuple(s + node.speed.overhead_s + exits.get(layer, 0.0) for layer, s in enumerate(node.speed.layer_s))


def _bytes_per_s(scenario: Scenario, node: Node) -> float:
    link = node.link
    limits = [limit for limit in (link.up_bytes_per_s, link.down_bytes_per_s) if limit is not None]
    limits += [scenario.media[link.medium].bytes_per_s] if link.medium is not None else []
    return min(limits, default=math.inf)


# --- of a running deployment


async def _live(settings: PlanSettings) -> int:
    async with watching(settings) as observer:
        watched = observer.watched
        known = await seen(lambda: watched.source is not None and watched.manifest is not None, settings.timeout)
        if not known:
            raise MdiExitError(observer.view().trouble or "no model is known yet")
        await asyncio.sleep(_LOOK_S)
        problem, kinds = _running(observer)
    _show(Console(), problem, kinds)
    return 0


def _running(observer: Observer) -> tuple[Problem, dict[str, str]]:
    watched = observer.watched
    if watched.source is None or watched.manifest is None:
        raise MdiExitError("the deployment's source has gone")
    plan, report = watched.manifest.plan, watched.source
    reports = watched.reports(asyncio.get_running_loop().time())
    devices = devices_of(((status, telemetry, None) for status, telemetry in reports), plan)
    if report.node not in {device.name for device in devices}:
        raise MdiExitError(f"expected a report of the source {report.node}, got none")
    done = sum(report.exits.values())
    reach, left = [], float(done)
    for layer in range(plan.layer_count):
        reach.append(max(left / done, 1e-3) if done else 1.0)
        if layer in plan.exit_layers:
            left -= report.exits.get(plan.exit_index(layer), 0)
    kinds = {status.node: status.emulated or status.engine for status, _ in reports}
    return Problem(plan, tuple(reach), tuple(devices), report.node), kinds


# --- the table


def _show(console: Console, problem: Problem, kinds: Mapping[str, str]) -> None:
    now = problem.present()
    found = best_placement(problem)
    if found.rate_per_s == 0.0:
        raise MdiExitError("no placement: the nodes cannot hold all layers between them")
    table = Table()
    for column in ("node", "device", "now", "planned", "busy", "link", "memory, MB"):
        table.add_column(column, justify="left" if column in ("node", "device") else "right", no_wrap=True)
    for device in problem.devices:
        table.add_row(*_row(problem, found, device, kinds.get(device.name, "")))
    console.print(table)
    console.print(
        f"plan: {found.rate_per_s:.4g} items/s at most; limited by {found.prediction.bottleneck}", soft_wrap=True
    )
    if problem.covered(now.values()):
        rate = valued(problem, now).rate_per_s
        console.print(
            f"as it is: {rate:.4g} items/s, of which the plan makes {_times(found.rate_per_s, rate)}", soft_wrap=True
        )
    even = valued(problem, even_split(problem))
    if problem.movable and even.rate_per_s > 0:
        fits = all(
            problem.fits(device, even.spans[device.name]) for device in problem.movable if device.name in even.spans
        )
        console.print(
            f"even split: {even.rate_per_s:.4g} items/s, of which the plan makes {_times(found.rate_per_s, even.rate_per_s)}"
            + ("" if fits else " (it does not fit the memory)"),
            soft_wrap=True,
        )


def _times(rate: float, other: float) -> str:
    return f"{rate / other:.2f} times"


def _row(problem: Problem, found: Placement, device: Device, kind: str) -> tuple[str, ...]:
    span = found.spans.get(device.name)
    prediction = found.prediction
    held = problem.memory_bytes(span) if span is not None else 0
    limit = "" if math.isinf(device.memory_bytes) or device.fixed else f" of {device.memory_bytes / 1e6:.4g}"
    return (
        device.name,
        kind,
        str(device.span or "-"),
        str(span or "-") + (" (fixed)" if device.fixed and span is not None else ""),
        f"{prediction.busy[device.name]:.0%}" if device.name in prediction.busy else "-",
        f"{prediction.link_busy[device.name]:.0%}" if device.name in prediction.link_busy else "-",
        f"{held / 1e6:.3g}{limit}" if span is not None else "-",
    )
