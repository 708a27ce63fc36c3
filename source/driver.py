"""The source's driver: its input, others' requests, the results, and the model that it serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from mdi_exit import topics as kinds
from mdi_exit.broker_stats import BrokerStats
from mdi_exit.driver import NodeDriver
from mdi_exit.errors import MdiExitError, WireError
from mdi_exit.events import (
    Command,
    DrawInput,
    Event,
    InputEnded,
    InputOffered,
    InputSkipped,
    KeepItem,
    KeepReply,
    KeepRequest,
    MakePlan,
    ModelKnown,
    Notice,
    PlanMade,
    PrepareRequest,
    Record,
    RecordingHeld,
    ReplyFailed,
    ResultsReceived,
    RoutesSolved,
    SendControl,
    SendReply,
    SolveRoutes,
    StatusReceived,
    TelemetryReceived,
    Tick,
)
from mdi_exit.exchange import FETCHED, LocalModel, ModelHost
from mdi_exit.executor import Executor
from mdi_exit.journal import Left, Life
from mdi_exit.modality import modality_of
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.optimum.routes import RouteSolver
from mdi_exit.placement import decide
from mdi_exit.results import Summary, SummaryBuilder
from mdi_exit.routes import RoutingProblem
from mdi_exit.run_energy import EnergyLedger
from mdi_exit.signing import read_signature
from mdi_exit.source_state import SourceState
from mdi_exit.timeline import Timeline
from mdi_exit.topics import Route, Topics
from mdi_exit.transport import Transport
from mdi_exit.vitals import Vitals
from mdi_exit.wire import Message, Results, encode
from source.inputs import Input, LiveInput, Sample
from source.pictures import Pictures
from source.reception import Reception
from source.recorder import DirectRecorder, Recorder
from source.retained import Retained
from source.revival import restored
from source.sinks import Sink

__all__ = ["SourceDriver"]

log = logging.getLogger(__name__)

_PREFETCH: Final = 64
_PREFETCH_AT_ONCE: Final = 8
_UNSERVED: Final = ("waiting for source", "loading segments", "model not signed")


class SourceDriver(NodeDriver):
    """A node driver with an input, results, a model to serve, and others' requests. ``samples`` None: only these."""

    def __init__(
        self,
        state: SourceState,
        topics: Topics,
        executor: Executor,
        artifact: Artifact,
        *,
        samples: Input | LiveInput | None,
        vitals: Vitals | None = None,
    ) -> None:
        super().__init__(state, state.worker, topics, executor, vitals=vitals)
        self.cuts.deploy(state.config.codec)
        self.source = state
        self.broker_stats = BrokerStats()
        self.hears_broker = True
        self.more_samples.append(self.broker_stats.samples)
        self._artifact = artifact
        self.summary = SummaryBuilder()
        self.timeline = Timeline(state)
        self.sinks: list[Sink] = []
        self.recorder: Recorder = DirectRecorder(self)
        self.more_samples.append(lambda: self.recorder.samples())
        self.pictures: Pictures | None = None
        self.solver = RouteSolver()
        self.energy = EnergyLedger()
        self.started_at: float | None = None
        self.last_result_at = 0.0
        self.started = asyncio.Event()
        self.answered = asyncio.Event()
        self.done = asyncio.Event()
        composer = Composer(artifact)
        span = state.worker.config.span
        self._host = ModelHost(
            self, composer, state.config.run, read_signature(artifact.folder, artifact.manifest.digest)
        )
        self._local = LocalModel(self, composer, (span,)) if span is not None else None
        self._modality = modality_of(artifact)
        self._reception = Reception(self, artifact.manifest, self._modality)
        self._retained = Retained()
        self._own_input = samples is not None
        self._live = samples if isinstance(samples, LiveInput) else None
        self._samples = samples if isinstance(samples, Input) else None
        self._wanted = asyncio.Semaphore(0)
        self._ready: asyncio.Queue[InputOffered | InputEnded] = asyncio.Queue(_PREFETCH)
        self.recorded = asyncio.Event()
        self.complete = False
        self._life = 1
        self._earlier_s = 0.0
        self._position = self._drawn = 0
        self._had: frozenset[str] = frozenset()

    def subscriptions(self) -> list[tuple[str, int]]:
        return [
            *super().subscriptions(),
            (self.topics.results("+"), kinds.RESULTS.qos),
            (self.topics.requests("+"), kinds.REQUESTS.qos),
            (self.topics.control, kinds.CONTROL.qos),
            (self.topics.manifest, kinds.MANIFEST.qos),
        ]

    async def start(self, transport: Transport) -> None:
        if self._live is not None:
            self.spawn("draw", self._draw_live(self._live))
        elif self._samples is not None:
            self.spawn("prefetch", self._prefetch(iter(self._samples)))
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
        elif topic in (self.topics.control, self.topics.manifest):
            self._retained.given(topic, payload)
        else:
            super().on_message(topic, payload, retained)

    # --- from one life to the next

    async def revive(self, left: Left) -> None:
        """Go on where an earlier life stopped."""
        life = left.life
        self._life, self._earlier_s, self._had = left.lives, life.elapsed_s, left.had
        self._position, self._drawn = life.position, life.drawn
        event = await asyncio.to_thread(restored, left, self._samples, self._modality, self.cuts)
        if self._samples is not None:
            self._samples.go_on(life.position, life.drawn)
        elif self._live is not None:
            self._live.taken = life.drawn
        self.summary.go_on(left.counts, left.latencies_s)
        self.feed(event)

    def life(self) -> Life:
        """What a later life has to know beside the items."""
        return Life(self.source.life_totals(), self._position, self._drawn, self.elapsed_s, self.complete)

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
            read.append(self._offer_of(sample))
            if len(read) >= _PREFETCH_AT_ONCE:
                break
        return read

    def _offer_of(self, sample: Sample) -> InputOffered:
        """A sample of whichever input, made ready in a thread."""
        x = self._modality.prepared(sample.raw)
        if self.pictures is not None:
            self.pictures.offer(sample.id, sample.raw)
        return InputOffered(sample.id, x, self.cuts.size_bytes(0, x.shape), sample.truth, sample.position)

    async def _draw(self) -> None:
        while True:
            await self._wanted.acquire()
            event = await self._ready.get()
            if isinstance(event, InputOffered):
                if not self._draws(event.position + 1):
                    return
                if event.sample in self._had:
                    self._wanted.release()
                    continue
            self.feed(event)
            if isinstance(event, InputEnded):
                return

    async def _draw_live(self, samples: LiveInput) -> None:
        """Nothing is read ahead: what is drawn is the newest that there is. What came before the first draw counts for
        nothing.
        """
        await self.started.wait()
        samples.newly_skipped()
        while True:
            await self._wanted.acquire()
            sample = await samples.next()
            self._tell_skipped(samples)
            if sample is None:
                self.feed(InputEnded())
                return
            if self._life > 1:
                sample = replace(sample, id=f"{sample.id}@{self._life}")
            offer = await asyncio.to_thread(self._offer_of, sample)
            if not self._draws(0):
                return
            self.feed(offer)

    def _draws(self, position: int) -> bool:
        """Whether a sample that has come is offered: what comes after the end is left to a later life, if there is one."""
        if self.source.ended and self.source.config.journalled:
            return False
        self._position = position
        self._drawn += 1
        return True

    def _tell_skipped(self, samples: LiveInput) -> None:
        if (count := samples.newly_skipped()) > 0:
            self.feed(InputSkipped(count))

    # --- events and commands

    def feed(self, event: Event) -> None:
        super().feed(event)
        self.recorder.flush()
        if isinstance(event, StatusReceived | ModelKnown | PlanMade):
            spans = [*self.worker.members.announced_spans(), *self.source.planning.spans.values()]
            own = self._local.spans if self._local is not None else ()
            self._host.spans_changed([*spans, *own])
            if self._local is not None:
                self._local.spans_changed([*spans, *own])
        elif isinstance(event, TelemetryReceived) and (board := event.telemetry.board) is not None:
            self.energy.seen(self._loop.time(), event.telemetry.node, event.telemetry.incarnation, board)
        elif isinstance(event, Tick):
            self._host.look_after(self._loop.time(), self._unserved())
            if self._claimed:
                self._repeat_astray()
            if self._live is not None:
                self._tell_skipped(self._live)
        if (not self._own_input or self._life > 1) and self.source.started:
            self._begin()
        self.settled()

    def settled(self) -> None:
        """What has come is recorded."""
        if self.recorder.idle:
            self.recorded.set()
        if not self.source.pending and self.recorder.idle:
            self.answered.set()
        if self.source.done and self.recorder.idle:
            self.done.set()

    def publish(self, kind: kinds.TopicKind, topic: str, frame: bytes) -> bool:
        taken = super().publish(kind, topic, frame)
        if taken and kind in (kinds.CONTROL, kinds.MANIFEST):
            self._retained.said(self._loop.time(), topic, frame)
        return taken

    def _repeat_astray(self) -> None:
        """What others have put in the place of the source's words, or the broker has from long ago, is overwritten."""
        for topic in self._retained.astray(self._loop.time()):
            log.warning("the broker gives out another %s than the source's: publishing it again", topic)
            again = self.announce_again if topic == self.topics.control else self._host.publish_manifest
            self._loop.call_soon(again)

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

    def _unserved(self) -> dict[str, int]:
        """Nodes of this model's layers that do not have all of them yet, and how many bytes of them each has fetched."""
        layers, given = len(self._host.manifest.layers), self.source.planning.spans
        return {
            peer.name: peer.telemetry.counters.get(FETCHED, 0) if peer.telemetry is not None else 0
            for peer in self.worker.members
            if peer.alive
            and (
                given.get(peer.name, peer.span) != peer.span
                or (peer.status.state in _UNSERVED and peer.span is not None and peer.span.stop <= layers)
            )
        }

    def other_message(self, route: Route, message: Message, body: memoryview) -> None:
        if isinstance(message, Results):
            self._check_results(message)
            unknown = self.source.unknown
            self.feed(ResultsReceived(route.node, message))
            if self.source.unknown > unknown:
                raise WireError("item", f"expected its own results of items under way, got others from {route.node}")
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
                if command.kept:
                    self.recorder.then(partial(self._send_kept, command))
                else:
                    self._reception.send(command)
            case KeepItem() | KeepRequest() | KeepReply():
                self.recorder.keep(command)
            case Record():
                self.recorder.record(command)
            case MakePlan():
                self.spawn("plan", self._plan(command))
            case SolveRoutes(problem):
                self.spawn("solve", self._solve(problem))
            case SendControl(control):
                self.publish(kinds.CONTROL, self.topics.control, encode(control))
            case _:
                super().carry_out(command)

    async def _plan(self, command: MakePlan) -> None:
        decision = await asyncio.to_thread(decide, command.problem, command.resting, command.rules)
        self.feed(PlanMade(decision))

    async def _solve(self, problem: RoutingProblem) -> None:
        """Work out routes in a thread; where that cannot be done the core is told why."""
        try:
            event = RoutesSolved(
                await asyncio.to_thread(self.solver.solve, problem), "no layout of it carries any load"
            )
        except MdiExitError as error:
            event = RoutesSolved(None, str(error))
        self.feed(event)

    def _send_kept(self, command: SendReply) -> None:
        self.spawn(f"reply {command.reply.client}/{command.reply.id}", self._confirm(command))

    async def _confirm(self, command: SendReply) -> None:
        """Publish a reply that is written down, until the broker says that it has it."""
        reply, frame = command.reply, self._reception.frame(command)
        if await self.publish_confirmed(kinds.REPLIES, self.topics.replies(reply.client), frame):
            self.recorder.reply_sent(reply.client, reply.id)
        else:
            self.feed(ReplyFailed(command))

    def held(self, reason: str) -> None:
        self.feed(RecordingHeld(reason))

    def released(self, record: Record) -> None:
        self.last_result_at = self._loop.time()
        self.summary.add(record)
        self.timeline.add(record)
        for sink in self.sinks:
            sink.write(record, self._artifact.manifest.labels)
        if self.pictures is not None:
            self._show(self.pictures, record)

    def _show(self, pictures: Pictures, record: Record) -> None:
        found = pictures.frame(self._loop.time(), record, run=self.source.config.run, node=self.name)
        if found is not None:
            frame, picture = found
            self.publish(kinds.FRAMES, self.topics.frames(self.name), encode(frame, picture))

    def _see_own_energy(self) -> None:
        self.energy.seen(self.vitals.read_at, self.name, self.worker.config.incarnation, self.vitals.board)

    def notice(self, notice: Notice) -> None:
        if notice.kind != "held":  # whoever records has said so
            super().notice(notice)
        if notice.kind != "state":
            self.timeline.notice(notice.text)

    @property
    def elapsed_s(self) -> float:
        """Of all lives, from the first admission of each on."""
        return self._earlier_s + (self._loop.time() - self.started_at if self.started_at is not None else 0.0)

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
            elapsed_s=self._earlier_s + busy_s,
            bytes_sent=sent,
            threshold=state.threshold,
            emulated=emulated,
            energy=energy,
            worked=worked,
        )
