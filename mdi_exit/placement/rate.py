"""The largest rate that a set of spans allows: a packing of paths into the nodes' seconds and the links' bytes.

An item's path says which node runs each of its segments. A path uses, per item that sets out on it, seconds of its nodes and
bytes of their links to the broker (a transfer leaves by the sender's and arrives by the receiver's: MQTT is a star), each
weighed by the share of items that get so far. The rate is the value of the linear programme

    maximise Σ_p x_p  subject to  Σ_p use(r, p)·x_p ≤ capacity(r) for each resource r,  x ≥ 0

It equals the programme of flows between nodes, since exits do not depend on the node: a flow is a sum of paths. There are too
many paths to write down, so the simplex method makes them as it needs them: the path that is cheapest at the present prices
of the resources is a shortest path over (segment start, node) (column generation: Ford and Fulkerson 1958; Gilmore and Gomory
1961). Tasks move only where segments end (``mdi_exit.segments``), here as in the running system.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from mdi_exit.placement.problem import Problem, Spans
from mdi_exit.segments import segment_stop

__all__ = ["Prediction", "predict", "rate_limit"]

_EPS: Final = 1e-12
_NOWHERE: Final = (math.inf, -1)


@dataclass(frozen=True, slots=True)
class Prediction:
    """``rate_per_s``: items a second at most; ``busy`` and ``link_busy``: by node, the share of its time and of its link that
    this takes; ``price``: by node, items a second that another second of it a second would bring; ``onward``: by layer at
    which a task may stand, what going on from there costs at these prices.

    ``upper_per_s``: a rate that cannot be passed; above ``rate_per_s`` only where the search for it was cut short.
    """

    rate_per_s: float
    upper_per_s: float
    busy: dict[str, float]
    link_busy: dict[str, float]
    price: dict[str, float]
    onward: dict[int, float]

    @property
    def bottleneck(self) -> str:
        """What to make faster first: the node, or its link, that is fully used and worth the most."""
        full = [(share, f"link of {name}") for name, share in self.link_busy.items() if share > 1 - 1e-6]
        if full:
            return max(full)[1]
        return max(self.price, key=lambda name: (self.price[name], self.busy.get(name, 0.0), name), default="")


def rate_limit(problem: Problem, spans: Spans) -> float:
    """A rate that these spans cannot pass, at a glance: any run of layers needs the seconds of those who hold some of it.

    A node is taken to be as fast everywhere as it is in its best layer. 0 if a layer is held by nobody.
    """
    count, reach = problem.plan.layer_count, problem.reach
    reference = _reference_s(problem)
    speeds = []
    for name, span in spans.items():
        own = problem.by_name[name].layer_s
        speeds.append((span.first, span.stop, max(reference[layer] / max(own[layer], _EPS) for layer in span)))
    best = math.inf
    for first in range(count):
        work = 0.0
        for stop in range(first + 1, count + 1):
            work += reach[stop - 1] * reference[stop - 1]
            if work > _EPS:
                able = sum(speed for a, b, speed in speeds if a < stop and b > first)
                best = min(best, able / work)
    return best


def _reference_s(problem: Problem) -> tuple[float, ...]:
    return max(problem.devices, key=lambda device: sum(device.layer_s)).layer_s


def predict(problem: Problem, spans: Spans, *, above: float = 0.0, tolerance: float = 1e-9) -> Prediction:
    """The largest rate of ``spans``; cut short where it is certain that it is not more than ``above``."""
    graph = _Paths(problem, spans)
    return _Packing(graph).solve(above, tolerance)


class _Paths:
    """What each step costs, and the cheapest path at given prices. Resources are numbered: seconds first, then links."""

    def __init__(self, problem: Problem, spans: Spans) -> None:
        self.problem = problem
        plan = problem.plan
        self.last = plan.layer_count
        self.names = [name for name in spans if name in problem.by_name]
        self.capacity: list[float] = [1.0] * len(self.names)
        self.seconds_of = dict(enumerate(self.names))
        self.up: dict[str, int] = {}
        self.down: dict[str, int] = {}
        for name in dict.fromkeys([*self.names, problem.source]):
            if (bytes_per_s := problem.by_name[name].bytes_per_s) < math.inf:
                for side in (self.up, self.down):
                    side[name] = len(self.capacity)
                    self.capacity.append(bytes_per_s)
        self.starts = self._runs(spans)
        self.targets = {name: self._targets(name) for name in [*self.names, problem.source]}

    def _targets(self, sender: str) -> frozenset[int] | None:
        """The nodes to which it may send tasks; None: all."""
        if self.problem.by_name[sender].neighbours is None:
            return None
        return frozenset(index for index, name in enumerate(self.names) if self.problem.may_send(sender, name))

    def _runs(self, spans: Spans) -> dict[int, list[tuple[int, int, float]]]:
        """For each layer at which a task may stand: (node, where its segment ends, seconds of it per item at layer 0)."""
        problem, plan = self.problem, self.problem.plan
        work = []
        for name in self.names:
            total, sums = 0.0, [0.0]
            for reach, seconds in zip(problem.reach, problem.by_name[name].layer_s, strict=True):
                total += reach * seconds
                sums.append(total)
            work.append(sums)
        starts: dict[int, list[tuple[int, int, float]]] = {}
        waiting = [0]
        while waiting:
            start = waiting.pop()
            if start in starts or start >= self.last:
                continue
            runs = []
            for index, name in enumerate(self.names):
                if start in (span := spans[name]):
                    stop = segment_stop(start, span, plan.exit_layers)
                    runs.append((index, stop, work[index][stop] - work[index][start]))
                    waiting.append(stop)
            starts[start] = runs
        return starts

    def cheapest(self, price: list[float]) -> tuple[float, dict[int, float], dict[int, float]]:
        """Cost of the cheapest path, its use of each resource, and what it costs to go on from each layer, wherever."""
        names, last = self.names, self.last
        bytes_at, reach = self.problem.plan.feature_bytes, self.problem.reach
        best: dict[int, tuple[float, int]] = {}
        after: dict[int, dict[int, tuple[float, int]]] = {last: {}}
        finish = (0.0, -1)
        for start in sorted(self.starts, reverse=True):
            runs = self.starts[start]
            size = reach[start] * bytes_at[start]
            stay: dict[int, float] = {}
            entering: list[tuple[float, int]] = []
            for index, stop, work in runs:
                onward = finish[0] if stop == last else after[stop].get(index, (math.inf, -1))[0]
                cost = price[index] * work + onward
                stay[index] = cost
                down = self.down.get(names[index])
                entering.append((cost + (price[down] * size if down is not None else 0.0), index))
            anyone = min(entering, default=_NOWHERE)
            best[start] = anyone if start else _least(entering, self.targets[self.problem.source])
            here: dict[int, tuple[float, int]] = {}
            for index, name in enumerate(names):
                up, targets = self.up.get(name), self.targets[name]
                least, choice = anyone if targets is None else _least(entering, targets)
                leave = least + (price[up] * size if up is not None else 0.0)
                kept = stay.get(index, math.inf)
                here[index] = (kept, index) if index in stay and kept <= leave else (leave, choice)
            after[start] = here
        return self._follow(price, best, after)

    def _follow(
        self, price: list[float], best: dict[int, tuple[float, int]], after: dict[int, dict[int, tuple[float, int]]]
    ) -> tuple[float, dict[int, float], dict[int, float]]:
        names, source = self.names, self.problem.source
        bytes_at, reach = self.problem.plan.feature_bytes, self.problem.reach
        onward = {start: cost for start, (cost, _) in best.items()}
        use: dict[int, float] = {}
        at, layer = source, 0
        total = 0.0

        def spend(resource: int, amount: float) -> float:
            use[resource] = use.get(resource, 0.0) + amount
            return price[resource] * amount

        own = names.index(source) if source in names else -1
        to = after[0][own][1] if own >= 0 else best[0][1]
        while layer < self.last:
            if to < 0:
                return math.inf, {}, onward
            name = names[to]
            if name != at:
                size = reach[layer] * bytes_at[layer]
                if at in self.up:
                    total += spend(self.up[at], size)
                if name in self.down:
                    total += spend(self.down[name], size)
            stop, work = next((stop, work) for index, stop, work in self.starts[layer] if index == to)
            total += spend(to, work)
            at, layer = name, stop
            to = after[layer][to][1] if layer < self.last else -1
        return total, use, onward


def _least(entering: list[tuple[float, int]], targets: frozenset[int] | None) -> tuple[float, int]:
    """The cheapest of those that are among the targets."""
    return min((one for one in entering if targets is None or one[1] in targets), default=_NOWHERE)


class _Packing:
    """The simplex method on max Σx, Ax ≤ capacity: the inverse of the basis is kept, columns are made on demand."""

    def __init__(self, paths: _Paths) -> None:
        self.paths = paths
        self.size = len(paths.capacity)
        self.inverse = [[1.0 if row == column else 0.0 for column in range(self.size)] for row in range(self.size)]
        self.amount = list(paths.capacity)
        self.price = [0.0] * self.size
        self.columns: list[dict[int, float]] = [{row: 1.0} for row in range(self.size)]
        self.slack: list[int] = list(range(self.size))

    def solve(self, above: float, tolerance: float) -> Prediction:
        paths = self.paths
        upper = math.inf
        ones = [1.0 / capacity for capacity in paths.capacity]
        cost, use, onward = paths.cheapest(ones)
        for _ in range(40 * self.size + 40):
            if math.isinf(cost):
                upper = 0.0
                break
            self._enter(use, 1.0)
            while (row := min(range(self.size), key=self.price.__getitem__, default=-1)) >= 0 and self.price[
                row
            ] < -1e-9:
                self._enter({row: 1.0}, 0.0)
            cost, use, onward = paths.cheapest([max(value, 0.0) for value in self.price])
            rate = self._rate()
            if cost > _EPS:
                upper = min(upper, sum(c * max(p, 0.0) for c, p in zip(paths.capacity, self.price, strict=True)) / cost)
            if upper <= max(above, rate * (1 + tolerance)) or cost >= 1.0 - 1e-9:
                break
        return self._prediction(upper, onward)

    def _rate(self) -> float:
        return sum(amount for amount, slack in zip(self.amount, self.slack, strict=True) if slack < 0)

    def _enter(self, use: dict[int, float], worth: float) -> None:
        """One pivot: the column comes into the basis, the row that runs out first leaves it."""
        items = tuple(use.items())
        change = [sum(row[resource] * amount for resource, amount in items) for row in self.inverse]
        ratio, out = math.inf, -1
        for row, (step, have) in enumerate(zip(change, self.amount, strict=True)):
            if step > 1e-12 and have / step < ratio:
                ratio, out = max(have, 0.0) / step, row
        if out < 0:
            return
        pivot = change[out]
        leaving = [value / pivot for value in self.inverse[out]]
        gain = worth - sum(self.price[resource] * amount for resource, amount in items)
        for row, step in enumerate(change):
            if row != out and step:
                self.inverse[row] = [a - step * b for a, b in zip(self.inverse[row], leaving, strict=True)]
                self.amount[row] = max(self.amount[row] - step * ratio, 0.0)
        self.inverse[out], self.amount[out] = leaving, ratio
        self.price = [price + gain * value for price, value in zip(self.price, leaving, strict=True)]
        self.columns[out] = use
        self.slack[out] = -1 if worth else next(iter(use))

    def _prediction(self, upper: float, onward: dict[int, float]) -> Prediction:
        paths = self.paths
        used = [0.0] * self.size
        for amount, column, slack in zip(self.amount, self.columns, self.slack, strict=True):
            if slack < 0:
                for resource, each in column.items():
                    used[resource] += amount * each
        share = [a / capacity for a, capacity in zip(used, paths.capacity, strict=True)]
        link = {name: max(share[paths.up[name]], share[paths.down[name]]) for name in paths.up}
        names = dict(enumerate(paths.names))
        rate = self._rate()
        return Prediction(
            rate_per_s=rate,
            upper_per_s=max(upper, rate) if upper < math.inf else math.inf,
            busy={name: share[index] for index, name in names.items()},
            link_busy=link,
            price={name: max(self.price[index], 0.0) for index, name in names.items()},
            onward=onward,
        )
