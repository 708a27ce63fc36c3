"""From where on it is better to keep the whole model at the source, or everywhere, than to distribute it: by the bound.

Each of the three has its best policy, with early exits: the largest rate at an accuracy of a point below that of the whole
network. One thing is changed at a time, all else is the scenario's: the speed of the source, or the rate of all links.
Memory needs no search: who keeps the whole model needs all its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from mdi_exit.optimum.bound import largest_rate
from mdi_exit.optimum.exits import ExitTable
from mdi_exit.optimum.problem import Problem
from mdi_exit.simulation.baselines import as_baseline
from mdi_exit.simulation.bound import exit_table, problem_of
from mdi_exit.simulation.record import trace_of
from mdi_exit.simulation.scenario import Scenario, read_scenario

__all__ = ["BreakEven", "break_even"]

_SETTINGS: Final = 200
_POINT: Final = 0.01
_FARTHEST: Final = 256.0
_STEPS: Final = 7


@dataclass(frozen=True, slots=True)
class BreakEven:
    """One scenario and baseline. ``rate_per_s``: of the baseline, ``distributed_per_s``: of the scenario's placement.

    ``source_speed`` and ``link_rate``: factors on the scenario's from which on the baseline has the larger rate (of
    ``source-only``, the link rate up to which it has); None: it has nowhere from 1/256 to 256, the end of that range: it
    has everywhere. ``whole_bytes``: of the model; ``most_held_bytes``: of the node that holds most in the scenario.
    """

    HEAD: ClassVar = (
        "Bounds at a point below the accuracy of the whole network, and what the baseline needs to pass the scenario's:\n",
        "| scenario | baseline | its bound/s | the scenario's bound/s | source speed, times | link rate, times "
        "| memory, MB, and most in the scenario |",
        "|---|---|---|---|---|---|---|",
    )

    scenario: str
    baseline: str
    rate_per_s: float
    distributed_per_s: float
    source_speed: float | None
    link_rate: float | None
    whole_bytes: int
    most_held_bytes: int

    def line(self) -> str:
        """A row of the table."""
        memory = f"{self.whole_bytes / 1e6:.1f}, {self.most_held_bytes / 1e6:.1f}"
        rates = f"{self.rate_per_s:.1f} | {self.distributed_per_s:.1f}"
        return (
            f"| {self.scenario} | {self.baseline} | {rates} | {_factor(self.source_speed)} "
            f"| {_factor(self.link_rate, 'at most ' if self.baseline == 'source-only' else '')} "
            f"| {memory} |"
        )


def _factor(found: float | None, word: str = "") -> str:
    if found is None:
        return "never"
    end = _FARTHEST if word else 1 / _FARTHEST
    return "always" if found == end else f"{word}{found:.2g}"


def break_even(file: Path) -> list[BreakEven]:
    """Of ``source-only`` and ``data-distributed``. Raises ``MdiExitError``."""
    given = read_scenario(file)
    exits = exit_table(trace_of(given), settings=_SETTINGS)
    accuracy = exits.at([1.0] * (exits.exits - 1)).accuracy - _POINT
    sizes = given.model.layer_bytes
    held = max(sum(sizes[layer] for layer in node.span) for node in given.nodes if node.span)
    found = []
    for name in ("source-only", "data-distributed"):

        def margin(speed: float, links: float, name: str = name) -> tuple[float, float]:
            return (
                _rate(_problem(as_baseline(given, name), name, speed, links), exits, accuracy),
                _rate(_problem(given, "", speed, links), exits, accuracy),
            )

        own, other = margin(1.0, 1.0)
        found.append(BreakEven(
            given.name, name, own, other, _crossing(lambda factor: margin(factor, 1.0)),
            _crossing(lambda factor: margin(1.0, factor), falls=name == "source-only"), sum(sizes), held,
        ))  # fmt: skip
    return found


def _problem(scenario: Scenario, name: str, speed: float, links: float) -> Problem:
    media = {key: replace(medium, bytes_per_s=medium.bytes_per_s * links) for key, medium in scenario.media.items()}
    nodes = [
        replace(node, link=replace(
            node.link,
            up_bytes_per_s=node.link.up_bytes_per_s and node.link.up_bytes_per_s * links,
            down_bytes_per_s=node.link.down_bytes_per_s and node.link.down_bytes_per_s * links,
        ))
        for node in scenario.nodes
    ]  # fmt: skip
    problem = problem_of(replace(scenario, source=nodes[0], agents=tuple(nodes[1:]), media=media))
    faster = tuple(
        replace(node, count=node.count * speed) if node.name == problem.source else node for node in problem.nodes
    )
    groups = problem.groups
    if name == "data-distributed":
        groups = tuple(replace(group, only_raw=True) for group in groups)
    return replace(problem, nodes=faster, groups=groups)


def _rate(problem: Problem, exits: ExitTable, accuracy: float) -> float:
    found = largest_rate(problem, exits, accuracy=accuracy)
    return found.rate if found else 0.0


def _crossing(margin: Callable[[float], tuple[float, float]], *, falls: bool = False) -> float | None:
    """The factor at which the first rate passes the second, by halving on a scale of powers, to a few percent.

    ``falls``: it is larger below the factor, and smaller above.
    """

    def wins(factor: float) -> bool:
        own, other = margin(1 / factor if falls else factor)
        return own >= other * (1 - 1e-4)

    low, high = 1 / _FARTHEST, _FARTHEST
    if not wins(high):
        return None
    if wins(low):
        return _FARTHEST if falls else low
    for _ in range(_STEPS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if wins(middle) else (middle, high)
    return 1 / high if falls else high
