"""When a better placement is worth the moves: at once where a layer is lost, otherwise only for a stated gain, and not again
for a while.

Servers of petals thrashed between blocks until rebalancing had hysteresis. Here a node that was moved rests for ``rest_s``
before it is moved again; only when layers are held by nobody, and those who may move cannot hold them, does a resting node
move. A node that holds nothing yet has nothing to lose: its first span waits for no gain.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from mdi_exit.placement.problem import Problem
from mdi_exit.placement.rate import predict
from mdi_exit.placement.search import Placement, best_placement, valued
from mdi_exit.span import LayerSpan

__all__ = ["Decision", "PlacementRules", "decide"]

_ENOUGH: Final = 0.95


@dataclass(frozen=True, slots=True)
class PlacementRules:
    """``gain``: share by which the predicted rate must grow for a move; ``rest_s``: of a node after a move.

    ``speed_band`` and ``mix_band``: change of a node's measured speed, as a share, and of the share of items that reach a
    layer, that make the planner look again; ``smooth_s``: over which speeds are averaged; ``settle_s``: how long it waits for
    more news first; ``effort``: predictions at
    most, None: by the number of nodes. Every constant is ours.
    """

    gain: float = 0.1
    rest_s: float = 30.0
    speed_band: float = 0.3
    mix_band: float = 0.1
    smooth_s: float = 5.0
    settle_s: float = 1.0
    effort: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """``spans``: of every node that is to hold some. ``moved``: those that hold something else now, ``joined``: nothing yet.

    ``forced``: moved because layers were lost, ``resting``: those of them that should have rested. ``before_per_s``: what
    the present spans would give, 0 with layers missing. ``rate_per_s`` 0: no placement covers all layers.
    """

    spans: dict[str, LayerSpan]
    rate_per_s: float
    before_per_s: float
    moved: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    forced: bool = False
    resting: tuple[str, ...] = ()
    bottleneck: str = ""


def decide(problem: Problem, resting: Collection[str], rules: PlacementRules) -> Decision:
    """Keep the present spans or change them; ``resting``: nodes moved less than ``rest_s`` ago."""
    present = problem.present()
    before = predict(problem, present).rate_per_s if problem.covered(present.values()) else 0.0
    names = {device.name for device in problem.movable}
    rested = {name for name in names if name not in resting or name not in present}
    if before == 0.0:
        found = best_placement(problem, rested, rules.effort)
        if found.rate_per_s == 0.0:
            found = best_placement(problem, names, rules.effort)
        return _decision(problem, _thrifty(problem, found, before), before, resting, forced=True)
    newcomers = {name for name in names if name not in present}
    kept = best_placement(problem, newcomers, rules.effort) if newcomers else valued(problem, present)
    found = best_placement(problem, rested, rules.effort)
    if found.rate_per_s < kept.rate_per_s * (1 + rules.gain):
        return _decision(problem, kept, before, resting)
    return _decision(problem, _thrifty(problem, found, kept.rate_per_s * (1 + rules.gain)), before, resting)


def _thrifty(problem: Problem, found: Placement, least: float) -> Placement:
    """As good within a few hundredths, or ``least``, with fewer moves: spans of the plan are given to one node after another,
    each time where that brings most, until that is enough. Nodes alike could have them in any order; this one moves few.
    """
    present = {
        name: span for name, span in problem.present().items() if problem.fits(problem.by_name[name], span)
    }  # fmt: skip
    moved = {name for name, span in present.items() if found.spans.get(name) != span}
    target = max(least, _ENOUGH * found.rate_per_s)
    spans = {**{name: span for name, span in found.spans.items() if name not in present}, **present}
    wanted = sorted(set(found.spans.values()))
    for _ in range(len(moved) - 1):
        ways = [
            valued(problem, {**spans, name: span})
            for name in sorted(moved)
            for span in wanted
            if problem.fits(problem.by_name[name], span)
        ]
        best = max(ways, key=lambda way: (way.rate_per_s, _held(way)))
        if best.rate_per_s >= target:
            return best
        moved -= {name for name in moved if best.spans[name] != spans[name]}
        spans = best.spans
    return found


def _held(placement: Placement) -> int:
    """Layers held by somebody: where the rate is nothing yet, more of them are nearer to a placement."""
    return len({layer for span in placement.spans.values() for layer in span})


def _decision(
    problem: Problem, found: Placement, before: float, resting: Collection[str], *, forced: bool = False
) -> Decision:
    present = problem.present()
    if found.rate_per_s == 0.0:
        return Decision(present, 0.0, before, forced=forced)
    moved = tuple(sorted(name for name, span in present.items() if found.spans.get(name, span) != span))
    return Decision(
        spans={**present, **found.spans},
        rate_per_s=found.rate_per_s,
        before_per_s=before,
        moved=moved,
        joined=tuple(sorted(found.spans.keys() - present.keys())),
        forced=forced and bool(moved),
        resting=tuple(name for name in moved if name in resting),
        bottleneck=found.prediction.bottleneck,
    )
