"""Watches a deployment from outside: what its nodes and its source report of themselves, as plain values.

Takes no part in anything and needs to be known to nobody: statuses, telemetry, the control message and the manifest are
all that it hears. The terminal view and the web page draw what ``Observer.view`` says.
"""

from __future__ import annotations

import asyncio
import ssl
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from mdi_exit import values
from mdi_exit.errors import ArtifactError, StartError, WireError
from mdi_exit.model.manifest import Manifest as ModelManifest
from mdi_exit.model.manifest import parse_manifest
from mdi_exit.snapshot import Rate
from mdi_exit.topics import Topics
from mdi_exit.transport.mqtt import MqttTransport
from mdi_exit.wire import (
    Board,
    Control,
    Frame,
    LinkLoad,
    Manifest,
    Message,
    SourceReport,
    Status,
    Telemetry,
    decode,
)

__all__ = ["DeploymentView", "Happened", "LinkView", "NodeView", "Observer", "Watched"]

_SILENT_S: Final = 3.0
_FORGOTTEN_S: Final = 60.0
_MOST_NODES: Final = 2000
_HAPPENED_KEPT: Final = 200
_NOTHING: Final = memoryview(b"")


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node. ``state``: as it says itself, or ``gone``; ``span`` as people write it (empty: none).

    ``inputs``, ``outputs``: queue lengths, tasks; ``executed_per_s`` tasks a second over the last moments; counts are
    totals of its present start; ``speed_s``: expected seconds a task by entry layer; ``age_s``: of its last report (None:
    none yet).
    """

    name: str
    role: str
    state: str
    span: str
    engine: str
    emulated: str
    version: str
    inputs: int = 0
    outputs: int = 0
    backlog_s: float = 0.0
    executed: int = 0
    executed_per_s: float = 0.0
    exited: int = 0
    sent: int = 0
    sent_bytes: int = 0
    cpu_percent: float = 0.0
    exits: dict[int, int] = field(default_factory=dict)
    speed_s: dict[int, float] = field(default_factory=dict)
    board: Board | None = None
    age_s: float | None = None

    @property
    def alive(self) -> bool:
        return self.state != "gone"


@dataclass(frozen=True, slots=True)
class LinkView:
    """Features from one node to another: totals, and rates over the last moments."""

    sender: str
    to: str
    tasks: int
    tasks_per_s: float
    bytes_per_s: float
    delay_s: float
    credits: int


@dataclass(frozen=True, slots=True)
class Happened:
    """A happening at ``at`` (seconds since 1970, on the observer's clock, to about a telemetry period)."""

    at: float
    kind: str
    text: str
    order: int


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """All that is known now. ``source``: its last report, None before the first; ``source_age_s``: of that report.

    ``trouble``: why nothing can be seen, in words; empty when all is well. ``labels``: of the model's classes. ``takes``:
    the kind of its input, as in the manifest; empty: not known yet.
    """

    deployment: str
    connected: bool
    trouble: str
    source: SourceReport | None
    source_age_s: float | None
    offered_per_s: float
    admitted_per_s: float
    completed_per_s: float
    control: Control | None
    model: str
    labels: tuple[str, ...]
    layer_count: int
    nodes: tuple[NodeView, ...]
    links: tuple[LinkView, ...]
    happened: tuple[Happened, ...]
    takes: str = ""

    @property
    def accuracy(self) -> float | None:
        """Share of right labels of the whole run, None while no truth is known."""
        return self.source.right / self.source.judged if self.source and self.source.judged else None

    @property
    def emulated(self) -> str:
        """The devices that nodes are stretched to, or nothing."""
        return ", ".join(sorted({node.emulated for node in self.nodes if node.emulated}))


@dataclass(slots=True)
class _Node:
    status: Status
    offline: bool = False
    telemetry: Telemetry | None = None
    heard_at: float | None = None  # None: only the broker's memory speaks of it, and it may be long gone
    executed: Rate = field(default_factory=Rate)
    executed_per_s: float = 0.0
    board: Board | None = None
    tasks: dict[str, Rate] = field(default_factory=dict)
    bytes: dict[str, Rate] = field(default_factory=dict)
    links: dict[str, tuple[LinkLoad, float, float]] = field(default_factory=dict)


class Watched:
    """What the messages of a deployment add up to. No clock and no connection of its own."""

    def __init__(self, deployment: str) -> None:
        self.deployment = deployment
        self.control: Control | None = None
        self.manifest: ModelManifest | None = None
        self.source: SourceReport | None = None
        self.source_at = float("-inf")
        self.happened: deque[Happened] = deque(maxlen=_HAPPENED_KEPT)
        self._told = 0
        self._nodes: dict[str, _Node] = {}
        self._rates: dict[str, Rate] = {}
        self._per_s = dict.fromkeys(("offered", "admitted", "completed"), 0.0)

    def message(
        self, now: float, wall: float, message: Message, body: memoryview = _NOTHING, *, retained: bool = False
    ) -> None:
        """Take in one message at ``now`` (monotonic seconds) and ``wall`` (seconds since 1970).

        Raises ``ArtifactError`` for a manifest that is none.
        """
        match message:
            case Status():
                self._status(now, message, retained=retained)
            case Telemetry():
                self._telemetry(now, message)
            case SourceReport():
                self._report(now, wall, message)
            case Control():
                self.control = message
            case Manifest():
                if self.manifest is None or self.manifest.digest != message.model:
                    self.manifest = parse_manifest(bytes(body), "the manifest")
            case _:
                return

    def _status(self, now: float, status: Status, *, retained: bool) -> None:
        known = self._nodes.get(status.node)
        if known is None or known.status.incarnation != status.incarnation:
            if not status.online or (known is None and len(self._nodes) >= _MOST_NODES):
                return
            known = self._nodes[status.node] = _Node(status)
        known.status = status if status.online else known.status
        known.offline = not status.online
        if not retained:
            known.heard_at = now

    def _telemetry(self, now: float, telemetry: Telemetry) -> None:
        node = self._nodes.get(telemetry.node)
        if node is None or node.status.incarnation != telemetry.incarnation:
            return
        node.telemetry, node.heard_at = telemetry, now
        node.executed_per_s = node.executed.update(now, telemetry.counters.get("executed", 0))
        node.board = telemetry.board or node.board  # it is not in every report
        if not telemetry.links and telemetry.board is None:
            return  # a brief report: links are not in every one either
        node.links = {
            to: (
                load,
                node.tasks.setdefault(to, Rate()).update(now, load.tasks),
                node.bytes.setdefault(to, Rate()).update(now, load.bytes),
            )
            for to, load in telemetry.links.items()
        }

    def _report(self, now: float, wall: float, report: SourceReport) -> None:
        if self.source is None or self.source.incarnation != report.incarnation:
            self._told, self._rates = 0, {}
        self.source, self.source_at = report, now
        for name in self._per_s:
            self._per_s[name] = self._rates.setdefault(name, Rate()).update(now, getattr(report, name))
        for told in report.happened:
            if told.number > self._told:
                self._told = told.number
                self.happened.append(Happened(wall - told.age_s, told.kind, told.text, told.order))

    def view(self, now: float, *, connected: bool = True, trouble: str = "") -> DeploymentView:
        """Everything as of ``now``."""
        self._forget(now)
        if not trouble and self.source is None:
            trouble = f"no source in deployment {self.deployment} yet"
        elif not trouble and now - self.source_at > _SILENT_S:
            trouble = f"the source has been silent for {now - self.source_at:.0f} s"
        heard = (node for node in self._nodes.values() if node.heard_at is not None)
        nodes = sorted(heard, key=lambda node: (node.status.role != "source", node.status.node))
        manifest = self.manifest
        return DeploymentView(
            deployment=self.deployment,
            connected=connected,
            trouble=trouble,
            source=self.source,
            source_age_s=now - self.source_at if self.source is not None else None,
            offered_per_s=self._per_s["offered"],
            admitted_per_s=self._per_s["admitted"],
            completed_per_s=self._per_s["completed"],
            control=self.control,
            model=manifest.name if manifest else "",
            labels=manifest.labels if manifest else (),
            layer_count=len(manifest.layers) if manifest else 0,
            nodes=tuple(_node_view(now, node) for node in nodes),
            links=tuple(
                LinkView(node.status.node, to, load.tasks, tasks_per_s, bytes_per_s, load.delay_s, load.credits)
                for node in nodes
                for to, (load, tasks_per_s, bytes_per_s) in sorted(node.links.items())
            ),
            happened=tuple(self.happened),
            takes=manifest.input.kind if manifest else "",
        )

    def reports(self, now: float) -> list[tuple[Status, Telemetry | None]]:
        """What each node that is there said last."""
        return [(node.status, node.telemetry) for node in self._nodes.values() if not _gone(now, node)]

    def _forget(self, now: float) -> None:
        """Nodes that have been gone for a minute are no longer shown."""
        for name, node in list(self._nodes.items()):
            if node.heard_at is not None and now - node.heard_at > _FORGOTTEN_S:
                del self._nodes[name]


def _gone(now: float, node: _Node) -> bool:
    """Offline by its own word or its will, or silent."""
    return node.offline or node.heard_at is None or now - node.heard_at > _SILENT_S


def _node_view(now: float, node: _Node) -> NodeView:
    status, telemetry, gone = node.status, node.telemetry, _gone(now, node)
    span = f"{status.span[0]}-{status.span[1] - 1}" if status.span else ""
    state = "gone" if gone else status.state
    common = (status.node, status.role, state, span, status.engine, status.emulated, status.version)
    if telemetry is None:
        return NodeView(*common)
    return NodeView(
        *common,
        inputs=telemetry.inputs,
        outputs=telemetry.outputs,
        backlog_s=telemetry.backlog_s,
        executed=telemetry.counters.get("executed", 0),
        executed_per_s=0.0 if gone else node.executed_per_s,
        exited=telemetry.counters.get("exited", 0),
        sent=telemetry.counters.get("sent", 0),
        sent_bytes=telemetry.sent_bytes,
        cpu_percent=telemetry.cpu_percent,
        exits=dict(telemetry.exits),
        speed_s=dict(telemetry.speed_s),
        board=node.board,
        age_s=now - node.heard_at if node.heard_at is not None else None,
    )


class Observer:
    """Watches ``deployment`` on the broker at ``url``, or the first of several that answers, for as long as it is entered.

    ``on_change`` is called in the event loop after each message and change of the connection, ``on_frame`` with each frame
    of a source that publishes them. ``denial``: why no broker takes us, if none ever did.
    Raises ``UsageError`` for a malformed ``url``.
    """

    def __init__(
        self,
        url: str | values.Brokers,
        deployment: str = "default",
        *,
        username: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        on_change: Callable[[], None] | None = None,
        on_frame: Callable[[Frame, memoryview], None] | None = None,
    ) -> None:
        self.watched = Watched(deployment)
        self.topics = Topics(deployment)
        self.bad = 0
        self.denial: StartError | None = None
        self._on_change = on_change or (lambda: None)
        self._on_frame = on_frame
        self._trouble = f"connecting to broker {url}"
        self.transport = MqttTransport(
            url,
            client_id=f"{deployment}-observer-{uuid.uuid4().hex[:12]}",
            handler=self,
            username=username,
            password=password,
            tls=tls,
            on_denied=self._on_denied,
        )

    def _on_denied(self, error: StartError) -> None:
        self.denial = error
        self._on_change()

    def view(self) -> DeploymentView:
        """Everything that is known now."""
        now = asyncio.get_running_loop().time()
        return self.watched.view(now, connected=self.transport.connected, trouble=self._trouble)

    async def __aenter__(self) -> Self:
        await self.transport.__aenter__()
        topics = self.topics
        for pattern in (topics.agents("+"), topics.telemetry("+"), topics.control, topics.manifest):
            await self.transport.subscribe(pattern, 0)
        if self._on_frame is not None:
            await self.transport.subscribe(topics.frames("+"), 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.transport.__aexit__(kind, error, trace)

    # --- the transport's handler

    def on_message(self, topic: str, payload: bytes, retained: bool, /) -> None:
        if not payload:
            return  # a retained message was deleted
        try:
            route = self.topics.parse(topic)
            message, body = decode(payload)
            if isinstance(message, Status | Telemetry | SourceReport | Frame) and message.node != route.node:
                raise WireError("identity", f"expected the message of {route.node}, got one of {message.node}")
            if isinstance(message, Frame):
                if self._on_frame is not None:
                    self._on_frame(message, body)
                return
            now = asyncio.get_running_loop().time()
            self.watched.message(now, time.time(), message, body, retained=retained)
        except (WireError, ArtifactError):
            self.bad += 1
            return
        self._on_change()

    def on_connected(self) -> None:
        self._trouble = ""
        self._on_change()

    def on_disconnected(self, reason: str, /) -> None:
        self._trouble = reason
        self._on_change()
