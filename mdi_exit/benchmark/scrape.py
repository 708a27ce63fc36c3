"""What watching costs: a scrape with many agents, the telemetry of an agent, and the throughput lost to being scraped."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final

from mdi_exit.benchmark.programs import started
from mdi_exit.benchmark.synthetic import write_identity_artifact
from mdi_exit.driver import NodeDriver
from mdi_exit.engine import make_engine
from mdi_exit.errors import MdiExitError
from mdi_exit.events import ModelKnown, SegmentsReady, StatusReceived, TelemetryReceived, Tick, TransportUp
from mdi_exit.executor import Executor
from mdi_exit.metrics import MetricsServer, serve_metrics
from mdi_exit.model.artifact import Artifact
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.topics import Topics
from mdi_exit.transport import Will
from mdi_exit.transport.mqtt import MqttTransport
from mdi_exit.wire import Board, LinkLoad, Status, Telemetry, decode, encode
from mdi_exit.worker_config import WorkerConfig

__all__ = ["big_source", "overhead_rows", "scrape_rows", "telemetry_rows"]

_LAYERS: Final = 9
_LINKS: Final = 8
_SCRAPES: Final = 30
_HEADER_BYTES: Final = 5  # of a publish at QoS 0 of this size: type, two of its length, two of the length of its topic


# --- a scrape


def _reports(agents: int, links: int, rng: Random) -> Iterator[tuple[Status, Telemetry]]:
    """What so many agents say, each with five layers and links to so many others."""
    names = [f"agent-{number:03}" for number in range(agents)]
    for number, name in enumerate(names):
        span = (4, 9) if number % 2 else (0, 5)
        layers = range(*span)
        others = [names[(number + step) % agents] for step in range(1, min(links, agents - 1) + 1)]
        counters = dict.fromkeys(("executed", "exited", "sent", "received", "refused", "failed"), rng.randrange(10**6))
        yield (
            Status(
                name,
                1,
                online=True,
                state="ready",
                span=span,
                entries=tuple(layers),
                window=16,
                engine="onnxruntime CPU",
            ),
            Telemetry(
                run=1,
                incarnation=1,
                node=name,
                inputs=rng.randrange(40),
                outputs=rng.randrange(8),
                backlog_s=rng.random(),
                backlog_by_layer_s={layer: rng.random() for layer in layers},
                speed_s={layer: rng.random() for layer in layers},
                free_slots=dict.fromkeys(layers, 16),
                received={other: rng.randrange(10**6) for other in others},
                counters=counters,
                exits={exit_number: rng.randrange(10**6) for exit_number in range(5)},
                sent_bytes=rng.randrange(10**9),
                cpu_percent=100 * rng.random(),
                links={o: LinkLoad(rng.randrange(10**6), rng.randrange(10**9), rng.random(), 48) for o in others},
                board=Board(
                    8 * 10**7, 40 + 20 * rng.random(), 5 * rng.random(), 10**5 * rng.random(), True, "00000000"
                ),
            ),
        )


def big_source(artifact: Artifact, agents: int, now: float, *, links: int = _LINKS) -> SourceState:
    """A source's state that has heard so many agents, over the wire format; ``links``: of each to others."""
    state = SourceState(SourceConfig(run=1), WorkerConfig("source", 1, LayerSpan(0, 4)), Random(0))
    plan = artifact.manifest.plan
    state.handle(now, TransportUp())
    state.handle(now, ModelKnown(plan))
    keys = {plan.segment(layer, LayerSpan(0, 4), early_exits=early) for layer in range(4) for early in (True, False)}
    state.handle(now, SegmentsReady(dict.fromkeys(keys, 0.001)))
    for message in (message for pair in _reports(agents, links, Random(0)) for message in pair):
        heard, _ = decode(encode(message))
        if isinstance(heard, Status):
            state.handle(now, StatusReceived(heard))
        elif isinstance(heard, Telemetry):
            state.handle(now, TelemetryReceived(heard))
    state.handle(now, Tick())
    for number in range(1000):
        state.items.add(number / 1000, number / 4000, number / 4000, number % 5, number / 1000)
    return state


@contextmanager
def _serving(artifact: Artifact, agents: int) -> Iterator[MetricsServer]:
    state = big_source(artifact, agents, asyncio.get_running_loop().time())
    driver = NodeDriver(state, state.worker, Topics("benchmark"), Executor(make_engine("noop")))
    unused = MqttTransport("mqtt://127.0.0.1:1", client_id="scrape", handler=driver, will=driver.will())
    server = serve_metrics("127.0.0.1", 0, driver, unused)
    try:
        yield server
    finally:
        server.close()
        driver.close()


def _fetch(address: str) -> tuple[float, bytes]:
    begin = time.perf_counter()
    with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310 - http on loopback
        body: bytes = answer.read()
    return time.perf_counter() - begin, body


async def scrape_rows(agents: int = 100) -> list[dict[str, Any]]:
    """One row for each scrape over HTTP: seconds, bytes, samples."""
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="mdi-exit-scrape-") as folder,
        _serving(write_identity_artifact(Path(folder), (1, 4, 4), _LAYERS), agents) as server,
    ):
        for number in range(_SCRAPES + 1):
            seconds, body = await asyncio.to_thread(_fetch, server.address)
            samples = sum(not line.startswith(b"#") for line in body.splitlines())
            row = {"name": "scrape", "agents": agents, "seconds": seconds, "bytes": len(body), "samples": samples}
            rows += [row] if number else []  # the first one warms up
    return rows


# --- telemetry


class _Counter:
    """Counts frames and bytes by topic, the topic and the packet's header included."""

    def __init__(self) -> None:
        self.frames: dict[str, list[int]] = {}
        self.connected = asyncio.Event()
        self.heard = asyncio.Event()

    def on_message(self, topic: str, payload: bytes, _retained: bool, /) -> None:
        self.heard.set()
        self.frames.setdefault(topic.rsplit("/", 1)[-1], []).append(len(payload) + len(topic) + _HEADER_BYTES)

    def on_connected(self) -> None:
        self.connected.set()

    def on_disconnected(self, reason: str, /) -> None:
        del reason


def _program(module: str, *flags: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return started(module, flags, asyncio.subprocess.DEVNULL)


async def telemetry_rows(url: str, seconds: float = 12.0) -> list[dict[str, Any]]:
    """Bytes a second of the telemetry of real nodes under load: three agents that hold the same layers, and the source."""
    common = ("--deployment", "telemetry", "--broker", url)
    counter = _Counter()
    will = Will("mdi/telemetry/counter", b"", retain=False)
    transport = MqttTransport(url, client_id=f"count-{os.getpid()}", handler=counter, will=will)
    async with (
        transport,
        _program("edge_agent.cli", *common, "--layers", "4-8", "--name", "agent-1"),
        _program("edge_agent.cli", *common, "--layers", "4-8", "--name", "agent-2"),
        _program("edge_agent.cli", *common, "--layers", "4-8", "--name", "agent-3"),
        _program(
            "source.cli", *common, "--input", "shipped", "--layers", "0-3", "--rate", "100/s", "--duration", "10m"
        ),
    ):
        await counter.connected.wait()
        await transport.subscribe("mdi/telemetry/telemetry/+")
        async with asyncio.timeout(30.0):
            while len(counter.frames) < 4:
                counter.heard.clear()
                await counter.heard.wait()
        await asyncio.sleep(2.0)  # everybody has found everybody
        counter.frames.clear()
        await asyncio.sleep(seconds)
        counted = {node: list(sizes) for node, sizes in counter.frames.items()}
    return [
        {
            "name": "telemetry",
            "node": node,
            "seconds": seconds,
            "messages": len(sizes),
            "bytes": sum(sizes),
            "largest": max(sizes),
        }
        for node, sizes in sorted(counted.items())
    ]


# --- on and off


async def _side(url: str, deployment: str, window: int, messages: int, period: str) -> dict[str, Any]:
    """One side of a pair, by a process of its own. Raises ``MdiExitError``."""
    arguments = (url, deployment, str(window), str(messages), period)
    side = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mdi_exit.benchmark.side", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await side.communicate()
    if side.returncode:
        raise MdiExitError(f"benchmark: expected a measured side, got status {side.returncode}")
    found: dict[str, Any] = json.loads(said)
    return found


async def overhead_rows(
    url: str, *, window: int, messages: int, rounds: int, scrape_period_s: float
) -> list[dict[str, Any]]:
    """Items a second with metrics off and with both nodes scraped, at the same time and on the same broker."""
    rows: list[dict[str, Any]] = []
    for number in range(rounds):
        sides = {"off": "off", "on": str(scrape_period_s)}
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        both = (_side(url, f"metrics-{which}", window, messages, sides[which]) for which in order)
        found = dict(zip(order, await asyncio.gather(*both), strict=True))
        rows += [
            {"name": "throughput", "round": number, "metrics": which, "messages": messages, **found[which]}
            for which in sides
        ]
    return rows
