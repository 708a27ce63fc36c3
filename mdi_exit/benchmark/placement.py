"""Plans judged: against the best of all placements, against the even split, and by the time that they take."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from mdi_exit.errors import MdiExitError
from mdi_exit.placement import Device, Problem, best_placement, even_split, predict, valued
from mdi_exit.placement.rate import rate_limit
from mdi_exit.segments import ModelPlan
from mdi_exit.simulation.run import simulate
from mdi_exit.simulation.scenario import read_scenario
from mdi_exit.span import LayerSpan

__all__ = ["best_of_all", "placement_rows", "random_problem", "show_placement"]

_COMBINATIONS: Final = 50_000
_INSTANCES: Final = 200


def random_problem(
    rng: Random,
    *,
    nodes: int | None = None,
    layers: int | None = None,
    links: bool = True,
    combinations: int | None = None,
) -> Problem:
    """A deployment by chance: 2 to 6 nodes up to 16 times apart in speed, memory for a quarter to all of the model each, half
    the links slow enough to matter. ``combinations``: how many placements there may be at most.
    """
    for _ in range(10_000):
        found = _drawn(rng, nodes or rng.randint(2, 6), layers or rng.randint(3, 6), links=links)
        ways = math.prod(len(found.spans_of(device)) + 1 for device in found.movable)
        if found.covered(span for device in found.movable for span in found.spans_of(device)) and (
            combinations is None or ways <= combinations
        ):
            return found
    raise MdiExitError(f"expected a problem with at most {combinations} placements, got none in 10000 draws")


def _drawn(rng: Random, nodes: int, layers: int, *, links: bool) -> Problem:
    inner = rng.sample(range(layers - 1), rng.randint(0, min(3, layers - 1)))
    exits = (*sorted(inner), layers - 1)
    costs = [0.01 * rng.uniform(0.5, 3.0) for _ in range(layers)]
    sizes = tuple(int(rng.choice((800, 2000, 8000, 30_000)) * rng.uniform(0.5, 1.5)) for _ in range(layers))
    held = tuple(int(1e6 * rng.uniform(1.0, 4.0)) for _ in range(layers))
    reach = [1.0]
    for layer in range(1, layers):
        reach.append(reach[-1] * (rng.uniform(0.4, 1.0) if layer - 1 in exits else 1.0))
    limits = (2.5e5, 1e6, 5e6)
    devices = [Device("source", tuple(costs), 0, rng.choice((math.inf, 1e6)) if links else math.inf, fixed=True)]
    for number in range(1, nodes + 1):
        speed, uneven = rng.choice((0.25, 1.0, 1.0, 2.0, 4.0)), rng.random() < 0.3
        devices.append(
            Device(
                f"node-{number}",
                tuple(cost / speed * (rng.uniform(0.7, 1.4) if uneven else 1.0) for cost in costs),
                int(sum(held) * rng.uniform(0.25, 1.0)),
                rng.choice(limits) if links and rng.random() < 0.5 else math.inf,
            )
        )
    return Problem(ModelPlan("a" * 32, layers, exits, sizes, layer_bytes=held), tuple(reach), tuple(devices), "source")


def best_of_all(problem: Problem, at_least: float = 0.0) -> tuple[float, int]:
    """The largest rate of all placements, at least ``at_least`` (a rate that one is known to have), and how many were looked
    at: those whose ``rate_limit`` is below what is known already are passed over, which changes nothing.
    """
    known, seen = [at_least], 0
    for spans in _placements(problem, known):
        seen += 1
        known[0] = max(known[0], predict(problem, spans, above=known[0]).rate_per_s)
    return known[0], seen


def _placements(problem: Problem, known: list[float]) -> Iterator[dict[str, LayerSpan]]:
    """All that may be better than ``known[0]``, which may grow on the way."""
    free = problem.movable
    everywhere = LayerSpan(0, problem.plan.layer_count)
    given = {device.name: device.span for device in problem.devices if device.fixed and device.span is not None}

    def extended(index: int, spans: dict[str, LayerSpan]) -> Iterator[dict[str, LayerSpan]]:
        open_ = {device.name: everywhere for device in free[index:]}
        if rate_limit(problem, {**spans, **open_}) <= known[0] * (1 + 1e-9):
            return
        if index == len(free):
            yield spans
            return
        for span in sorted(problem.spans_of(free[index]), key=len, reverse=True):
            yield from extended(index + 1, {**spans, free[index].name: span})
        yield from extended(index + 1, spans)

    return extended(0, given)


def one_slow(layers: int, nodes: int, factor: float) -> Problem:
    """Nodes alike but for the last, which is ``factor`` times slower; nobody holds more than its even share and one layer."""
    share = -(-layers // nodes) + 1
    costs = (0.01,) * layers
    devices = [Device("source", costs, 0, fixed=True)]
    for number in range(1, nodes + 1):
        slow = factor if number == nodes else 1.0
        devices.append(Device(f"node-{number}", tuple(slow * cost for cost in costs), share))
    plan = ModelPlan("a" * 32, layers, (layers - 1,), (1000,) * layers, layer_bytes=(1,) * layers)
    return Problem(plan, (1.0,) * layers, tuple(devices), "source")


def placement_rows(scale: float) -> list[dict[str, Any]]:
    """All rows: ``best`` (plan and best of all), ``uneven`` (one slow node), ``time`` (how long a plan takes)."""
    rows: list[dict[str, Any]] = []
    seed, wanted = -1, max(int(_INSTANCES * scale), 1)
    while len(rows) < wanted:
        seed += 1
        problem = random_problem(Random(seed), links=seed % 2 == 0, combinations=_COMBINATIONS)
        begin = time.perf_counter()
        found = best_placement(problem)
        seconds = time.perf_counter() - begin
        best, seen = best_of_all(problem, found.rate_per_s)
        if best == 0.0:
            continue  # no placement holds all layers: nothing to compare
        rows.append(
            {
                "name": "best",
                "seed": seed,
                "nodes": len(problem.movable),
                "layers": problem.plan.layer_count,
                "rate_per_s": found.rate_per_s,
                "best_per_s": best,
                "of_best": found.rate_per_s / best,
                "predictions": found.predictions,
                "placements_looked_at": seen,
                "seconds": seconds,
            }
        )
    for nodes in (2, 3, 4, 5, 6):
        problem = one_slow(9, nodes, 4.0)
        auto, even = best_placement(problem).rate_per_s, valued(problem, even_split(problem)).rate_per_s
        rows.append({"name": "uneven", "nodes": nodes, "rate_per_s": auto, "even_per_s": even, "gain": auto / even})
    rows += simulated_rows(max(60.0 * scale, 20.0))
    for nodes, layers in ((3, 9), (6, 9), (10, 9), (20, 20)):
        problem = random_problem(Random(nodes), nodes=nodes, layers=layers)
        begin = time.process_time()
        found = best_placement(problem)
        rows.append(
            {
                "name": "time",
                "nodes": nodes,
                "layers": layers,
                "cpu_s": time.process_time() - begin,
                "predictions": found.predictions,
                "of_limit": found.rate_per_s / rate_limit(problem, _everywhere(problem)),
            }
        )
    return rows


_BOARDS: Final = """
[source]
profile = "laptop"

[run]
rate = "max"
exit_threshold = 0.8
duration = "{seconds}s"
"""
_BOARD: Final = """
[[agents]]
name = "board-{number}"
layers = "{layers}"
memory = "2.1MB"
profile = "{profile}"
"""
_EVEN: Final = ("0-1", "2-3", "4-5", "6-8")


def simulated_rows(seconds: float) -> list[dict[str, Any]]:
    """The shipped model on four boards, the last or the first of them four times slower, saturated, in virtual time: layers
    split evenly, and placed by the source. The first ten seconds, in which spans are given, do not count.
    """
    rows: list[dict[str, Any]] = []
    for slow in (0, 3):
        for placed in (False, True):
            text = _BOARDS.format(seconds=seconds)
            for number, layers in enumerate(_EVEN):
                profile = "jetson-nanox0.25" if number == slow else "jetson-nano"
                text += _BOARD.format(number=number + 1, layers="auto" if placed else layers, profile=profile)
            with tempfile.TemporaryDirectory(prefix="mdi-exit-placement-") as folder:
                path = Path(folder) / "boards.toml"
                path.write_text(text)
                done = simulate(read_scenario(path))
            first = next(shot for shot in done.timeline if shot.elapsed_s >= 10.0)
            last = done.timeline[-1]
            rate = (last.completed - first.completed) / (last.elapsed_s - first.elapsed_s)
            rows.append(
                {
                    "name": "simulated",
                    "slow": slow + 1,
                    "placement": "auto" if placed else "even",
                    "rate_per_s": rate,
                    "accuracy": done.summary.accuracy,
                    "errors": done.summary.errors,
                    "duplicates": done.summary.duplicates,
                }
            )
    return rows


def _everywhere(problem: Problem) -> dict[str, LayerSpan]:
    return {device.name: LayerSpan(0, problem.plan.layer_count) for device in problem.movable}


def show_placement(rows: list[dict[str, Any]]) -> None:
    """A table of the figures that matter."""
    table = Table(title="Placement")
    table.add_column("what")
    table.add_column("measured", justify="right")
    shares = sorted(row["of_best"] for row in rows if row["name"] == "best")
    table.add_row(f"plan / best of all placements, {len(shares)} deployments by chance: least", f"{shares[0]:.4f}")
    table.add_row("its 5 % quantile", f"{shares[len(shares) // 20]:.4f}")
    table.add_row("its median", f"{median(shares):.4f}")
    table.add_row("share of plans that are the best", f"{sum(s > 1 - 1e-6 for s in shares) / len(shares):.3f}")
    for row in rows:
        if row["name"] == "uneven":
            table.add_row(f"{row['nodes']} nodes, one 4× slower: plan / even split", f"{row['gain']:.2f}")
    simulated = {(row["slow"], row["placement"]): row["rate_per_s"] for row in rows if row["name"] == "simulated"}
    for slow in sorted({slow for slow, _ in simulated}):
        auto, even = simulated[slow, "auto"], simulated[slow, "even"]
        table.add_row(f"simulated, board {slow} of 4 slow: placed / even split", f"{auto / even:.2f}")
        table.add_row("its items a second, placed and even", f"{auto:.1f}, {even:.1f}")
    for row in rows:
        if row["name"] == "time":
            table.add_row(
                f"a plan of {row['nodes']} nodes × {row['layers']} layers, processor time",
                f"{1000 * row['cpu_s']:.0f} ms",
            )
    Console(width=110).print(table)
