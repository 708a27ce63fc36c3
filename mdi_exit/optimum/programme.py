"""The linear programme of a few settings: its rows and columns, and what its solution says.

Everything is per second. Of each setting s there is a rate x of items, at each node the rate of each ``Work``, and in each
group what a node sends and receives at a boundary. Conservation holds at each (node, boundary) and each (group,
boundary), setting by setting; nodes' seconds, media's bytes and messages, and memory are shared by all settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.optimum.exits import Floats, Setting
from mdi_exit.optimum.problem import Group, Node, Problem, Work

__all__ = ["Column", "Layout", "Solution", "Target", "solve"]

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A rate of the programme. ``kind``: admit, work, send, receive; ``boundary``: where it takes tasks.

    ``uses``: what one a second takes of each shared row; ``answers``: what each item takes that ends with this work.
    """

    kind: str
    node: str
    boundary: int
    work: Work | None = None
    group: int = -1
    uses: tuple[tuple[Row, float], ...] = ()
    answers: tuple[tuple[Row, float], ...] = ()


class Layout:
    """The rows and columns of one setting; all settings have the same."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.limits: dict[Row, float] = {}
        self.entries = {node.name: {work.entry for work in node.works} for node in problem.nodes}
        self.stops = {node.name: {work.stop for work in node.works} for node in problem.nodes}
        self.entries[problem.source].add(0)
        self.columns: list[Column] = [Column("admit", problem.source, 0)]
        for node in problem.nodes:
            self.limits["time", node.name] = node.count
            self._hold(node)
        for medium in problem.media:
            for kind, capacity in (("bytes", medium.bytes_per_s), ("messages", medium.messages_per_s)):
                if capacity < math.inf:
                    self.limits[kind, medium.name] = 1.0
        for node in problem.nodes:
            self.columns += [self._column_of_work(node, work) for work in node.works]
        for number, group in enumerate(problem.groups):
            self.columns += self._transfers(number, group)

    def _hold(self, node: Node) -> None:
        if not self.problem.layer_bytes:
            return
        self.limits["memory", node.name] = node.memory_bytes * node.count
        for layer in {layer for work in node.works for layer in range(work.entry, work.stop)}:
            self.limits["hold", node.name, str(layer)] = 0.0

    def _column_of_work(self, node: Node, work: Work) -> Column:
        ends = self.problem.exit_at(work.stop) is not None
        answers = self._uses_of_answer(node.name) if ends else ()
        return Column("work", node.name, work.entry, work, uses=self._uses_of_work(node, work), answers=answers)

    def _uses_of_answer(self, name: str) -> tuple[tuple[Row, float], ...]:
        """Of an item that ends at the node: its way to the source."""
        source = self.problem.source
        if name == source:
            return ()
        found: list[tuple[Row, float]] = []
        for medium in self.problem.media:
            times = (name in medium.senders) + (source in medium.receivers)
            if times and medium.answer_bytes and medium.bytes_per_s < math.inf:
                found.append((("bytes", medium.name), times * medium.answer_bytes / medium.bytes_per_s))
        return tuple(found)

    def _uses_of_work(self, node: Node, work: Work) -> tuple[tuple[Row, float], ...]:
        rows: list[Row] = [("time", node.name)]
        if self.problem.layer_bytes:
            rows += [("hold", node.name, str(layer)) for layer in range(work.entry, work.stop)]
        return tuple((row, 1.0) for row in rows)

    def _transfers(self, number: int, group: Group) -> Iterable[Column]:
        boundaries = {boundary for name in group.receivers for boundary in self.entries.get(name, ())}
        if group.only_raw:
            boundaries &= {0}
        for kind, names in (("send", group.senders), ("receive", group.receivers)):
            for name in sorted(names & self.entries.keys()):
                for boundary in sorted(boundaries):
                    if boundary in self.entries[name] or (kind == "send" and boundary in self.stops[name]):
                        uses = self._uses_of_transfer(kind, name, self.problem.cut_bytes[boundary])
                        yield Column(kind, name, boundary, None, number, uses)

    def _uses_of_transfer(self, kind: str, name: str, size_bytes: float) -> tuple[tuple[Row, float], ...]:
        uses: list[tuple[Row, float]] = []
        for medium in self.problem.media:
            if name in (medium.senders if kind == "send" else medium.receivers):
                uses += [(("bytes", medium.name), (size_bytes + medium.overhead_bytes) / medium.bytes_per_s)]
                uses += [(("messages", medium.name), 1.0 / medium.messages_per_s)]
        return tuple((row, use) for row, use in uses if row in self.limits)

    def seconds(self, work: Work, heads: Sequence[Any]) -> Any:
        """Of one item; ``heads``: which are run, one setting's or, by arrays, many settings'."""
        exit_number = self.problem.exit_at(work.stop)
        if exit_number is None or work.stop == self.problem.layers:
            return work.seconds
        return work.seconds + work.head_s * heads[exit_number]


@dataclass(frozen=True, slots=True)
class Target:
    """What to maximise: ``rate_worth`` an item and ``right_worth`` a right one, at a mean accuracy of at least
    ``accuracy``, at most ``most`` items a second and at least ``least``.
    """

    rate_worth: float = 1.0
    right_worth: float = 0.0
    accuracy: float = 0.0
    most: float = math.inf
    least: float = 0.0


@dataclass(frozen=True, slots=True)
class Solution:
    """``value``: what was maximised; ``rates``: items a second of each setting; ``prices``: what a unit of each shared row
    is worth; ``accuracy_price`` and ``rate_price`` (negative: each one more costs): of the target's conditions;
    ``used``: what is taken of each; ``flows``: rate by column, all settings together.
    """

    value: float
    rates: tuple[float, ...]
    prices: dict[Row, float]
    accuracy_price: float
    rate_price: float
    used: dict[Row, float]
    flows: tuple[tuple[Column, float], ...]


@dataclass(slots=True)
class _Matrix:
    """A sparse matrix in the making; rows are found by name."""

    rows: dict[tuple[Any, ...], int] = field(default_factory=dict)
    at: list[tuple[int, int]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, row: tuple[Any, ...], column: int, value: float) -> None:
        if value:
            self.at.append((self.rows.setdefault(row, len(self.rows)), column))
            self.values.append(value)

    def built(self, columns: int) -> Any:
        from scipy import sparse

        ij = np.array(self.at, np.int64).reshape(-1, 2)
        return sparse.csr_array((self.values, (ij[:, 0], ij[:, 1])), shape=(len(self.rows), columns))


def solve(layout: Layout, settings: Sequence[Setting], target: Target, *, hop_price: float = 0.0) -> Solution:
    """The best mixture of these settings; of equals, with ``hop_price``, the one of the fewest transfers.

    Raises ``UsageError`` without SciPy, ``MdiExitError`` if there is no answer."""
    try:
        from scipy.optimize import linprog
    except ImportError:
        raise UsageError("the optimum", "SciPy, by pip install 'mdi-exit[offline]'", "none") from None
    problem = layout.problem
    width = len(layout.columns)
    holds = [row for row in layout.limits if row[0] == "hold"]
    columns = width * len(settings) + len(holds)
    shared, kept = _Matrix(), _Matrix()
    worth = np.zeros(columns)
    for number, setting in enumerate(settings):
        begin = number * width
        worth[begin] = target.rate_worth + target.right_worth * setting.accuracy
        shared.add(("accuracy",), begin, target.accuracy - setting.accuracy)
        if target.most < math.inf:
            shared.add(("rate",), begin, 1.0)
        if target.least > 0:
            shared.add(("least",), begin, -1.0)
        for offset, column in enumerate(layout.columns):
            _conserve(kept, layout, setting, number, begin + offset, column)
            scale = layout.seconds(column.work, setting.heads) if column.work else 1.0
            if column.kind == "send":
                worth[begin + offset] = -hop_price
            for row, use in column.uses:
                shared.add(row, begin + offset, use * scale)
            if column.answers:
                ending = _ending(problem, column, setting.reach)
                for row, use in column.answers:
                    shared.add(row, begin + offset, use * ending)
    _hold_rows(shared, layout, holds, width * len(settings))
    caps = {**layout.limits, ("accuracy",): 0.0, ("rate",): target.most, ("least",): -target.least}
    limits = np.array([caps[row] for row in shared.rows])
    takes = shared.built(columns)
    with np.errstate(all="ignore"):
        found = linprog(
            -worth, A_ub=takes, b_ub=limits, A_eq=kept.built(columns), b_eq=np.zeros(len(kept.rows)),
            bounds=[(0, None)] * (width * len(settings)) + [(0, 1)] * len(holds), method="highs",
        )  # fmt: skip
    if found.status == 3:
        raise MdiExitError("the optimum: expected some limit on the rate, got none: nothing takes time")
    if found.status != 0:
        raise MdiExitError(f"the optimum: {found.message}")
    prices = {row: max(-float(price), 0.0) for row, price in zip(shared.rows, found.ineqlin.marginals, strict=True)}
    by_setting: Floats = found.x[: width * len(settings)].reshape(len(settings), width)
    flows = by_setting.sum(axis=0)
    return Solution(
        value=-float(found.fun),
        rates=tuple(float(rate) for rate in by_setting[:, 0]),
        prices={row: price for row, price in prices.items() if row in layout.limits},
        accuracy_price=prices.get(("accuracy",), 0.0),
        used={row: float(used) for row, used in zip(shared.rows, takes @ found.x, strict=True) if row in layout.limits},
        rate_price=prices.get(("rate",), 0.0) - prices.get(("least",), 0.0),
        flows=tuple((column, float(rate)) for column, rate in zip(layout.columns, flows, strict=True)),
    )


def _ending(problem: Problem, column: Column, reach: Sequence[float]) -> float:
    """The share of the items that come to this work which end with it."""
    if column.work is None:
        raise ValueError(f"expected a column of work, got {column}")
    before = reach[problem.block(column.boundary)]
    after = reach[problem.block(column.work.stop)] if column.work.stop < problem.layers else 0.0
    return (before - after) / before if before else 0.0


def _conserve(kept: _Matrix, layout: Layout, setting: Setting, number: int, at: int, column: Column) -> None:
    """What a rate takes from and gives to the boundaries of one setting."""
    problem, here = layout.problem, (number, column.node, column.boundary)
    match column.kind:
        case "admit":
            kept.add(here, at, 1.0)
        case "work" if column.work is not None:
            kept.add(here, at, -1.0)
            stop = column.work.stop
            if stop < problem.layers:
                before, after = setting.reach[problem.block(column.boundary)], setting.reach[problem.block(stop)]
                kept.add((number, column.node, stop), at, after / before if before else 0.0)
        case "send":
            kept.add(here, at, -1.0)
            kept.add((number, "group", column.group, column.boundary), at, 1.0)
        case "receive":
            kept.add(here, at, 1.0)
            kept.add((number, "group", column.group, column.boundary), at, -1.0)
        case _:
            raise ValueError(f"expected a kind of column, got {column.kind}")


def _hold_rows(shared: _Matrix, layout: Layout, holds: Sequence[Row], first: int) -> None:
    """A layer is run no more than the part of it that is held allows, and what is held fits the memory."""
    counts = {node.name: node.count for node in layout.problem.nodes}
    for offset, row in enumerate(holds):
        name, layer = row[1], int(row[2])
        shared.add(row, first + offset, -counts[name])
        if layout.limits["memory", name] < math.inf:
            shared.add(("memory", name), first + offset, layout.problem.layer_bytes[layer] * counts[name])
