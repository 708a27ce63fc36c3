"""The source: owns the data, serves the model, collects one result for each admitted item."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import IO, Any, Final

from rich.console import Console

from mdi_exit import __version__
from mdi_exit import topics as kinds
from mdi_exit.broker_stats import BrokerStats
from mdi_exit.driver import NodeDriver, new_incarnation
from mdi_exit.energy import power_of
from mdi_exit.engine import make_engine
from mdi_exit.engine.profile import parse_profile
from mdi_exit.errors import MdiExitError, UsageError, WireError
from mdi_exit.events import (
    Command,
    DrawInput,
    Event,
    GiveUp,
    InputEnded,
    InputOffered,
    ModelKnown,
    Notice,
    PrepareRequest,
    Record,
    ResultsReceived,
    SendControl,
    SendReply,
    SetAdmission,
    StatusReceived,
    TelemetryReceived,
    Tick,
)
from mdi_exit.exchange import LocalModel, ModelHost
from mdi_exit.executor import Executor
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.program import joined, stop_requested
from mdi_exit.requests import RequestLimits
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.topics import Route, Topics
from mdi_exit.transport import Transport
from mdi_exit.vitals import Vitals
from mdi_exit.wire import Message, Results, encode
from mdi_exit.worker_config import WorkerConfig
from source.config import REQUESTS_ONLY, SourceSettings
from source.energy import EnergyLedger
from source.inputs import Input, Sample, open_input, preprocess
from source.reception import Reception
from source.results import ResultsWriter, Summary, SummaryBuilder
from source.timeline import Timeline

__all__ = ["SourceDriver", "serve"]

log = logging.getLogger(__name__)

_PREFETCH: Final = 64
_PREFETCH_AT_ONCE: Final = 8
_SNAPSHOT_S: Final = 0.25
_FINISH_S: Final = 30.0
_UNSERVED: Final = ("waiting for source", "loading segments")


class SourceDriver(NodeDriver):
    """A node driver with an input, results, a model to serve, and others' requests. ``samples`` None: only these."""

    def __init__(
        self,
        state: SourceState,
        topics: Topics,
        executor: Executor,
        artifact: Artifact,
        *,
        codec: str,
        samples: Input | None,
        vitals: Vitals | None = None,
    ) -> None:
        super().__init__(state, state.worker, topics, executor, codec=codec, vitals=vitals)
        self.source = state
        self.broker_stats = BrokerStats()
        self.hears_broker = True
        self.more_samples.append(self.broker_stats.samples)
        self._artifact = artifact
        self.summary = SummaryBuilder()
        self.timeline = Timeline(state)
        self.results: ResultsWriter | None = None
        self.energy = EnergyLedger()
        self.started_at: float | None = None
        self.last_result_at = 0.0
        self.bytes_by_node: dict[str, int] = {}
        self.started = asyncio.Event()
        self.answered = asyncio.Event()
        self.done = asyncio.Event()
        composer = Composer(artifact)
        span = state.worker.config.span
        self._host = ModelHost(self, composer, state.config.run)
        self._local = LocalModel(self, composer, span) if span is not None else None
        self._reception = Reception(self, artifact.manifest)
        self._samples: Iterator[Sample] | None = None if samples is None else iter(samples)
        self._wanted = asyncio.Semaphore(0)
        self._ready: asyncio.Queue[InputOffered | InputEnded] = asyncio.Queue(_PREFETCH)

    def subscriptions(self) -> list[tuple[str, int]]:
        return [
            *super().subscriptions(),
            (self.topics.results("+"), kinds.RESULTS.qos),
            (self.topics.requests("+"), kinds.REQUESTS.qos),
        ]

    async def start(self, transport: Transport) -> None:
        if self._samples is not None:
            self.spawn("prefetch", self._prefetch(self._samples))
            self.spawn("draw", self._draw())
        self.use_model(self._artifact.manifest)
        await super().start(transport)
        self._host.republish()
        if self.hears_broker:
            await transport.subscribe(*kinds.SYS_STATS)

    def on_connected(self) -> None:
        super().on_connected()
        if self._claimed:
            self._host.republish()

    def on_disconnected(self, reason: str) -> None:
        self.broker_stats.clear()
        super().on_disconnected(reason)

    def on_message(self, topic: str, payload: bytes, retained: bool) -> None:
        if topic.startswith(kinds.SYS_PREFIX):
            self.broker_stats.received(topic, payload)
        else:
            super().on_message(topic, payload, retained)

    # --- input

    async def _prefetch(self, samples: Iterator[Sample]) -> None:
        """Read samples ahead, in a thread, so that slow files do not hold up the loop."""
        ended = False
        while not ended:
            batch = await asyncio.to_thread(self._read_some, samples)
            ended = not batch
            for event in batch or [InputEnded()]:
                await self._ready.put(event)

    def _read_some(self, samples: Iterator[Sample]) -> list[InputOffered | InputEnded]:
        read: list[InputOffered | InputEnded] = []
        for sample in samples:
            x = preprocess(sample.pixels, self._artifact.manifest.input)
            read.append(InputOffered(sample.id, x, x.nbytes, sample.truth))
            if len(read) >= _PREFETCH_AT_ONCE:
                break
        return read

    async def _draw(self) -> None:
        while True:
            await self._wanted.acquire()
            event = await self._ready.get()
            self.feed(event)
            if isinstance(event, InputEnded):
                return

    # --- events and commands

    def feed(self, event: Event) -> None:
        super().feed(event)
        if isinstance(event, StatusReceived | ModelKnown):
            spans = self.worker.members.announced_spans()
            own = [self._local.span] if self._local is not None else []
            self._host.spans_changed([*spans, *own])
            if self._local is not None:
                self._local.spans_changed([*spans, *own])
        elif isinstance(event, TelemetryReceived) and (board := event.telemetry.board) is not None:
            self.energy.seen(self._loop.time(), event.telemetry.node, event.telemetry.incarnation, board)
        elif isinstance(event, Tick):
            self._host.look_after(self._loop.time(), unserved=self._unserved())
        if self._samples is None and self.source.started:
            self._begin()
        if not self.source.pending:
            self.answered.set()
        if self.source.done:
            self.done.set()

    def _begin(self) -> None:
        """The first item is asked for, or could be."""
        if self.started_at is None:
            self.started_at = self._loop.time()
            self._see_own_energy()
            self.energy.begin(self.started_at)
            self.started.set()

    def took_foreign(self, route: Route, payload: bytes, *, retained: bool) -> bool:
        if route.kind is not kinds.REQUESTS:
            return False
        self._reception.received(route.node, payload, retained=retained)
        return True

    def close(self) -> None:
        super().close()
        self._reception.close()

    def _unserved(self) -> bool:
        """Is there a node of this model's layers that does not take tasks yet?"""
        layers = len(self._host.manifest.layers)
        return any(
            peer.alive and peer.status.state in _UNSERVED and peer.span is not None and peer.span.stop <= layers
            for peer in self.worker.members
        )

    def other_message(self, route: Route, message: Message, body: memoryview) -> None:
        if isinstance(message, Results):
            self._check_results(message)
            unknown = self.source.unknown
            self.feed(ResultsReceived(route.node, message))
            if self.source.unknown > unknown:
                raise WireError("item", f"expected results of items under way, got others from {route.node}")
        else:
            super().other_message(route, message, body)

    def _check_results(self, message: Results) -> None:
        manifest = self._host.manifest
        if message.run != self.source.config.run:
            raise WireError("run", f"expected results of run {self.source.config.run}, got {message.run}")
        for row in message.rows:
            known = row.label is None or not manifest.labels or row.label < len(manifest.labels)
            if not known or row.exit >= len(manifest.exits):
                raise WireError("result", f"expected a label and an exit of the model, got {row.label} at {row.exit}")

    def carry_out(self, command: Command) -> None:
        match command:
            case DrawInput():
                self._begin()
                self._wanted.release()
            case PrepareRequest():
                self._begin()
                self._reception.prepare(command)
            case SendReply():
                self._reception.send(command)
            case Record():
                self._record(command)
            case SendControl(control):
                self.publish(kinds.CONTROL, self.topics.control, encode(control))
            case _:
                super().carry_out(command)

    def _record(self, record: Record) -> None:
        self.last_result_at = self._loop.time()
        self.summary.add(record)
        self.timeline.add(record)
        if self.results is not None:
            self.results.write(record, self._artifact.manifest.labels)

    def _see_own_energy(self) -> None:
        self.energy.seen(self.vitals.read_at, self.name, self.worker.config.incarnation, self.vitals.board)

    def notice(self, notice: Notice) -> None:
        super().notice(notice)
        if notice.kind != "state":
            self.timeline.notice(notice.text)

    @property
    def elapsed_s(self) -> float:
        return self._loop.time() - self.started_at if self.started_at is not None else 0.0

    def finished(self, emulated: str | None) -> Summary:
        """The run's totals."""
        state = self.source
        sent = {self.name: self.sent_bytes}
        for peer in self.worker.members:
            if peer.telemetry is not None:
                sent[peer.name] = peer.telemetry.sent_bytes
        self._see_own_energy()
        energy = self.energy.spent(max(self.last_result_at, self.started_at or 0.0))
        worked = {self.name} if self.worker.totals.executed else set()
        worked |= {p.name for p in self.worker.members if p.telemetry and p.telemetry.counters.get("executed")}
        busy_s = max(self.last_result_at - self.started_at, 0.0) if self.started_at is not None else 0.0
        return self.summary.finish(
            admitted=state.admitted,
            pending=len(state.pending),
            refused=state.refused,
            duplicates=state.duplicates,
            retried=state.retried,
            elapsed_s=busy_s,
            bytes_sent=sent,
            threshold=state.threshold,
            emulated=emulated,
            energy=energy,
            worked=worked,
        )


async def serve(settings: SourceSettings) -> int:
    """Run the source until its input ends, its time is over, SIGINT or SIGTERM. Raises ``MdiExitError``."""
    stop = stop_requested()
    artifact = Artifact.open(settings.model)
    samples = _samples(settings, artifact)
    if settings.layers is not None and settings.layers.stop > len(artifact.manifest.layers):
        raise UsageError("--layers", f"layers in 0-{len(artifact.manifest.layers) - 1}", settings.layers)
    profile = parse_profile(settings.profile) if settings.profile else None
    engine = make_engine(settings.engine, threads=settings.threads, model=settings.model)
    state = _state(settings, engine.description, profile.name if profile else "")
    executor = Executor(engine, profile)
    vitals = Vitals(power=power_of(settings.device, settings.profile), emulated=profile is not None)
    topics = Topics(settings.deployment)
    driver = SourceDriver(state, topics, executor, artifact, codec=settings.codec, samples=samples, vitals=vitals)
    driver.hears_broker = settings.broker_stats != "none"
    with contextlib.ExitStack() as files:
        if settings.results is not None:
            driver.results = files.enter_context(ResultsWriter(settings.results, settings.overwrite))
        timeline = files.enter_context(_opened(settings.timeline)) if settings.timeline is not None else None
        log.info("source %s: %s, model %s", settings.name, settings.input, artifact.manifest.name)
        async with joined(driver, settings) as transport:
            await _run(driver, transport, settings, stop, timeline)
    summary = driver.finished(_emulated(driver))
    if settings.summary is not None:
        summary.write(settings.summary)
    summary.render(Console(file=sys.stdout if settings.results != Path("-") else sys.stderr))
    return 0


def _samples(settings: SourceSettings, artifact: Artifact) -> Input | None:
    if settings.input == REQUESTS_ONLY:
        return None
    return open_input(
        settings.input,
        artifact.manifest,
        limit=settings.limit,
        cycle=settings.repeat or settings.duration is not None or settings.limit is not None,
        shuffle_seed=settings.seed if settings.shuffle else None,
        data_dir=settings.data_dir,
    )


def _emulated(driver: SourceDriver) -> str | None:
    worker = driver.worker
    names = {worker.config.emulated, *(peer.status.emulated for peer in worker.members)} - {""}
    return ", ".join(sorted(names)) or None


def _opened(path: Path) -> IO[str]:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise UsageError("--timeline", "a file that can be written", f"{path}: {error.strerror}") from None


def _state(settings: SourceSettings, engine: str, emulated: str) -> SourceState:
    worker = WorkerConfig(
        name=settings.name,
        incarnation=new_incarnation(),
        span=settings.layers,
        neighbours=None if settings.neighbours is None else frozenset(settings.neighbours),
        window=settings.window,
        telemetry_period_s=settings.telemetry_period,
        dead_after_s=max(2.5, 5 * settings.telemetry_period),
        engine=engine,
        emulated=emulated,
        version=__version__,
    )
    first = settings.schedule.phases[0].rate_per_s if settings.schedule else settings.rate
    config = SourceConfig(
        run=time.time_ns() // 1000,
        own_input=settings.input != REQUESTS_ONLY,
        rate_per_s=first,
        arrivals=settings.arrivals,  # type: ignore[arg-type]  # checked by the setting's choices
        adapt=settings.adapt,  # type: ignore[arg-type]
        threshold=settings.exit_threshold,
        floor=min(settings.min_threshold, settings.exit_threshold),
        max_queue=settings.max_queue,
        max_pending=settings.max_pending,
        requests=RequestLimits(per_client=settings.max_requests),
    )
    return SourceState(config, worker, Random(settings.seed))


async def _run(
    driver: SourceDriver,
    transport: Transport,
    settings: SourceSettings,
    stop: asyncio.Event,
    timeline: IO[str] | None,
) -> None:
    helpers = [
        asyncio.create_task(driver.start(transport), name="start"),
        asyncio.create_task(_phases(driver, settings), name="phases"),
    ]
    if timeline is not None:
        helpers.append(asyncio.create_task(_snapshots(driver, timeline), name="snapshots"))
    waits: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(driver.done.wait()),
        asyncio.ensure_future(stop.wait()),
    ]
    try:
        await asyncio.wait([*waits, driver.fatal, helpers[0]], return_when=asyncio.FIRST_COMPLETED)
        if helpers[0].done():
            await helpers[0]
            await asyncio.wait([*waits, driver.fatal], return_when=asyncio.FIRST_COMPLETED)
        if not driver.fatal.done():
            await _finish(driver, stopped=stop.is_set())
    finally:
        for task in (*helpers, *waits):
            task.cancel()
        await asyncio.gather(*helpers, *waits, return_exceptions=True)
        if timeline is not None:
            _write_snapshot(driver, timeline)
    if driver.fatal.done():
        raise driver.fatal.result()


async def _finish(driver: SourceDriver, *, stopped: bool) -> None:
    """Stop admitting; wait for what is under way, though not for ever."""
    driver.feed(InputEnded())
    if driver.source.pending:
        log.info("waiting for %d items", len(driver.source.pending))
        patience_s = 5.0 if stopped else _FINISH_S
        driver.answered.clear()
        answered = asyncio.create_task(driver.answered.wait(), name="answered")
        waits: list[asyncio.Future[Any]] = [answered, driver.fatal]
        await asyncio.wait(waits, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        answered.cancel()
        driver.feed(GiveUp("interrupted before an answer came"))
    await driver.finish()


async def _phases(driver: SourceDriver, settings: SourceSettings) -> None:
    """Follow the schedule; end the input when the time is over."""
    await driver.started.wait()
    for phase in settings.schedule.phases if settings.schedule else ():
        await asyncio.sleep(max(phase.start_s - driver.elapsed_s, 0.0))
        driver.timeline.phase = phase.name
        driver.feed(SetAdmission(rate_per_s=phase.rate_per_s))
    if settings.duration is not None:
        await asyncio.sleep(max(settings.duration - driver.elapsed_s, 0.0))
        driver.done.set()


async def _snapshots(driver: SourceDriver, timeline: IO[str]) -> None:
    while True:
        await asyncio.sleep(_SNAPSHOT_S)
        _write_snapshot(driver, timeline)


def _write_snapshot(driver: SourceDriver, timeline: IO[str]) -> None:
    now = asyncio.get_running_loop().time()
    snapshot = driver.timeline.snapshot(now, driver.elapsed_s, driver.cpu_percent())
    try:
        timeline.write(snapshot.to_line())
        timeline.flush()
    except OSError as error:
        raise MdiExitError(f"timeline: {error.strerror}") from None
