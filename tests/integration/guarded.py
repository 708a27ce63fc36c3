"""A Mosquitto with the production configuration that ``mdi-exit secure init`` makes, and bundles as on their boards."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from live import DEADLINE_S, run_program

from broker.embedded import dies_with_parent, find_mosquitto, free_port
from mdi_exit.transport.mqtt import MqttTransport
from mdi_exit.transport.tls import tls_context

INSTALLED = "/etc/mdi-exit"


@dataclass
class Production:
    """``folder`` is what the command made; ``port`` wants certificates, ``password_port`` passwords, both TLS."""

    folder: Path
    boards: Path
    port: int = field(default_factory=free_port)
    password_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtts://localhost:{self.port}"

    @property
    def password_url(self) -> str:
        return f"mqtts://localhost:{self.password_port}"

    def secure(self, *argv: object) -> subprocess.CompletedProcess[str]:
        done = run_program("mdi_exit.cli", "secure", *argv)
        assert done.returncode == 0, done.stderr
        return done

    def make(self, nodes: str, also: str, deployment: str = "default") -> str:
        """The output of ``secure init``."""
        flags = ("--nodes", nodes, "--also", also, "--host", "localhost", "--deployment", deployment)
        ports = ("--port", self.port, "--password-port", self.password_port)
        where = ("--broker-install", self.folder / "broker")
        return self.secure("init", self.folder, *flags, *ports, *where).stdout

    def start(self) -> None:
        binary = find_mosquitto()
        assert binary is not None
        text = (self.folder / "broker" / "mosquitto.conf").read_text()
        text = text.replace("/var/lib/mosquitto/", f"{self.boards}/") + "log_type information\n"  # tells of a reload
        text += "user root\n" if os.geteuid() == 0 else ""  # it would change to a user that cannot read our folder
        file = self.boards / "mosquitto.conf"
        file.write_text(text)
        with (self.boards / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen([binary, "-c", str(file)], stderr=log, preexec_fn=dies_with_parent())
        deadline = time.monotonic() + DEADLINE_S
        while not (_listens(self.port) and _listens(self.password_port)):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    @property
    def log(self) -> str:
        return (self.boards / "mosquitto.log").read_text(errors="replace")

    def reload(self) -> None:
        """As an operator does after copying new files."""
        assert self.process is not None
        before = self.log.count("Reloading config")
        self.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + DEADLINE_S
        while self.log.count("Reloading config") == before:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(DEADLINE_S)

    def board(self, name: str) -> Path:
        """The bundle of ``name``, copied to its machine; the settings say where it lies there."""
        board = self.boards / name
        if not board.exists():
            shutil.copytree(self.folder / "bundles" / name, board)
            file = board / "mdi-exit.toml"
            file.write_text(file.read_text().replace(INSTALLED, str(board)))
        return board

    def transport(
        self, name: str, handler: object, *, url: str | None = None, user: str | None = None
    ) -> MqttTransport:
        """Signed in with the certificate of ``name``; ``user``: what it claims to be beside."""
        board = self.board(name)
        tls = tls_context(board / "ca.crt", board / "node.crt", board / "node.key")
        where = url or self.url
        return MqttTransport(where, client_id=f"{name}-{id(handler)}", handler=handler, tls=tls, username=user)  # type: ignore[arg-type]


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def production(folder: Path, nodes: str, also: str, deployment: str = "default") -> Iterator[Production]:
    """A running broker for ``nodes`` and ``also`` (NAME:ROLE,...)."""
    boards = folder / "boards"
    boards.mkdir()
    made = Production(folder / "secure", boards)
    made.make(nodes, also, deployment)
    try:
        made.start()
        yield made
    finally:
        made.stop()
