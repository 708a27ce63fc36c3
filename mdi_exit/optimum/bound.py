"""The bound: the largest rate at each accuracy that no policy can pass, by a linear programme and column generation.

The programme is that of multi-commodity flow with losses: items come in at the source, nodes turn tasks into later ones,
exits let a share of them out, links carry the others. Every relaxation is upward, so that what a real or simulated run
reaches is at most this:

- Steady state: no queue is ever empty while another waits, no time is lost to reports, acknowledgements, retries or the
  order of arrivals; their bytes cost nothing. What ends elsewhere than at the source takes ``answer_bytes`` on its way.
- Each work takes the least seconds an item of all batch sizes, and batches are always full.
- A load may be divided in any proportion, at any instant, by one who knows everything.
- Every exit has a threshold of its own, and items are mixed over all settings of thresholds in any proportion at the same
  time, which covers thresholds that change in time or differ by node (the upper concave envelope of rate × accuracy
  against rate, and more, since settings that load different nodes go on side by side). Where an exit's threshold is 1
  its head costs nothing. What is not covered: leaving an exit for a reason that knows more of the item than the score
  there, so an oracle could pass the bound.
- Tasks may be relayed by any node that takes that layer; a loss on a link costs nothing.
- A star's transfer takes of the sender's uplink, the broker and the receiver's downlink, at the nominal capacity; delays
  cost nothing.
- Where placement is free, a layer may be held in part, in any set of layers, as long as the memory suffices.

Settings are found by column generation (Dantzig and Wolfe): at the prices of nodes and links that the programme of a few
settings gives, the cheapest path of every setting of the table follows by dynamic programming over boundaries, and the
most profitable one is added, after its thresholds have been moved to the best recorded scores near it. The value given
back is increased by what profit is left, which makes it a bound over the whole table even if stopped early.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from mdi_exit.errors import MdiExitError
from mdi_exit.optimum.exits import ExitTable, Floats, Setting
from mdi_exit.optimum.problem import Problem
from mdi_exit.optimum.programme import Column, Layout, Solution, Target, solve

__all__ = ["Bound", "Search", "best_accuracy", "efficiency", "frontier", "largest_rate"]

_ROUNDS: Final = 60
_PROFIT: Final = 1e-5
_STARTS: Final = 24


@dataclass(frozen=True, slots=True)
class Bound:
    """No policy has more than ``rate`` items a second at a mean accuracy of at least ``accuracy``.

    ``mixture``: settings and the share of items that each has; ``busy``: share of each node's and medium's capacity in
    use, by its kind and name; ``flows``: the rate of each work and transfer.
    """

    rate: float
    accuracy: float
    mixture: tuple[tuple[Setting, float], ...]
    busy: dict[str, float]
    flows: tuple[tuple[Column, float], ...]

    @property
    def limits(self) -> tuple[str, ...]:
        """What is used up: to have more, there must be more of one of these."""
        return tuple(name for name, share in self.busy.items() if share > 1 - 1e-6)


def largest_rate(
    problem: Problem, exits: ExitTable, *, accuracy: float = 0.0, most: float = math.inf, known: Sequence[Setting] = ()
) -> Bound | None:
    """The largest rate at a mean accuracy of at least ``accuracy``, at most ``most``; None if none has that accuracy.

    ``known``: settings that were seen in use, to be counted on whatever the table holds.
    """
    return Search(problem, exits, known).best(Target(accuracy=accuracy, most=most))


def best_accuracy(problem: Problem, exits: ExitTable, rate: float) -> Bound | None:
    """The best mean accuracy at just ``rate`` items a second; None if the rate is out of reach."""
    return Search(problem, exits).most_accurate(rate)


def frontier(problem: Problem, exits: ExitTable, points: int = 12) -> tuple[Bound, ...]:
    """The largest rate at ``points`` accuracies, from the best that goes with the largest rate of all to the best of
    all, rates falling.
    """
    search = Search(problem, exits)
    fastest = search.best(Target())
    begin = search.most_accurate(fastest.rate * (1 - 1e-4)) if fastest else None
    if begin is None:
        return ()
    accuracies = np.linspace(begin.accuracy, search.best_known_accuracy, max(points, 2))
    found = [search.best(Target(accuracy=float(accuracy))) for accuracy in accuracies]
    return tuple(bound for bound in found if bound is not None)


def efficiency(
    problem: Problem, exits: ExitTable, *, rate: float, accuracy: float, offered: float = math.inf
) -> float | None:
    """``rate`` as a share of the most that could be had at this ``accuracy`` of the ``offered`` items a second.

    None where no setting has the accuracy: the items of a short run were easier than the recorded ones.
    """
    bound = largest_rate(problem, exits, accuracy=accuracy, most=offered)
    return None if bound is None or bound.rate <= 0 else rate / bound.rate


class Search:
    """Column generation on one problem; what was found for one target serves the next.

    ``known``: settings to begin with; ``finer``: whether thresholds between those of the table are tried.
    """

    def __init__(
        self, problem: Problem, exits: ExitTable, known: Sequence[Setting] = (), *, finer: bool = True
    ) -> None:
        if exits.exits != len(problem.exits):
            raise ValueError(f"expected outcomes of {len(problem.exits)} exits, got {exits.exits}")
        self.exits, self._finer = exits, finer
        self.layout = Layout(problem)
        accurate = int(np.argmax(exits.accuracy_G))
        shallow = int(np.argmin(exits.reach_KG.sum(axis=0)))
        deep = int(np.argmax(exits.reach_KG.sum(axis=0) - exits.heads_KG.sum(axis=0) * 1e-9))
        first = [exits.setting(number) for number in dict.fromkeys((accurate, shallow, deep))]
        self.settings = list(dict.fromkeys([*first, *known, *(self._most_accurate() if finer else ())]))

    def _most_accurate(self) -> list[Setting]:
        """The best of those near the most accurate of the table; it may be better than all of these."""
        starts = np.argsort(-self.exits.accuracy_G)[:_STARTS]
        free = [0.0] * self.exits.exits
        found = [self.exits.finer(self.exits.setting(int(number)), 1.0, free) for number in starts]
        return [max(found, key=lambda setting: setting.accuracy)]

    @property
    def best_known_accuracy(self) -> float:
        """The best accuracy of any setting found so far."""
        return float(max(setting.accuracy for setting in self.settings))

    def best(self, target: Target) -> Bound | None:
        if target.accuracy > self.best_known_accuracy + 1e-12:
            return None
        for _ in range(_ROUNDS):
            solution = solve(self.layout, self.settings, target)
            number, profit = self._most_profitable(solution, target)
            if not self._add(number, profit, solution, target):
                break
        else:
            solution = solve(self.layout, self.settings, target)
            _, profit = self._most_profitable(solution, target)
        return self._bound(solution, max(profit, 0.0), target)

    def most_accurate(self, rate: float) -> Bound | None:
        reachable = self.best(Target(most=rate))
        if reachable is None or reachable.rate < rate * (1 - 1e-6):
            return None
        return self.best(Target(rate_worth=0.0, right_worth=1.0, most=rate, least=rate * (1 - 1e-6)))

    def singles(self, target: Target, count: int, more: Sequence[Setting] = ()) -> list[Setting]:
        """The settings, of the table and ``more``, that come nearest the best mixture each by itself, with at least the
        target's accuracy.
        """
        solution = solve(self.layout, self.settings, target)
        others = [*self.settings, *more]
        profit_G = self._profit(solution, target, self.exits)
        best = [
            self.exits.setting(int(number)) for number in np.argsort(-profit_G)[:count] if profit_G[number] > -np.inf
        ]
        others_profit = self._profit(solution, target, ExitTable(others))
        near = [others[int(number)] for number in np.argsort(-others_profit)[:count] if others_profit[number] > -np.inf]
        return list(dict.fromkeys([*near, *best]))

    def _profit(self, solution: Solution, target: Target, exits: ExitTable) -> Floats:
        """What each setting would gain an item at these prices; minus infinity below the accuracy."""
        cost_G = _cheapest(self.layout, solution, exits.reach_KG, exits.heads_KG)
        allowed = exits.accuracy_G >= target.accuracy - 1e-9
        return np.where(allowed, _worth(solution, target, exits.accuracy_G) - cost_G, -np.inf)

    def _most_profitable(self, solution: Solution, target: Target) -> tuple[int, float]:
        """Which setting of the table would gain most an item at these prices, and how much."""
        cost_G = _cheapest(self.layout, solution, self.exits.reach_KG, self.exits.heads_KG)
        profit_G = _worth(solution, target, self.exits.accuracy_G) - cost_G
        number = int(np.argmax(profit_G))
        return number, float(profit_G[number])

    def _add(self, number: int, profit: float, solution: Solution, target: Target) -> bool:
        """Take up what gains: the table's best, or what better thresholds make of it and of those in use."""
        found = [self.exits.setting(number)] if profit > _PROFIT else []
        worth = target.right_worth + solution.accuracy_price
        if worth > 0 and self._finer:
            used = [s for s, rate in zip(self.settings, solution.rates, strict=True) if rate > 1e-9]
            for setting in dict.fromkeys([self.exits.setting(number), *used]):
                costs = _cost_of_exits(self.layout, solution, setting)
                found.append(self.exits.finer(setting, worth, costs))
            gains = self._profit(solution, replace(target, accuracy=0.0), ExitTable(found))
            gains -= solution.accuracy_price * target.accuracy
            found = [setting for setting, gain in zip(found, gains, strict=True) if gain > _PROFIT]
        new = [setting for setting in dict.fromkeys(found) if setting not in self.settings]
        self.settings += new
        return bool(new)

    def _bound(self, solution: Solution, profit: float, target: Target) -> Bound:
        total = sum(solution.rates)
        if total <= 0:
            raise MdiExitError("the optimum: expected a rate above 0, got none: some layer is held by nobody")
        right = sum(rate * setting.accuracy for rate, setting in zip(solution.rates, self.settings, strict=True))
        slack = 1 / (1 - min(profit, 0.5)) if target.right_worth == 0 else 1.0
        more_right = profit if target.right_worth else 0.0
        shares = [(s, rate / total) for s, rate in zip(self.settings, solution.rates, strict=True) if rate > 1e-9]
        return Bound(
            rate=min(total * slack, target.most),
            accuracy=min(right / total + more_right, 1.0),
            mixture=tuple(shares),
            busy=_busy(self.layout, solution),
            flows=solution.flows,
        )


def _worth(solution: Solution, target: Target, accuracy: Floats) -> Floats:
    conditions = solution.accuracy_price * (target.accuracy - accuracy) + solution.rate_price
    return np.asarray(target.rate_worth + target.right_worth * accuracy - conditions)


def _busy(layout: Layout, solution: Solution) -> dict[str, float]:
    return {
        " ".join(row): solution.used.get(row, 0.0) / limit
        for row, limit in layout.limits.items()
        if row[0] not in ("hold", "memory") and limit > 0
    }


def _cheapest(layout: Layout, solution: Solution, reach_KG: Floats, heads_KG: Any) -> Floats:
    """Of each setting: the price of taking one item, and what becomes of it, along its cheapest path."""
    costs = _Costs(layout, solution, reach_KG, heads_KG)
    costs.fill()
    return costs.of[layout.problem.source, 0]


class _Costs:
    """The cheapest price onward from each (node, boundary), of each setting: from the last boundary to the first.

    Prices are per item admitted: those of a boundary are weighted with the share of items that comes there.
    """

    def __init__(self, layout: Layout, solution: Solution, reach_KG: Floats, heads_KG: Any) -> None:
        self.layout, self.reach_KG, self.heads_KG = layout, reach_KG, heads_KG
        self.prices = solution.prices
        self.of: dict[tuple[str, int], Floats] = {}
        self._never = np.full(reach_KG.shape[1], np.inf)

    def fill(self) -> None:
        for boundary in range(self.layout.problem.layers - 1, -1, -1):
            here = [column for column in self.layout.columns if column.boundary == boundary]
            for column in here:
                if column.work is not None:
                    self._offer((column.node, boundary), self.work(column))
            self._share_out(boundary, here)

    def work(self, column: Column) -> Floats:
        work, problem = column.work, self.layout.problem
        if work is None:
            raise ValueError(f"expected a column of work, got {column}")
        price = sum(self.prices.get(row, 0.0) * use for row, use in column.uses)
        comes = self.reach_KG[problem.block(work.entry)]
        own = comes * price * self.layout.seconds(work, self.heads_KG)
        if answer := sum(self.prices.get(row, 0.0) * use for row, use in column.answers):
            goes_on = self.reach_KG[problem.block(work.stop)] if work.stop < problem.layers else 0.0
            own = own + answer * (comes - goes_on)
        onward = self.of.get((column.node, work.stop), self._never) if work.stop < problem.layers else 0.0
        return np.asarray(own + onward)

    def transfer(self, column: Column) -> Floats:
        price = sum(self.prices.get(row, 0.0) * use for row, use in column.uses)
        return np.asarray(self.reach_KG[self.layout.problem.block(column.boundary)] * price)

    def _offer(self, place: tuple[str, int], cost_G: Floats) -> bool:
        known = self.of.get(place)
        if known is None:
            self.of[place] = cost_G
            return bool(np.isfinite(cost_G).any())
        better = bool((cost_G < known - 1e-15).any())
        if better:
            self.of[place] = np.minimum(known, cost_G)
        return better

    def _share_out(self, boundary: int, here: Sequence[Column]) -> None:
        """Transfers at one boundary, over several groups if need be, until none is cheaper."""
        changed = True
        while changed:
            changed = False
            for number in {column.group for column in here if column.group >= 0}:
                arrivals = [
                    self.transfer(column) + self.of[column.node, boundary]
                    for column in here
                    if (column.kind, column.group) == ("receive", number) and (column.node, boundary) in self.of
                ]
                if not arrivals:
                    continue
                received = np.minimum.reduce(arrivals)
                for column in here:
                    if (column.kind, column.group) == ("send", number):
                        changed |= self._offer((column.node, boundary), self.transfer(column) + received)


def _cost_of_exits(layout: Layout, solution: Solution, setting: Setting) -> list[float]:
    """What an item costs that leaves at each exit, along the cheapest path of this setting."""
    reach_KG = np.array(setting.reach)[:, None]
    heads_KG = np.array(setting.heads)[:, None]
    base = _Costs(layout, solution, reach_KG, heads_KG)
    base.fill()
    blocks = len(setting.reach)
    spent = [0.0] * blocks
    _walk(base, spent)
    return [float(cost) for cost in np.cumsum(spent)]


def _walk(costs: _Costs, spent: list[float]) -> None:
    """Add what each block of layers costs an item that comes there, along the cheapest path from the source."""
    layout, problem = costs.layout, costs.layout.problem
    node, boundary = problem.source, 0
    for _ in range(4 * problem.layers + 4):
        if boundary >= problem.layers:
            return
        block = problem.block(boundary)
        share = float(costs.reach_KG[block, 0]) or 1.0
        options: list[tuple[float, float, str, int]] = []
        here = [c for c in layout.columns if c.boundary == boundary]
        for column in here:
            if column.node == node and column.work is not None:
                after = float(costs.of.get((node, column.work.stop), costs._never)[0])
                onward = after if column.work.stop < problem.layers else 0.0
                total = float(costs.work(column)[0])
                options.append(
                    (total, (total - onward) / share if math.isfinite(total) else 0.0, node, column.work.stop)
                )
            elif column.node == node and column.kind == "send":
                sent = float(costs.transfer(column)[0])
                for other in here:
                    if (other.kind, other.group) == ("receive", column.group) and other.node != node:
                        hop = sent + float(costs.transfer(other)[0])
                        onward = float(costs.of.get((other.node, boundary), costs._never)[0])
                        options.append((hop + onward + 1e-15, hop / share, other.node, boundary))
        if not options:
            return
        _, own, node, boundary = min(options)
        spent[block] += own
