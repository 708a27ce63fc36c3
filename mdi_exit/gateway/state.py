"""What the gateway says of a deployment, as JSON: the state of now, and samples of the last minutes for the charts.

Rates are items or tasks a second over the last moments, times are seconds, ``at`` is seconds since 1970 on the gateway's
clock. OpenAPI's schemas are made of these classes.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from msgspec import Struct

from mdi_exit import __version__
from mdi_exit.observer import DeploymentView, LinkView, NodeView
from mdi_exit.wire import SourceReport

__all__ = ["Happening", "History", "Link", "Node", "Problem", "Run", "Sample", "State", "state_of"]

SAMPLE_PERIOD_S: Final = 0.5
_KEPT_S: Final = 300.0
_ACCURACY_S: Final = 15.0
_HAPPENINGS: Final = 60


class Problem(Struct, frozen=True):
    """Why there is nothing, or nothing new, to see. ``what``: ``broker`` or ``source``."""

    what: str
    text: str


class Run(Struct, frozen=True):
    """What the source says: totals of its run. ``right`` of ``judged`` items with a known truth have the right label.

    ``rate_per_s``: the offered rate that is set (null: as fast as admission allows); ``latency_s``: p50, p90, p99.
    """

    source: str
    age_s: float
    offered: int
    admitted: int
    completed: int
    errors: int
    refused: int
    retried: int
    duplicates: int
    pending: int
    right: int
    judged: int
    exits: dict[int, int]
    threshold: float
    floor: float
    adapt: str
    rate_per_s: float | None
    paused: bool
    latency_s: tuple[float, float, float] | None
    offered_per_s: float
    admitted_per_s: float
    completed_per_s: float


class Node(Struct, frozen=True):
    """One node. ``span``: layers as people write them; ``speed_s``: expected seconds a task by entry layer."""

    name: str
    role: str
    state: str
    span: str
    engine: str
    emulated: str
    version: str
    inputs: int
    outputs: int
    backlog_s: float
    executed: int
    executed_per_s: float
    exited: int
    sent: int
    sent_bytes: int
    cpu_percent: float
    speed_s: dict[int, float]
    memory_bytes: int | None
    temperature_c: float | None
    power_w: float | None
    age_s: float | None


class Link(Struct, frozen=True):
    """Features on their way from one node to another."""

    sender: str
    to: str
    tasks: int
    tasks_per_s: float
    bytes_per_s: float
    delay_s: float
    credits: int


class Happening(Struct, frozen=True):
    """A join, a death, a gap, an order: something that people want to know of."""

    at: float
    kind: str
    text: str


class State(Struct, frozen=True):
    """All that is known now. ``run`` is null before a source has reported. ``takes``: what the model takes: image, text,
    audio or tensor; empty before that is known.
    """

    version: str
    deployment: str
    at: float
    connected: bool
    problem: Problem | None
    model: str
    labels: tuple[str, ...]
    layers: int
    emulated: str
    run: Run | None
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    happenings: tuple[Happening, ...]
    takes: str = ""


class Sample(Struct, frozen=True):
    """One point of the charts. ``accuracy``: of the last 15 s; ``queues``: tasks waiting, by node."""

    number: int
    at: float
    offered_per_s: float
    completed_per_s: float
    accuracy: float | None
    threshold: float
    p50_s: float | None
    p99_s: float | None
    queues: dict[str, int]


def state_of(view: DeploymentView, wall: float) -> State:
    """The state at ``wall`` (seconds since 1970)."""
    problem = Problem("source" if view.connected else "broker", view.trouble) if view.trouble else None
    return State(
        version=__version__,
        deployment=view.deployment,
        at=wall,
        connected=view.connected,
        problem=problem,
        model=view.model,
        labels=view.labels,
        layers=view.layer_count,
        emulated=view.emulated,
        run=_run(view, view.source) if view.source is not None else None,
        nodes=tuple(map(_node, view.nodes)),
        links=tuple(map(_link, view.links)),
        happenings=tuple(Happening(each.at, each.kind, each.text) for each in view.happened[-_HAPPENINGS:]),
        takes=view.takes,
    )


def _run(view: DeploymentView, report: SourceReport) -> Run:
    return Run(
        source=report.node,
        age_s=view.source_age_s or 0.0,
        offered=report.offered,
        admitted=report.admitted,
        completed=report.completed,
        errors=report.errors,
        refused=report.refused,
        retried=report.retried,
        duplicates=report.duplicates,
        pending=report.pending,
        right=report.right,
        judged=report.judged,
        exits=report.exits,
        threshold=report.threshold,
        floor=report.floor,
        adapt=report.adapt,
        rate_per_s=report.rate_per_s,
        paused=report.paused,
        latency_s=report.latency_s,
        offered_per_s=view.offered_per_s,
        admitted_per_s=view.admitted_per_s,
        completed_per_s=view.completed_per_s,
    )


def _node(node: NodeView) -> Node:
    board = node.board
    return Node(
        name=node.name,
        role=node.role,
        state=node.state,
        span=node.span,
        engine=node.engine,
        emulated=node.emulated,
        version=node.version,
        inputs=node.inputs,
        outputs=node.outputs,
        backlog_s=node.backlog_s,
        executed=node.executed,
        executed_per_s=node.executed_per_s,
        exited=node.exited,
        sent=node.sent,
        sent_bytes=node.sent_bytes,
        cpu_percent=node.cpu_percent,
        speed_s=node.speed_s,
        memory_bytes=board.memory_bytes if board else None,
        temperature_c=board.temperature_c if board else None,
        power_w=board.power_w if board else None,
        age_s=node.age_s,
    )


def _link(link: LinkView) -> Link:
    return Link(link.sender, link.to, link.tasks, link.tasks_per_s, link.bytes_per_s, link.delay_s, link.credits)


class History:
    """Samples of the last five minutes, numbered without gaps."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=int(_KEPT_S / SAMPLE_PERIOD_S))
        self._number = 0
        self._judged: deque[tuple[float, int, int]] = deque()
        self._incarnation = -1

    @property
    def number(self) -> int:
        """Of the last sample; 0: none yet."""
        return self._number

    def add(self, view: DeploymentView, wall: float) -> bool:
        """A sample of ``view``, if its source is there; whether there is one."""
        report = view.source
        if report is None or view.trouble or self._is_first(report):
            return False
        self._number += 1
        latency = report.latency_s
        sample = Sample(
            number=self._number,
            at=wall,
            offered_per_s=view.offered_per_s,
            completed_per_s=view.completed_per_s,
            accuracy=self._accuracy(report, wall),
            threshold=report.threshold,
            p50_s=latency[0] if latency else None,
            p99_s=latency[2] if latency else None,
            queues={node.name: node.inputs + node.outputs for node in view.nodes if node.alive},
        )
        self._samples.append(sample)
        return True

    def since(self, number: int) -> list[Sample]:
        """The samples after that one, oldest first."""
        count = min(self._number - number, len(self._samples))
        return list(self._samples)[-count:] if count > 0 else []

    def _is_first(self, report: SourceReport) -> bool:
        """Whether a source has just begun: its rates are not known before it has reported twice."""
        if report.incarnation == self._incarnation:
            return False
        self._judged.clear()
        self._incarnation = report.incarnation
        return True

    def _accuracy(self, report: SourceReport, wall: float) -> float | None:
        self._judged.append((wall, report.right, report.judged))
        while wall - self._judged[0][0] > _ACCURACY_S:
            self._judged.popleft()
        _, right, judged = self._judged[0]
        count = report.judged - judged
        return (report.right - right) / count if count > 0 else None
