"""A proxy between MQTT clients and their broker that does harm: to chosen clients, at chosen moments.

It reads whole packets, so that a PUBLISH can be corrupted in its payload, sent twice or late while the session around it
stays sound: what a TCP proxy (Toxiproxy and its kind) cannot do.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from random import Random
from types import TracebackType
from typing import Final, Self

from mdi_exit.chaos.packets import CALM, Packets, Trouble, client_id, troubled
from mdi_exit.errors import StartError, TransportError

__all__ = ["FaultProxy"]

_CHUNK_BYTES: Final = 16 * 1024
_HELD_MOST_BYTES: Final = 128 * 1024
_GREETING_S: Final = 10.0


class FaultProxy:
    """Passes connections on to ``broker`` for as long as it is entered. ``port`` 0: a free one.

    Clients are chosen by a pattern of their MQTT client id (``*`` for all); the last trouble set that matches counts.
    """

    def __init__(
        self, broker: tuple[str, int], *, host: str = "127.0.0.1", port: int = 0, rng: Random | None = None
    ) -> None:
        self.broker = broker
        self.host, self.port = host, port
        self.counts: Counter[str] = Counter()
        self._rng = rng or Random(0)
        self._troubles: dict[str, Trouble] = {}
        self._passages: set[_Passage] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Raises ``StartError`` when the port cannot be had."""
        try:
            self._server = await asyncio.start_server(self._accept, self.host, self.port)
        except OSError as error:
            raise StartError(f"proxy on {self.host}:{self.port}: {error.strerror or error}") from None
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"mqtt://{self.host}:{self.port}"

    @property
    def clients(self) -> list[str]:
        """Client ids of the connections that are open, oldest first."""
        open_now = sorted((passage.number, passage.client) for passage in self._passages if passage.client)
        return [client for _, client in open_now]

    def trouble_of(self, client: str) -> Trouble:
        matching = [trouble for pattern, trouble in self._troubles.items() if fnmatch.fnmatchcase(client, pattern)]
        return matching[-1] if matching else CALM

    def trouble(self, pattern: str, trouble: Trouble) -> None:
        """From now on this happens to the clients that match; ``refuse`` also ends the connections that they have."""
        self._troubles.pop(pattern, None)
        self._troubles[pattern] = trouble
        if trouble.refuse:
            self.cut(pattern)

    def calm(self, pattern: str) -> None:
        """The trouble of that pattern is over. What was half-open is closed: its peers no longer agree on what was sent."""
        if (over := self._troubles.pop(pattern, None)) is not None and over.silent:
            self.cut(pattern)

    def cut(self, pattern: str) -> int:
        """End the connections of the clients that match; returns how many there were."""
        ended = [passage for passage in self._passages if fnmatch.fnmatchcase(passage.client, pattern)]
        for passage in ended:
            passage.abort()
        self.counts["cut"] += len(ended)
        return len(ended)

    def send(self, pattern: str, packet: bytes) -> None:
        """A packet of our own to the clients that match, between two of the broker's."""
        for passage in self._passages:
            if fnmatch.fnmatchcase(passage.client, pattern):
                passage.send(packet)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="proxied connection")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passage = _Passage(self, next(_NUMBERS), reader, writer, self._rng)
        self._passages.add(passage)
        try:
            await passage.run()
        except (OSError, TransportError, TimeoutError, asyncio.IncompleteReadError):
            pass  # one side is gone, or speaks no MQTT: so ends the other
        finally:
            self._passages.discard(passage)
            await passage.close()


_NUMBERS: Final = itertools.count(1)


class _Passage:
    """One client's connection, and the one to the broker that belongs to it."""

    def __init__(
        self,
        proxy: FaultProxy,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        rng: Random,
    ) -> None:
        self.number, self.client = number, ""
        self._proxy, self._reader, self._writer, self._rng = proxy, reader, writer, rng
        self._far: asyncio.StreamWriter | None = None
        self._down = _Sender(writer)

    async def run(self) -> None:
        packets = Packets()
        first = await asyncio.wait_for(self._greeting(packets), _GREETING_S)
        self.client = client_id(first[0]) or "?"
        if self._trouble.refuse:
            self._proxy.counts["refused"] += 1
            self.abort()
            return
        if self._trouble.silent:
            while await self._reader.read(_CHUNK_BYTES):
                self._proxy.counts["swallowed"] += 1
            return
        far_reader, self._far = await asyncio.open_connection(*self._proxy.broker)
        ways = (
            asyncio.create_task(self._pump(self._reader, packets, _Sender(self._far), first), name="up"),
            asyncio.create_task(self._pump(far_reader, Packets(), self._down, []), name="down"),
        )
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        for way in done:
            way.result()

    @property
    def _trouble(self) -> Trouble:
        return self._proxy.trouble_of(self.client)

    async def _greeting(self, packets: Packets) -> list[bytes]:
        while chunk := await self._reader.read(_CHUNK_BYTES):
            if found := packets.fed(chunk):
                return found
        raise asyncio.IncompleteReadError(b"", None)

    async def _pump(
        self, reader: asyncio.StreamReader, packets: Packets, sender: _Sender, waiting: list[bytes]
    ) -> None:
        """Until the end of the stream. What comes before the connection counts as troubled too."""
        sending = asyncio.create_task(sender.run(lambda: self._trouble.bytes_per_s), name="sender")
        try:
            while True:
                for packet in waiting:
                    if self._trouble.silent:
                        self._proxy.counts["swallowed"] += 1
                        continue
                    going = troubled(packet, self._trouble, self._rng)
                    self._proxy.counts["duplicated"] += len(going) - 1
                    self._proxy.counts["corrupted"] += going[0][1] != packet
                    for late_s, piece in going:
                        await sender.put(late_s, piece)
                if sending.done() or not (chunk := await reader.read(_CHUNK_BYTES)):
                    break
                waiting = packets.fed(chunk)
            await sender.emptied()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def send(self, packet: bytes) -> None:
        self._down.give(0.0, packet)

    def abort(self) -> None:
        """End both connections at once, without sending what waits."""
        for writer in (self._writer, self._far):
            if writer is not None:
                writer.transport.abort()

    async def close(self) -> None:
        for writer in (self._writer, self._far):
            if writer is not None:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()


class _Sender:
    """Packets in the order of the moments at which they are due; of equal ones, as they came."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._due: list[tuple[float, int, bytes]] = []
        self._count = itertools.count()
        self._held_bytes = 0
        self._came, self._went = asyncio.Event(), asyncio.Event()
        self._ended = False

    async def put(self, late_s: float, packet: bytes) -> None:
        """Waits while much is held: a slow way pushes back on whoever sends."""
        while self._held_bytes > _HELD_MOST_BYTES and not self._ended:
            self._went.clear()
            await self._went.wait()
        self.give(late_s, packet)

    def give(self, late_s: float, packet: bytes) -> None:
        """Without waiting."""
        self._held_bytes += len(packet)
        heapq.heappush(self._due, (asyncio.get_running_loop().time() + late_s, next(self._count), packet))
        self._came.set()

    async def emptied(self) -> None:
        """Until all that was put has been written, or cannot be."""
        while self._held_bytes and not self._ended:
            self._went.clear()
            await self._went.wait()

    async def run(self, pace: Callable[[], float | None]) -> None:
        """Write until cancelled or the other side is gone. ``pace``: bytes a second now, None: no limit."""
        try:
            while True:
                packet = await self._next()
                if (per_s := pace()) is not None:
                    await asyncio.sleep(len(packet) / per_s)
                self._writer.write(packet)
                await self._writer.drain()
                self._held_bytes -= len(packet)
                self._went.set()
        except OSError:
            pass
        finally:
            self._ended = True
            self._went.set()

    async def _next(self) -> bytes:
        loop = asyncio.get_running_loop()
        while True:
            left_s = self._due[0][0] - loop.time() if self._due else None
            if left_s is not None and left_s <= 0:
                return heapq.heappop(self._due)[2]
            self._came.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._came.wait(), left_s)
