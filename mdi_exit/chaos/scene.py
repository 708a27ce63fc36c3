"""Broker, proxy, agents and source of one run as real processes that can be harmed, and are started again when they end.

    agents -- fault proxy -- broker
    source --/

Each layer is held by two agents, so that the loss of one can be borne. What ends unasked is started again, as systemd would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Final, Self

from broker.embedded import EmbeddedBroker, embedded_broker
from mdi_exit.chaos.proxy import FaultProxy
from mdi_exit.demo.fleet import Fleet
from mdi_exit.errors import MdiExitError

__all__ = ["AGENTS", "DEPLOYMENT", "PROFILE", "SOURCE", "Scene", "Setting"]

DEPLOYMENT: Final = "chaos"
AGENTS: Final[Mapping[str, str]] = {"front": "0-5", "back": "3-8", "whole": "0-8"}
SOURCE: Final = "source"
PROFILE: Final = "jetson-nano"
_POLL_S: Final = 0.05
_AGAIN_S: Final = 0.5
_START_S: Final = 60.0
_TRIES: Final = 5
_SAID: Final = 3


@dataclass(frozen=True, slots=True)
class Setting:
    """What is run: ``items`` of the shipped images (None: for ``duration_s``) at ``rate_per_s`` (None: as fast as admitted)
    with one fixed threshold, so that a label does not depend on the way that an item took.

    ``environment``: of source and agents; ``journal``: whether the source keeps one.
    """

    threshold: float
    rate_per_s: float | None = 20.0
    items: int | None = None
    duration_s: float | None = None
    seed: int = 0
    profile: str | None = PROFILE
    keepalive_s: float = 2.0
    journal: bool = False
    metrics: bool = False
    max_pending: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def length_s(self) -> float:
        """For how long items are offered; infinite if as fast as they are admitted."""
        if self.duration_s is not None:
            return self.duration_s
        return self.items / self.rate_per_s if self.items and self.rate_per_s else math.inf


class Scene:
    """One deployment, for as long as it is entered. ``progress``: (seconds on the loop's clock, results so far)."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting, self.folder = setting, folder
        self.fleet = Fleet(folder)
        self.disk = folder / "disk"
        self.proxy = FaultProxy(("127.0.0.1", 0), rng=Random(f"proxy {setting.seed}"))
        self.broker: EmbeddedBroker | None = None
        self.progress: list[tuple[float, int]] = []
        self.restarts: list[str] = []
        self.begun_at = math.inf
        self.ended = asyncio.Event()
        self._broker = contextlib.AsyncExitStack()
        self._held_down: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: MdiExitError | None = None
        self._read, self._lines = 0, 0

    async def __aenter__(self) -> Self:
        self.disk.mkdir(parents=True, exist_ok=True)
        try:
            await self.start_broker()
            await self.proxy.__aenter__()
            for name in AGENTS:
                await self.start_agent(name)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name in self.fleet.processes:
            self.signal(name, signal.SIGCONT)
        with contextlib.suppress(MdiExitError):  # those that were killed did not end well
            await self.fleet.stop()
        await self.proxy.__aexit__(None, None, None)
        await self._broker.aclose()

    # --- files

    @property
    def results(self) -> Path:
        return self.disk / "results.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        """Whole lines of the results file."""
        raw = self.results.read_bytes() if self.results.exists() else b""
        return [json.loads(line) for line in raw.splitlines(keepends=True) if line.endswith(b"\n")]

    def summary(self) -> dict[str, Any]:
        """Raises ``MdiExitError`` if there is none."""
        path = self.folder / "summary.json"
        if not path.exists():
            raise MdiExitError(f"the source left no summary: {self.said(SOURCE)}")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def said(self, name: str) -> str:
        """The last lines of a program."""
        lines = (self.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-_SAID:]) or "nothing"

    # --- processes

    async def start_broker(self) -> None:
        """A new one on a new port: the proxy, which clients know, stays where it is."""
        self.broker = await self._broker.enter_async_context(embedded_broker())
        self.proxy.broker = (self.broker.host, self.broker.port)

    async def end_broker(self, number: int) -> None:
        if self.broker is not None:
            await self.broker.stop(number)
            self.broker = None

    async def start_agent(self, name: str) -> None:
        flags = [*self._common(name), "--layers", AGENTS[name]]
        await self.fleet.start(name, "edge_agent.cli", flags, more=self.setting.environment)

    async def start_source(self) -> None:
        """The same command line each time."""
        setting, common = self.setting, self._common(SOURCE)
        flags = [
            *(
                "--input",
                "shipped",
                "--shuffle",
                "--seed",
                str(setting.seed),
                "--exit-threshold",
                str(setting.threshold),
            ),
            *("--rate", "max" if setting.rate_per_s is None else f"{setting.rate_per_s:g}/s"),
            *("--results", str(self.results), "--summary", str(self.folder / "summary.json")),
            *(() if setting.items is None else ("--limit", str(setting.items))),
            *(() if setting.duration_s is None else ("--duration", f"{setting.duration_s:g}s")),
            *(() if setting.max_pending is None else ("--max-pending", str(setting.max_pending))),
            *(("--journal", str(self.folder / "journal.sqlite")) if setting.journal else ()),
        ]
        await self.fleet.start(SOURCE, "source.cli", [*common, *flags], more=setting.environment)

    def _common(self, name: str) -> list[str]:
        setting = self.setting
        return [
            *("--broker", self.proxy.url, "--name", name, "--deployment", DEPLOYMENT),
            *("--keepalive", f"{setting.keepalive_s:g}s", "--telemetry-period", "0.5s"),
            *(() if setting.profile is None else ("--profile", setting.profile)),
            *(() if setting.metrics else ("--metrics", "off")),
        ]

    def clients(self, name: str) -> str:
        """The pattern of a node's client ids at the proxy; of all for an empty name."""
        return f"{DEPLOYMENT}-{name}-*" if name else "*"

    def signal(self, name: str, number: int) -> None:
        """To a node, if it is running."""
        process = self.fleet.processes.get(name)
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def pid(self, name: str) -> int:
        return self.fleet.processes[name].pid

    async def kill(self, name: str) -> None:
        """SIGKILL; it stays down until ``revive``."""
        self._held_down.add(name)
        self.signal(name, signal.SIGKILL)
        await self.fleet.processes[name].wait()

    async def revive(self, name: str) -> None:
        """Start it again, if it was killed."""
        if name in self._held_down:
            await (self.start_source() if name == SOURCE else self.start_agent(name))
            self._held_down.discard(name)

    # --- the run

    async def begin(self) -> None:
        """Start the source; return when the first result is there. Raises ``MdiExitError`` if none comes."""
        await self.start_source()
        self._tasks.append(asyncio.create_task(self._look(), name="progress"))
        self._tasks.append(asyncio.create_task(self._supervise(), name="supervisor"))
        await self.until(lambda: bool(self._lines), _START_S, "first result")
        self.begun_at = asyncio.get_running_loop().time()

    async def until(self, condition: Callable[[], bool], deadline_s: float, what: str) -> None:
        """Wait for a condition. Raises ``MdiExitError`` when the time is over, or the run cannot go on."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_s
        while not condition():
            if self._failure is not None:
                raise self._failure
            if loop.time() > deadline:
                raise MdiExitError(f"no {what} in {deadline_s:g} s; the source says: {self.said(SOURCE)}")
            await asyncio.sleep(_POLL_S)

    async def finish(self, deadline_s: float) -> None:
        """Wait for the source's own end. Raises ``MdiExitError`` if it does not come."""
        await self.until(self.ended.is_set, deadline_s, "end")
        self._count()

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._count()
            self.progress.append((loop.time(), self._lines))
            await asyncio.sleep(_POLL_S)

    def _count(self) -> None:
        """Whole lines since the last look."""
        with contextlib.suppress(FileNotFoundError), self.results.open("rb") as file:
            file.seek(self._read)
            raw = file.read()
            whole = raw.rfind(b"\n") + 1
            self._read += whole
            self._lines += raw.count(b"\n")

    async def _supervise(self) -> None:
        """Start again what ended unasked; the source's good end is the end of the run."""
        while True:
            await asyncio.sleep(_POLL_S)
            for name, process in list(self.fleet.processes.items()):
                if process.returncode is None or name in self._held_down:
                    continue
                if name == SOURCE and process.returncode == 0:
                    self.ended.set()
                    return
                if (name == SOURCE and not self.setting.journal) or self.restarts.count(name) >= _TRIES:
                    self._failure = MdiExitError(f"{name} ended with {process.returncode}: {self.said(name)}")
                    return
                self.restarts.append(name)
                await asyncio.sleep(_AGAIN_S)
                await (self.start_source() if name == SOURCE else self.start_agent(name))
