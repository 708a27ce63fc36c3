"""The agent: puts state, engine, model and transport together and serves until told to stop."""

from __future__ import annotations

import asyncio
import logging
from random import Random
from typing import Any

import msgspec

from edge_agent.config import AgentSettings
from mdi_exit import topics as kinds
from mdi_exit.driver import NodeDriver
from mdi_exit.energy import power_of
from mdi_exit.engine import make_engine
from mdi_exit.engine.profile import parse_profile
from mdi_exit.engine.speed import layer_seconds, measured_macs_per_s
from mdi_exit.errors import UsageError
from mdi_exit.events import Command, Event, HoldSegments, Notice, SpeedKnown, StatusReceived
from mdi_exit.exchange import FETCHED, LocalModel, ModelClient
from mdi_exit.executor import Executor
from mdi_exit.model.manifest import Manifest as ModelManifest
from mdi_exit.program import joined, stop_requested
from mdi_exit.topics import Route, Topics
from mdi_exit.transport import Transport
from mdi_exit.vitals import Vitals
from mdi_exit.wire import Chunk, Control, Manifest, Message, Status, Telemetry
from mdi_exit.worker_state import WorkerState

__all__ = ["AgentDriver", "serve"]

log = logging.getLogger(__name__)


class AgentDriver(NodeDriver):
    """A node driver that fetches its model, or reads a local one."""

    client: ModelClient | None = None
    local: LocalModel | None = None
    macs_per_s = 0.0
    _told: tuple[str, tuple[int, int] | None] = "", None

    def subscriptions(self) -> list[tuple[str, int]]:
        model = [(self.topics.manifest, 1)] if self.local is None else []
        return [*super().subscriptions(), *model, (self.topics.control, 1)]

    def use_local(self, local: LocalModel) -> None:
        """Run the segments of an artifact on this machine."""
        self.local = local
        self.use_model(local.composer.artifact.manifest)
        local.spans_changed([])

    def full_telemetry(self, telemetry: Telemetry) -> Telemetry:
        full = super().full_telemetry(telemetry)
        if self.client is None or (fetched := self.client.fetched_bytes) is None:
            return full
        return msgspec.structs.replace(full, counters={**full.counters, FETCHED: fetched})

    def use_model(self, manifest: ModelManifest) -> None:
        super().use_model(manifest)
        if self.worker.config.auto:
            self.feed(SpeedKnown(layer_seconds(manifest, self.executor.profile, self.macs_per_s)))

    def carry_out(self, command: Command) -> None:
        match command:
            case HoldSegments(spans) if self.client is not None:
                self.client.hold(spans)
            case HoldSegments(spans) if self.local is not None:
                self.local.hold(spans)
            case _:
                super().carry_out(command)

    def other_message(self, route: Route, message: Message, body: memoryview) -> None:
        match message:
            case Manifest() if self.client is not None:
                self.client.manifest_received(message, body)
            case Chunk() if self.client is not None:
                self.client.chunk_received(route, message, body)
            case Manifest() | Chunk():
                return
            case _:
                super().other_message(route, message, body)

    def feed(self, event: Event) -> None:
        super().feed(event)
        if self.local is not None and isinstance(event, StatusReceived):
            self.local.spans_changed(self.worker.members.announced_spans())

    def _received(self, route: Route, message: Message, body: memoryview, *, retained: bool) -> None:
        if isinstance(message, Control) and self.local is not None and self.plan is not None:
            mine = self.plan.digest
            if message.model != mine and route.kind is kinds.CONTROL:
                log.warning("the source runs model %s, the local one is %s: waiting", message.model[:12], mine[:12])
        super()._received(route, message, body, retained=retained)

    def notice(self, notice: Notice) -> None:
        if notice.kind != "gap":
            super().notice(notice)

    def status_changed(self, status: Status) -> None:
        if (status.state, status.span) == self._told:
            return
        self._told = status.state, status.span
        text = {
            "waiting for source": "connected; waiting for a source and its model",
            "waiting for layers": "waiting for layers from the source's placement",
            "loading segments": f"waiting for the segments of layers {self.worker.holding.span}",
            "ready": f"ready: layers {self.worker.holding.span} on {status.engine}",
            "draining": "draining",
            "drained": "drained: nothing is left here; taking nothing until undrained",
        }.get(status.state)
        if text:
            log.info("%s", text)


async def serve(settings: AgentSettings) -> int:
    """Run one agent until SIGINT or SIGTERM. Raises ``MdiExitError``."""
    stop = stop_requested()
    profile = parse_profile(settings.profile) if settings.profile else None
    model = str(settings.model) if settings.model else None
    engine = make_engine(settings.engine, threads=settings.threads, model=model)
    config = settings.node(engine.description, profile.name if profile else "")
    worker = WorkerState(config, Random(config.incarnation))
    vitals = Vitals(power=power_of(settings.device, settings.profile), emulated=profile is not None)
    driver = AgentDriver(worker, worker, Topics(settings.deployment), Executor(engine, profile), vitals=vitals)
    if config.auto and profile is None:
        driver.macs_per_s = measured_macs_per_s(settings.threads)
    log.info(
        "%s: layers %s, deployment %s, broker %s", config.name, settings.layers, settings.deployment, settings.broker
    )
    async with joined(driver, settings) as transport:
        await _until_stopped(driver, transport, settings, stop)
        log.info("%s: stopped", config.name)
    return 0


async def _until_stopped(
    driver: AgentDriver, transport: Transport, settings: AgentSettings, stop: asyncio.Event
) -> None:
    held = () if settings.span is None else (settings.span,)
    if settings.model is not None:
        from mdi_exit.model.artifact import Artifact
        from mdi_exit.model.compose import Composer

        artifact = Artifact.open(settings.model)
        if settings.span is not None and settings.span.stop > (count := len(artifact.manifest.layers)):
            raise UsageError("--layers", f"layers in 0-{count - 1}, those of {settings.model}", settings.layers)
        composer = Composer(artifact)
        composer.check()
        driver.use_local(LocalModel(driver, composer, held))
    else:
        driver.client = ModelClient(driver, transport, held)
    start = asyncio.create_task(driver.start(transport), name="start")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        await _first(start, stopped)
        if start.done():
            await start
            await _first(driver.fatal, stopped)
    finally:
        start.cancel()
        stopped.cancel()
    if driver.fatal.done():
        raise driver.fatal.result()
    await driver.finish()


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
