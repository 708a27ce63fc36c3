"""The protocol between a driver and whatever carries its messages. Nothing of MQTT version 5 is needed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

from mdi_exit.errors import TransportError

__all__ = [
    "MAX_PACKET_BYTES",
    "PACKET_OVERHEAD_BYTES",
    "Handler",
    "Transport",
    "TransportCounters",
    "Will",
    "checked_size",
    "delivered",
    "told",
    "topic_matches",
]

MAX_PACKET_BYTES: Final = 16 * 1024 * 1024
PACKET_OVERHEAD_BYTES: Final = 9  # type, four of length, two of topic length, two of packet identifier

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes when this client is gone without saying so."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True


@dataclass(slots=True)
class TransportCounters:
    """Since the start. ``refused``: publishes not taken because disconnected or full; ``oversize``: messages
    larger than a packet may be, refused on the way out or skipped on the way in.
    """

    messages_in: int = 0
    bytes_in: int = 0
    messages_out: int = 0
    bytes_out: int = 0
    connects: int = 0
    refused: int = 0
    oversize: int = 0
    handler_errors: int = 0

    @property
    def reconnects(self) -> int:
        return max(self.connects - 1, 0)


class Handler(Protocol):
    """Called in the event loop; must not block. An exception is logged and counted and stops nothing."""

    def on_message(self, topic: str, payload: bytes, retained: bool, /) -> None: ...

    def on_connected(self) -> None:
        """After every connect, subscriptions restored."""

    def on_disconnected(self, reason: str, /) -> None:
        """The connection is lost, or could not be made; told once per change of reason."""


class Transport(Protocol):
    """Connects in the background for as long as it is entered, again and again."""

    counters: TransportCounters

    @property
    def connected(self) -> bool: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def subscribe(self, pattern: str, qos: int = 0) -> None:
        """From now on, and after every reconnect."""

    async def unsubscribe(self, pattern: str) -> None: ...

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        """Hand over a message without waiting; False if not connected or the outgoing buffer is full.

        Raises ``TransportError`` if it is larger than a packet may be: a broker would drop it, or the connection.
        """

    async def publish_confirmed(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, timeout_s: float = 5.0
    ) -> bool:
        """Hand over and wait until the broker has it; False if that did not happen in time."""

    def pending_bytes(self) -> int:
        """Accepted, and not yet given to the operating system."""


def checked_size(counters: TransportCounters, topic: str, payload: bytes, limit: int) -> None:
    """Raises ``TransportError`` if the message is larger than ``limit`` bytes on the wire."""
    if len(payload) + len(topic) + PACKET_OVERHEAD_BYTES > limit:
        counters.oversize += 1
        raise TransportError(f"message to {topic}: expected at most {limit} bytes, got {len(payload)}")


def told(counters: TransportCounters, call: Callable[[], None]) -> None:
    """Tell the handler of a change; its faults stay its own."""
    try:
        call()
    except Exception:
        counters.handler_errors += 1
        log.exception("handling a change of the connection failed")


def delivered(handler: Handler, counters: TransportCounters, topic: str, payload: bytes, *, retained: bool) -> None:
    """Give a message to the handler; its faults stay its own."""
    counters.messages_in += 1
    counters.bytes_in += len(payload)
    try:
        handler.on_message(topic, payload, retained)
    except Exception:
        counters.handler_errors += 1
        log.exception("handling a message on %s failed", topic[:120])


def topic_matches(pattern: str, topic: str) -> bool:
    """MQTT 3.1.1 section 4.7: ``+`` is one level, ``#`` the rest; neither matches a leading ``$`` level."""
    if topic.startswith("$") and pattern[:1] in ("+", "#"):
        return False
    wanted, given = pattern.split("/"), topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(given) or level not in ("+", given[index]):
            return False
    return len(wanted) == len(given)
