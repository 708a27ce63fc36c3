"""Ways to run the same system, baselines among them: which layers each node holds, and by which rules tasks move.

=====================  ===============================================================================================
``no-early-exit``      model-distributed inference alone: threshold 1, so that no head but the last is run
``source-only``        the source holds all layers and sends nothing
``data-distributed``   every node holds the whole model, and raw items are sent
``split-even``         each node holds as many layers as the next, one after the other
``split-best``         the cut of least time at the slowest part or link (Neurosurgeon, ASPLOS 2017, for a chain of nodes)
``jsq``, ``random``    the scenario's spans, with tasks offered by queue length or by chance
``static``             the scenario's spans, and tasks leave a node only where its span ends
``paper``              the scenario's spans, with the paper's rules
``drift-plus-penalty`` the same with that rule for tasks and threshold
``optimiser``          the same with the shares and thresholds that the bound's programme gives, for recorded outcomes
``optimiser-blind``    the same without outcomes: one threshold moves all exits
=====================  ===============================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Final, Literal

from mdi_exit.span import LayerSpan

__all__ = ["BASELINES", "Baseline", "best_split", "even_split", "spans_of"]

Placing = Literal["as given", "source", "all", "even", "best"]


@dataclass(frozen=True, slots=True)
class Baseline:
    """``offloading``: the policy of all nodes; ``early_exits`` False: the threshold is 1.

    ``adapt``: what moves the threshold where the rate is given; ``steers``: it is in force without a given rate, too.
    ``outcomes``: whether an optimiser is told recorded ones.
    """

    placing: Placing = "as given"
    offloading: str = "paper"
    early_exits: bool = True
    adapt: str = "threshold"
    steers: bool = False
    outcomes: bool = True


BASELINES: Final = {
    "no-early-exit": Baseline(early_exits=False),
    "source-only": Baseline("source", "never"),
    "data-distributed": Baseline("all", "whole-items"),
    "split-even": Baseline("even", "never"),
    "split-best": Baseline("best", "never"),
    "jsq": Baseline(offloading="jsq"),
    "random": Baseline(offloading="random"),
    "static": Baseline(offloading="never"),
    "paper": Baseline(),
    "drift-plus-penalty": Baseline(offloading="drift-plus-penalty", adapt="drift-plus-penalty"),
    "optimiser": Baseline(adapt="optimiser", steers=True),
    "optimiser-blind": Baseline(adapt="optimiser", steers=True, outcomes=False),
}


def spans_of(
    baseline: Baseline,
    given: Sequence[LayerSpan | None],
    layers: int,
    layer_s: Sequence[Sequence[float]],
    cut_s: Sequence[float],
    reach: Sequence[float],
) -> tuple[LayerSpan | None, ...]:
    """What each node holds, the source first; see ``best_split`` for the costs."""
    whole = LayerSpan(0, layers)
    match baseline.placing:
        case "source":
            return (whole, *(None for _ in given[1:]))
        case "all":
            return tuple(whole for _ in given)
        case "even":
            return even_split(layers, len(given))
        case "best":
            return best_split(layer_s, cut_s, reach)
        case _:
            return tuple(given)


def even_split(layers: int, nodes: int) -> tuple[LayerSpan | None, ...]:
    """Spans of as equal a length as can be, the source first; nodes beyond the number of layers hold nothing."""
    used = min(layers, nodes)
    ends = [layers * number // used for number in range(used + 1)]
    return (*(LayerSpan(*pair) for pair in pairwise(ends)), *(None for _ in range(nodes - used)))


def best_split(
    layer_s: Sequence[Sequence[float]], cut_s: Sequence[float], reach: Sequence[float]
) -> tuple[LayerSpan | None, ...]:
    """The chain of spans, in the order of the nodes, with the least seconds an item at its slowest part.

    ``layer_s``: seconds of each layer by node; ``cut_s``: of sending what enters each layer; ``reach``: share of items that
    comes to each layer. Nodes at the end may be left out. All cuts are tried.
    """
    nodes, layers = len(layer_s), len(cut_s)
    best, best_s = even_split(layers, 1), float("inf")
    for used in range(1, min(nodes, layers) + 1):
        for cuts in combinations(range(1, layers), used - 1):
            ends = (0, *cuts, layers)
            parts = [
                sum(layer_s[node][layer] * reach[layer] for layer in range(first, stop))
                for node, (first, stop) in enumerate(pairwise(ends))
            ]
            slowest = max([*parts, *(cut_s[cut] * reach[cut] for cut in cuts)])
            if slowest < best_s:
                best, best_s = tuple(LayerSpan(*pair) for pair in pairwise(ends)), slowest
    return (*best, *(None for _ in range(nodes - len(best))))
