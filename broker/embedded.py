"""A broker that starts by itself: the ``mosquitto`` found on PATH, else amqtt, on a free loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from mdi_exit.errors import StartError

__all__ = [
    "EmbeddedBroker",
    "Kind",
    "dies_with_parent",
    "embedded_broker",
    "find_mosquitto",
    "free_port",
    "mosquitto_config",
]

Kind = Literal["mosquitto", "amqtt"]

_START_DEADLINE_S: Final = 15.0
_STOP_DEADLINE_S: Final = 5.0
_CONNECT: Final = bytes.fromhex("100c00044d5154540402000a0000")  # MQTT 3.1.1, clean session, no client id
_PR_SET_PDEATHSIG: Final = 1
_PORTS_TRIED: Final = 3
_LINES_TOLD: Final = 3


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_mosquitto() -> str | None:
    """The path of ``mosquitto``; Debian puts it into /usr/sbin, which users' PATH lacks."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


@dataclass(slots=True)
class EmbeddedBroker:
    """A broker that runs as a child process."""

    kind: Kind
    port: int
    process: asyncio.subprocess.Process

    @property
    def host(self) -> str:
        return "127.0.0.1"

    @property
    def url(self) -> str:
        return f"mqtt://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    async def stop(self, number: int = signal.SIGTERM) -> None:
        """End and reap it; SIGKILL if it does not end in time."""
        if self.process.returncode is None:
            self.process.send_signal(number)
            try:
                await asyncio.wait_for(self.process.wait(), _STOP_DEADLINE_S)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()


def mosquitto_config(port: int) -> str:
    """For one run on loopback: nothing is kept, and queues are long enough for bursts of quick tests."""
    lines = (
        f"listener {port} 127.0.0.1",
        "allow_anonymous true",
        "set_tcp_nodelay true",
        "persistence false",
        "max_inflight_messages 1000",
        "max_queued_messages 10000",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        *(("user root",) if os.geteuid() == 0 else ()),  # it would change to a user that cannot read our folder
    )
    return "\n".join(lines) + "\n"


def dies_with_parent() -> Callable[[], None] | None:
    """On Linux: the child is told to end when its parent does, however that ends."""
    if not sys.platform.startswith("linux"):
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def set_death_signal() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended just before
            os._exit(1)

    return set_death_signal


async def _answers(port: int) -> bool:
    """Whether a broker on ``port`` acknowledges a connection."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(_CONNECT)
        answer = await asyncio.wait_for(reader.readexactly(4), 2.0)
        writer.write(b"\xe0\x00")
        await writer.drain()
        return answer[0] == 0x20 and answer[3] == 0
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _refuse_if_taken(kind: Kind, port: int) -> None:
    """A broker of somebody else's on this port would answer in place of ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise StartError(f"broker {kind}: expected port {port} to be free, got: {error.strerror}") from None


def _command(kind: Kind, port: int, folder: Path) -> list[str]:
    if kind == "amqtt":
        return [sys.executable, "-m", "broker.amqtt_broker", str(port)]
    binary = find_mosquitto()
    if binary is None:
        raise StartError("broker: expected mosquitto on PATH, got none (apt install mosquitto)")
    config = folder / "mosquitto.conf"
    config.write_text(mosquitto_config(port))
    return [binary, "-c", str(config)]


async def _start(kind: Kind, port: int, folder: Path) -> EmbeddedBroker:
    """Start a broker with its files in ``folder``; returns when it answers. Raises ``StartError``.

    The child has a session of its own, so that Ctrl-C in a terminal does not take the broker away before the programs have
    said goodbye.
    """
    _refuse_if_taken(kind, port)
    log = folder / "broker.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *_command(kind, port, folder),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=dies_with_parent(),
        )
    broker = EmbeddedBroker(kind, port, process)
    deadline = asyncio.get_running_loop().time() + _START_DEADLINE_S
    try:
        while not await _answers(port):
            if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                said = " / ".join(log.read_text(errors="replace").split("\n")[-_LINES_TOLD:]).strip(" /")
                raise StartError(f"broker {kind}: expected an answer on port {port}, got: {said or 'none'}")
            await asyncio.sleep(0.02)
    except BaseException:
        await broker.stop()
        raise
    return broker


async def _start_somewhere(kind: Kind, port: int, folder: Path) -> EmbeddedBroker:
    """A free port may be taken by another program before the broker has it: then another one."""
    for _ in range(_PORTS_TRIED - 1 if port == 0 else 0):
        with contextlib.suppress(StartError):
            return await _start(kind, free_port(), folder)
    return await _start(kind, port or free_port(), folder)


@contextlib.asynccontextmanager
async def embedded_broker(prefer: Kind | None = None, port: int = 0) -> AsyncIterator[EmbeddedBroker]:
    """A broker for as long as the context lasts: ``prefer``, or Mosquitto where it is found, else amqtt.

    ``port`` 0 is any free one. Raises ``StartError`` if it cannot start.
    """
    kind: Kind = prefer or ("mosquitto" if find_mosquitto() else "amqtt")
    with tempfile.TemporaryDirectory(prefix="mdi-exit-broker-") as folder:
        broker = await _start_somewhere(kind, port, Path(folder))
        try:
            yield broker
        finally:
            await broker.stop()
