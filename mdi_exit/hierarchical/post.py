"""A worker's messages: to and from ``training/TO/FROM`` of one deployment."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from mdi_exit.errors import MdiExitError, TransportError, WireError
from mdi_exit.hierarchical.config import HierarchicalSettings
from mdi_exit.settings import new_incarnation
from mdi_exit.topics import TRAINING, Topics
from mdi_exit.transport.mqtt import MqttTransport
from mdi_exit.wire import Message, Weights, crc32, decode, encode

__all__ = ["Pieces", "Post"]

_KEEPALIVE_S: Final = (
    60  # a batch on a slow link takes its time, and one message is not through before its last byte is
)
_PIECE_BYTES: Final = 64 * 1024  # half a second at 1 Mbit/s: what waits behind it is not taken for silence
_CONFIRMED_S: Final = 120.0

log = logging.getLogger(__name__)

Receive = Callable[[str, Message, memoryview], None]


class Post:
    """Entered: connected, and again after every loss. ``receive`` gets sender, message and payload, in the event loop.

    ``changed`` is set whenever something came or the connection changed.
    """

    def __init__(self, settings: HierarchicalSettings, name: str, receive: Receive) -> None:
        self.name, self.incarnation = name, new_incarnation()
        self.topics = Topics(settings.deployment)
        self.changed = asyncio.Event()
        self.bad = 0
        self._receive = receive
        self._failure: MdiExitError | None = None
        self.transport = MqttTransport(
            settings.broker, client_id=f"{settings.deployment}-{name}-{self.incarnation}", handler=self,
            username=settings.username, password=settings.password, tls=settings.tls(), keepalive_s=_KEEPALIVE_S,
            on_denied=self.fail,
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        await self.transport.__aenter__()
        await self.transport.subscribe(self.topics.training(self.name, "+"), 1)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.transport.__aexit__(kind, error, trace)

    @property
    def connected(self) -> bool:
        return self.transport.connected

    def send(self, to: str, message: Message, payload: bytes = b"", *, qos: int = 0) -> bool:
        """Without waiting; False: there is no connection, or too much waits."""
        try:
            return self.transport.publish(self.topics.training(to, self.name), encode(message, payload), qos=qos)
        except TransportError as error:
            log.warning("%s", error)
            return False

    async def send_weights(self, to: str, run: int, incarnation: int, number: int, samples: int, raw: bytes) -> bool:
        """In pieces, each confirmed by the broker; False: the connection was lost meanwhile."""
        pieces = [raw[start : start + _PIECE_BYTES] for start in range(0, len(raw), _PIECE_BYTES)]
        for index, piece in enumerate(pieces):
            message = Weights(run, incarnation, number, samples, index, len(pieces), crc32(piece))
            topic = self.topics.training(to, self.name)
            if not await self.transport.publish_confirmed(topic, encode(message, piece), timeout_s=_CONFIRMED_S):
                return False
        return True

    async def wait(self, timeout_s: float) -> None:
        """Until something changes, or so long. Raises what ``check`` does."""
        self.check()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.changed.wait(), timeout_s)
        self.changed.clear()

    def fail(self, error: MdiExitError) -> None:
        """The worker cannot go on: ``error`` comes out of its next ``wait`` or ``check``."""
        self._failure = self._failure or error
        self.changed.set()

    def check(self) -> None:
        """Raises why the worker cannot go on, as where the broker does not let it in (``StartError``)."""
        if self._failure is not None:
            raise self._failure

    # --- called by the transport

    def on_message(self, topic: str, payload: bytes, retained: bool, /) -> None:
        try:
            if retained:
                raise WireError("retained", "expected a message of now, got one that the broker keeps")
            route = self.topics.parse(topic)
            message, body = decode(payload)
            if route.kind is TRAINING:
                self._receive(route.sender, message, body)
        except WireError as error:
            self.bad += 1
            if self.bad & (self.bad - 1) == 0:
                log.warning("%d message(s) not understood, the last: %s", self.bad, error)
        self.changed.set()

    def on_connected(self) -> None:
        log.info("connected")
        self.changed.set()

    def on_disconnected(self, reason: str, /) -> None:
        log.warning("%s", reason)
        self.changed.set()


class Pieces:
    """Weights put together again, of one sender: the newest round only, and of ``most_bytes`` at most."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._key: tuple[int, int, int] | None = None
        self._pieces: dict[int, bytes] = {}
        self._bytes = 0

    def added(self, message: Weights, payload: memoryview) -> bytes | None:
        """The whole, when this was the last that was missing. Raises ``WireError`` for too much; then nothing is kept."""
        key = (message.incarnation, message.round, message.count)
        if key != self._key:
            self._begin(key)
        if message.index < message.count and message.index not in self._pieces:
            self._bytes += len(payload)
            if self._bytes > self._most_bytes:
                self._begin(None)
                raise WireError("weights", f"expected at most {self._most_bytes} bytes, got more")
            self._pieces[message.index] = bytes(payload)
        if len(self._pieces) < message.count:
            return None
        whole = b"".join(self._pieces[index] for index in range(message.count))
        self._begin(None)
        return whole

    def _begin(self, key: tuple[int, int, int] | None) -> None:
        self._key, self._pieces, self._bytes = key, {}, 0
