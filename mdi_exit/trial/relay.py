"""Links of an emulated testbed in user space: each node reaches the broker through a relay that paces what passes.

The pace is that of the simulator's resources (``mdi_exit.simulation.star``): the node's rate up and down, the shared medium,
the broker's bytes, then the delay. No privileges are needed. What a TCP relay cannot do: lose packets. Beside links that the
kernel shapes (``mdi_exit.trial.kernel``), relays do the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Final

from mdi_exit.simulation.star import Pipe, Wires

__all__ = ["relays"]

_CHUNK_BYTES: Final = 8192
_AHEAD_S: Final = 0.05

Way = Callable[[], tuple[tuple[Pipe, ...], float]]


@contextlib.asynccontextmanager
async def relays(
    wires: Wires, names: list[str], broker_port: int, listener: Callable[[str], socket.socket] | None = None
) -> AsyncIterator[dict[str, int]]:
    """A port for each node, as long as the context lasts: on loopback, or of the socket that ``listener`` makes for it."""
    listener = listener or (lambda name: socket.create_server(("127.0.0.1", 0)))
    tasks: set[asyncio.Task[None]] = set()
    async with contextlib.AsyncExitStack() as stack:
        ports = {}
        for name in names:
            relay = _Relay(wires, name, broker_port, tasks)
            server = await asyncio.start_server(relay.accept, sock=listener(name))
            stack.push_async_callback(_closed, server)
            ports[name] = int(server.sockets[0].getsockname()[1])
        try:
            yield ports
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _closed(server: asyncio.Server) -> None:
    server.close()
    await server.wait_closed()


class _Relay:
    """The connections of one node."""

    def __init__(self, wires: Wires, name: str, broker_port: int, tasks: set[asyncio.Task[None]]) -> None:
        self._wires, self._name, self._port, self._tasks = wires, name, broker_port, tasks

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name=f"relay of {self._name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either side closes; then both are closed."""
        far: asyncio.StreamWriter | None = None
        try:
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._port)
            pumps = (
                asyncio.create_task(_pump(reader, far, lambda: self._wires.up(self._name)), name="up"),
                asyncio.create_task(_pump(far_reader, writer, lambda: self._wires.down(self._name)), name="down"),
            )
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # the broker is gone: so is the connection
        finally:
            for end in (writer, far):
                if end is not None:
                    end.close()
                    with contextlib.suppress(OSError):
                        await end.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
    """Chunks go in at the pace of the resources, and come out when they have passed all of them and the delay."""
    loop = asyncio.get_running_loop()
    due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    out = asyncio.create_task(_write(due, writer), name="out")
    try:
        while chunk := await reader.read(_CHUNK_BYTES):
            pipes, delay_s = way()
            through_at = loop.time()
            for pipe in pipes:
                through_at = pipe.enter(through_at, len(chunk))
            due.put_nowait((through_at + delay_s, chunk))
            if (ahead_s := through_at - loop.time() - _AHEAD_S) > 0:
                await asyncio.sleep(ahead_s)  # what does not fit the link waits in the sender's socket
        await due.join()
    except OSError:
        pass  # one side is gone
    finally:
        out.cancel()
        await asyncio.gather(out, return_exceptions=True)


async def _write(due: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    while True:
        when, chunk = await due.get()
        if (left_s := when - loop.time()) > 0:
            await asyncio.sleep(left_s)
        writer.write(chunk)
        await writer.drain()
        due.task_done()
