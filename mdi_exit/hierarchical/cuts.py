"""Where to cut: the runtime model of hierarchical training (Sepehri et al., arXiv 2303.02384), with measured numbers.

Edge, link and cloud work at the same time, each on another batch. A step so takes as long as the slowest of them:

    step(s) = max(edge(s), bytes(s) / rate, cloud(s))

where the edge trains layers 0 to s and the exit there, and the cloud the rest: whole steps, with the optimiser's and the
codec's share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CutTimes", "best_cut", "cut_times"]


@dataclass(frozen=True, slots=True)
class CutTimes:
    """Expected seconds of one step with the cut after layer ``cut``, by who takes them. ``bytes``: of one batch."""

    cut: int
    edge_s: float
    link_s: float
    cloud_s: float
    bytes: int

    @property
    def step_s(self) -> float:
        return max(self.edge_s, self.link_s, self.cloud_s)

    @property
    def slowest(self) -> str:
        return max(("edge", self.edge_s), ("link", self.link_s), ("cloud", self.cloud_s), key=lambda part: part[1])[0]


def cut_times(
    edge_s: Sequence[float],
    cloud_s: Sequence[float],
    batch_bytes: Sequence[int],
    bytes_per_s: float,
    *,
    edges: int = 1,
) -> list[CutTimes]:
    """One entry for each possible cut: after layer 0, 1, … L-2. Seconds are of one step of each side, by cut.

    ``batch_bytes``: of what leaves the cut. ``edges``: how many send to the one cloud, which has that many batches to
    learn from in the time in which each edge makes one.
    """
    return [
        CutTimes(cut, edge_s[cut], batch_bytes[cut] / bytes_per_s, edges * cloud_s[cut], batch_bytes[cut])
        for cut in range(len(cloud_s))
    ]


def best_cut(times: Sequence[CutTimes]) -> CutTimes:
    """The least step; of equals (within 1 %) the one with the fewest bytes, then the earliest."""
    least_s = min(time.step_s for time in times)
    near = [time for time in times if time.step_s <= 1.01 * least_s]
    return min(near, key=lambda time: (time.bytes, time.cut))
