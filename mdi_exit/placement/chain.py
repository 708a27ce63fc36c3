"""The base of a plan: one chain of stages, each on one node, by dynamic programming; spares are set to work afterwards.

``best[l]`` is the largest rate at which layers 0…l-1 can be passed, the least of its stages' rates. Which node takes the next
stage is tried for all sets of nodes where that is few (Held and Karp's sets, 1962), otherwise in the order given. Where nodes
may not send to all others, ``best[l, n]`` is that of chains that end at node n, and the next stage is on a neighbour of n.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final

from mdi_exit.placement.problem import Device, Problem
from mdi_exit.span import LayerSpan

__all__ = ["chain"]

_MOST_STEPS: Final = 60_000

Stage = tuple[float, int, str]
"""Rate so far, layer at which the stage starts, its node ("": a fixed node's)."""


def chain(problem: Problem, movable: Sequence[Device], fixed: Sequence[Device]) -> dict[str, LayerSpan]:
    """A span for each node that the best chain needs; empty if none covers all layers within the nodes' memory."""
    stages = _Stages(problem, fixed)
    if problem.restricted:
        return _along_links(stages, movable, fixed)
    count, layers = len(movable), problem.plan.layer_count
    if count << count <= _MOST_STEPS / layers**2:
        return _over_sets(stages, movable)
    by_speed = sorted(movable, key=lambda device: (sum(device.layer_s), device.name))
    by_memory = sorted(movable, key=lambda device: (-device.memory_bytes, device.name))
    now = sorted(movable, key=lambda device: ((device.span or LayerSpan(0, 1)).first, device.name))
    orders = [by_speed, by_speed[::-1], by_memory, by_memory[::-1], now]
    return max((_in_order(stages, order) for order in orders), key=lambda found: found[0])[1]


class _Stages:
    """Rates of single stages."""

    def __init__(self, problem: Problem, fixed: Sequence[Device]) -> None:
        self.problem = problem
        self.layers = problem.plan.layer_count
        self._work: dict[str, list[float]] = {}
        stops = {layer + 1 for layer in problem.plan.exit_layers}
        self.given = [
            (first, stop, self.rate(device, first, stop))
            for device in fixed
            if (span := device.span) is not None
            for first in span
            for stop in range(first + 1, span.stop + 1)
            if stop == span.stop or stop in stops
        ]

    def rate(self, device: Device, first: int, stop: int) -> float:
        """Items a second (counted at layer 0) that ``device`` passes through layers ``first`` to ``stop - 1``."""
        problem = self.problem
        if device.name not in self._work:
            each = (reach * s for reach, s in zip(problem.reach, device.layer_s, strict=True))
            self._work[device.name] = [0.0, *accumulate(each)]
        sums = self._work[device.name]
        reach, size = problem.reach, problem.plan.feature_bytes
        out = reach[stop] * size[stop] if stop < self.layers else 0.0
        per_item = max(
            sums[stop] - sums[first], reach[first] * size[first] / device.bytes_per_s, out / device.bytes_per_s
        )
        return 1.0 / per_item if per_item > 0 else math.inf

    def start(self) -> list[tuple[float, tuple[Stage, ...]]]:
        best: list[tuple[float, tuple[Stage, ...]]] = [(0.0, ())] * (self.layers + 1)
        best[0] = (math.inf, ())
        return self.through_fixed(best)

    def through_fixed(self, best: list[tuple[float, tuple[Stage, ...]]]) -> list[tuple[float, tuple[Stage, ...]]]:
        """What the fixed nodes can pass on their own from where the chain stands."""
        for first, stop, rate in sorted(self.given):
            reached = min(best[first][0], rate)
            if reached > best[stop][0]:
                best[stop] = (reached, best[first][1])
        return best

    def extended(
        self, best: list[tuple[float, tuple[Stage, ...]]], device: Device
    ) -> list[tuple[float, tuple[Stage, ...]]]:
        """The same with one more node, which may also stay idle."""
        grown = list(best)
        for first in range(self.layers):
            reached, stages = best[first]
            if reached <= 0.0:
                continue
            for stop in range(first + 1, self.layers + 1):
                if not self.problem.fits(device, LayerSpan(first, stop)):
                    break
                rate = min(reached, self.rate(device, first, stop))
                if rate > grown[stop][0]:
                    grown[stop] = (rate, (*stages, (rate, first, device.name)))
        return self.through_fixed(grown)

    def spans(self, stages: Iterable[Stage], ends: dict[str, int]) -> dict[str, LayerSpan]:
        return {name: LayerSpan(first, ends[name]) for _, first, name in stages}


def _spans(stages: _Stages, found: tuple[float, tuple[Stage, ...]]) -> tuple[float, dict[str, LayerSpan]]:
    """Stages end where the next begins, or as far as the rate allows before the fixed nodes take over."""
    rate, steps = found
    spans: dict[str, LayerSpan] = {}
    limit = stages.layers
    for _, first, name in reversed(steps):
        device = stages.problem.by_name[name]
        stop = first + 1
        while stop < limit and stages.problem.fits(device, LayerSpan(first, stop + 1)):
            if stages.rate(device, first, stop + 1) < rate * (1 - 1e-12):
                break
            stop += 1
        spans[name] = LayerSpan(first, stop)
        limit = first
    return rate, spans


def _in_order(stages: _Stages, order: Sequence[Device]) -> tuple[float, dict[str, LayerSpan]]:
    best = stages.start()
    for device in order:
        best = stages.extended(best, device)
    return _spans(stages, best[-1])


def _over_sets(stages: _Stages, movable: Sequence[Device]) -> dict[str, LayerSpan]:
    table = {0: stages.start()}
    for members in range(1, 1 << len(movable)):
        ways = [
            stages.extended(table[members & ~(1 << index)], device)
            for index, device in enumerate(movable)
            if members >> index & 1
        ]
        table[members] = [max(options, key=lambda option: option[0]) for options in zip(*ways, strict=True)]
    return _spans(stages, table[(1 << len(movable)) - 1][-1])[1]


def _along_links(stages: _Stages, movable: Sequence[Device], fixed: Sequence[Device]) -> dict[str, LayerSpan]:
    """The best chain in which each node may send to the next. Of the chains to a node and layer only the best is followed,
    so that a better one that would need a node twice may be missed.
    """
    problem, last, held = stages.problem, stages.layers, {device.name for device in fixed}
    best: list[dict[str, tuple[float, dict[str, LayerSpan]]]] = [{} for _ in range(last + 1)]
    best[0][problem.source] = (math.inf, {})
    for layer in range(last):
        for at, (rate, spans) in list(best[layer].items()):
            for device in (*movable, *fixed):
                if device.name in spans or not problem.may_send(at, device.name):
                    continue
                for stop in _stops(problem, device, layer, held=device.name in held):
                    reached = min(rate, stages.rate(device, layer, stop))
                    if reached > best[stop].get(device.name, (0.0,))[0]:
                        own = {} if device.name in held else {device.name: LayerSpan(layer, stop)}
                        best[stop][device.name] = (reached, {**spans, **own})
    return max(best[last].values(), key=lambda found: found[0], default=(0.0, {}))[1]


def _stops(problem: Problem, device: Device, layer: int, *, held: bool) -> list[int]:
    """Where a stage that begins at ``layer`` may end on this node; ``held``: of the span that it has."""
    if held:
        span = device.span
        exits = {layer + 1 for layer in problem.plan.exit_layers}
        inside = range(layer + 1, span.stop + 1) if span is not None and layer in span else ()
        return [stop for stop in inside if span is not None and (stop == span.stop or stop in exits)]
    every = range(layer + 1, problem.plan.layer_count + 1)
    return [stop for stop in every if problem.fits(device, LayerSpan(layer, stop))]
