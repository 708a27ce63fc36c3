"""What all tests share: a real Mosquitto on a free loopback port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from broker.embedded import dies_with_parent, find_mosquitto, free_port, mosquitto_config

_CONNECT = bytes.fromhex("100c00044d5154540402000a0000")
_DEADLINE_S = 15.0

# No test fails because the machine is busy.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as sock:
            sock.sendall(_CONNECT)
            return sock.recv(4)[:1] == b"\x20"  # an answer, be it a refusal
    except OSError:
        return False


@dataclass
class Mosquitto:
    """A broker process that a test can end and start again; the port stays. Nothing is kept over a restart."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    config: str | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        binary = find_mosquitto()
        assert binary is not None
        file = self.folder / "mosquitto.conf"
        file.write_text(self.config or mosquitto_config(self.port))
        with (self.folder / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen(
                [binary, "-c", str(file)], stdout=log, stderr=log, preexec_fn=dies_with_parent()
            )
        deadline = time.monotonic() + _DEADLINE_S
        while not _answers(self.port):
            said = (self.folder / "mosquitto.log").read_text(errors="replace")
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.01)

    def _end(self, number: int) -> None:
        if self.process is not None:
            os.kill(self.process.pid, signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(_DEADLINE_S)
            self.process = None

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        self.start()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    if find_mosquitto() is None:
        pytest.skip("needs mosquitto on PATH")
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    broker = Mosquitto(folder)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture(scope="session")
def standing_mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a broker that all tests share: to be left running, with topics of one's own."""
    if find_mosquitto() is None:
        pytest.skip("needs mosquitto on PATH")
    broker = Mosquitto(tmp_path_factory.mktemp("mosquitto"))
    broker.start()
    yield broker.url
    broker.kill()


@pytest.fixture(scope="session")
def standing_amqtt() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "broker.amqtt_broker", str(port)], preexec_fn=dies_with_parent())
    deadline = time.monotonic() + _DEADLINE_S
    while not _answers(port):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield f"mqtt://127.0.0.1:{port}"
    process.kill()
    process.wait(_DEADLINE_S)


class Recorder:
    """A transport's handler that keeps what it is told; ``until`` waits for it with a deadline."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes, bool]] = []
        self.connects = 0
        self.reasons: list[str] = []
        self._changed = asyncio.Event()

    def on_message(self, topic: str, payload: bytes, retained: bool, /) -> None:
        self.messages.append((topic, payload, retained))
        self._changed.set()

    def on_connected(self) -> None:
        self.connects += 1
        self._changed.set()

    def on_disconnected(self, reason: str, /) -> None:
        self.reasons.append(reason)
        self._changed.set()

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _, payload, _ in self.messages]

    async def until(self, condition: Callable[[], bool], deadline_s: float = 20.0) -> None:
        async with asyncio.timeout(deadline_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder
