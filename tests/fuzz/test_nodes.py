"""Whole nodes take thousands of messages that are almost right, and none ends them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from types import TracebackType
from typing import Self

import msgspec
import pytest

from edge_agent.app import AgentDriver
from mdi_exit import wire
from mdi_exit.driver import NodeDriver
from mdi_exit.engine.onnx import OnnxEngine
from mdi_exit.exchange import ModelClient
from mdi_exit.executor import Executor
from mdi_exit.fuzzing.targets import changed_frame, sample_frames
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.topics import Topics
from mdi_exit.transport.base import TransportCounters
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState
from source.driver import SourceDriver

TOPICS = Topics("fuzz")
RUN = 7
MESSAGES = 4000


class Swallowing:
    """A transport that is connected and takes everything."""

    def __init__(self) -> None:
        self.counters = TransportCounters()
        self.connected = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def subscribe(self, pattern: str, qos: int = 0) -> None: ...

    async def unsubscribe(self, pattern: str) -> None: ...

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        return True

    async def publish_confirmed(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, timeout_s: float = 5.0
    ) -> bool:
        return True

    def pending_bytes(self) -> int:
        return 0


def fitting_frames(artifact: Artifact) -> list[bytes]:
    """The messages of the corpus, of the run and the model that the nodes know."""
    shape = artifact.manifest.in_shape(4)
    body = bytes(4 * shape[0] * shape[1] * shape[2])
    frames = [artifact.manifest_bytes]
    found = []
    for frame in sample_frames():
        message, payload = wire.decode(frame)
        changes: dict[str, object] = {}
        if hasattr(message, "run"):
            changes["run"] = RUN
        if hasattr(message, "model"):
            changes["model"] = artifact.manifest.plan.digest
        if isinstance(message, wire.Features):
            payload = memoryview(body)
            changes |= {"shape": shape, "crc": wire.crc32(body), "deadline_s": 5.0}
        if isinstance(message, wire.Manifest):
            payload = memoryview(frames[0])
            changes["crc"] = wire.crc32(payload)
        found.append(wire.encode(msgspec.structs.replace(message, **changes), payload))
    return found


def topics_of(node: str) -> list[str]:
    digest = Artifact.open(DEFAULT_MODEL).manifest.plan.digest
    return [
        TOPICS.layers(LayerSpan(4, 9), node),
        *(TOPICS.results(other) for other in ("a", "b")),
        *(TOPICS.telemetry(other) for other in ("a", "b", "source")),
        *(TOPICS.agents(other) for other in ("a", "b", "source")),
        TOPICS.links(node, "b"),
        TOPICS.control,
        TOPICS.commands("desk"),
        TOPICS.requests("desk"),
        TOPICS.manifest,
        TOPICS.chunk(digest, "segment-4-8-head", 0),
    ]


KINDS = {
    "layers": ("Features",), "results": ("Results",), "telemetry": ("Telemetry", "SourceReport"), "agents": ("Status",),
    "links": ("Ack", "Probe"), "control": ("Control",), "commands": ("Order",), "requests": ("Request",),
    "model": ("Manifest", "Chunk"),
}  # fmt: skip


async def flooded(driver: NodeDriver, node: str, seed: int) -> None:
    rng = Random(seed)
    frames = fitting_frames(Artifact.open(DEFAULT_MODEL))
    by_kind: dict[str, list[bytes]] = {}
    for frame in frames:
        by_kind.setdefault(type(wire.decode(frame)[0]).__name__, []).append(frame)
    topics = topics_of(node)
    for number in range(MESSAGES):
        topic = rng.choice(topics)
        frame = rng.choice(by_kind[rng.choice(KINDS[topic.split("/")[2]])])
        for _ in range(rng.randrange(3)):
            frame = changed_frame(rng, frame)
        driver.on_message(topic, frame, rng.random() < 0.2)
        if number % 50 == 0:
            await asyncio.sleep(0)
        assert not driver.fatal.done(), f"message {number}: {driver.fatal.result()!r} after {frame[:200]!r} on {topic}"
    await asyncio.sleep(0.05)
    assert not driver.fatal.done(), driver.fatal.result()
    driver.worker.validate()
    assert driver.bad.total() > MESSAGES / 5


@asynccontextmanager
async def started(driver: NodeDriver) -> AsyncIterator[None]:
    transport = Swallowing()
    driver.on_connected()
    try:
        await driver.start(transport)
        yield
    finally:
        driver.close()


@pytest.mark.parametrize("seed", range(3))
async def test_an_agent_survives(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    worker = WorkerState(WorkerConfig("a", 11, LayerSpan(4, 9)), Random(seed))
    driver = AgentDriver(worker, worker, TOPICS, Executor(OnnxEngine()))
    driver.client = ModelClient(driver, Swallowing(), (LayerSpan(4, 9),))
    async with started(driver):
        artifact = Artifact.open(DEFAULT_MODEL)
        control = wire.Control(RUN, 12, "source", 0, artifact.manifest.plan.digest, 0.9)
        driver.on_message(TOPICS.control, wire.encode(control), True)
        await flooded(driver, "a", seed)


async def test_names_that_are_made_up_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdi_exit.driver.MAX_NAMES_HEARD", 50)
    worker = WorkerState(WorkerConfig("a", 11, LayerSpan(4, 9)), Random(0))
    driver = AgentDriver(worker, worker, TOPICS, Executor(OnnxEngine()))
    async with started(driver):
        for number in range(80):
            name = f"n{number}"
            driver.on_message(TOPICS.agents(name), wire.encode(wire.Status(name, 1, True)), False)
            driver.on_message(TOPICS.links("a", f"m{number}"), wire.encode(wire.Probe(1, 1, 1)), False)
        assert len(worker.members.peers) + len(worker.members.inbounds) == 50
        assert driver.bad == {"names": 110}
        assert not driver.fatal.done()


@pytest.mark.parametrize("seed", range(3))
async def test_a_source_survives(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    state = SourceState(SourceConfig(run=RUN), WorkerConfig("source", 12, None, role="source"), Random(seed))
    driver = SourceDriver(state, TOPICS, Executor(OnnxEngine()), Artifact.open(DEFAULT_MODEL), samples=None)
    async with started(driver):
        await flooded(driver, "source", seed)
