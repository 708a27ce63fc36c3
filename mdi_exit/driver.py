"""The live driver of a node: messages, timers and finished segments become events of the core, its commands are carried out.

Everything runs in one event loop; ``feed`` is synchronous, so the core sees one event at a time. A bad message is counted by
reason, logged once per sender and minute, put aside, and stops nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from functools import lru_cache
from typing import Any, Final, Protocol

import msgspec
import numpy as np

from mdi_exit import topics as kinds
from mdi_exit.errors import MdiExitError, StartError, TransportError, WireError
from mdi_exit.events import (
    AckReceived,
    Command,
    ControlReceived,
    Drain,
    Drained,
    Event,
    ModelKnown,
    Notice,
    OrderReceived,
    ProbeReceived,
    RunSegment,
    SegmentsReady,
    SendAck,
    SendFailed,
    SendProbe,
    SendReport,
    SendResults,
    SendStatus,
    SendTask,
    SendTelemetry,
    SetLogLevel,
    StatusReceived,
    Task,
    TaskReceived,
    TelemetryReceived,
    Tick,
    TransportDown,
    TransportUp,
)
from mdi_exit.executor import Encoded, Executor, tensor_of
from mdi_exit.histogram import Histogram
from mdi_exit.limits import MAX_NAMES_HEARD
from mdi_exit.logs import Throttle, set_level
from mdi_exit.membership import GOODBYE
from mdi_exit.model.manifest import Manifest
from mdi_exit.reports import Shortener
from mdi_exit.segments import ModelPlan, SegmentKey
from mdi_exit.tensors import check_payload
from mdi_exit.topics import Route, Topics
from mdi_exit.transport import Transport, Will
from mdi_exit.vitals import Vitals
from mdi_exit.wire import (
    Ack,
    Control,
    Features,
    Message,
    Order,
    Probe,
    Results,
    SourceReport,
    Status,
    Telemetry,
    crc32,
    decode,
    encode,
)
from mdi_exit.worker_state import WorkerState

__all__ = ["NodeDriver", "Sample", "State"]

log = logging.getLogger(__name__)

Sample = tuple[str, tuple[str, ...], float | Histogram]  # of a metric: its name, the values of its labels, its value

_CONFIRM_S: Final = 10.0
_DRAIN_S: Final = 5.0
_STATUS_S: Final = 0.25
_LIFE_S: Final = 2.0
_ECHO_S: Final = 5.0
_LEAST_WAIT_S: Final = 0.0005
_FULL_S: Final = 0.01  # what a full transport does not take is tried again after this, not as fast as the loop turns
_BRIEF_IN_A_ROW: Final = 8


class State(Protocol):
    """What a driver drives: ``WorkerState`` or ``SourceState``."""

    def handle(self, now: float, event: Event) -> list[Command]: ...

    def next_wakeup(self) -> float: ...


class NodeDriver:
    """Drives ``state``, whose node is ``worker`` (the same object on an agent).

    ``more_samples``: of metrics that others add to the node's own.
    """

    def __init__(
        self,
        state: State,
        worker: WorkerState,
        topics: Topics,
        executor: Executor,
        *,
        vitals: Vitals | None = None,
    ) -> None:
        self.state, self.worker, self.topics, self.executor = state, worker, topics, executor
        self.cuts = executor.cuts
        self.manifest: Manifest | None = None
        self.plan: ModelPlan | None = None
        self.bad: Counter[str] = Counter()
        self._names: set[str] = set()
        self.sent_bytes = 0
        self.fatal: asyncio.Future[MdiExitError] = asyncio.get_running_loop().create_future()
        self.drained = asyncio.Event()
        self.connected_once = asyncio.Event()
        self._transport: Transport | None = None
        self._claimed = self._leaving = False
        self._own_status: asyncio.Future[None] | None = None
        self._own_life: asyncio.Future[None] | None = None
        self._heard_itself = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._throttle = Throttle(60.0)
        self.vitals = vitals or Vitals()
        self.more_samples: list[Callable[[], Iterable[Sample]]] = []
        self._shortener = Shortener()
        self._route = lru_cache(4096)(topics.parse)
        self._brief: RunSegment | None = None
        self._closed = False

    @property
    def name(self) -> str:
        return self.worker.name

    def use_model(self, manifest: Manifest) -> None:
        """From now on this is the model in force."""
        self.cuts.use(manifest)
        self.manifest = manifest
        self.plan = dataclasses.replace(manifest.plan, feature_bytes=self.cuts.sizes_bytes(manifest))
        self.feed(ModelKnown(self.plan))

    def will(self) -> Will:
        """The last will: offline, with this start's number."""
        return Will(self.topics.agents(self.name), encode(self._offline()))

    def _offline(self) -> Status:
        config = self.worker.config
        return Status(node=self.name, incarnation=config.incarnation, online=False, role=config.role)

    def subscriptions(self) -> list[tuple[str, int]]:
        """Patterns and QoS of what every node listens to."""
        config = self.worker.config
        heard = ["+"] if config.neighbours is None or config.role == "source" else sorted(config.neighbours)
        patterns = [(self.topics.agents("+"), 1), (self.topics.links(self.name, "+"), 0)]
        patterns.append((self.topics.commands("+"), kinds.COMMANDS.qos))
        patterns += [(self.topics.telemetry(node), 0) for node in heard]
        if config.auto:
            patterns.append((self.topics.inbox(self.name), 0))
        elif config.span is not None:
            patterns.append((self.topics.layers(config.span, self.name), 0))
        return patterns

    def cpu_percent(self) -> float:
        """Of one core, by this process, over the last moments."""
        return self.vitals.cpu_percent(self._loop.time())

    def full_telemetry(self, telemetry: Telemetry) -> Telemetry:
        """The core's load report with what only the driver knows."""
        return msgspec.structs.replace(
            telemetry, sent_bytes=self.sent_bytes, cpu_percent=self.cpu_percent(), board=self.vitals.board
        )

    # --- life

    async def start(self, transport: Transport) -> None:
        """Claim the name, once connected, and take part. Raises ``StartError`` if a live node has the name."""
        self._transport = transport
        self.spawn("vitals", self.vitals.watch(lambda: self.worker.totals.compute_s))
        self._own_status, self._own_life = self._loop.create_future(), self._loop.create_future()
        await transport.subscribe(self.topics.agents(self.name), 1)
        await transport.subscribe(self.topics.telemetry(self.name), 0)
        await self.connected_once.wait()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._own_status, _STATUS_S)
            log.info("the broker remembers a node %s: waiting for a sign of life of it", self.name)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._own_life, _LIFE_S)
                raise StartError(f"name {self.name}: expected one that no live node has, got one in use (--name)")
        self._own_status = self._own_life = None
        self._claimed = True
        await transport.unsubscribe(self.topics.telemetry(self.name))
        for pattern, qos in self.subscriptions():
            await transport.subscribe(pattern, qos)
        self.spawn("own voice", self._miss_own_voice(transport))
        if transport.connected:
            self.feed(TransportUp())

    async def _miss_own_voice(self, transport: Transport) -> None:
        """Say so if what this node says of itself does not come back: a broker drops what may not be said without a word."""
        while not self._heard_itself.is_set():
            connects = transport.counters.connects
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._heard_itself.wait(), _ECHO_S)
                return
            if transport.connected and transport.counters.connects == connects:
                log.warning(
                    "name %s: expected the broker to pass on this node's status, got nothing for %g s: others learn nothing "
                    "of it if its credentials may not speak as %s (--name)", self.name, _ECHO_S, self.name,
                )  # fmt: skip
                return

    async def finish(self) -> None:
        """Finish what is here, say goodbye, stop."""
        if self._claimed and self._transport is not None:
            self._leaving = True
            self.feed(Drain())
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.drained.wait(), _DRAIN_S if self._transport.connected else 0.0)
            topic = self.topics.agents(self.name)
            goodbye = msgspec.structs.replace(self._offline(), state=GOODBYE)
            await self._transport.publish_confirmed(topic, encode(goodbye), qos=1, retain=True, timeout_s=2.0)
        self.close()

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        self.executor.close()

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside the loop; its failure is fatal to the node."""
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the program with this error."""
        if not self.fatal.done():
            if not isinstance(error, MdiExitError):
                log.error("%s failed", self.name, exc_info=error)
                error = MdiExitError(f"{type(error).__name__}: {error}")
            self.fatal.set_result(error)

    def segments_ready(self, seconds: dict[SegmentKey, float]) -> None:
        self.feed(SegmentsReady(seconds))

    # --- events in

    def feed(self, event: Event) -> None:
        """Give the core an event and carry out what it wants, a few brief segments and what follows from them included."""
        for _ in range(_BRIEF_IN_A_ROW):
            if self._closed:
                return
            try:
                for command in self.state.handle(self._loop.time(), event):
                    self.carry_out(command)
                brief, self._brief = self._brief, None
                if brief is None:
                    break
                event = self.executor.run_here(brief)
            except Exception as error:  # noqa: BLE001 - a defect of the core ends the node, with its story
                self.fail(error)
                return
        else:
            self._loop.call_soon(self.feed, event)  # others want the loop too
            return
        self._set_timer()

    def _set_timer(self) -> None:
        """Wake up when the core wants it; a timer that comes too early is left to do no harm."""
        at = max(self.state.next_wakeup(), self._loop.time() + _LEAST_WAIT_S)
        if self._timer is not None and self._timer.when() <= at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.feed(Tick())

    def on_connected(self) -> None:
        self.connected_once.set()
        if self._claimed:
            self.feed(TransportUp())

    def on_disconnected(self, reason: str) -> None:
        log.warning("%s; trying again", reason)
        if self._claimed:
            self.feed(TransportDown())

    def on_message(self, topic: str, payload: bytes, retained: bool) -> None:
        try:
            route = self._route(topic)
            if self.took_foreign(route, payload, retained=retained):
                return
            if not payload and route.kind.retain:
                self._restore(topic)
                return  # a retained message was deleted
            message, body = decode(payload)
            if type(message).__name__ not in (route.kind.message, *_SHARED.get(route.kind.message, ())):
                raise WireError("type", f"expected {route.kind.message} on {topic}, got {type(message).__name__}")
            self._received(route, message, body, retained=retained)
        except WireError as error:
            self.count_bad(error, topic)
            self._restore(topic)

    def took_foreign(self, route: Route, payload: bytes, *, retained: bool) -> bool:
        """Take a message that need not be a frame of ours; False: it must be one."""
        del route, payload, retained
        return False

    def _restore(self, topic: str) -> None:
        """What is no status of ours has taken its place in the broker's memory: later nodes would not know of us."""
        if topic == self.topics.agents(self.name):
            self.announce_again()

    def announce_again(self) -> None:
        """Publish anew what the broker is to remember of this node."""
        if self._claimed and not self._leaving and self._transport is not None and self._transport.connected:
            self.feed(TransportUp())

    def count_bad(self, error: WireError, topic: str) -> None:
        """Count a bad message by reason; say so once per sender and minute."""
        self.bad[error.reason] += 1
        sender = topic.rsplit("/", 1)[-1][:40]
        suppressed = self._throttle.allow(f"{sender} {error.reason}", self._loop.time())
        if suppressed is not None:
            log.warning("bad message on %s: %s (%d more like it before)", topic[:80], error, suppressed)

    def _received(self, route: Route, message: Message, body: memoryview, *, retained: bool) -> None:
        if not self._claimed:
            self._before_claim(message)
            return
        match message:
            case Features():
                self._remember(message.sender)
                self.feed(self._task(route, message, body))
            case Ack():
                self.feed(AckReceived(route.sender, message))
            case Probe():
                self._remember(route.sender)
                self.feed(ProbeReceived(route.sender, message))
            case Telemetry():
                self._same_node(route, message.node)
                self._remember(message.node)
                self.feed(TelemetryReceived(message))
            case SourceReport():
                self._same_node(route, message.node)
            case Status():
                self._same_node(route, message.node)
                self._remember(message.node)
                if message.node != self.name:
                    self.feed(StatusReceived(message, retained))
                elif message.incarnation != self.worker.config.incarnation:
                    self._namesake(message, retained=retained)
                elif message.online:
                    self._heard_itself.set()
                else:
                    self.announce_again()  # a will of a connection that is over, from another broker or a late one
            case Control():
                self.cuts.deploy(message.codec)
                self.feed(ControlReceived(message))
            case Order():
                self._same_node(route, message.client)
                self.feed(OrderReceived(message, retained))
            case _:
                self.other_message(route, message, body)

    def other_message(self, route: Route, message: Message, body: memoryview) -> None:
        """Messages that only some nodes understand."""
        raise WireError("type", f"expected a message for {self.name}, got {type(message).__name__}")

    def _remember(self, node: str) -> None:
        """What is known of a node is kept: only so many names may be made up."""
        if node not in self._names:
            if len(self._names) >= MAX_NAMES_HEARD:
                raise WireError("names", f"expected at most {MAX_NAMES_HEARD:,} nodes, got {node} too")
            self._names.add(node)

    def _same_node(self, route: Route, node: str) -> None:
        if route.node != node:
            raise WireError("identity", f"expected the message of {route.node}, got one of {node}")

    def _before_claim(self, message: Message) -> None:
        """Is there a node of this name already, remembered by the broker or alive?"""
        if isinstance(message, Status) and message.node == self.name and message.online:
            _resolve(self._own_status)
        elif isinstance(message, Telemetry) and message.node == self.name:
            _resolve(self._own_status)
            _resolve(self._own_life)

    def _namesake(self, status: Status, *, retained: bool) -> None:
        """A status of another start of this name: an old will is overwritten; of two that are alive the later one yields."""
        mine = self.worker.config.incarnation
        if status.online and not retained and status.incarnation < mine:
            self.fail(StartError(f"name {self.name}: expected one that no live node has, got one in use (--name)"))
        elif not (status.online and retained):
            self.announce_again()

    def _task(self, route: Route, message: Features, body: memoryview) -> TaskReceived:
        manifest, plan = self.manifest, self.plan
        if manifest is None or plan is None or message.model != plan.digest:
            raise WireError("model", f"expected features of the model in force, got {message.model[:12]}")
        if message.next_layer >= len(manifest.layers) or not manifest.fits(message.next_layer, message.shape):
            raise WireError("shape", f"got {message.shape} for layer {message.next_layer}")
        if message.dtype != "float32":
            raise WireError("dtype", f"expected float32, got {message.dtype[:20]!r}")
        plain = check_payload(message.codec, message.shape, body)
        deadline_s = message.deadline_s
        task = Task(
            run=message.run,
            item=message.item,
            attempt=message.attempt,
            next_layer=message.next_layer,
            payload=Encoded(message.codec, message.shape, body, plain),
            size_bytes=len(body),
            path=message.path,
            best=message.best,
            exit_state=message.exit_state,
            deadline_at=None if deadline_s is None else self._loop.time() + deadline_s,
            compute_s=message.times[0],
            wait_s=message.times[1],
        )
        return TaskReceived(message.sender, message.incarnation, message.seq, task)

    # --- commands out

    def carry_out(self, command: Command) -> None:
        """Do what the core wants."""
        match command:
            case RunSegment():
                if self.executor.is_brief(command):
                    self._brief = command
                else:
                    self.spawn(f"segment {command.batch}", self._run(command))
            case SendTask():
                self._send_task(command)
            case SendResults():
                message = Results(command.run or 0, self.worker.config.incarnation, command.rows, command.moved)
                if not self.publish(kinds.RESULTS, self.topics.results(self.name), encode(message)):
                    self._loop.call_later(_FULL_S, self.feed, SendFailed(command))
            case SendTelemetry(telemetry):
                report = self._shortener.shortened(self._loop.time(), self.full_telemetry(telemetry))
                self.publish(kinds.TELEMETRY, self.topics.telemetry(self.name), encode(report))
            case SendReport(report):
                self.publish(kinds.TELEMETRY, self.topics.telemetry(self.name), encode(report))
            case SendStatus(status):
                self.publish(kinds.AGENTS, self.topics.agents(self.name), encode(status))
                self.status_changed(status)
            case SendAck(to, ack):
                self.publish(kinds.LINKS, self.topics.links(to, self.name), encode(ack))
            case SendProbe(to, probe):
                self.publish(kinds.LINKS, self.topics.links(to, self.name), encode(probe))
            case SetLogLevel(level):
                log.info("log level %s from now on, as ordered", level)
                set_level(level)
            case Notice(kind, text):
                if kind == "stale-run":
                    self.count_bad(WireError("run", text), text)
                else:
                    self.notice(command)
            case Drained():
                self.drained.set()
            case _:
                raise TypeError(f"expected a command of a node, got {type(command).__name__}")

    def notice(self, notice: Notice) -> None:
        """A line for people."""
        log.log(logging.DEBUG if notice.kind == "state" else logging.INFO, "%s", notice.text)

    def status_changed(self, status: Status) -> None:
        """The node's own status, as just published."""

    async def _run(self, command: RunSegment) -> None:
        self.feed(await self.executor.run(command))

    def _send_task(self, command: SendTask) -> None:
        task = command.task
        body, codec, shape = self._encoded(task)
        message = Features(
            run=task.run,
            sender=self.name,
            incarnation=self.worker.config.incarnation,
            seq=command.seq,
            item=task.item,
            attempt=task.attempt,
            epoch=command.epoch,
            model=self.plan.digest if self.plan else "",
            next_layer=task.next_layer,
            codec=codec,
            shape=shape,
            crc=crc32(body),
            path=task.path,
            deadline_s=None if task.deadline_at is None else task.deadline_at - self._loop.time(),
            best=task.best,
            exit_state=task.exit_state,
            times=(task.compute_s, task.wait_s),
        )
        if not self.publish(kinds.LAYERS, self.topics.layers(command.span, command.to), encode(message, body)):
            self._loop.call_later(_FULL_S, self.feed, SendFailed(command))

    def _encoded(self, task: Task) -> tuple[bytes | memoryview, str, tuple[int, ...]]:
        """A tensor for the wire, in the codec of its cut; one that only passes through keeps its bytes."""
        if isinstance(task.payload, Encoded):
            return task.payload.payload, task.payload.codec, task.payload.shape
        array = np.asarray(tensor_of(task.payload), np.float32)
        return *self.cuts.encode(task.next_layer, array), array.shape

    def publish(self, kind: kinds.TopicKind, topic: str, frame: bytes) -> bool:
        """Publish as the topic table says; False if the transport did not take it."""
        if self._transport is None:
            return False
        try:
            taken = self._transport.publish(topic, frame, qos=kind.qos, retain=kind.retain)
        except TransportError as error:
            log.error("%s", error)
            return False
        self.sent_bytes += len(frame) if taken else 0
        return taken

    def pending_bytes(self) -> int:
        """What was published and waits to go out."""
        return self._transport.pending_bytes() if self._transport is not None else 0

    async def publish_confirmed(self, kind: kinds.TopicKind, topic: str, frame: bytes) -> bool:
        """Publish as the topic table says, and wait for a while until the broker has it; False if that did not happen."""
        if self._transport is None:
            return False
        taken = await self._transport.publish_confirmed(
            topic, frame, qos=kind.qos, retain=kind.retain, timeout_s=_CONFIRM_S
        )
        self.sent_bytes += len(frame) if taken else 0
        return taken


_SHARED: Final = {"Link": ("Ack", "Probe"), "Telemetry": ("SourceReport",)}


def _resolve(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
