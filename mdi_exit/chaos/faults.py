"""What can go wrong, and a seeded schedule of it. Pure: says what and when, and carries out nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final

from mdi_exit.chaos.packets import Trouble

__all__ = ["FAULTS", "NETWORK_FAULTS", "Fault", "FaultKind", "Lore", "one_fault", "planned", "trouble_of"]


class FaultKind(StrEnum):
    """The names by which faults are asked for."""

    AGENT_KILL = "agent-kill"
    AGENT_FREEZE = "agent-freeze"
    AGENT_SLOW = "agent-slow"
    AGENT_MEMORY = "agent-memory"
    BROKER_STOP = "broker-stop"
    BROKER_KILL = "broker-kill"
    CUT = "cut"
    HALF_OPEN = "half-open"
    DELAY = "delay"
    SLOW_LINK = "slow-link"
    CORRUPT = "corrupt"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    CLOCK = "clock"
    DISK_FULL = "disk-full"
    SOURCE_KILL = "source-kill"


@dataclass(frozen=True, slots=True)
class Lore:
    """What is known of a kind. ``lasts_s``: from, to; ``everybody``: all clients, else one agent.

    ``counts_from``: recovery is counted from the fault's ``start`` (a death, a silence: others are to take over) or its
    ``end`` (what all need is away, and nothing can recover before it is back).
    """

    about: str
    lasts_s: tuple[float, float]
    counts_from: str = "start"
    everybody: bool = False


FAULTS: Final[dict[FaultKind, Lore]] = {
    FaultKind.AGENT_KILL: Lore("an agent dies (SIGKILL) and is started again", (1.0, 3.0)),
    FaultKind.AGENT_FREEZE: Lore("an agent stands still (SIGSTOP) for longer than its keepalive", (4.0, 5.0)),
    FaultKind.AGENT_SLOW: Lore("an agent gets a fifth of its time (stopped and continued in turn)", (3.0, 5.0)),
    FaultKind.AGENT_MEMORY: Lore(
        "an agent gets no more memory (RLIMIT_AS); it is started again if it ends", (2.0, 4.0)
    ),
    FaultKind.BROKER_STOP: Lore("the broker is restarted (SIGTERM)", (0.5, 2.0), "end", everybody=True),
    FaultKind.BROKER_KILL: Lore(
        "the broker dies (SIGKILL), forgets all and is started again", (0.5, 2.0), "end", everybody=True
    ),
    FaultKind.CUT: Lore("an agent's connection is closed, and new ones are refused", (2.0, 4.0)),
    FaultKind.HALF_OPEN: Lore("an agent's connection stays open and nothing passes", (4.0, 5.0)),
    FaultKind.DELAY: Lore("an agent's messages take 0.3 s longer each way", (3.0, 5.0)),
    FaultKind.SLOW_LINK: Lore("an agent's link carries 20 kB/s each way", (3.0, 5.0)),
    FaultKind.CORRUPT: Lore("5 % of all messages have bytes changed, each way", (3.0, 5.0), "end", everybody=True),
    FaultKind.DUPLICATE: Lore("20 % of all messages come twice, each way", (3.0, 5.0), "end", everybody=True),
    FaultKind.REORDER: Lore(
        "20 % of all messages are overtaken by others, each way", (3.0, 5.0), "end", everybody=True
    ),
    FaultKind.CLOCK: Lore("wall clocks jump by a day and back, and an agent dies and starts meanwhile", (2.0, 4.0)),
    FaultKind.DISK_FULL: Lore("the disk of the results file is full", (2.0, 3.0), "end", everybody=True),
    FaultKind.SOURCE_KILL: Lore("the source dies (SIGKILL) and is started again", (0.2, 1.0), "end", everybody=True),
}

_TROUBLES: Final = {
    FaultKind.CUT: Trouble(refuse=True),
    FaultKind.HALF_OPEN: Trouble(silent=True),
    FaultKind.DELAY: Trouble(delay_s=0.3),
    FaultKind.SLOW_LINK: Trouble(bytes_per_s=20_000.0),
    FaultKind.CORRUPT: Trouble(corrupt=0.05),
    FaultKind.DUPLICATE: Trouble(duplicate=0.2),
    FaultKind.REORDER: Trouble(reorder=0.2),
}
NETWORK_FAULTS: Final = tuple(_TROUBLES)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, ``at_s`` after the first item, for ``lasts_s``. ``target``: the agent; empty: all, or no agent.

    ``by_s``: by how much a clock jumps.
    """

    kind: FaultKind
    at_s: float
    lasts_s: float
    target: str = ""
    by_s: float = 0.0

    @property
    def ends_s(self) -> float:
        return self.at_s + self.lasts_s

    def __str__(self) -> str:
        whom = f" at {self.target}" if self.target else ""
        return f"{self.kind}{whom} for {self.lasts_s:.1f} s"


def trouble_of(kind: FaultKind) -> Trouble | None:
    """What the proxy does for it; None: it is no fault of the network."""
    return _TROUBLES.get(kind)


def one_fault(kind: FaultKind, seed: int, agents: Sequence[str], begin_s: tuple[float, float]) -> Fault:
    """The fault of a run with this seed: when (within ``begin_s``), how long, at whom. The same for the same seed."""
    return _drawn(Random(f"{kind} {seed}"), kind, agents, begin_s)


def planned(
    seed: int,
    kinds: Sequence[FaultKind],
    agents: Sequence[str],
    until_s: float,
    every_s: float,
    lasts_s: float | None = None,
) -> list[Fault]:
    """Faults one after another until ``until_s``, each some time after the end of the one before: ``every_s`` in the mean.

    ``lasts_s`` None: as is usual for each kind.
    """
    rng = Random(f"schedule {seed}")
    found: list[Fault] = []
    free_s = 0.0
    while True:
        at_s = free_s + rng.uniform(0.5, 1.5) * every_s
        fault = _drawn(rng, rng.choice(list(kinds)), agents, (at_s, at_s))
        if lasts_s is not None:
            fault = Fault(fault.kind, fault.at_s, lasts_s, fault.target, fault.by_s)
        if fault.ends_s > until_s:
            return found
        found.append(fault)
        free_s = fault.ends_s


def _drawn(rng: Random, kind: FaultKind, agents: Sequence[str], begin_s: tuple[float, float]) -> Fault:
    lore = FAULTS[kind]
    at_s, lasts_s, whom = rng.uniform(*begin_s), rng.uniform(*lore.lasts_s), rng.choice(list(agents))
    by_s = rng.choice((-1, 1)) * 86_400.0 if kind is FaultKind.CLOCK else 0.0
    return Fault(kind, at_s, lasts_s, "" if lore.everybody else whom, by_s)
