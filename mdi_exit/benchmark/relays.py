"""The baselines of ``mdi-exit benchmark hop``: source -> relay -> source with nothing of this project in the way.

One over MQTT, as aiomqtt's documentation has one write it and with TCP_NODELAY set; one over plain TCP with a length before
each payload. A third is this project's transport and nothing else of it. The relay is a process of its own, as an agent is.
The source keeps ``window`` messages in flight: without a window a broker drops what a slow receiver does not fetch, and a
throughput of lost messages means nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import aiomqtt

from broker.embedded import dies_with_parent
from mdi_exit.errors import MdiExitError, StartError
from mdi_exit.items import percentile
from mdi_exit.transport.mqtt import MqttTransport
from mdi_exit.values import broker_address

__all__ = ["RelayResult", "aiomqtt_relay", "tcp_relay", "transport_relay"]

_NODELAY: Final = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
_READY: Final = b"ready"
_READY_DEADLINE_S: Final = 20.0
_IDLE_DEADLINE_S: Final = 30.0
_WARM_UP: Final = 50
_ROUND_TRIPS: Final = 200

Round = Callable[[int, int], Awaitable[list[float]]]


@dataclass(frozen=True, slots=True)
class RelayResult:
    """``throughput_per_s`` with ``window`` messages in flight; round trips, in seconds, one message at a time."""

    name: str
    payload_bytes: int
    qos: int
    window: int
    messages: int
    seconds: float
    throughput_per_s: float
    round_trip_p50_s: float
    round_trip_p90_s: float
    round_trip_p99_s: float


async def aiomqtt_relay(
    url: str,
    payload_bytes: int,
    *,
    qos: int = 0,
    window: int = 16,
    messages: int = 2000,
    round_trips: int = _ROUND_TRIPS,
) -> RelayResult:
    """Through the broker at ``url`` and a relay process that does ``async for`` and ``publish``.

    Raises ``StartError`` if the relay does not come up.
    """
    address, prefix = broker_address(url), f"relay-{uuid.uuid4().hex[:8]}"
    there, back = f"{prefix}/there", f"{prefix}/back"
    arguments = ("mqtt", address.host, str(address.port), there, back, str(qos))
    async with (
        _relay_process(arguments),
        aiomqtt.Client(address.host, address.port, socket_options=_NODELAY) as client,
    ):
        await client.subscribe(back, qos)
        arrived = client.messages

        async def send(payload: bytes) -> None:
            await client.publish(there, payload, qos)

        async def receive() -> None:
            await anext(arrived)

        run = _rounds(send, receive, payload_bytes)
        return await _measured("aiomqtt", run, payload_bytes, qos, window, messages, round_trips)


async def transport_relay(
    url: str,
    payload_bytes: int,
    *,
    qos: int = 0,
    window: int = 16,
    messages: int = 2000,
    round_trips: int = _ROUND_TRIPS,
) -> RelayResult:
    """As ``aiomqtt_relay``, with ``MqttTransport`` at both ends. Raises ``StartError``."""
    prefix = f"relay-{uuid.uuid4().hex[:8]}"
    there, back = f"{prefix}/there", f"{prefix}/back"
    end = _End()
    async with (
        _relay_process(("transport", url, there, back, str(qos))),
        MqttTransport(url, client_id=prefix, handler=end) as transport,
    ):
        await transport.subscribe(back, qos)
        await asyncio.wait_for(end.connected.wait(), _READY_DEADLINE_S)

        async def send(payload: bytes) -> None:
            if not transport.publish(there, payload, qos=qos):
                raise MdiExitError("relay: expected a connection with room for a message, got none")

        run = _rounds(send, end.receive, payload_bytes)
        return await _measured("transport", run, payload_bytes, qos, window, messages, round_trips)


async def tcp_relay(
    payload_bytes: int, *, window: int = 16, messages: int = 2000, round_trips: int = _ROUND_TRIPS
) -> RelayResult:
    """Over one TCP connection to a relay process that sends back what it gets. Raises ``StartError``."""
    async with _relay_process(("tcp",)) as said:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(said), limit=2**20)
        writer.get_extra_info("socket").setsockopt(*_NODELAY[0])
        try:

            async def send(payload: bytes) -> None:
                writer.write(len(payload).to_bytes(4, "big"))
                writer.write(payload)
                await writer.drain()

            async def receive() -> None:
                await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))

            run = _rounds(send, receive, payload_bytes)
            return await _measured("asyncio TCP", run, payload_bytes, 0, window, messages, round_trips)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class _End:
    """A transport's handler: what arrives waits to be received, or goes straight back."""

    def __init__(self, answer: Callable[[bytes], object] | None = None) -> None:
        self.connected = asyncio.Event()
        self.answer = answer
        self._arrived: asyncio.Queue[bytes] = asyncio.Queue()

    def on_message(self, _topic: str, payload: bytes, _retained: bool, /) -> None:
        (self.answer or self._arrived.put_nowait)(payload)

    def on_connected(self) -> None:
        self.connected.set()

    def on_disconnected(self, reason: str, /) -> None:
        sys.stderr.write(f"relay: {reason}\n")

    async def receive(self) -> None:
        await self._arrived.get()


def _rounds(
    send: Callable[[bytes], Awaitable[None]], receive: Callable[[], Awaitable[None]], payload_bytes: int
) -> Round:
    """A function that sends ``count`` messages with ``window`` in flight and gives each one's seconds there and back."""
    payload = bytes(payload_bytes)

    async def run(count: int, window: int) -> list[float]:
        started: deque[float] = deque()
        taken: list[float] = []
        room = asyncio.Semaphore(window)

        async def send_all() -> None:
            for _ in range(count):
                await room.acquire()
                started.append(time.perf_counter())
                await send(payload)

        async with asyncio.timeout(_IDLE_DEADLINE_S + count * 0.1), asyncio.TaskGroup() as group:
            group.create_task(send_all(), name="relay source")
            for _ in range(count):
                await receive()
                taken.append(time.perf_counter() - started.popleft())
                room.release()
        return taken

    return run


async def _measured(
    name: str, run: Round, payload_bytes: int, qos: int, window: int, messages: int, round_trips: int
) -> RelayResult:
    await run(_WARM_UP, min(window, _WARM_UP))
    taken = await run(round_trips, 1)
    begin = time.perf_counter()
    await run(messages, window)
    seconds = time.perf_counter() - begin
    p50, p90, p99 = (percentile(taken, share) for share in (0.5, 0.9, 0.99))
    return RelayResult(name, payload_bytes, qos, window, messages, seconds, messages / seconds, p50, p90, p99)


@contextlib.asynccontextmanager
async def _relay_process(arguments: tuple[str, ...]) -> AsyncIterator[str]:
    """A relay in a process of its own; gives what it says after "ready" (for TCP, its port)."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mdi_exit.benchmark.relays", *arguments),
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=dies_with_parent(),
    )
    try:
        if process.stdout is None:
            raise StartError("relay: expected a pipe from it, got none")
        try:
            said = await asyncio.wait_for(process.stdout.readline(), _READY_DEADLINE_S)
        except TimeoutError:
            said = b""
        if not said.startswith(_READY):
            raise StartError(f"relay: expected it to be ready within {_READY_DEADLINE_S:g} s, got {said.decode()!r}")
        yield said[len(_READY) :].decode().strip()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def _relay_mqtt(host: str, port: int, there: str, back: str, qos: int) -> None:
    async with aiomqtt.Client(host, port, socket_options=_NODELAY) as client:
        await client.subscribe(there, qos)
        _say_ready("")
        async for message in client.messages:
            await client.publish(back, message.payload, qos)


async def _relay_transport(url: str, there: str, back: str, qos: int) -> None:
    end = _End()
    async with MqttTransport(url, client_id=f"{back}-relay", handler=end) as transport:
        end.answer = lambda payload: transport.publish(back, payload, qos=qos)
        await transport.subscribe(there, qos)
        await end.connected.wait()
        _say_ready("")
        await asyncio.Event().wait()


async def _relay_tcp() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(*_NODELAY[0])
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readexactly(4)
                writer.write(head)
                writer.write(await reader.readexactly(int.from_bytes(head, "big")))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    _say_ready(str(server.sockets[0].getsockname()[1]))
    await server.serve_forever()


def _say_ready(more: str) -> None:
    sys.stdout.write(f"{_READY.decode()} {more}\n")
    sys.stdout.flush()


def _main(arguments: list[str]) -> None:
    match arguments:
        case ["mqtt", host, port, there, back, qos]:
            asyncio.run(_relay_mqtt(host, int(port), there, back, int(qos)))
        case ["transport", url, there, back, qos]:
            asyncio.run(_relay_transport(url, there, back, int(qos)))
        case _:
            asyncio.run(_relay_tcp())


if __name__ == "__main__":
    _main(sys.argv[1:])
