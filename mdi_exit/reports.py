"""What a node need not say in every load report, and how a reader fills it in again.

Links and board change slowly and take most of the room; a sender learns from every acknowledgement what is received. So
many reports are brief: without links and board, and with those ``received`` only that are new.
"""

from __future__ import annotations

from typing import Final

import msgspec

from mdi_exit.wire import Telemetry

__all__ = ["FULL_PERIOD_S", "Shortener", "completed"]

FULL_PERIOD_S: Final = 1.0
_SPARE_BYTES_PER_S: Final = 150
_BOARD_BYTES: Final = 45
_LINK_BYTES: Final = 29
_RECEIVED_BYTES: Final = 45
_ENTRY_BYTES: Final = 7


class Shortener:
    """The writer's side; one for each node. A report is full every second, or less often where there are many links."""

    def __init__(self) -> None:
        self._full_at = float("-inf")
        self._told: dict[str, int] = {}  # the least recently told first

    def shortened(self, now: float, telemetry: Telemetry) -> Telemetry:
        """The report as it goes out at ``now`` (monotonic seconds)."""
        received = self._news(telemetry.received)
        if now < self._full_at:
            return msgspec.structs.replace(telemetry, received=received, links={}, board=None, scores={})
        size_bytes = _BOARD_BYTES + sum(_LINK_BYTES + len(name) for name in telemetry.links)
        self._full_at = now + max(FULL_PERIOD_S, size_bytes / _SPARE_BYTES_PER_S)
        return msgspec.structs.replace(telemetry, received=received)

    def _news(self, received: dict[str, int]) -> dict[str, int]:
        """What has changed, a few at a time and in turn."""
        order = [sender for sender in received if sender not in self._told]
        order += [sender for sender, seq in self._told.items() if received.get(sender, seq) != seq]
        news: dict[str, int] = {}
        left_bytes = _RECEIVED_BYTES
        for sender in order:
            if left_bytes <= 0:
                break
            left_bytes -= _ENTRY_BYTES + len(sender)
            self._told.pop(sender, None)
            self._told[sender] = news[sender] = received[sender]
        return news


def completed(previous: Telemetry | None, telemetry: Telemetry) -> Telemetry:
    """The reader's side: ``telemetry``, with links and board from the same start's ``previous`` report if it has none."""
    if previous is None or previous.incarnation != telemetry.incarnation or telemetry.board is not None:
        return telemetry
    links, scores = telemetry.links or previous.links, telemetry.scores or previous.scores
    return msgspec.structs.replace(telemetry, links=links, board=previous.board, scores=scores)
