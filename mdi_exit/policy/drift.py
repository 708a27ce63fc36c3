"""Drift plus penalty (Neely, Stochastic Network Optimization, 2010, chapters 4 and 5): queues decide, V is the price.

Three decisions follow from minimising, in each slot, the drift of the squared backlogs less V times the utility, which is
accuracy × rate here: where a task goes, how low the threshold goes, and how many items are let in. Utility comes within
O(1/V) of the optimum, backlogs grow with O(V).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from mdi_exit.policy.candidates import Candidate, Own

__all__ = ["Choice", "DriftConfig", "best_choice", "most_relief", "most_under_way"]

_LEAST_WORK: Final = 0.05


@dataclass(frozen=True, slots=True)
class DriftConfig:
    """``v``: items of backlog that a whole unit of accuracy is worth; ``v_rate``: items under way up to which one more
    right answer is worth letting in. Both are ours.
    """

    v: float = 400.0
    v_rate: float = 120.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A threshold T, the mean accuracy that is expected of it, and the work of an item as a share of that without exits."""

    threshold: float
    accuracy: float
    work: float


def best_choice(backlog: float, choices: Sequence[Choice], v: float) -> Choice:
    """The choice of the greatest V·accuracy - backlog·work; ``backlog`` in items. The surer of equals."""
    return max(choices, key=lambda choice: (v * choice.accuracy - backlog * choice.work, choice.threshold))


def most_under_way(choice: Choice, v_rate: float) -> int:
    """How many items are let in at once: one more while its utility outweighs what it adds, V·accuracy > backlog·work."""
    return max(math.ceil(v_rate * choice.accuracy / max(choice.work, _LEAST_WORK)), 1)


def most_relief(own: Own, candidates: Sequence[Candidate], rng: Random) -> str | None:
    """Max-weight with the delay as penalty: to where I_n Γ_n - I_m Γ_m - D_nm is greatest, if it is above 0."""
    del rng
    best = min(candidates, key=lambda candidate: candidate.cost_s, default=None)
    return best.name if best is not None and own.backlog_s > best.cost_s else None
