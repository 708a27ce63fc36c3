"""What an offloading policy sees, and what it may answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

__all__ = ["HERE", "Candidate", "OffloadPolicy", "Own"]

HERE: Final = ""
"""The answer of a policy that decides for each task once: into I_n, for good."""


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
    """The deciding node: lengths of I_n and O_n, and I_n Γ_n in seconds with the running task's remainder.

    ``due``: how many tasks each node, ``HERE`` included, is behind its share; empty where nobody has given shares.
    ``alike``: tasks in I_n for the layer that is asked about; ``begun``: whether that is any but the first.
    """

    inputs: int
    outputs: int
    backlog_s: float
    due: Mapping[str, float] = field(default_factory=dict)
    alike: int = 0
    begun: bool = False


OffloadPolicy = Callable[[Own, Sequence[Candidate], Random], "str | None"]
"""Who gets the head of O_n now: a candidate's name, ``HERE``, or None to keep it in O_n until the next epoch."""
