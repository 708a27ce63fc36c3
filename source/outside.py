"""The source's second connection: other programs' images, results for them, and what Home Assistant is to know.

One of its own, so that a camera's images do not stand in the way of features, and with a last will in plain words.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final

from mdi_exit.program import transport_of
from mdi_exit.settings import NodeSettings
from mdi_exit.transport import Transport, Will, topic_matches
from mdi_exit.transport.mqtt import MqttTransport

__all__ = ["OutsideLine", "opened_line"]

_ROOM_BYTES: Final = 4 * 1024 * 1024

log = logging.getLogger(__name__)

OnMessage = Callable[[str, bytes, bool], None]


class OutsideLine:
    """A handler of the second connection: hands messages to those who asked for them, tells of each connect."""

    def __init__(self) -> None:
        self.transport: Transport | None = None
        self._heard: list[tuple[str, int, OnMessage]] = []
        self._on_up: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        return self.transport is not None and self.transport.connected

    def hear(self, pattern: str, qos: int, on_message: OnMessage) -> None:
        """Before the connection is opened: what to listen to."""
        self._heard.append((pattern, qos, on_message))

    def when_up(self, call: Callable[[], None]) -> None:
        """Called after every connect."""
        self._on_up.append(call)

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        """See ``Transport.publish``; False also before there is a connection."""
        return self.transport is not None and self.transport.publish(topic, payload, qos=qos, retain=retain)

    async def subscribe(self, transport: Transport) -> None:
        """Listen, from now on and after each reconnect."""
        for pattern, qos, _ in self._heard:
            await transport.subscribe(pattern, qos)

    def on_message(self, topic: str, payload: bytes, retained: bool, /) -> None:
        for pattern, _, call in self._heard:
            if topic_matches(pattern, topic):
                call(topic, payload, retained)

    def on_connected(self) -> None:
        for call in self._on_up:
            call()

    def on_disconnected(self, reason: str, /) -> None:
        log.debug("second connection: %s", reason)  # the first one says it


@contextlib.asynccontextmanager
async def opened_line(
    line: OutsideLine, first: MqttTransport, settings: NodeSettings, client_id: str, will: Will | None
) -> AsyncIterator[OutsideLine]:
    """The connection, to the broker of the ``first``, for as long as the context lasts."""
    transport = transport_of(settings, client_id, line, will, room_bytes=_ROOM_BYTES, beside=first)
    await line.subscribe(transport)
    line.transport = transport
    async with transport:
        yield line
