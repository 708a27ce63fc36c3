"""The solver of ``--adapt optimiser``: the highest threshold that makes room for the load, and who does which part.

It is the bound's programme on measured numbers, where all items have one setting of thresholds. Runs in a thread.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Final

from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.optimum.bound import Search
from mdi_exit.optimum.exits import ExitTable, Setting
from mdi_exit.optimum.problem import Group, Medium, Node, Problem, Work
from mdi_exit.optimum.programme import Layout, Solution, Target, solve
from mdi_exit.routes import RoutingAnswer, RoutingChoice, RoutingProblem

__all__ = ["RouteSolver"]

_HOP_PRICE: Final = 1e-3
_LEAST_SHARE: Final = 0.005
_SINGLES: Final = 24
_ACCURACY_STEP: Final = 1e-4
_KEPT: Final = 12


class RouteSolver:
    """``exits``: outcomes recorded with this model, if there are any.

    With them each exit has a threshold of its own, chosen by the bound's search: the best accuracy that makes room for the
    load or, where there is no given load, the largest rate at the accuracy that the present threshold has. Without them
    one threshold moves all exits, by what the nodes report of their scores.
    """

    SETTINGS: Final = 10_000  # fewer than of the bound: among many some look good by chance

    def __init__(self, exits: ExitTable | None = None) -> None:
        self.exits = exits
        self._known: list[Setting] = []

    def solve(self, asked: RoutingProblem) -> RoutingAnswer | None:
        """None where no load at all can be carried. Raises ``UsageError`` without SciPy."""
        try:
            if self.exits is not None and self.exits.exits == len(asked.exits) > 1:
                return self._by_outcomes(asked, self.exits)
            return _by_mix(asked)
        except MdiExitError as error:
            if isinstance(error, UsageError):
                raise
            return None

    def _by_outcomes(self, asked: RoutingProblem, exits: ExitTable) -> RoutingAnswer | None:
        search = Search(_problem(asked), exits, self._known)
        target = _target(asked, exits, search)
        if search.best(target) is None:
            return None
        even = [exits.at(choice.thresholds) for choice in asked.choices]
        tried = [(_alone(search.layout, setting), setting) for setting in search.singles(target, _SINGLES, even)]
        self._known = search.settings[-_KEPT:]
        if not tried:
            return None
        solution, setting = max(tried, key=lambda pair: (pair[0].rates[0], pair[1].accuracy))
        if solution.rates[0] <= 0:
            return None
        return RoutingAnswer(asked.choices[0].threshold, solution.rates[0], _shares(solution), setting.thresholds)


def _by_mix(asked: RoutingProblem) -> RoutingAnswer | None:
    layout = Layout(_problem(asked))
    solved: dict[int, Solution] = {}

    def rate(number: int) -> float:
        if number not in solved:
            solved[number] = _alone(layout, _setting(asked.choices[number]))
        return solved[number].rates[0]

    number = _first_with_room(asked, rate)
    found = rate(number)
    if found <= 0:
        return None
    return RoutingAnswer(asked.choices[number].threshold, found, _shares(solved[number]))


def _target(asked: RoutingProblem, exits: ExitTable, search: Search) -> Target:
    """The accuracy to keep to: that of the threshold in force, or the best at the rate that is wanted."""
    if asked.wanted is None:
        return Target(accuracy=exits.at(asked.choices[0].thresholds).accuracy)
    lowest = exits.at(asked.lowest).accuracy
    best = search.most_accurate(asked.wanted)
    return Target(accuracy=lowest if best is None else max(best.accuracy - _ACCURACY_STEP, lowest))


def _alone(layout: Layout, setting: Setting) -> Solution:
    return solve(layout, [setting], Target(), hop_price=_HOP_PRICE)


def _first_with_room(asked: RoutingProblem, rate: Callable[[int], float]) -> int:
    """The first choice whose rate is enough, by halving; the last one if none is."""
    if asked.wanted is None:
        return 0
    low, high = 0, len(asked.choices) - 1
    while low < high:
        middle = (low + high) // 2
        if rate(middle) >= asked.wanted:
            high = middle
        else:
            low = middle + 1
    return low


def _setting(choice: RoutingChoice) -> Setting:
    heads = (*(threshold < 1.0 for threshold in choice.thresholds), True)
    return Setting(choice.thresholds, choice.reach, 1.0, heads)


def _problem(asked: RoutingProblem) -> Problem:
    names = frozenset(node.name for node in asked.nodes)
    by_reach: dict[frozenset[str], set[str]] = defaultdict(set)
    media = []
    for node in asked.nodes:
        reach = names if node.neighbours is None else (node.neighbours & names) | {node.name}
        by_reach[reach].add(node.name)
        if asked.channel is None and node.bytes_per_s is not None and 0 < node.bytes_per_s < math.inf:
            here = frozenset({node.name})
            media.append(Medium(f"{node.name} up", here, frozenset(), node.bytes_per_s))
            media.append(Medium(f"{node.name} down", frozenset(), here, node.bytes_per_s))
    if asked.channel is not None:
        of = asked.channel
        media.append(Medium("channel", names, names, of.bytes_per_s, math.inf, of.message_bytes, of.answer_bytes))
    return Problem(
        source=asked.source,
        exits=asked.exits,
        cut_bytes=tuple(float(size) for size in asked.cut_bytes),
        nodes=tuple(Node(node.name, tuple(Work(*work) for work in node.works)) for node in asked.nodes),
        groups=tuple(Group(frozenset(senders), reach) for reach, senders in by_reach.items()),
        media=tuple(media),
    )


def _shares(solution: Solution) -> tuple[tuple[int, str, dict[str, float]], ...]:
    """Where each node's tasks at each layer go: what it works on itself, and what it sends, split as the group receives."""
    works: dict[tuple[str, int], float] = defaultdict(float)
    sends: dict[tuple[int, str, int], float] = {}
    receives: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    for column, rate in solution.flows:
        match column.kind:
            case "work":
                works[column.node, column.boundary] += rate
            case "send":
                sends[column.group, column.node, column.boundary] = rate
            case "receive":
                receives[column.group, column.boundary][column.node] = rate
            case _:
                pass
    found: dict[tuple[int, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (group, node, layer), rate in sends.items():
        others = {name: got for name, got in receives[group, layer].items() if name != node and got > 0}
        total = sum(others.values())
        for name, got in others.items():
            found[layer, node][name] += rate * got / total
    for (layer, node), parts in found.items():
        arrived = sum(got[node] for (_, at), got in receives.items() if at == layer and node in got)
        own = max(works[node, layer] - arrived, 0.0)
        if own > 0:
            parts[node] = own
    return tuple((layer, node, kept) for (layer, node), parts in sorted(found.items()) if (kept := _kept(parts)))


def _kept(parts: dict[str, float]) -> dict[str, float]:
    """As shares of 1, without what is not worth a hop."""
    total = sum(parts.values())
    kept = {name: part for name, part in parts.items() if part > _LEAST_SHARE * total}
    total = sum(kept.values())
    return {name: round(part / total, 4) for name, part in kept.items()} if total > 0 else {}
