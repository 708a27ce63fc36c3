"""What a node need not say in every load report, and how a reader fills it in again.

Links and board change slowly and take most of the room; a sender learns from every acknowledgement what is received. So
most reports are brief: without links and board, and with those ``received`` only that are new.
"""

from __future__ import annotations

from typing import Final

import msgspec

from mdi_exit.wire import Telemetry

__all__ = ["FULL_PERIOD_S", "Shortener", "completed"]

FULL_PERIOD_S: Final = 2.0
_PER_LINK_S: Final = 0.25
_MAX_RECEIVED: Final = 16


class Shortener:
    """The writer's side; one for each node. A report is full every two seconds, or less often where there are many links."""

    def __init__(self) -> None:
        self._full_at = float("-inf")
        self._told: dict[str, int] = {}

    def due(self, now: float) -> bool:
        """Whether the next report is to be a full one."""
        return now >= self._full_at

    def shortened(self, now: float, telemetry: Telemetry) -> Telemetry:
        """The report as it goes out at ``now`` (monotonic seconds)."""
        new = [(sender, seq) for sender, seq in telemetry.received.items() if self._told.get(sender) != seq]
        received = dict(new[:_MAX_RECEIVED])
        self._told |= received
        if self.due(now):
            self._full_at = now + max(FULL_PERIOD_S, _PER_LINK_S * len(telemetry.links))
            return msgspec.structs.replace(telemetry, received=received)
        return msgspec.structs.replace(telemetry, received=received, links={}, board=None)


def completed(previous: Telemetry | None, telemetry: Telemetry) -> Telemetry:
    """The reader's side: ``telemetry``, links and board from the ``previous`` report of the same start if it has none."""
    if previous is None or previous.incarnation != telemetry.incarnation or telemetry.board is not None:
        return telemetry
    links = telemetry.links or previous.links
    return msgspec.structs.replace(telemetry, links=links, board=previous.board)
