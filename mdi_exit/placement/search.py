"""Which node holds which layers: a chain as the base, then whatever change raises the predicted rate most.

A change gives one node another span, swaps those of two, or moves the border between two neighbours. Changes are tried in the
order of what the prices of the present programme promise (the price of a second on each node, and what going on from each
layer costs), and only where ``rate_limit`` leaves room; where none helps, the search goes on from two or three nodes moved by
chance. The work is bounded by a number of predictions, not by a clock, so
that the same question always has the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

from mdi_exit.placement.chain import chain
from mdi_exit.placement.problem import Device, Problem, Spans
from mdi_exit.placement.rate import Prediction, predict, rate_limit
from mdi_exit.span import LayerSpan

__all__ = ["Placement", "best_placement", "even_split", "valued"]

_GAIN: Final = 1.001
_EFFORT: Final = 600
_LARGE: Final = 8
_SEED: Final = 1
_TRIES: Final = 4
_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Placement:
    """Spans of all nodes that hold some, and what they give. ``predictions``: how many it took."""

    spans: dict[str, LayerSpan]
    prediction: Prediction
    predictions: int = 0

    @property
    def rate_per_s(self) -> float:
        return self.prediction.rate_per_s


def valued(problem: Problem, spans: Spans) -> Placement:
    """Given spans with their predicted rate."""
    return Placement(dict(spans), predict(problem, spans), 1)


def even_split(problem: Problem) -> dict[str, LayerSpan]:
    """Layers in equal shares over the movable nodes, in the order of their names, whatever their speed and memory."""
    names = sorted(device.name for device in problem.movable)
    count, layers = len(names), problem.plan.layer_count
    return problem.present() | {
        name: LayerSpan(first, stop)
        for index, name in enumerate(names)
        if (first := layers * index // count) < (stop := layers * (index + 1) // count)
    }


def best_placement(problem: Problem, movable: Collection[str] | None = None, effort: int | None = None) -> Placement:
    """The best placement found by at most about ``effort`` predictions; only ``movable`` nodes are moved (None: all that are
    not fixed). A rate of 0 says that the layers do not fit these nodes.
    """
    free = [device for device in problem.movable if movable is None or device.name in movable]
    held = [device for device in problem.devices if device not in free]
    if effort is None:
        effort = _EFFORT if len(free) <= _LARGE else 960 // len(free)
    search = _Search(problem, free, effort)
    given = {device.name: device.span for device in held if device.span is not None}
    base = {**given, **chain(problem, free, held)}
    seeds = [base, _filled(problem, free, base)]
    now = {name: span for name, span in problem.present().items() if problem.fits(problem.by_name[name], span)}
    if problem.covered(now.values()):
        seeds.append({**given, **now})
    found = search.best([search.value(seed) for seed in seeds])
    if found.rate_per_s > 0:
        found = search.employed(found)
    return Placement(found.spans, predict(problem, found.spans), search.done)


def _filled(problem: Problem, free: list[Device], base: Spans) -> dict[str, LayerSpan]:
    """The base with every node's span grown to what its memory takes, later layers first, and idle nodes from layer 0."""
    spans = dict(base)
    layers = problem.plan.layer_count
    for device in free:
        span = spans.get(device.name)
        if span is None:
            if not problem.fits(device, LayerSpan(0, 1)):
                continue
            span = LayerSpan(0, 1)
        while span.stop < layers and problem.fits(device, LayerSpan(span.first, span.stop + 1)):
            span = LayerSpan(span.first, span.stop + 1)
        while span.first > 0 and problem.fits(device, LayerSpan(span.first - 1, span.stop)):
            span = LayerSpan(span.first - 1, span.stop)
        spans[device.name] = span
    return spans


class _Search:
    """Climbs from one placement to better ones while the allowance of predictions lasts."""

    def __init__(self, problem: Problem, free: list[Device], effort: int) -> None:
        self.problem, self.free, self.effort = problem, free, effort
        self.done = 0
        self._tried: dict[tuple[tuple[str, LayerSpan], ...], float] = {}
        self._choices = {device.name: problem.spans_of(device) for device in free}

    def value(self, spans: Spans, above: float = 0.0) -> Placement:
        self.done += 1
        return Placement(dict(spans), predict(self.problem, spans, above=above, tolerance=_TOLERANCE))

    def best(self, seeds: Iterable[Placement]) -> Placement:
        """Climb from the seeds, the best first, then from what chance makes of the best found."""
        ceiling = rate_limit(self.problem, self._relaxed())
        found, *others = [self.climb(seed) for seed in sorted(seeds, key=lambda seed: -seed.rate_per_s)]
        found = max([found, *others], key=lambda placement: placement.rate_per_s)
        rng = Random(_SEED)
        while self.done < self.effort and found.rate_per_s < ceiling / _GAIN and self.free:
            self.done += 1  # a draw without sense costs one too: the loop ends
            shaken = self._shaken(found, rng)
            if shaken is not None:
                other = self.climb(self.value(shaken))
                found = other if other.rate_per_s > found.rate_per_s * _GAIN else found
        return found

    def employed(self, found: Placement) -> Placement:
        """A node that would bring next to nothing replicates what is dearest: if another fails, it is there."""
        for device in self.free:
            if device.name in found.spans:
                continue
            onward = self._onward(found)
            choices = sorted(
                self._choices[device.name],
                key=lambda span: (-self._worth(device, span, onward), -len(span), span.first),
            )
            for span in choices[:_TRIES]:
                other = self.value({**found.spans, device.name: span})
                if other.rate_per_s >= found.rate_per_s / _GAIN:
                    found = other
                    break
        return found

    def _relaxed(self) -> dict[str, LayerSpan]:
        """As if what may be moved were everywhere at once: no placement passes this one's limit."""
        free = {device.name: LayerSpan(0, self.problem.plan.layer_count) for device in self.free}
        return self.problem.present() | free

    def _shaken(self, found: Placement, rng: Random) -> dict[str, LayerSpan] | None:
        """Two or three nodes get spans by chance; None where layers are then missing."""
        spans = dict(found.spans)
        for device in rng.sample(self.free, min(len(self.free), rng.choice((2, 2, 3)))):
            if choices := self._choices[device.name]:
                spans[device.name] = rng.choice(choices)
        return spans if self.problem.covered(spans.values()) else None

    def climb(self, found: Placement) -> Placement:
        """First improvement in the order of promise, until none is left."""
        while self.done < self.effort:
            better = self._better(found)
            if better is None:
                break
            found = better
        return found

    def _better(self, found: Placement) -> Placement | None:
        tried = self._tried
        least = found.rate_per_s * _GAIN
        for spans in self._changes(found):
            key = tuple(sorted(spans.items()))
            if tried.get(key, math.inf) <= least or rate_limit(self.problem, spans) <= least:
                continue
            other = self.value(spans, above=least)
            tried[key] = other.prediction.upper_per_s
            if other.rate_per_s > least:
                return other
            if self.done >= self.effort:
                return None
        return None

    def _changes(self, found: Placement) -> Iterator[dict[str, LayerSpan]]:
        spans = found.spans
        onward = self._onward(found)
        moves = [
            (self._worth(device, span, onward) - found.prediction.price.get(device.name, 0.0), device.name, span)
            for device in self.free
            for span in self._choices[device.name]
            if span != spans.get(device.name)
        ]
        moves.sort(key=lambda move: (-move[0], move[1], move[2]))
        singles = ({**spans, name: span} for _, name, span in moves)
        pairs = self._pairs(spans)
        for _ in range(len(moves)):  # two of the most promising single changes, then one of a pair, and so on
            yield from (change for change in (next(singles, None), next(singles, None), next(pairs, None)) if change)
        yield from pairs

    def _pairs(self, spans: Spans) -> Iterator[dict[str, LayerSpan]]:
        """Swaps, and borders moved."""
        holders = [device for device in self.free if device.name in spans]
        for one in holders:
            for other in holders:
                a, b = spans[one.name], spans[other.name]
                if a == b:
                    continue
                if one.name < other.name and self.problem.fits(one, b) and self.problem.fits(other, a):
                    yield {**spans, one.name: b, other.name: a}
                if a.first < b.first <= a.stop:
                    for border in range(a.first + 1, b.stop):
                        left, right = LayerSpan(a.first, border), LayerSpan(border, b.stop)
                        if border != b.first and self.problem.fits(one, left) and self.problem.fits(other, right):
                            yield {**spans, one.name: left, other.name: right}

    def _onward(self, found: Placement) -> list[float]:
        """What going on from each layer costs at the present prices; between segment starts in proportion to the work."""
        problem = self.problem
        layers = problem.plan.layer_count
        known = {**found.prediction.onward, layers: 0.0}
        reference = problem.devices[0].layer_s
        sums = [0.0]
        for reach, seconds in zip(problem.reach, reference, strict=True):
            sums.append(sums[-1] + reach * seconds)
        costs = []
        for layer in range(layers + 1):
            before = max((start for start in known if start <= layer), default=layer)
            after = min(start for start in known if start >= layer)
            width = sums[after] - sums[before]
            part = (sums[layer] - sums[before]) / width if width > 0 else 0.0
            first, last = known.get(before, 1.0), known[after]
            costs.append(first + (last - first) * part if first < float("inf") else 1.0)
        return costs

    def _worth(self, device: Device, span: LayerSpan, onward: list[float]) -> float:
        """Items a second that another second a second of ``device`` would bring with this span, to first order."""
        problem = self.problem
        seconds = sum(problem.reach[layer] * device.layer_s[layer] for layer in span)
        saved = onward[span.first] - onward[span.stop]
        return saved / seconds if seconds > 0 else 0.0
