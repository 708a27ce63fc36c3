"""Many clients at once: how alike they are served, and what becomes of what cannot be served.

A source that takes requests only and agents as real processes, stretched to a slow board so that this machine can ask for
more than they can do; the clients share this process, each with a connection of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi_exit.benchmark.programs import started
from mdi_exit.client import Client
from mdi_exit.data import shipped
from mdi_exit.errors import MdiExitError, RequestError
from mdi_exit.items import percentile

__all__ = ["ClientLoad", "ClientRow", "measure_clients"]

Pixels = NDArray[np.uint8]

_DEPLOYMENT = "benchmark"
_CAPACITY_IN_FLIGHT = 32
_START_S = 60.0


@dataclass(frozen=True, slots=True)
class ClientLoad:
    """``load``: times the capacity that is asked for; ``agents``: beside the source, which has all layers too."""

    clients: int = 50
    load: float = 2.0
    seconds: float = 60.0
    deadline_s: float | None = 5.0
    agents: int = 2
    profile: str = "jetson-nano"
    threshold: float = 0.8
    capacity_s: float = 8.0


@dataclass(slots=True)
class ClientRow:
    """One client. ``outcomes``: label, or the error's name; ``latency_s``: of labels, from asking to having, at the client;
    ``most_s``: the longest that any outcome took.
    """

    name: str
    asked: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    latency_s: list[float] = field(default_factory=list)
    most_s: float = 0.0

    @property
    def labels(self) -> int:
        return self.outcomes["label"]

    def to_json(self) -> dict[str, Any]:
        """A raw row; times in seconds."""
        row = asdict(self) | {"outcomes": dict(self.outcomes), "reasons": dict(self.reasons.most_common(5))}
        row["latency_s"] = {f"p{share}": round(percentile(self.latency_s, share / 100), 4) for share in (50, 90, 99)}
        return row | {"most_s": round(self.most_s, 4)}


async def measure_clients(url: str, load: ClientLoad) -> tuple[float, list[ClientRow]]:
    """(labels a second of one client that always has enough under way, what each of the many got)."""
    images = shipped().images_NHWC
    async with _deployment(url, load):
        capacity = await _capacity(url, images, load)
        async with AsyncExitStack() as stack:
            names = [f"client-{number:02}" for number in range(load.clients)]
            clients = [await stack.enter_async_context(Client(url, deployment=_DEPLOYMENT, name=n)) for n in names]
            rows = [ClientRow(name) for name in names]
            gap_s = load.clients / (load.load * capacity)
            async with asyncio.TaskGroup() as group:
                for number, (client, row) in enumerate(zip(clients, rows, strict=True)):
                    first_s = gap_s * number / load.clients
                    group.create_task(_ask_on(client, row, images, first_s, gap_s, load), name=row.name)
    return capacity, rows


async def _capacity(url: str, images: Pixels, load: ClientLoad) -> float:
    """Labels a second, after a first part that warms up."""
    async with Client(url, deployment=_DEPLOYMENT, name="alone") as client:
        await asyncio.wait_for(client.infer(images[0]), _START_S)
        begin = time.perf_counter()
        warm_at, stop_at = begin + load.capacity_s / 4, begin + load.capacity_s
        count, since, now = 0, begin, begin
        async for _ in client.stream(_until(images, stop_at), in_flight=_CAPACITY_IN_FLIGHT):
            now = time.perf_counter()
            if now < warm_at:
                since = now
            elif now <= stop_at:
                count += 1
    if not count:
        raise MdiExitError("benchmark: no answer while the capacity was measured")
    return count / (min(now, stop_at) - since)


def _until(images: Pixels, stop_at: float) -> Iterator[Pixels]:
    for image in itertools.cycle(images):
        if time.perf_counter() > stop_at:
            return
        yield image


async def _ask_on(
    client: Client, row: ClientRow, images: Pixels, first_s: float, gap_s: float, load: ClientLoad
) -> None:
    """Ask at even intervals, whatever has been answered."""
    loop = asyncio.get_running_loop()
    begin = loop.time() + first_s
    async with asyncio.TaskGroup() as group:
        for number in range(int(load.seconds / gap_s)):
            await asyncio.sleep(max(begin + number * gap_s - loop.time(), 0.0))
            row.asked += 1
            group.create_task(_ask(client, row, images[number % len(images)], load.deadline_s))


async def _ask(client: Client, row: ClientRow, image: Pixels, deadline_s: float | None) -> None:
    begin = time.perf_counter()
    try:
        await client.infer(image, deadline_s=deadline_s)
    except RequestError as error:
        row.outcomes[type(error).__name__] += 1
        row.reasons[_without_numbers(error.reason)] += 1
    else:
        row.outcomes["label"] += 1
        row.latency_s.append(time.perf_counter() - begin)
    row.most_s = max(row.most_s, time.perf_counter() - begin)


def _without_numbers(reason: str) -> str:
    return " ".join("N" if any(char.isdigit() for char in word) else word for word in reason.split())


@asynccontextmanager
async def _deployment(url: str, load: ClientLoad) -> AsyncIterator[None]:
    """The source and the agents, until the end."""
    shared = ["--deployment", _DEPLOYMENT, "--broker", url, "--profile", load.profile, "--log-level", "warning"]
    source = ["--input", "requests", "--layers", "0-8", "--exit-threshold", f"{load.threshold:g}"]
    programs = [["source.cli", *source]]
    programs += [["edge_agent.cli", "--layers", "0-8", "--name", f"agent-{n}"] for n in range(load.agents)]
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mdi-exit-clients-")))
        for number, (module, *flags) in enumerate(programs):
            await stack.enter_async_context(started(module, [*flags, *shared], folder / f"{number}.log"))
        yield
