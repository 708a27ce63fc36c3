"""MQTT 3.1.1 through aiomqtt; the one file that imports it.

aiomqtt connects, authenticates, subscribes, pings and says goodbye. What it leaves to its user is done here: reconnecting
with full-jitter back-off and restoring subscriptions. The messages themselves go past it (``Stream``): its way through
futures, queues and a task per message costs ten times what the rest of a hop does, and drops messages when its queue is full.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiomqtt

from mdi_exit import values
from mdi_exit.errors import StartError, TransportError
from mdi_exit.transport.backoff import Backoff
from mdi_exit.transport.base import (
    MAX_PACKET_BYTES,
    Handler,
    TransportCounters,
    Will,
    checked_size,
    delivered,
    told,
)
from mdi_exit.transport.choice import Choice
from mdi_exit.transport.frames import Acknowledged, Arrived, TooLarge, puback, publish_head
from mdi_exit.transport.stream import Stream
from mdi_exit.transport.tls import asked_again, closing, is_denial, plain_reason

__all__ = ["MAX_PENDING_BYTES", "MqttTransport"]

_LASTING_S: Final = 1.0  # a broker that soon hangs up again is not asked ten times a second
_ANSWER_S: Final = 5.0
_GOODBYE_S: Final = 2.0
_AFTERMATH_S: Final = 0.2
_LOST: Final = "failed to receive on socket: "
MAX_PENDING_BYTES: Final = 32 * 1024 * 1024
_FIRST_PACKET_ID: Final = 32768  # below are paho's, which needs few: it sends no message of ours
_LAST_PACKET_ID: Final = 65535
_SUBSCRIBE_FAILED: Final = 128
_CALLS_AT_ONCE: Final = 256  # subscriptions to the files of a model; aiomqtt warns its user of more than ten
_NEEDED: Final = (
    "_sock", "_ping_t", "loop_read", "loop_write", "disconnect", "disable_logger",
    "on_socket_register_write", "on_socket_unregister_write",
)  # fmt: skip
_NEEDED_OF_AIOMQTT: Final = ("_client", "_disconnected")

T = TypeVar("T")

log = logging.getLogger(__name__)
_library_log = logging.getLogger(f"{__name__}.aiomqtt")
_library_log.addFilter(lambda record: "Unexpected message ID" not in str(record.msg))  # an answer nobody waits for


class MqttTransport:
    """A client of the broker at ``url`` (``mqtt[s]://HOST[:PORT]``, or ``auto``); QoS 0 and 1, clean session.

    Of several, with commas between, the first that answers (``Choice``).
    ``client_id`` must be new at every start: a client that takes over its own session fires its old will.
    ``max_pending_bytes``: how much may wait for a slow connection before ``publish`` says False.
    Another transport as ``url`` means its broker, once it is connected there.
    ``on_denied``: called when no broker of the list can be trusted or takes us, before there ever was a connection: another
    try would meet the same. The transport tries on all the same.
    Raises ``UsageError`` for a malformed ``url``.
    """

    def __init__(
        self,
        url: str | values.Brokers | MqttTransport,
        *,
        client_id: str,
        handler: Handler,
        will: Will | None = None,
        username: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        keepalive_s: int = 5,
        max_packet_bytes: int = MAX_PACKET_BYTES,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        on_denied: Callable[[StartError], None] | None = None,
    ) -> None:
        self._beside = url if isinstance(url, MqttTransport) else None
        brokers: str | values.Brokers = url._choice.wanted if isinstance(url, MqttTransport) else url
        self._choice: Choice = Choice(brokers, has_password=password is not None, tls_only=tls is not None)
        address = self._choice.address
        self.counters = TransportCounters()
        self._handler = handler
        self._leave = asyncio.Event()
        self._followers: list[MqttTransport] = []
        if self._beside is not None:
            self._beside._followers.append(self)
        self._tls, self._on_denied = tls, on_denied
        self._max_packet_bytes, self._max_pending_bytes = max_packet_bytes, max_pending_bytes
        self._subscriptions: dict[str, int] = {}
        self._client: aiomqtt.Client | None = None
        self._stream: Stream | None = None
        self._is_connected = False
        self._ended: asyncio.Task[None] | None = None
        self._unconfirmed: dict[int, asyncio.Future[bool] | None] = {}
        self._packet_id = _FIRST_PACKET_ID
        self._stopping, self._up = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._options: dict[str, Any] = {
            "hostname": address.host or "localhost",
            "port": address.port or 1883,
            "identifier": client_id,
            "username": username,
            "password": password,
            "tls_context": self._context(address),
            "keepalive": keepalive_s,
            "will": aiomqtt.Will(will.topic, will.payload, will.qos, will.retain) if will else None,
            "protocol": aiomqtt.ProtocolVersion.V311,
            "clean_session": True,
            "timeout": _ANSWER_S,
            "logger": _library_log,
        }

    def _context(self, address: values.BrokerAddress) -> ssl.SSLContext | None:
        return closing(self._tls) if address.tls else None

    @property
    def connected(self) -> bool:
        return self._is_connected and self._stream is not None and self._stream.is_open()

    @property
    def socket(self) -> socket.socket | None:
        """The connected socket, for a look at its options."""
        return self._stream.raw if self._stream is not None else None

    def pending_bytes(self) -> int:
        return self._stream.pending if self._stream is not None else 0

    async def __aenter__(self) -> Self:
        _paho_of(aiomqtt.Client(**self._options))  # what does not fit is said now and not in the background
        self._stopping.clear()
        self._task = asyncio.create_task(self._keep_connected(), name=f"mqtt {self._options['identifier']}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send what was accepted, say goodbye (no will is published), close. An attempt to connect is seen through."""
        task, self._task = self._task, None
        if task is None:
            return
        self._stopping.set()
        await task

    async def _keep_connected(self) -> None:
        backoff, said, denials = Backoff(), set[str](), list[str]()
        while not self._stopping.is_set():
            connects, begin = self.counters.connects, time.monotonic()
            why = await self._one_connection()
            reason = f"broker {self._choice.address}: {why}"
            if self._stopping.is_set():
                return
            was_connected = self.counters.connects > connects
            if was_connected and time.monotonic() - begin > _LASTING_S:
                backoff.ended()
            if was_connected:
                said.clear()
            if reason not in said:
                told(self.counters, partial(self._handler.on_disconnected, reason))
            denials.append(why if is_denial(why, again=reason in said) else "")
            said.add(reason)
            all_tried = self._choice.ended(was_connected=was_connected)
            if all_tried:
                self._tell_denial(denials)
                denials.clear()
            most_s = backoff.failed(time.monotonic(), is_last=all_tried)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), random.uniform(0.01, most_s))

    def _tell_denial(self, denials: list[str]) -> None:
        """``denials``: of each broker of the list, why it does not take us or cannot be trusted; empty: something else."""
        if self._on_denied is not None and not self.counters.connects and denials and all(denials):
            tell, self._on_denied = self._on_denied, None
            tell(StartError(f"broker {self._choice.wanted}: expected to be let in, got: {denials[-1]}"))

    async def _one_connection(self) -> str:
        """Connect, and stay until it ends; returns why it did."""
        try:
            await self._find()
        except Exception as error:  # noqa: BLE001 - none found, no multicast here, an answer that is none: all are reasons
            return _reason(error)
        client = aiomqtt.Client(**self._options)
        try:
            await _entered(client, _prepare(client))
            stream, self._ended = self._take_over(client)
        except Exception as error:  # noqa: BLE001 - name resolution, refusal, TLS, a broker that is none: all are reasons
            _abandon(client)
            tls, address = self._options["tls_context"], self._choice.address
            if tls is None:
                return _reason(error)
            return await asyncio.to_thread(asked_again, _reason(error), address.host, address.port, tls)
        try:
            if await self._restore(client):
                self._client, self._is_connected = client, True
                self._up.set()
                self.counters.connects += 1
                self._choice.connected()
                self._lead_followers()
                told(self.counters, self._handler.on_connected)
                await self._until_ended()
            reason = "left for an earlier one that is back" if self._leave.is_set() else _lost_because(stream)
        finally:
            self._client, self._is_connected = None, False
            self._up.clear()
            self._leave.clear()
            await self._let_go(client, stream, self._ended)
        return reason

    async def _find(self) -> None:
        if self._beside is not None:
            await self._beside._seen_up(self._stopping)
            self._choice.address = self._beside._choice.address
        else:
            await self._choice.find()
        address = self._choice.address
        self._options |= {"hostname": address.host, "port": address.port, "tls_context": self._context(address)}

    async def _seen_up(self, stopping: asyncio.Event) -> None:
        """Wait until this one is connected, or whoever waits is to stop. Raises ``TransportError`` then."""
        waits = {asyncio.ensure_future(event.wait()) for event in (self._up, stopping)}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not self._up.is_set():
            raise TransportError("waiting for the first connection")

    def _take_over(self, client: aiomqtt.Client) -> tuple[Stream, asyncio.Task[None]]:
        """Put a ``Stream`` in the place of the socket inside paho inside aiomqtt. The task ends with the connection.

        This and the functions at the end of this file reach behind aiomqtt's surface; where ``_paho_of`` finds another
        layout there, the program stops with a clear line.
        """
        paho = _paho_of(client)

        def read_other() -> None:
            paho.loop_read()

        def write_now(*_: object) -> None:  # the stream takes everything, and sends it in order with the messages
            paho.loop_write()

        def on_alive() -> None:  # else a ping whose answer waits behind long messages would count as a dead broker
            paho._ping_t = 0.0

        def on_packet(packet: Arrived | Acknowledged | TooLarge) -> None:
            self._on_packet(packet, stream)

        raw = paho._sock
        if raw is None:
            raise TransportError("the broker accepted and closed the connection")
        ended = asyncio.create_task(_until_lost(client), name="mqtt connection")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = Stream(
            raw,
            limit=self._max_packet_bytes,
            on_packet=on_packet,
            on_other=read_other,
            on_alive=on_alive,
            on_lost=ended.cancel,
        )
        paho.disable_logger()
        paho.on_socket_register_write, paho.on_socket_unregister_write = write_now, None
        paho._sock = stream
        self._stream = stream
        return stream, ended

    async def _restore(self, client: aiomqtt.Client) -> bool:
        """Subscribe to everything wanted, also what comes to be wanted meanwhile; False if the connection was lost.

        The answer may come late, behind much that was retained: to give up a connection that lives would be to begin anew.
        """
        restored: dict[str, int] = {}
        while missing := [item for item in self._subscriptions.items() if item not in restored.items()]:
            if await self._unless_ended(client.subscribe(missing, timeout=math.inf)) is None:
                return False
            restored.update(missing)
        return True

    def _lead_followers(self) -> None:
        """Whoever is to be on the same broker comes along."""
        for follower in self._followers:
            if follower.connected and follower._choice.address != self._choice.address:
                follower._leave.set()

    async def _until_ended(self) -> None:
        """Until the connection is lost, or there is a reason to leave it."""
        waits: set[asyncio.Task[Any]] = {
            asyncio.create_task(self._stopping.wait(), name="mqtt stopping"),
            asyncio.create_task(self._leave.wait(), name="mqtt leaving"),
        }
        if self._beside is None:
            waits.add(asyncio.create_task(self._leave_for_earlier(), name="mqtt looking back"))
        try:
            if self._ended is not None:
                await asyncio.wait({self._ended, *waits}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _leave_for_earlier(self) -> None:
        await self._choice.earlier_is_back()
        self._leave.set()

    async def _unless_ended(self, call: Coroutine[Any, Any, T]) -> T | None:
        """The result of ``call``, or None if the broker did not answer, or the connection ended or was to end first."""
        task, stopping = asyncio.ensure_future(call), asyncio.ensure_future(self._stopping.wait())
        waits: set[asyncio.Future[Any]] = {task, stopping, *((self._ended,) if self._ended else ())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
            stopping.cancel()
        await asyncio.wait({task, stopping})
        if task.cancelled() or isinstance(task.exception(), aiomqtt.MqttError):
            return None
        return task.result()

    async def _let_go(self, client: aiomqtt.Client, stream: Stream, ended: asyncio.Task[None]) -> None:
        deadline = time.monotonic() + _GOODBYE_S
        while (stream.pending or self._unconfirmed) and not ended.done() and time.monotonic() < deadline:  # noqa: ASYNC110 - twice a life
            await asyncio.sleep(0.002)
        for waiting in self._unconfirmed.values():
            if waiting is not None and not waiting.done():
                waiting.set_result(False)
        self._unconfirmed.clear()
        with contextlib.suppress(Exception):  # saying goodbye over a connection that is dying
            await client.__aexit__(None, None, None)
        ended.cancel()
        await asyncio.wait({ended})
        stream.close()
        await stream.closed
        self._stream = self._ended = None

    async def subscribe(self, pattern: str, qos: int = 0) -> None:
        if qos not in (0, 1):
            raise TransportError(f"subscription to {pattern}: expected QoS 0 or 1, got {qos}")
        self._subscriptions[pattern] = qos
        client = self._client
        if client is not None:  # otherwise, or if this connection ends first: with the next one
            refused = await self._unless_ended(client.subscribe(pattern, qos))
            codes = [code if isinstance(code, int) else code.value for code in refused or ()]
            if any(code >= _SUBSCRIBE_FAILED for code in codes):
                log.warning("broker %s: expected a subscription to %s, got a refusal", self._choice.address, pattern)

    async def unsubscribe(self, pattern: str) -> None:
        self._subscriptions.pop(pattern, None)
        if self._client is not None:
            await self._unless_ended(self._client.unsubscribe(pattern))

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        return self._publish(topic, payload, qos, retain, None)

    async def publish_confirmed(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, timeout_s: float = 5.0
    ) -> bool:
        confirmed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if not self._publish(topic, payload, max(qos, 1), retain, confirmed):
            return False
        try:
            return await asyncio.wait_for(confirmed, timeout_s)
        except TimeoutError:
            return False

    def _publish(
        self, topic: str, payload: bytes, qos: int, retain: bool, confirmed: asyncio.Future[bool] | None
    ) -> bool:
        checked_size(self.counters, topic, payload, self._max_packet_bytes)
        stream = self._stream
        is_full = stream is not None and 0 < stream.pending > self._max_pending_bytes - len(payload)
        packet_id = self._free_packet_id() if qos else 0
        if stream is None or not self.connected or is_full or packet_id is None:
            self.counters.refused += 1
            return False
        head = publish_head(topic, len(payload), packet_id, retain=retain)
        if packet_id:
            self._unconfirmed[packet_id] = confirmed
        stream.write(head, payload)
        self.counters.messages_out += 1
        self.counters.bytes_out += len(payload)
        return True

    def _free_packet_id(self) -> int | None:
        """None when as many messages wait for their acknowledgement as there are identifiers."""
        if len(self._unconfirmed) > _LAST_PACKET_ID - _FIRST_PACKET_ID:
            return None
        while True:
            self._packet_id = self._packet_id + 1 if self._packet_id < _LAST_PACKET_ID else _FIRST_PACKET_ID
            if self._packet_id not in self._unconfirmed:
                return self._packet_id

    def _on_packet(self, packet: Arrived | Acknowledged | TooLarge, stream: Stream) -> None:
        if isinstance(packet, Acknowledged):
            confirmed = self._unconfirmed.pop(packet.packet_id, None)
            if confirmed is not None and not confirmed.done():
                confirmed.set_result(True)
            return
        topic = packet.topic.decode(errors="replace")
        if isinstance(packet, Arrived):
            delivered(self._handler, self.counters, topic, packet.payload, retained=packet.retained)
        else:
            self.counters.oversize += 1
            log.warning("message on %s: expected %d bytes, got %d", topic[:120], self._max_packet_bytes, packet.size)
        if packet.packet_id:
            stream.write(puback(packet.packet_id))


async def _until_lost(client: aiomqtt.Client) -> None:
    with contextlib.suppress(aiomqtt.MqttError):
        async for _ in client.messages:  # none comes this way; it ends with the connection
            pass


def _paho_of(client: aiomqtt.Client) -> Any:
    paho: Any = getattr(client, "_client", None)
    missing = [name for name in _NEEDED if not hasattr(paho, name)]
    missing += [name for name in _NEEDED_OF_AIOMQTT if not hasattr(client, name)]
    if missing:
        raise StartError(f"aiomqtt: expected a version in 2.5 to 3 on paho-mqtt 2, got one without {missing[0]}")
    return paho


def _prepare(client: aiomqtt.Client) -> asyncio.Future[str]:
    """Make it bear a peer that hangs up at once.

    aiomqtt has the loop watch the socket's number a little later, when it may be invalid, or another socket's. What is
    written before the ``Stream`` takes over, a CONNECT, always fits. And it forgets a loss that comes with the acceptance.

    Returns what comes to say why the connection was lost before the broker's answer: paho tells only its log.
    """
    paho, loop = _paho_of(client), asyncio.get_running_loop()
    client._disconnected.add_done_callback(lambda lost: lost.cancelled() or lost.exception())
    client.pending_calls_threshold = _CALLS_AT_ONCE

    def write_soon(*_: object) -> None:  # called in the thread that connects
        loop.call_soon_threadsafe(paho.loop_write)

    paho.on_socket_register_write, paho.on_socket_unregister_write = write_soon, None
    lost: asyncio.Future[str] = loop.create_future()

    def note_loss(_client: object, _userdata: object, _level: int, line: str) -> None:
        if line.startswith(_LOST):
            loop.call_soon_threadsafe(_settle, lost, line.removeprefix(_LOST))

    paho.on_log = note_loss
    paho.disable_logger()
    return lost


def _settle(future: asyncio.Future[str], value: str) -> None:
    if not future.done():
        future.set_result(value)


async def _entered(client: aiomqtt.Client, lost: asyncio.Future[str]) -> None:
    """Connect; a loss before the broker's answer is told at once. Raises what aiomqtt does, and ``TransportError``."""
    entering = asyncio.create_task(client.__aenter__(), name="mqtt connect")
    try:
        both: set[asyncio.Future[Any]] = {entering, lost}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({entering}, timeout=0 if entering.done() else _AFTERMATH_S)  # its thread has yet to end
    finally:
        entering.cancel()
    await asyncio.wait({entering})
    if entering.cancelled():
        raise TransportError(lost.result() if lost.done() else "no answer")
    entering.result()


def _abandon(client: aiomqtt.Client) -> None:
    """aiomqtt leaves the socket of an attempt that was not answered open, and reads it on."""
    paho = _paho_of(client)
    paho.on_socket_register_write = None  # then paho writes at once
    with contextlib.suppress(Exception):
        paho.disconnect()


def _reason(error: Exception) -> str:
    """Why an attempt to connect failed, in one line."""
    if isinstance(error, aiomqtt.MqttCodeError):
        return plain_reason(f"refused: {error}")
    text = plain_reason(str(error).strip() or type(error).__name__)
    if text == "Operation timed out":
        return f"connected, but got no MQTT answer within {_ANSWER_S:g} s"
    return text.splitlines()[0]


def _lost_because(stream: Stream) -> str:
    return str(stream.error) if stream.error is not None else "no answer within the keepalive interval"
