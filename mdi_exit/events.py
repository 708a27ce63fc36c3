"""What happens to a node (events) and what it wants done (commands): the whole surface of the pure core.

``handle(now, event)`` takes one event and returns commands; the live driver, the simulator and the tests are the only
callers. ``payload`` is opaque here: a tensor live, nothing in the simulator. What comes with every item is a Struct: made
in a tenth of the time that a frozen dataclass takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import Struct

from mdi_exit.placement import Decision, PlacementRules, Problem
from mdi_exit.routes import RoutingAnswer, RoutingProblem
from mdi_exit.segments import ModelPlan, SegmentKey
from mdi_exit.span import LayerSpan
from mdi_exit.wire import (
    Ack,
    Best,
    Control,
    Moved,
    Order,
    Probe,
    Reply,
    ResultRow,
    Results,
    SourceReport,
    Status,
    Telemetry,
)

__all__ = [
    "AckReceived",
    "Command",
    "ControlReceived",
    "Drain",
    "Drained",
    "DrawInput",
    "Event",
    "GiveUp",
    "HoldSegments",
    "Inject",
    "InputEnded",
    "InputOffered",
    "InputSkipped",
    "KeepItem",
    "KeepReply",
    "KeepRequest",
    "LifeTotals",
    "MakePlan",
    "ModelKnown",
    "Notice",
    "OrderReceived",
    "Outcome",
    "PlanMade",
    "PrepareRequest",
    "ProbeReceived",
    "Record",
    "RecordingHeld",
    "ReplyFailed",
    "RequestEvent",
    "RequestPrepared",
    "RequestReceived",
    "RequestUnusable",
    "Restored",
    "RestoredItem",
    "RestoredRequest",
    "ResultsReceived",
    "RoutesSolved",
    "RunSegment",
    "SegmentDone",
    "SegmentFailed",
    "SegmentsReady",
    "SendAck",
    "SendControl",
    "SendFailed",
    "SendProbe",
    "SendReply",
    "SendReport",
    "SendResults",
    "SendStatus",
    "SendTask",
    "SendTelemetry",
    "SetAdmission",
    "SetLogLevel",
    "SolveRoutes",
    "SpeedKnown",
    "StatusReceived",
    "Task",
    "TaskReceived",
    "TelemetryReceived",
    "Tick",
    "TransportDown",
    "TransportUp",
]


class Task(Struct, frozen=True):
    """One attempt at one item, about to enter ``next_layer`` with ``payload``.

    ``since``: when it began to wait where it is; ``compute_s`` and ``wait_s``: seconds spent so far, all nodes.
    """

    run: int
    item: int
    attempt: int
    next_layer: int
    payload: object
    size_bytes: int
    path: tuple[str, ...] = ()
    best: Best | None = None
    exit_state: tuple[float, ...] = ()
    deadline_at: float | None = None
    compute_s: float = 0.0
    wait_s: float = 0.0
    since: float = 0.0


class Outcome(Struct, frozen=True):
    """What one task's segment gave: class and score if a head ran, and the features unless the network ended.

    ``exit_state``: what the exits to come need to know of those before (``mdi_exit.confidence``).
    """

    label: int | None
    score: float
    payload: object
    size_bytes: int
    exit_state: tuple[float, ...] = ()


# --- events of every node


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has come to look at the clock (``next_wakeup``)."""


@dataclass(frozen=True, slots=True)
class TransportUp:
    """Connected; whatever was on the way before may be lost."""


@dataclass(frozen=True, slots=True)
class TransportDown:
    """Not connected: nothing can be sent."""


@dataclass(frozen=True, slots=True)
class ModelKnown:
    """The model in force, from the manifest."""

    plan: ModelPlan


@dataclass(frozen=True, slots=True)
class SegmentsReady:
    """The engine can run these segments; ``seconds`` is one warm run of each at batch 1."""

    seconds: Mapping[SegmentKey, float]


@dataclass(frozen=True, slots=True)
class SpeedKnown:
    """What the node expects of itself: seconds of one item in each layer of the model in force, exit head included."""

    layer_s: tuple[float, ...]


class TaskReceived(Struct, frozen=True):
    sender: str
    incarnation: int
    seq: int
    task: Task


class SegmentDone(Struct, frozen=True):
    batch: int
    seconds: float
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class SegmentFailed:
    batch: int
    reason: str


class StatusReceived(Struct, frozen=True):
    """``retained``: the broker's memory, which may be of a node long gone."""

    status: Status
    retained: bool = False


class TelemetryReceived(Struct, frozen=True):
    telemetry: Telemetry


class AckReceived(Struct, frozen=True):
    sender: str
    ack: Ack


class ProbeReceived(Struct, frozen=True):
    sender: str
    probe: Probe


@dataclass(frozen=True, slots=True)
class ControlReceived:
    control: Control


@dataclass(frozen=True, slots=True)
class OrderReceived:
    """``retained``: the broker kept it, against the rule; it is old, and not obeyed."""

    order: Order
    retained: bool = False


class Inject(Struct, frozen=True):
    """A task that the source hands to its own worker: an admission or a retry."""

    task: Task


@dataclass(frozen=True, slots=True)
class Drain:
    """Finish what is here, take nothing new."""


# --- events of the source only


@dataclass(frozen=True, slots=True)
class PlanMade:
    """The answer to ``MakePlan``."""

    decision: Decision


class InputOffered(Struct, frozen=True):
    """A sample is there: admit or refuse it. ``size_bytes``: of the float32 tensor that enters layer 0.

    ``position``: where an input that can be read again has it; -1: it cannot.
    """

    sample: str
    payload: object
    size_bytes: int
    truth: int | None = None
    position: int = -1


@dataclass(frozen=True, slots=True)
class InputEnded:
    """No further sample will come."""


@dataclass(frozen=True, slots=True)
class InputSkipped:
    """A live input went on without waiting: so many samples came and went since the last draw."""

    count: int


class ResultsReceived(Struct, frozen=True):
    sender: str
    results: Results


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Every pending item ends with this error now."""

    reason: str


@dataclass(frozen=True, slots=True)
class RecordingHeld:
    """Nothing can be recorded for now, and why; empty: it can again. Until then nothing new is admitted."""

    reason: str


@dataclass(frozen=True, slots=True)
class SetAdmission:
    """A change from outside: items a second (None: as fast as admission allows), or a threshold."""

    rate_per_s: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class RoutesSolved:
    """The answer to ``SolveRoutes``; None, and why, where there is none."""

    answer: RoutingAnswer | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RequestEvent:
    """What concerns the requests of other programs."""


@dataclass(frozen=True, slots=True)
class RequestReceived(RequestEvent):
    """``id`` empty: the client gave none. ``payload`` is not looked at before its turn comes, then ``PrepareRequest``.

    ``plain``: to be answered in JSON.
    """

    client: str
    id: str
    payload: object
    size_bytes: int
    deadline_s: float | None = None
    plain: bool = False


@dataclass(frozen=True, slots=True)
class RequestPrepared(RequestEvent):
    """The tensor that enters layer 0, of the request with this ``ticket``."""

    ticket: int
    payload: object
    size_bytes: int


@dataclass(frozen=True, slots=True)
class RequestUnusable(RequestEvent):
    """The payload cannot be made a tensor, and why."""

    ticket: int
    reason: str


# --- what earlier lives of the source have left


class LifeTotals(Struct, frozen=True):
    """What the source has counted so far, all its lives together. ``replies``: by outcome; ``tickets``: requests taken."""

    admitted: int = 0
    completed: int = 0
    errors: int = 0
    right: int = 0
    judged: int = 0
    exits: dict[int, int] = {}
    retried: int = 0
    duplicates: int = 0
    own_refused: int = 0
    turned_away: int = 0
    replies: dict[str, int] = {}
    tickets: int = 0


class RestoredRequest(Struct, frozen=True):
    """A request without a reply, ``age_s`` after it came; ``deadline_s``: how long its answer was worth having then."""

    client: str
    id: str
    payload: object
    size_bytes: int
    plain: bool
    age_s: float
    deadline_s: float | None = None


class RestoredItem(Struct, frozen=True):
    """An admitted item without a result. ``lost``: why its input can no longer be had; empty: ``payload`` is it."""

    item: int
    sample: str
    truth: int | None
    payload: object
    size_bytes: int
    age_s: float
    deadline_s: float | None = None
    request: RestoredRequest | None = None
    lost: str = ""


class Restored(Struct, frozen=True):
    """The first event of a source that goes on where an earlier one stopped. ``replies``: the last ones, oldest first;
    ``unsent``: those of them that may not have reached the broker.
    """

    next_item: int
    totals: LifeTotals
    items: tuple[RestoredItem, ...] = ()
    requests: tuple[RestoredRequest, ...] = ()
    replies: tuple[SendReply, ...] = ()
    unsent: tuple[SendReply, ...] = ()


# --- commands


class RunSegment(Struct, frozen=True):
    """Run ``tasks`` through the segment as one batch; answer with SegmentDone or SegmentFailed."""

    batch: int
    key: SegmentKey
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class HoldSegments:
    """Have the segments of these spans, as far as others make them possible, and of no others."""

    spans: tuple[LayerSpan, ...]


@dataclass(frozen=True, slots=True)
class MakePlan:
    """``decide(problem, resting, rules)`` takes long, so beside the loop: answer with PlanMade."""

    problem: Problem
    resting: tuple[str, ...]
    rules: PlacementRules


class SendTask(Struct, frozen=True):
    to: str
    span: LayerSpan
    seq: int
    epoch: int
    task: Task


class SendResults(Struct, frozen=True):
    """``run``: the one that the rows belong to; they are worth nothing in another."""

    rows: tuple[ResultRow, ...]
    moved: tuple[Moved, ...]
    run: int | None


@dataclass(frozen=True, slots=True)
class SendFailed:
    """An event: the transport did not take this command; nothing of it was sent."""

    command: SendTask | SendResults


class SendTelemetry(Struct, frozen=True):
    telemetry: Telemetry


@dataclass(frozen=True, slots=True)
class SendReport:
    """The source's own report, beside its telemetry."""

    report: SourceReport


@dataclass(frozen=True, slots=True)
class SendStatus:
    status: Status


class SendAck(Struct, frozen=True):
    to: str
    ack: Ack


class SendProbe(Struct, frozen=True):
    to: str
    probe: Probe


@dataclass(frozen=True, slots=True)
class SendControl:
    control: Control


@dataclass(frozen=True, slots=True)
class SolveRoutes:
    """Work out thresholds and routes, beside everything else; answer with RoutesSolved."""

    problem: RoutingProblem


@dataclass(frozen=True, slots=True)
class DrawInput:
    """The next sample is due: answer with InputOffered or InputEnded."""


@dataclass(frozen=True, slots=True)
class PrepareRequest:
    """Make a tensor of a request's payload: answer with RequestPrepared or RequestUnusable."""

    ticket: int
    payload: object


@dataclass(frozen=True, slots=True)
class SendReply:
    """The one answer to a request; the names of labels are the driver's to fill in.

    ``kept``: a ``KeepReply`` came before it, and nothing may be sent before that is done.
    """

    reply: Reply
    plain: bool
    kept: bool = False


class KeepItem(Struct, frozen=True):
    """An item is admitted: write it down. ``client`` and ``request``: the request that it was made of; else empty.

    ``deadline_s``: how long its answer is worth having; ``position``: as in ``InputOffered``.
    """

    item: int
    sample: str
    truth: int | None
    payload: object
    size_bytes: int
    position: int = -1
    deadline_s: float | None = None
    client: str = ""
    request: str = ""


class KeepRequest(Struct, frozen=True):
    """A request is taken and waits for its turn: write it down."""

    client: str
    id: str
    payload: object
    deadline_s: float | None
    plain: bool


class KeepReply(Struct, frozen=True):
    """A request that was written down has its answer: write that down."""

    reply: Reply
    plain: bool


@dataclass(frozen=True, slots=True)
class ReplyFailed(RequestEvent):
    """An event: the transport did not take this reply."""

    command: SendReply


class Record(Struct, frozen=True):
    """The one result of an item: ``row.label`` or ``row.error``; ``latency_s`` since admission."""

    sample: str
    truth: int | None
    row: ResultRow
    latency_s: float


@dataclass(frozen=True, slots=True)
class Notice:
    """A line for people: joins, deaths, gaps, drops, orders. ``kind`` is a short label fit for a metric.

    ``order``: the number of the order that it answers.
    """

    kind: str
    text: str
    order: int = 0


@dataclass(frozen=True, slots=True)
class SetLogLevel:
    """Log from this level up: debug, info, warning or error."""

    level: str


@dataclass(frozen=True, slots=True)
class Drained:
    """After Drain: nothing is left here."""


Command = (
    RunSegment
    | HoldSegments
    | MakePlan
    | SendTask
    | SendResults
    | SendTelemetry
    | SendReport
    | SendStatus
    | SendAck
    | SendProbe
    | SendControl
    | SolveRoutes
    | DrawInput
    | PrepareRequest
    | SendReply
    | KeepItem
    | KeepRequest
    | KeepReply
    | Record
    | Notice
    | SetLogLevel
    | Drained
)

Event = (
    Tick
    | TransportUp
    | TransportDown
    | ModelKnown
    | SegmentsReady
    | SpeedKnown
    | PlanMade
    | TaskReceived
    | SegmentDone
    | SegmentFailed
    | SendFailed
    | StatusReceived
    | TelemetryReceived
    | AckReceived
    | ProbeReceived
    | ControlReceived
    | OrderReceived
    | Inject
    | Drain
    | GiveUp
    | RecordingHeld
    | Restored
    | InputOffered
    | InputEnded
    | InputSkipped
    | ResultsReceived
    | SetAdmission
    | RoutesSolved
    | RequestEvent
)
