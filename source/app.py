"""The source: owns the data, serves the model, collects one result for each admitted item."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import sys
import time
from pathlib import Path
from random import Random
from typing import IO, Any, Final

from rich.console import Console

from mdi_exit.energy import power_of
from mdi_exit.engine import make_engine
from mdi_exit.engine.profile import parse_profile
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.events import (
    GiveUp,
    InputEnded,
    SetAdmission,
)
from mdi_exit.executor import Executor
from mdi_exit.logs import Throttle
from mdi_exit.modality import Modality, modality_of
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.model.manifest import Calibration
from mdi_exit.optimum.exits import ExitTable
from mdi_exit.optimum.routes import RouteSolver
from mdi_exit.program import joined, stop_requested
from mdi_exit.requests import RequestLimits
from mdi_exit.results import ResultsWriter
from mdi_exit.source_config import Promised
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.topics import Topics
from mdi_exit.trace import Trace
from mdi_exit.transport import Transport
from mdi_exit.vitals import Vitals
from source.beside import beside
from source.config import SourceSettings
from source.driver import SourceDriver
from source.input_kinds import REQUESTS
from source.inputs import Input, LiveInput, open_any
from source.pictures import Pictures
from source.recorder import DirectRecorder, JournalRecorder
from source.restart import Kept, opened_journal
from source.sinks import results_file

__all__ = ["serve"]

log = logging.getLogger(__name__)

_SNAPSHOT_S: Final = 0.25
_FINISH_S: Final = 30.0
_STOP_S: Final = 5.0
_throttle: Final = Throttle(60.0)


async def serve(settings: SourceSettings) -> int:
    """Run the source until its input ends, its time is over, SIGINT or SIGTERM. Raises ``MdiExitError``."""
    stop = stop_requested()
    artifact = Artifact.open(settings.model)
    if (verifier := settings.verifier()) is not None:
        verifier.check_artifact(artifact.folder, artifact.manifest.digest)
    Composer(artifact).check()
    samples = _samples(settings, artifact, modality_of(artifact))
    if settings.frames is not None and artifact.manifest.input.kind != "image":
        raise UsageError(
            "--frames", "a model of images", f"{artifact.manifest.input.kind}, of which there is no picture"
        )
    if settings.layers is not None and settings.layers.stop > len(artifact.manifest.layers):
        raise UsageError("--layers", f"layers in 0-{len(artifact.manifest.layers) - 1}", settings.layers)
    profile = parse_profile(settings.profile) if settings.profile else None
    engine = make_engine(settings.engine, threads=settings.threads, model=settings.model)
    kept = opened_journal(settings, settings.journal, artifact.manifest, samples) if settings.journal else None
    if kept is not None and kept.left.complete:
        return _nothing_to_do(settings, kept)
    state = _state(settings, engine.description, profile.name if profile else "", artifact.manifest.calibration)
    executor = Executor(engine, profile)
    vitals = Vitals(power=power_of(settings.device, settings.profile), emulated=profile is not None)
    topics = Topics(settings.deployment)
    driver = SourceDriver(state, topics, executor, artifact, samples=samples, vitals=vitals)
    driver.solver = _solver(settings, artifact)
    driver.hears_broker = settings.broker_stats != "none"
    if settings.frames is not None:
        driver.pictures = Pictures(settings.frames)
    with contextlib.ExitStack() as files:
        writer = _results(settings, kept)
        if writer is not None:
            files.enter_context(writer)
        labels = artifact.manifest.labels
        if kept is None:
            driver.recorder = DirectRecorder(driver, writer, labels)
        else:
            driver.recorder = JournalRecorder(driver, kept.journal, driver.life, writer, labels)
            await driver.revive(kept.left)
        timeline = files.enter_context(_opened(settings.timeline)) if settings.timeline is not None else None
        log.info("source %s: %s, model %s", settings.name, settings.input, artifact.manifest.name)
        async with (
            joined(driver, settings) as transport,
            beside(driver, transport, settings, samples, artifact.manifest),
        ):
            try:
                await _run(driver, transport, settings, stop, timeline)
            except BaseException:
                with contextlib.suppress(MdiExitError):
                    await driver.recorder.close()
                raise
            await driver.recorder.close()
    summary = driver.finished(_emulated(driver))
    if settings.summary is not None:
        summary.write(settings.summary)
    summary.render(Console(file=sys.stdout if settings.results != Path("-") else sys.stderr))
    return 0


def _samples(settings: SourceSettings, artifact: Artifact, modality: Modality) -> Input | LiveInput | None:
    if settings.input.kind is REQUESTS:
        return None
    return open_any(
        settings.input.text,
        artifact.manifest,
        limit=settings.limit,
        cycle=settings.repeat or settings.duration is not None or settings.limit is not None,
        shuffle_seed=settings.seed if settings.shuffle else None,
        data_dir=settings.data_dir,
        fps=settings.fps,
        realtime=settings.realtime,
        read=modality.read,
    )


def _results(settings: SourceSettings, kept: Kept | None) -> ResultsWriter | None:
    if kept is not None:
        return kept.writer
    return results_file(settings.results, settings.overwrite) if settings.results is not None else None


def _nothing_to_do(settings: SourceSettings, kept: Kept) -> int:
    """Everything was done in earlier lives: only the summary is given again."""
    log.info("journal %s: every item has its result; nothing is left to do", settings.journal)
    kept.close()
    summary = kept.summary()
    if settings.summary is not None:
        summary.write(settings.summary)
    summary.render(Console(file=sys.stdout))
    return 0


def _solver(settings: SourceSettings, artifact: Artifact) -> RouteSolver:
    if settings.outcomes is None:
        return RouteSolver()
    trace, exits = Trace.load(settings.outcomes), len(artifact.manifest.exits)
    if trace.exits != exits:
        raise UsageError("--outcomes", f"outcomes of {exits} exits, as the model has", trace.exits)
    return RouteSolver(ExitTable.of_outcomes(trace.scores_NS, trace.right_NS, settings=RouteSolver.SETTINGS))


def _emulated(driver: SourceDriver) -> str | None:
    worker = driver.worker
    names = {worker.config.emulated, *(peer.status.emulated for peer in worker.members)} - {""}
    return ", ".join(sorted(names)) or None


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("wb", buffering=0)
    except OSError as error:
        raise UsageError("--timeline", "a file that can be written", f"{path}: {error.strerror}") from None


def _promised(calibration: Calibration, codec: str) -> Promised | None:
    """What the model promises, and a warning where features travel otherwise than when that was found."""
    if calibration.promise is None or calibration.threshold is None:
        return None
    if codec != calibration.promise.codec:
        log.warning("--codec %s: what the model promises was found with %s", codec, calibration.promise.codec)
    return Promised(calibration.threshold, str(calibration.promise))


def _state(settings: SourceSettings, engine: str, emulated: str, calibration: Calibration) -> SourceState:
    worker = settings.worker(settings.name, settings.layers, engine, emulated)
    first = settings.schedule.phases[0].rate_per_s if settings.schedule else settings.rate
    config = SourceConfig(
        run=time.time_ns() // 1000,
        own_input=settings.input.kind is not REQUESTS,
        rate_per_s=first,
        arrivals=settings.arrivals,  # type: ignore[arg-type]  # checked by the setting's choices
        adapt=settings.policy,
        threshold=settings.exit_threshold,
        floor=min(settings.min_threshold, settings.exit_threshold),
        promised=_promised(calibration, settings.codec),
        max_queue=settings.max_queue,
        max_pending=settings.max_pending,
        requests=RequestLimits(per_client=settings.max_requests),
        deadline_s=settings.deadline,
        offloading=settings.offloading or "",
        target_p99_s=settings.target_p99,
        codec=settings.codec,
        journalled=settings.journal is not None,
    )
    return SourceState(config, worker, Random(settings.seed))


async def _run(
    driver: SourceDriver,
    transport: Transport,
    settings: SourceSettings,
    stop: asyncio.Event,
    timeline: IO[bytes] | None,
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
            await _finish(driver, stop)
            driver.complete = not stop.is_set() and not driver.source.pending
    finally:
        for task in (*helpers, *waits):
            task.cancel()
        await asyncio.gather(*helpers, *waits, return_exceptions=True)
        if timeline is not None:
            _write_snapshot(driver, timeline)
    if driver.fatal.done():
        raise driver.fatal.result()


async def _finish(driver: SourceDriver, stop: asyncio.Event) -> None:
    """Stop admitting; wait for what is under way, though not for ever."""
    driver.feed(InputEnded())
    if driver.source.pending:
        log.info("waiting for %d items", len(driver.source.pending))
        patience_s = _STOP_S if stop.is_set() else _FINISH_S
        driver.answered.clear()
        answered = asyncio.create_task(driver.answered.wait(), name="answered")
        waits: list[asyncio.Future[Any]] = [answered, driver.fatal]
        await asyncio.wait(waits, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        answered.cancel()
        if not driver.source.config.journalled:
            driver.feed(GiveUp("interrupted before an answer came"))
        elif driver.source.pending:
            log.info("%d items are left to a later start, in the journal", len(driver.source.pending))
    await _settle(driver, stop)
    await driver.finish()


async def _settle(driver: SourceDriver, stop: asyncio.Event) -> None:
    """Wait until all results are recorded, if need be for room on the disk; told to stop, for a while only."""
    if driver.recorder.idle:
        return
    driver.recorded.clear()
    waits = [asyncio.ensure_future(event.wait()) for event in (driver.recorded, stop)]
    both: list[asyncio.Future[Any]] = [*waits, driver.fatal]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if not waits[0].done() and not driver.fatal.done():
        await asyncio.wait([waits[0]], timeout=_STOP_S)
    for wait in waits:
        wait.cancel()


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


async def _snapshots(driver: SourceDriver, timeline: IO[bytes]) -> None:
    while True:
        await asyncio.sleep(_SNAPSHOT_S)
        _write_snapshot(driver, timeline)


def _write_snapshot(driver: SourceDriver, timeline: IO[bytes]) -> None:
    now = asyncio.get_running_loop().time()
    snapshot = driver.timeline.snapshot(now, driver.elapsed_s, driver.cpu_percent())
    line = snapshot.to_line().encode()
    try:
        if timeline.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:  # what people look at later is not worth the run
        if _throttle.allow("timeline", now) is not None:
            log.warning("timeline: a line could not be written: %s", error.strerror)
