"""Source → agent → source with an engine that does nothing: what the system itself costs a hop.

The agent is the real ``edge-agent`` in a process of its own. The source here is the real state and driver, fed with one
tensor over and over. The agent holds layers 0-1 and the source layer 2, so that a feature tensor of the same size travels
both ways, as in the bare relays beside it. With ``results``, the agent holds all layers and a result at QoS 1 comes back.
"""

from __future__ import annotations

import asyncio
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
import psutil

from broker.embedded import free_port
from mdi_exit.benchmark.programs import started
from mdi_exit.benchmark.relays import RelayResult
from mdi_exit.driver import NodeDriver
from mdi_exit.engine import make_engine
from mdi_exit.errors import MdiExitError
from mdi_exit.events import (
    Command,
    DrawInput,
    Event,
    InputEnded,
    InputOffered,
    ModelKnown,
    Record,
    ResultsReceived,
    SendControl,
    StatusReceived,
)
from mdi_exit.exchange import LocalModel, ModelHost
from mdi_exit.executor import Executor
from mdi_exit.items import percentile
from mdi_exit.metrics import serve_metrics
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.policy.steps import QueueBands
from mdi_exit.settings import new_incarnation
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.topics import Route, Topics
from mdi_exit.transport.mqtt import MqttTransport
from mdi_exit.wire import Message, Results, encode
from mdi_exit.worker_config import WorkerConfig

__all__ = ["PLAIN", "Door", "hop", "throughput", "write_artifact"]

_LAYERS: Final = 3
_START_S: Final = 30.0
_ITEM_S: Final = 0.1
_SCRAPER: Final = """
import sys, time, urllib.request
period_s, addresses = float(sys.argv[1]), sys.argv[2:]
begin, seen = time.monotonic(), set()
while True:
    time.sleep(period_s)
    for address in addresses:
        try:
            urllib.request.urlopen(urllib.request.Request(address, headers={"Accept-Encoding": "gzip"})).read()
            seen.add(address)
        except OSError:
            if address in seen or time.monotonic() - begin > 10:
                raise
"""


@dataclass(frozen=True, slots=True)
class Door:
    """How the broker is entered: the source's TLS, and the agent's flags."""

    tls: ssl.SSLContext | None = None
    flags: tuple[str, ...] = ()


PLAIN: Final = Door()


class _BenchSource(NodeDriver):
    """A source whose every sample is the same tensor; it keeps the latencies."""

    def __init__(self, state: SourceState, deployment: str, executor: Executor, artifact: Artifact) -> None:
        super().__init__(state, state.worker, Topics(deployment), executor)
        self.source = state
        self.latencies_s: list[float] = []
        self.reached = asyncio.Event()
        self._count = 0
        self.x = np.zeros(artifact.manifest.input.shape, np.float32)
        composer, span = Composer(artifact), state.worker.config.span
        self._host = ModelHost(self, composer, state.config.run)
        self._local = LocalModel(self, composer, (span,)) if span else None

    def subscriptions(self) -> list[tuple[str, int]]:
        return [*super().subscriptions(), (self.topics.results("+"), 1)]

    def feed(self, event: Event) -> None:
        super().feed(event)
        if not isinstance(event, StatusReceived | ModelKnown):
            return
        spans = [*self.worker.members.announced_spans(), *(self._local.spans if self._local else ())]
        self._host.spans_changed(spans)
        if self._local:
            self._local.spans_changed(spans)

    def carry_out(self, command: Command) -> None:
        match command:
            case DrawInput():
                offered = InputOffered("x", self.x, self.x.nbytes)
                self._loop.call_soon(self.feed, offered)
            case Record(_, _, row, latency_s):
                if row.label is None:
                    self.fail(MdiExitError(f"benchmark: {row.error}"))
                self.latencies_s.append(latency_s)
                if (
                    len(self.latencies_s) == self._count
                ):  # not at each item: a waiter's turn would count as the system's
                    self.reached.set()
            case SendControl(control):
                self.publish_control(encode(control))
            case _:
                super().carry_out(command)

    def publish_control(self, frame: bytes) -> None:
        if self._transport is not None:
            self._transport.publish(self.topics.control, frame, qos=1, retain=True)

    def other_message(self, route: Route, message: Message, body: memoryview) -> None:
        if isinstance(message, Results):
            if message.run == self.source.config.run:
                self.feed(ResultsReceived(route.node, message))
        else:
            super().other_message(route, message, body)

    async def completed(self, count: int) -> None:
        """Wait until so many items are done. Raises ``MdiExitError`` if that takes too long."""
        self._count = count
        self.reached.clear()
        if len(self.latencies_s) >= count:
            return
        waiting = asyncio.ensure_future(self.reached.wait())
        both: list[asyncio.Future[Any]] = [waiting, self.fatal]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED, timeout=_START_S + count * _ITEM_S)
        if self.fatal.done() or not waiting.done():
            waiting.cancel()
            raise self.fatal.result() if self.fatal.done() else MdiExitError("benchmark: no result in time")


@asynccontextmanager
async def _agent(
    url: str, deployment: str, span: str, window: int, metrics: str, more: Sequence[str]
) -> AsyncIterator[psutil.Process]:
    flags = ["--layers", span, "--name", "agent", "--deployment", deployment, "--broker", url]
    flags += ["--engine", "noop", "--window", str(window), "--log-level", "warning", "--metrics", metrics, *more]
    async with started("edge_agent.cli", flags) as process:
        yield psutil.Process(process.pid)


@asynccontextmanager
async def _scraped(
    driver: NodeDriver, transport: MqttTransport, agent: str, period_s: float | None
) -> AsyncIterator[None]:
    """The source's metrics, and a scraper of both nodes', for as long as the context lasts."""
    if period_s is None:
        yield
        return
    server = serve_metrics("127.0.0.1", 0, driver, transport)
    addresses = (server.address, f"http://{agent}/metrics")
    scraper = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _SCRAPER, str(period_s), *addresses), stdin=asyncio.subprocess.DEVNULL
    )
    try:
        yield
    finally:
        if scraper.returncode is None:
            scraper.terminate()
        ended = await scraper.wait()
        server.close()
        if ended != -signal.SIGTERM:
            raise MdiExitError(f"benchmark: expected the scraper to work until told to stop, got status {ended}")


def _state(span: LayerSpan | None, window: int, pending: int) -> SourceState:
    config = SourceConfig(
        run=time.time_ns() // 1000,
        threshold=1.0,
        floor=1.0,
        max_queue=10 * pending,
        max_pending=pending,
        bands=QueueBands(low=1.0, high=10.0 * pending + 1),
    )
    worker = WorkerConfig("source", new_incarnation(), span, window=window, output_limit=10**6)
    return SourceState(config, worker, Random(0))


async def hop(
    url: str,
    folder: Path,
    shape: tuple[int, int, int],
    *,
    window: int,
    messages: int,
    results: bool = False,
    door: Door = PLAIN,
) -> RelayResult:
    """Measure one payload size: throughput with ``window`` items under way, then the round trip of one at a time."""
    artifact = write_artifact(folder, shape)
    throughput, _, _ = await _measure(url, artifact, window, messages, results=results, door=door)
    _, _, latencies_s = await _measure(url, artifact, 1, max(messages // 4, 50), results=results, door=door)
    return RelayResult(
        name="mdi-exit, result back at QoS 1" if results else "mdi-exit",
        payload_bytes=4 * int(np.prod(shape)),
        qos=1 if results else 0,
        window=window,
        messages=messages,
        seconds=messages / throughput,
        throughput_per_s=throughput,
        round_trip_p50_s=percentile(latencies_s, 0.5),
        round_trip_p90_s=percentile(latencies_s, 0.9),
        round_trip_p99_s=percentile(latencies_s, 0.99),
    )


async def throughput(
    url: str, artifact: Artifact, *, deployment: str, window: int, messages: int, scrape_period_s: float | None
) -> tuple[float, float]:
    """(items a second, processor seconds of source and agent an item), the tensor travelling there and back.

    ``scrape_period_s``: how often the metrics of both are scraped meanwhile; None: neither serves any.
    """
    rate, cpu_s, _ = await _measure(
        url, artifact, window, messages, results=False, deployment=deployment, scrape_period_s=scrape_period_s
    )
    return rate, cpu_s


def write_artifact(folder: Path, shape: tuple[int, int, int]) -> Artifact:
    """The three-layer artifact of the benchmark."""
    from mdi_exit.benchmark.synthetic import write_identity_artifact

    return write_identity_artifact(folder, shape, _LAYERS)


async def _measure(
    url: str,
    artifact: Artifact,
    pending: int,
    messages: int,
    *,
    results: bool,
    deployment: str = "benchmark",
    scrape_period_s: float | None = None,
    door: Door = PLAIN,
) -> tuple[float, float, list[float]]:
    """(items a second, processor seconds an item, latencies) after a warm-up of a tenth."""
    span = None if results else LayerSpan(2, 3)
    window = max(pending, 16)
    state = _state(span, window, pending)
    driver = _BenchSource(state, deployment, Executor(make_engine("noop")), artifact)
    client_id = f"bench-{new_incarnation()}"
    transport = MqttTransport(url, client_id=client_id, handler=driver, will=driver.will(), tls=door.tls)
    warm = max(messages // 10, 20)
    metrics = f"127.0.0.1:{free_port()}" if scrape_period_s else "off"
    async with (
        _agent(url, deployment, "0-2" if results else "0-1", window, metrics, door.flags) as agent,
        _scraped(driver, transport, metrics, scrape_period_s),
        transport,
    ):
        try:
            driver.use_model(artifact.manifest)
            await driver.start(transport)
            await driver.completed(warm)
            begin, begin_cpu_s, first = time.perf_counter(), _cpu_s(agent), len(driver.latencies_s)
            await driver.completed(first + messages)
            done = len(driver.latencies_s) - first
            rate = done / (time.perf_counter() - begin)
            cpu_s = (_cpu_s(agent) - begin_cpu_s) / done
            driver.feed(InputEnded())
        finally:
            await driver.finish()
    return rate, cpu_s, driver.latencies_s[first:]


def _cpu_s(agent: psutil.Process) -> float:
    """Processor seconds used so far by this process and the agent."""
    times = agent.cpu_times()
    return float(time.process_time() + times.user + times.system)
