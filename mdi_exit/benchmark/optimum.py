"""How near the policies come to what none can pass, how soon after a change, and what they do with three times the load.

All simulated, from the scenarios' files. ``steady``: saturated, from the tenth second on, against the bound on the very
samples of the run, which lasts for 8,000 items at least: of few samples the bound knows too well which are easy. ``step``:
a node becomes four times slower half way; seconds until a second's rate is 90 % of the new bound's. ``overload``: three
times the bound's rate for a minute under ``latency``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mdi_exit.errors import UsageError
from mdi_exit.optimum.exits import ExitTable
from mdi_exit.simulation.arrivals import Arrivals, Phase
from mdi_exit.simulation.baselines import cut_seconds
from mdi_exit.simulation.bound import ScenarioBound, exit_table
from mdi_exit.simulation.record import trace_of
from mdi_exit.simulation.run import Simulated, simulate
from mdi_exit.simulation.scenario import Change, Scenario, read_scenario

__all__ = ["OPTIMUM_POLICIES", "measure_optimum"]

OPTIMUM_POLICIES: Final = {
    "paper": ("paper", "none"),
    "never": ("never", "none"),
    "random": ("random", "none"),
    "jsq": ("jsq", "none"),
    "drift-plus-penalty": ("drift-plus-penalty", "drift-plus-penalty"),
    "optimiser-blind": ("paper", "optimiser"),
    "optimiser": ("paper", "optimiser"),
}
_STATIONARY: Final = (
    *(f"paper-{shape}-{model}" for shape in ("two-node", "three-node-mesh", "three-node-circular", "five-node-mesh")
      for model in ("mobilenetv2", "resnet50", "resnet50-bottleneck")),
    "unequal-slow", "unequal-fast", "slow-link",
)  # fmt: skip
_HELD_OUT: Final = (
    "held-out-four-nodes-two-cells", "held-out-half-channel-resnet50-bottleneck", "held-out-ring-of-four",
    "held-out-two-node-far",
)  # fmt: skip
_STEP: Final = "unequal-slow"
_WARM_S: Final = 10.0
_SETTLED_S: Final = 10.0
_ITEMS: Final = 8_000
_TARGET_S: Final = 0.2
_SETTINGS: Final = 1_000
Row = dict[str, Any]


def measure_optimum(
    folder: Path, scale: float, workers: int, match: str = "", policies: Sequence[str] = ()
) -> list[Row]:
    """All rows; ``scale``: of the virtual minutes; ``match``: a regular expression that the scenarios' names are to have;
    ``policies``: of ``OPTIMUM_POLICIES``, none: all.

    Raises ``UsageError``.
    """
    if not (folder / f"{_STATIONARY[0]}.toml").is_file():
        raise UsageError("--scenarios", "the folder benchmarks/scenarios", folder)
    known = (*_STATIONARY, *_HELD_OUT)
    names = [name for name in known if re.search(match, name)]
    if not names:
        raise UsageError("--match", f"part of one of {', '.join(known)}", match)
    if unknown := [name for name in policies if name not in OPTIMUM_POLICIES]:
        raise UsageError("--policies", f"of {', '.join(OPTIMUM_POLICIES)}", ", ".join(unknown))
    chosen = policies or tuple(OPTIMUM_POLICIES)
    jobs = [("steady", folder / f"{name}.toml", policy, scale) for name in names for policy in chosen]
    jobs += [("overload", folder / f"{name}.toml", "latency", scale) for name in names]
    if _STEP in names:
        jobs += [("step", folder / f"{_STEP}.toml", policy, scale) for policy in chosen]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_measured, *job) for job in jobs]
        done = track(as_completed(waiting), "simulating", total=len(waiting), console=Console(stderr=True))
        rows = [row for future in done for row in future.result()]
    rows.sort(key=lambda row: (row["what"], row["scenario"], row["policy"]))
    _show(rows)
    return rows


def _measured(what: str, path: Path, policy: str, scale: float) -> list[Row]:
    scenario = read_scenario(path)
    made = {"steady": _steady, "step": _step, "overload": _overload}[what]
    return [{"what": what, "scenario": scenario.name, "policy": policy, **row} for row in made(scenario, policy, scale)]


def _saturated(scenario: Scenario, policy: str, duration_s: float) -> Scenario:
    offloading, adapt = OPTIMUM_POLICIES[policy]
    rules = replace(scenario.policy, offloading=offloading, adapt=adapt, outcomes=policy != "optimiser-blind")
    return replace(scenario, policy=rules, duration_s=duration_s, arrivals=Arrivals(), changes=())


def _exits_of(scenario: Scenario, done: Simulated) -> tuple[ExitTable, float]:
    """The outcomes of the samples that the run had, and its accuracy."""
    labelled = [record for record in done.records if record.row.label is not None]
    used = np.array([int(record.sample) for record in labelled])
    right = sum(record.row.label == record.truth for record in labelled)
    return exit_table(trace_of(scenario).subset(used), settings=_SETTINGS), right / len(labelled)


def _rate(done: Simulated, begin_s: float, end_s: float) -> float:
    seen = [one for one in done.timeline if begin_s <= one.elapsed_s <= end_s]
    return (seen[-1].completed - seen[0].completed) / (seen[-1].elapsed_s - seen[0].elapsed_s)


def _steady(scenario: Scenario, policy: str, scale: float) -> Iterator[Row]:
    fastest = ScenarioBound(scenario, exit_table(trace_of(scenario), settings=_SETTINGS)).rate() or 1.0
    chosen = _saturated(scenario, policy, _WARM_S + max(50.0, _ITEMS / fastest) * scale)
    done = simulate(chosen)
    exits, accuracy = _exits_of(chosen, done)
    bound = ScenarioBound(chosen, exits)
    rate = _rate(done, _WARM_S, chosen.duration_s)
    most = bound.rate(accuracy - 1e-9)
    summary = done.summary
    yield {
        "rate_per_s": rate, "accuracy": accuracy, "bound_per_s": most, "efficiency": rate / most if most else None,
        "p99_s": summary.latency_s.p99 if summary.latency_s else None,
        "completed": summary.completed, "errors": summary.errors, "retried": summary.retried,
    }  # fmt: skip


def _step(scenario: Scenario, policy: str, scale: float) -> Iterator[Row]:
    """The fast agent becomes as slow as the slow one, then fast again."""
    at_s, back_s = 30.0, 60.0
    chosen = replace(
        _saturated(scenario, policy, 90.0),
        changes=(Change(at_s, "a", speed=0.25), Change(back_s, "a", speed=1.0)),
    )
    del scale
    done = simulate(chosen)
    exits, _ = _exits_of(chosen, done)
    for name, begin_s, end_s in (("slower", at_s, back_s), ("faster", back_s, 90.0)):
        accuracy = _accuracy_between(done, begin_s, end_s)
        most = ScenarioBound(chosen, exits, begin_s, end_s).rate(min(accuracy, float(exits.accuracy_G.max())))
        took = next(
            (at - begin_s for at in np.arange(begin_s, end_s - 3.0, 0.5)
             if most and _rate(done, float(at), float(at) + 3.0) >= 0.9 * most), None,
        )  # fmt: skip
        yield {
            "change": name, "bound_per_s": most, "accuracy": accuracy, "seconds_to_90_percent": took,
            "rate_per_s": _rate(done, begin_s + 10.0, end_s),
        }  # fmt: skip


def _accuracy_between(done: Simulated, begin_s: float, end_s: float) -> float:
    """Of the items that were answered then, by their order."""
    before = [next(one.completed for one in done.timeline if one.elapsed_s >= at) for at in (begin_s, end_s - 0.5)]
    answered = [record for record in done.records if record.row.label is not None][before[0] : before[1]]
    return sum(record.row.label == record.truth for record in answered) / max(len(answered), 1)


def _overload(scenario: Scenario, policy: str, scale: float) -> Iterator[Row]:
    """Offered for a minute: three times what could be done at all at the threshold's floor."""
    most = ScenarioBound(scenario, exit_table(trace_of(scenario), settings=_SETTINGS)).rate() or 1.0
    target_s = max(_TARGET_S, 4.0 * (_alone_s(scenario) + _transfer_s(scenario)))
    rules = replace(scenario.policy, adapt=policy, target_p99_s=target_s)
    del scale
    duration_s = 60.0
    chosen = replace(
        scenario, policy=rules, changes=(), duration_s=duration_s, arrivals=Arrivals("poisson", (Phase(0.0, 3 * most),))
    )
    done = simulate(chosen)
    late = sorted(record.latency_s for record in done.records if record.row.label is not None)
    settled = late_after(done, _SETTLED_S)
    summary = done.summary
    yield {
        "offered_per_s": 3 * most, "target_p99_s": target_s, "p99_s": _p99(late), "p99_after_10_s": _p99(settled),
        "admitted": summary.admitted, "completed": summary.completed, "errors": summary.errors,
        "refused": summary.refused, "pending": summary.pending, "accuracy": summary.accuracy,
        "rate_per_s": summary.rate_per_s, "bound_per_s": most, "threshold": summary.threshold,
        "most_under_way": max(one.pending for one in done.timeline),
        "most_at_the_source": max(one.source_queue for one in done.timeline),
    }  # fmt: skip


def _alone_s(scenario: Scenario) -> float:
    """Seconds of compute of an item that passes all layers, each at the slowest node that has it."""
    speeds = [node for node in scenario.nodes if node.span is not None]
    layers = range(scenario.model.plan.layer_count)
    of_layer = [
        max(node.speed.layer_s[layer] for node in speeds if node.span is not None and layer in node.span)
        for layer in layers
    ]
    return sum(of_layer)


def _transfer_s(scenario: Scenario) -> float:
    """Seconds of what leaves the source at the end of its span, over the slowest link; on a shared medium twice."""
    stop = scenario.source.span.stop if scenario.source.span else 0
    plan = scenario.model.plan
    return cut_seconds(scenario, plan.feature_bytes[stop]) if stop < plan.layer_count else 0.0


def late_after(done: Simulated, begin_s: float) -> list[float]:
    """Latencies of the items answered after the first seconds, rising."""
    skipped = next((one.completed for one in done.timeline if one.elapsed_s >= begin_s), 0)
    answered = [record.latency_s for record in done.records if record.row.label is not None]
    return sorted(answered[skipped:])


def _p99(rising: Sequence[float]) -> float | None:
    return rising[max(math.ceil(0.99 * len(rising)) - 1, 0)] if rising else None


def _show(rows: Sequence[Row]) -> None:
    console = Console()
    steady = {(row["scenario"], row["policy"]): row for row in rows if row["what"] == "steady"}
    ran = [policy for policy in OPTIMUM_POLICIES if any(policy == of for _, of in steady)]
    table = Table("scenario", *ran, title="share of the bound, saturated, at the accuracy of the run")
    for name in dict.fromkeys(scenario for scenario, _ in steady):
        found = [steady[name, policy]["efficiency"] for policy in ran]
        table.add_row(name, *("-" if one is None else f"{one:.3f}" for one in found))
    console.print(table)
    steps = Table("policy", "change", "rate", "bound", "seconds to 90 %", title="a node four times slower, and back")
    for row in (row for row in rows if row["what"] == "step"):
        took = row["seconds_to_90_percent"]
        most = row["bound_per_s"] or 0.0
        steps.add_row(
            row["policy"],
            row["change"],
            f"{row['rate_per_s']:.1f}",
            f"{most:.1f}",
            "-" if took is None else f"{took:g}",
        )
    console.print(steps)
    over = Table("scenario", "target p99", "p99", "after 10 s", "admitted", "errors", "refused", "under way",
                 title="three times the bound's rate for a minute, policy latency")  # fmt: skip
    for row in (row for row in rows if row["what"] == "overload"):
        times = [f"{(row[key] or 0) * 1000:.0f} ms" for key in ("target_p99_s", "p99_s", "p99_after_10_s")]
        counts = [f"{row[key]:,}" for key in ("admitted", "errors", "refused", "most_under_way")]
        over.add_row(row["scenario"], *times, *counts)
    console.print(over)
