"""Where to offload (MDI-Exit, arXiv 2408.05247, Alg. 2).

The rules are a reconstruction; what the paper leaves open is settled here: candidates are visited in random
order and the coin is thrown once per candidate and decision epoch (a completed task, a telemetry message, a
timer), never in a loop; a zero denominator sends. Both sides of the comparison are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

from mdi_exit.policy.blind import anyone, shortest_queue, whole_items
from mdi_exit.policy.candidates import HERE, Candidate, OffloadPolicy, Own
from mdi_exit.policy.drift import most_relief
from mdi_exit.policy.shares import by_share, furthest_behind

__all__ = [
    "HERE",
    "OFFLOADING",
    "PLACING",
    "Candidate",
    "OffloadPolicy",
    "Own",
    "forward",
    "never",
    "optimiser",
    "paper",
]


def paper(own: Own, candidates: Sequence[Candidate], rng: Random) -> str | None:
    """Alg. 2: the neighbour that gets the head of O_n now, or None to keep it until the next epoch."""
    for neighbour in rng.sample(candidates, len(candidates)):
        if own.outputs <= neighbour.inputs:
            continue
        if own.backlog_s > neighbour.cost_s or neighbour.cost_s <= 0.0:
            return neighbour.name
        if rng.random() < own.backlog_s / neighbour.cost_s:
            return neighbour.name
    return None


def never(own: Own, candidates: Sequence[Candidate], rng: Random) -> str | None:
    """Offer nothing: tasks leave a node only where its span ends."""
    del own, candidates, rng
    return None


def optimiser(own: Own, candidates: Sequence[Candidate], rng: Random) -> str | None:
    """By the shares that the source has worked out; by the paper's rule while there are none, or stale ones."""
    return by_share(own, candidates, rng) if own.due else paper(own, candidates, rng)


OFFLOADING: Final[dict[str, OffloadPolicy]] = {
    "paper": paper,
    "never": never,
    "random": anyone,
    "jsq": shortest_queue,
    "whole-items": whole_items,
    "drift-plus-penalty": most_relief,
    "optimiser": optimiser,
}
PLACING: Final = frozenset({"random", "jsq", "whole-items", "optimiser"})
"""Those that decide for each task once, when it is created, in place of Alg. 1 (``policy.queueing``)."""

_TWO_CHOICES_ABOVE: Final = 4
_ALIKE_S: Final = 1e-3
_ALIKE_SHARE: Final = 0.1


def forward(candidates: Sequence[Candidate], rng: Random, due: Mapping[str, float] | None = None) -> str | None:
    """Mandatory forwarding: a task that the node cannot run goes to the least D_nm + backlog.

    Where there are shares, ``due`` decides; those who have none get the task only if nobody else can take it.
    Costs within a tenth, or within a millisecond, of the least one are alike, since they are known no better; of those one
    is drawn, so that under light load no node is left without work and without fresh measurements. Among more than four
    candidates only two random ones are compared, so that nodes with the same stale reports do not all choose the same
    idle neighbour. None when there are no candidates.
    """
    if not candidates:
        return None
    if due and (named := [candidate.name for candidate in candidates if candidate.name in due]):
        return furthest_behind(due, named, rng)
    pool = rng.sample(candidates, 2) if len(candidates) > _TWO_CHOICES_ABOVE else candidates
    least_s = min(candidate.cost_s for candidate in pool)
    limit_s = least_s + max(_ALIKE_SHARE * least_s, _ALIKE_S)
    return rng.choice([candidate.name for candidate in pool if candidate.cost_s <= limit_s])
