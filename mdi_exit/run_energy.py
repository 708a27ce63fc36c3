"""The energy of a run, by node, from what the nodes' telemetry says of their boards."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from mdi_exit.wire import Board

__all__ = ["EnergyLedger", "RunEnergy"]


@dataclass(frozen=True, slots=True)
class RunEnergy:
    """Joules of a run by node, and whether by ``sensor`` or ``estimate``.

    ``total_j``: a sensor that several nodes share, since they share a machine, counts once.
    """

    joules: dict[str, float]
    method: dict[str, str]
    total_j: float


@dataclass(slots=True)
class _Account:
    """One node. ``points``: (when, joules since its start), the last two of this start; ``closed_j``: of earlier starts."""

    incarnation: int
    board: Board
    points: list[tuple[float, float]] = field(default_factory=list)
    closed_j: float = 0.0
    begin_j: float | None = None

    def at(self, now: float) -> float:
        """Joules of this start at ``now``: the last two points say how fast they grow."""
        (when, joules), (before, earlier) = self.points[-1], self.points[0]
        per_s = (joules - earlier) / (when - before) if when > before else 0.0
        return joules + per_s * max(now - when, before - when)


class EnergyLedger:
    """Takes in boards as they are reported and says what was used since ``begin``. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def seen(self, now: float, node: str, incarnation: int, board: Board) -> None:
        """A report. One whose energy is unknown, or is the one before repeated, says nothing new."""
        joules = board.energy_j
        if joules is None:
            return
        account = self._accounts.get(node)
        if account is None:
            account = self._accounts[node] = _Account(incarnation, board)
        elif account.incarnation != incarnation:
            account.closed_j += account.points[-1][1] - (account.begin_j or 0.0)
            account.incarnation, account.points, account.begin_j = incarnation, [], joules
        account.board = board
        if account.begin_j is None:
            account.begin_j = joules
        if not account.points or joules != account.points[-1][1]:
            account.points = [*account.points[-1:], (now, joules)]

    def begin(self, now: float) -> None:
        """The run begins: what was used before does not count."""
        for account in self._accounts.values():
            account.closed_j, account.begin_j = 0.0, account.at(now)

    def spent(self, now: float) -> RunEnergy:
        """What was used from ``begin`` to ``now`` by the nodes whose energy is known."""
        joules: dict[str, float] = {}
        method: dict[str, str] = {}
        shared: defaultdict[str, float] = defaultdict(float)
        for node, account in sorted(self._accounts.items()):
            if account.begin_j is None or (len(account.points) < 2 and not account.closed_j):
                continue  # a single reading says nothing of a span of time
            joules[node] = account.closed_j + max(account.at(now) - account.begin_j, 0.0)
            method[node] = "sensor" if account.board.measured else "estimate"
            meter = f"host {account.board.host}" if account.board.measured and account.board.host else f"node {node}"
            shared[meter] = max(shared[meter], joules[node])
        return RunEnergy(joules, method, sum(shared.values()))
