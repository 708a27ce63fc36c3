"""Whether retries make the overload worse: three times the capacity, faults that cost no capacity to speak of, virtual time.

Goodput is what is completed a second, while input comes. Each fault is run with the retries' budget and back-off as they are,
and again without a budget and without patience, which is what they are there for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from mdi_exit.events import TransportDown, TransportUp
from mdi_exit.items import RetryTimer
from mdi_exit.simulation import SimulatedNetwork
from mdi_exit.simulation.run import Simulation
from mdi_exit.simulation.scenario import read_scenario

__all__ = ["FAULTS", "Load", "measure_retry", "run_load", "show_retry"]

_AGENTS: Final = ("a", "b", "c")
_SCENARIO: Final = """
[links]
delay = "2ms"
loss = {loss}

[source]
layers = "0-3"
profile = "laptop"

{agents}

[run]
rate = "{rate}"
exit_threshold = 0.9
duration = "{seconds}s"
seed = {seed}
"""
_AGENT: Final = """
[[agents]]
name = "{name}"
layers = "4-8"
profile = "jetson-nano"
"""


@dataclass(frozen=True, slots=True)
class _Fault:
    """``loss``: of features and acknowledgements; ``begin`` and ``end``: of what happens at 40 % of the run, ``for_s``."""

    about: str
    loss: float = 0.0
    begin: Callable[[SimulatedNetwork], None] | None = None
    end: Callable[[SimulatedNetwork], None] | None = None
    for_s: float = 0.0


def _down(net: SimulatedNetwork) -> None:
    for name in net.nodes:
        net.cut(name)
        net.at(net.now, name, TransportDown(), net.nodes[name])


def _up(net: SimulatedNetwork) -> None:
    for name in net.nodes:
        net.cut_off.discard(name)
        net.at(net.now, name, TransportUp(), net.nodes[name])


FAULTS: Final[dict[str, _Fault]] = {
    "none": _Fault("no fault"),
    "loss": _Fault("5 % of features and acknowledgements are lost", loss=0.05),
    "stop": _Fault("an agent is stopped for 4 s", begin=lambda n: n.freeze("a"), end=lambda n: n.thaw("a"), for_s=4.0),
    "cut": _Fault("an agent is cut off for 4 s", begin=lambda n: n.cut("a"), end=lambda n: n.rejoin("a"), for_s=4.0),
    "broker": _Fault("the broker is away for 2 s", begin=_down, end=_up, for_s=2.0),
}


@dataclass(frozen=True, slots=True)
class Load:
    """``times`` the capacity ``capacity_per_s`` for ``seconds``; ``patient``: retries have their budget and back-off."""

    fault: str
    capacity_per_s: float
    times: float = 3.0
    seconds: float = 60.0
    seed: int = 0
    patient: bool = True


def _simulation(rate: str, seconds: float, seed: int, loss: float) -> Simulation:
    agents = "".join(_AGENT.format(name=name) for name in _AGENTS)
    with tempfile.TemporaryDirectory(prefix="mdi-exit-retry-") as folder:
        path = Path(folder) / "retry.toml"
        path.write_text(_SCENARIO.format(loss=loss, agents=agents, rate=rate, seconds=seconds, seed=seed))
        return Simulation(read_scenario(path))


def capacity_per_s(seconds: float, seed: int) -> float:
    """Items a second that the three agents and the source complete when there is always another one."""
    return _simulation("max", seconds, seed, 0.0).run().timeline[-1].completed / seconds


def run_load(load: Load) -> dict[str, Any]:
    """One run; its row."""
    fault = FAULTS[load.fault]
    simulation = _simulation(f"{load.times * load.capacity_per_s:.3f}/s", load.seconds, load.seed, fault.loss)
    (cell,) = simulation.cells
    net, source = cell.network, cell.source
    if not load.patient:
        source.config = replace(source.config, retry_share=1e6, max_attempts=1000)
        source.retry_timer = RetryTimer(0.1, most_s=0.1)
    if fault.begin is not None and fault.end is not None:
        begin, end, at = fault.begin, fault.end, 0.4 * load.seconds
        net.clock.call_at(at, lambda *_: begin(net))
        net.clock.call_at(at + fault.for_s, lambda *_: end(net))
    done = simulation.run()
    last = done.timeline[-1]
    return {
        "fault": load.fault,
        "retries": "as they are" if load.patient else "without budget and back-off",
        "seed": load.seed,
        "offered_per_s": load.times * load.capacity_per_s,
        "goodput_per_s": last.completed / load.seconds,
        "admitted": done.summary.admitted,
        "completed": done.summary.completed,
        "errors": done.summary.errors,
        "pending": done.summary.pending,
        "refused": done.summary.refused,
        "retried": done.summary.retried,
        "duplicates": done.summary.duplicates,
        "latency_p99_s": done.summary.latency_s.p99 if done.summary.latency_s else None,
    }


def measure_retry(scale: float) -> list[dict[str, Any]]:
    """All faults, with and without patience, on ``3 * scale`` seeds; ``of_none``: goodput over that without fault."""
    rows = []
    for seed in range(max(round(3 * scale), 1)):
        capacity = capacity_per_s(30.0, seed)
        plain = run_load(Load("none", capacity, seed=seed))["goodput_per_s"]
        for patient in (True, False):
            for name in FAULTS:
                row = run_load(Load(name, capacity, seed=seed, patient=patient))
                rows.append(row | {"capacity_per_s": capacity, "of_none": row["goodput_per_s"] / plain})
    return rows


def show_retry(rows: list[dict[str, Any]]) -> None:
    """Least and mean over the seeds."""
    table = Table(title="Retries at three times the capacity")
    table.add_column("fault")
    table.add_column("retries")
    for name in ("goodput/s", "of that without faults: least", "mean", "retries/admitted", "duplicates", "errors"):
        table.add_column(name, justify="right")
    for retries in dict.fromkeys(row["retries"] for row in rows):
        for fault in FAULTS:
            runs = [row for row in rows if (row["fault"], row["retries"]) == (fault, retries)]
            admitted = sum(row["admitted"] for row in runs)
            shares = [row["of_none"] for row in runs]
            table.add_row(
                FAULTS[fault].about,
                retries,
                f"{sum(row['goodput_per_s'] for row in runs) / len(runs):.1f}",
                f"{min(shares):.3f}",
                f"{sum(shares) / len(shares):.3f}",
                f"{sum(row['retried'] for row in runs) / admitted:.4f}",
                str(sum(row["duplicates"] for row in runs)),
                str(sum(row["errors"] for row in runs)),
            )
    Console(width=150).print(table)
