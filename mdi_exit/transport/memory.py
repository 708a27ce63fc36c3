"""A broker in memory: MQTT's topics, retained messages and wills, with delay, pacing, loss and duplication on request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Final, Self

from mdi_exit.transport.base import (
    MAX_PACKET_BYTES,
    Handler,
    TransportCounters,
    Will,
    checked_size,
    delivered,
    told,
    topic_matches,
)
from mdi_exit.transport.frames import publish_head

__all__ = ["MemoryBroker", "MemoryTransport"]

_GONE: Final = "broker in memory: connection lost"


@dataclass(slots=True)
class MemoryBroker:
    """``delay_s`` (seconds) and ``bytes_per_s`` hold for each client's way from the broker; ``loss`` is the share of QoS 0
    messages that never arrive, ``twice`` that of QoS 1 messages that arrive twice.

    ``max_queued``: messages on the way to one client; what comes beyond is dropped, as real brokers do, and counted.
    """

    delay_s: float = 0.0
    bytes_per_s: float | None = None
    loss: float = 0.0
    twice: float = 0.0
    max_queued: int = 100_000
    rng: Random = field(default_factory=lambda: Random(0))
    up: bool = True
    dropped: int = 0
    retained: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    clients: list[MemoryTransport] = field(default_factory=list)

    def accept(self, topic: str, payload: bytes, qos: int, *, retain: bool) -> None:
        """A published message: remembered if retained, and on its way to whoever has subscribed."""
        if retain and payload:
            self.retained[topic] = payload, qos
        elif retain:
            self.retained.pop(topic, None)
        for client in list(self.clients):
            granted = client.granted(topic)
            if granted is not None:
                self.send(client, topic, payload, min(qos, granted), retained=False)

    def send(self, client: MemoryTransport, topic: str, payload: bytes, qos: int, *, retained: bool) -> None:
        if client.queued >= self.max_queued or (qos == 0 and self.rng.random() < self.loss):
            self.dropped += 1
            return
        for _ in range(2 if qos and self.rng.random() < self.twice else 1):
            client.carry(topic, payload, retained=retained)

    def stop(self, *, forget: bool = False) -> None:
        """The broker is gone and every client notices. ``forget``: it was killed, retained messages are lost."""
        self.up = False
        for client in list(self.clients):
            client.cut()
        if forget:
            self.retained.clear()

    def start(self) -> None:
        self.up = True

    def kill(self, client_id: str) -> None:
        """The client's connection breaks without a goodbye: its will is published."""
        for client in [client for client in self.clients if client.client_id == client_id]:
            client.cut()


class MemoryTransport:
    """A client of a ``MemoryBroker``."""

    def __init__(
        self,
        broker: MemoryBroker,
        *,
        client_id: str,
        handler: Handler,
        will: Will | None = None,
        max_packet_bytes: int = MAX_PACKET_BYTES,
        reconnect_s: float = 0.02,
    ) -> None:
        self.counters = TransportCounters()
        self.client_id = client_id
        self.queued = 0
        self._broker, self._handler, self._will = broker, handler, will
        self._max_packet_bytes, self._reconnect_s = max_packet_bytes, reconnect_s
        self._subscriptions: dict[str, int] = {}
        self._is_connected = False
        self._free_at = 0.0
        self._session = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._is_connected

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep_connected(), name="memory transport")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._leave()

    async def _keep_connected(self) -> None:
        is_told = False
        while True:
            if self._is_connected:
                is_told = True  # by ``cut``, when this ends
            elif self._broker.up:
                self._connect()
            elif not is_told:
                is_told = True
                told(self.counters, lambda: self._handler.on_disconnected(_GONE))
            await asyncio.sleep(self._reconnect_s)

    def _connect(self) -> None:
        self._is_connected = True
        self._broker.clients.append(self)
        self.counters.connects += 1
        for pattern, qos in self._subscriptions.items():
            self._send_retained(pattern, qos)
        told(self.counters, self._handler.on_connected)

    def _leave(self) -> None:
        self._is_connected = False
        self._session += 1
        self.queued = 0
        if self in self._broker.clients:
            self._broker.clients.remove(self)

    def cut(self) -> None:
        """The connection is lost; the will is published if the broker is still there."""
        if not self._is_connected:
            return
        self._leave()
        told(self.counters, lambda: self._handler.on_disconnected(_GONE))
        if self._will is not None and self._broker.up:
            self._broker.accept(self._will.topic, self._will.payload, self._will.qos, retain=self._will.retain)

    def granted(self, topic: str) -> int | None:
        """The QoS granted for ``topic``, or None if not subscribed to it."""
        return max((qos for pattern, qos in self._subscriptions.items() if topic_matches(pattern, topic)), default=None)

    def carry(self, topic: str, payload: bytes, *, retained: bool) -> None:
        """Deliver after the delay, in order, at the link's pace."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        pace_s = 1e-7 + (
            len(payload) / self._broker.bytes_per_s if self._broker.bytes_per_s else 0.0
        )  # keeps the order
        self._free_at = max(self._free_at, now) + pace_s
        self.queued += 1
        loop.call_at(self._free_at + self._broker.delay_s, self._arrive, self._session, topic, payload, retained)

    def _arrive(self, session: int, topic: str, payload: bytes, retained: bool) -> None:
        if session == self._session:
            self.queued -= 1
            delivered(self._handler, self.counters, topic, payload, retained=retained)

    def _send_retained(self, pattern: str, qos: int) -> None:
        for topic, (payload, stored) in list(self._broker.retained.items()):
            if topic_matches(pattern, topic):
                self._broker.send(self, topic, payload, min(qos, stored), retained=True)

    async def subscribe(self, pattern: str, qos: int = 0) -> None:
        self._subscriptions[pattern] = qos
        if self._is_connected:
            self._send_retained(pattern, qos)

    async def unsubscribe(self, pattern: str) -> None:
        self._subscriptions.pop(pattern, None)

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        checked_size(self.counters, topic, payload, self._max_packet_bytes)
        publish_head(topic, len(payload), 0, retain=retain)  # refuses what MQTT would
        if not self._is_connected:
            self.counters.refused += 1
            return False
        self.counters.messages_out += 1
        self.counters.bytes_out += len(payload)
        self._broker.accept(topic, payload, qos, retain=retain)
        return True

    def pending_bytes(self) -> int:
        return 0

    async def publish_confirmed(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, timeout_s: float = 5.0
    ) -> bool:
        del timeout_s  # the broker in memory has it at once
        return self.publish(topic, payload, qos=qos, retain=retain)
