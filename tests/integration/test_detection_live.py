"""Frozen and cut-off agents, as processes on a real broker: noticed by their silence, and back without a restart."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator

import pytest
from live import Program, Source, System, until

pytestmark = pytest.mark.broker


class Wire:
    """A relay to the broker that can stop carrying, with its connections left open."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("mqtt://").partition(":")
        self._target = host, int(port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._server]
        self._carries = threading.Event()
        self._carries.set()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self._server.getsockname()[1]}"

    def cut(self) -> None:
        self._carries.clear()

    def mend(self) -> None:
        self._carries.set()

    def close(self) -> None:
        self.mend()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for one in self._sockets:
            one.close()

    def _start(self, work, *arguments: object) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                self._start(self._carry, near, far)
                self._start(self._carry, far, near)

    def _carry(self, source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._carries.wait()
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)


@pytest.fixture
def wire(system: System) -> Iterator[Wire]:
    wire = Wire(system.url)
    yield wire
    wire.close()


def works_at(source: Source, name: str, after: int = 0) -> None:
    until(lambda: any(name in row["path"] for row in source.rows[after:]), lambda: f"work at {name}:\n{source.log}")


def is_missed_and_comes_back(source: Source, other: Program, *, stop, go_on) -> None:
    """``a`` is missed by the source and by its neighbour, its items are done by ``b``, and it is there again."""
    works_at(source, "a")
    stop()
    for node in (source, other):
        node.until_says("a has been silent")
    count = len(source.rows)
    source.until_results(count + 20)
    go_on()
    source.until_says("a joined", times=2)
    works_at(source, "a", after=len(source.rows))
    source.until_completed()
    assert "a left" not in source.log.split("a joined")[2], "it was not taken for dead again"


LONG = ("--keepalive", "60s")  # the broker itself will notice nothing


def test_a_frozen_agent_is_missed_and_comes_back(system: System) -> None:
    a, b = (system.agent(name, "4-8", *LONG) for name in ("a", "b"))
    source = system.source("--layers", "0-3", "--limit", "900", "--rate", "50/s", "--exit-threshold", "1")
    is_missed_and_comes_back(source, b, stop=lambda: a.signal(signal.SIGSTOP), go_on=lambda: a.signal(signal.SIGCONT))
    assert "a left" not in source.log, "by silence, not by a will"


def test_an_agent_whose_network_is_cut_is_missed_and_comes_back(system: System, wire: Wire) -> None:
    behind = System(wire.url, system.folder, programs=system.programs)
    a, b = behind.agent("a", "4-8", *LONG), system.agent("b", "4-8", *LONG)
    source = system.source("--layers", "0-3", "--limit", "900", "--rate", "50/s", "--exit-threshold", "1")
    is_missed_and_comes_back(source, b, stop=wire.cut, go_on=wire.mend)
    assert a.running


def test_overload_and_a_frozen_agent_make_no_storm_of_retries(system: System) -> None:
    slow = ("--profile", "jetson-nano", *LONG)
    a, _ = (system.agent(name, "4-8", *slow) for name in ("a", "b"))
    source = system.source("--layers", "0-3", "--limit", "5000", "--rate", "400/s", "--exit-threshold", "1")
    works_at(source, "a")
    a.signal(signal.SIGSTOP)
    source.until_says("a has been silent")
    a.signal(signal.SIGCONT)
    source.until_says("a joined", times=2)
    summary = source.until_completed()
    assert summary["refused"] > 0, "overload"
    held = 2 * 16  # at most, by the one that was taken for dead: these are tried again at once
    assert 0 < summary["retried"] <= 0.1 * summary["admitted"] + 20 + held
    assert summary["duplicates"] <= summary["retried"]
