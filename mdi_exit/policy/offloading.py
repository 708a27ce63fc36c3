"""Where to offload (MDI-Exit, arXiv 2408.05247, Alg. 2).

The rules are a reconstruction; what the paper leaves open is settled here: candidates are visited in random
order and the coin is thrown once per candidate and decision epoch (a completed task, a telemetry message, a
timer), never in a loop; a zero denominator sends. Both sides of the comparison are seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

__all__ = ["OFFLOADING", "Candidate", "OffloadPolicy", "Own", "forward", "never", "paper"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A neighbour with room that can take the task: corrected for what was sent since its last report.

    ``inputs``: I_m, tasks; ``backlog_s``: I_m Γ_m, seconds; ``delay_s``: D_nm for this task, seconds.
    """

    name: str
    inputs: float
    backlog_s: float
    delay_s: float

    @property
    def cost_s(self) -> float:
        return self.delay_s + self.backlog_s


@dataclass(frozen=True, slots=True)
class Own:
    """The deciding node: lengths of I_n and O_n, and I_n Γ_n in seconds with the running task's remainder."""

    inputs: int
    outputs: int
    backlog_s: float


OffloadPolicy = Callable[[Own, Sequence[Candidate], Random], "str | None"]


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


OFFLOADING: Final[dict[str, OffloadPolicy]] = {"paper": paper, "never": never}

_TWO_CHOICES_ABOVE: Final = 4
_ALIKE_S: Final = 1e-3
_ALIKE_SHARE: Final = 0.1


def forward(candidates: Sequence[Candidate], rng: Random) -> str | None:
    """Mandatory forwarding: a task that the node cannot run goes to the least D_nm + backlog.

    Costs within a tenth, or within a millisecond, of the least one are alike, since they are known no better; of those one
    is drawn, so that under light load no node is left without work and without fresh measurements. Among more than four
    candidates only two random ones are compared, so that nodes with the same stale reports do not all choose the same
    idle neighbour. None when there are no candidates.
    """
    if not candidates:
        return None
    pool = rng.sample(candidates, 2) if len(candidates) > _TWO_CHOICES_ABOVE else candidates
    least_s = min(candidate.cost_s for candidate in pool)
    limit_s = least_s + max(_ALIKE_SHARE * least_s, _ALIKE_S)
    return rng.choice([candidate.name for candidate in pool if candidate.cost_s <= limit_s])
