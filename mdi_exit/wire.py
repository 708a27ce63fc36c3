"""All messages in one file: a version byte, a small typed msgpack header, raw payload bytes.

A frame is ``version (1 byte) | header length (4 bytes, little-endian) | CRC-32 of the header (4) | header | payload``.
The header is a tagged msgpack array: fields are only ever appended, with a default, so that an older reader meets a
newer writer's message with extra fields and ignores them. Nothing is ever unpickled, and nothing in a message names code.
This module sees bytes only; tensors are made of them one floor up.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from mdi_exit.errors import WireError
from mdi_exit.limits import (
    MAX_AXES,
    MAX_COUNTERS,
    MAX_GRAPH_BYTES,
    MAX_HEADER_BYTES,
    MAX_LAYERS,
    MAX_NAMES,
    MAX_PATH,
    MAX_PAYLOAD_BYTES,
    MAX_PIECES,
    MAX_REAL,
    MAX_REQUEST_BYTES,
    MAX_SAMPLES,
)

try:  # the same checksum, nine times as fast at 128 KB, where there is a wheel of it
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = [
    "MAX_HEADER_BYTES",
    "MAX_PAYLOAD_BYTES",
    "MAX_REQUEST_BYTES",
    "VERSION",
    "Ack",
    "Best",
    "Board",
    "Chunk",
    "CloudReport",
    "Control",
    "EdgeReport",
    "Features",
    "Frame",
    "Happening",
    "Lesson",
    "LinkLoad",
    "Manifest",
    "Message",
    "Moved",
    "Order",
    "Outline",
    "Piece",
    "Probe",
    "Reply",
    "Request",
    "RequestId",
    "ResultRow",
    "Results",
    "SegmentFile",
    "Share",
    "SourceReport",
    "Status",
    "Telemetry",
    "WeightFile",
    "Weights",
    "crc32",
    "decode",
    "encode",
    "framed",
]

VERSION: Final = 2
_LENGTH_STOP: Final = 5
_PREFIX_BYTES: Final = 9

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,40}\Z")]
Path = Annotated[tuple[Name, ...], Meta(max_length=MAX_PATH)]
UInt = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Layer = Annotated[int, Meta(ge=0, le=65535)]
Samples = Annotated[int, Meta(ge=0, le=MAX_SAMPLES)]
Dim = Annotated[int, Meta(ge=1, le=2**24)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Score = Annotated[float, Meta(ge=0, le=1)]
Real = Annotated[float, Meta(ge=-MAX_REAL, le=MAX_REAL)]  # never NaN, never infinite
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{8,64}\Z")]
Text = Annotated[str, Meta(max_length=400)]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,80}\Z")]
Span = tuple[Layer, Layer]  # half-open
Signature = Annotated[bytes, Meta(max_length=64)]  # Ed25519
RequestId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,64}\Z")]
Layers = Meta(max_length=MAX_LAYERS)
Nodes = Meta(max_length=MAX_NAMES)
Patience = Annotated[float, Meta(gt=0, le=3600)]


class Best(Struct, frozen=True, array_like=True):
    """The surest exit that a task has passed: exit number, class index, score."""

    exit: Layer
    label: UInt
    score: Score


class Features(Struct, frozen=True, array_like=True, tag="features"):
    """A task on its way: the tensor that enters ``next_layer``. Payload: the encoded tensor, without batch.

    ``incarnation`` and ``seq`` are the sender's, for credits and loss detection on this one link;
    ``times`` are seconds spent so far: computing, waiting in queues.
    """

    run: UInt
    sender: Name
    incarnation: UInt
    seq: UInt
    item: UInt
    attempt: UInt
    epoch: UInt
    model: Digest
    next_layer: Layer
    codec: Annotated[str, Meta(max_length=20)]
    shape: Annotated[tuple[Dim, ...], Meta(min_length=1, max_length=MAX_AXES)]
    crc: UInt
    path: Path = ()
    dtype: Annotated[str, Meta(max_length=20)] = "float32"
    deadline_s: Real | None = None
    best: Best | None = None
    exit_state: Annotated[tuple[Real, ...], Meta(max_length=16)] = ()
    times: tuple[Seconds, Seconds] = (0.0, 0.0)


class ResultRow(Struct, frozen=True, array_like=True):
    """The end of one attempt at one item: a label from an exit, or an error that says why there is none.

    ``refused`` marks an attempt given back unfinished (a full or leaving node): the source tries again.
    """

    item: UInt
    attempt: UInt
    path: Path
    exit: Layer = 0
    label: UInt | None = None
    score: Score = 0.0
    error: Text | None = None
    refused: bool = False
    times: tuple[Seconds, Seconds] = (0.0, 0.0)


class Moved(Struct, frozen=True, array_like=True):
    """An attempt that this node has handed to ``to``, so that the source knows whom to blame for its loss."""

    item: UInt
    attempt: UInt
    to: Name


class Results(Struct, frozen=True, array_like=True, tag="results"):
    """Exit results, refusals and hand-overs of one agent since its last message."""

    run: UInt
    incarnation: UInt
    rows: Annotated[tuple[ResultRow, ...], Meta(max_length=4096)] = ()
    moved: Annotated[tuple[Moved, ...], Meta(max_length=4096)] = ()


class LinkLoad(Struct, frozen=True, array_like=True):
    """What a node has sent to one neighbour since its start: tasks and bytes of features; the measured delay of an empty
    message; credits left, all layers together; bytes a second as measured by messages of several sizes, 0: not known.
    """

    tasks: UInt
    bytes: UInt
    delay_s: Seconds
    credits: UInt
    bytes_per_s: Annotated[float, Meta(ge=0, le=MAX_REAL)] = 0.0


class Board(Struct, frozen=True, array_like=True):
    """The device of a node, as far as it can be read. ``energy_j``: since the start; ``measured``: by a sensor.

    ``host``: the same for nodes that share a machine, whose sensor then tells each of them of all.
    """

    memory_bytes: UInt = 0
    temperature_c: Real | None = None
    power_w: Seconds | None = None
    energy_j: Seconds | None = None
    measured: bool = False
    host: Annotated[str, Meta(max_length=16)] = ""


class Telemetry(Struct, frozen=True, array_like=True, tag="telemetry"):
    """Load of one node. Dictionaries by layer hold only layers of its span; ``received`` is by sender.

    ``inputs`` and ``outputs`` are I_n and O_n; ``backlog_s`` is the sum of the expected seconds of what waits
    in I_n, the running task's remainder included; ``speed_s`` is expected seconds a task by entry layer. ``scores``: how many
    scores each exit has given since the start, by the bins of ``policy.mix``, when the source wants to know.
    """

    run: UInt
    incarnation: UInt
    node: Name
    inputs: UInt
    outputs: UInt
    backlog_s: Seconds
    backlog_by_layer_s: Annotated[dict[Layer, Seconds], Layers] = {}
    speed_s: Annotated[dict[Layer, Seconds], Layers] = {}
    free_slots: Annotated[dict[Layer, UInt], Layers] = {}
    received: Annotated[dict[Name, UInt], Nodes] = {}
    counters: Annotated[dict[Annotated[str, Meta(max_length=40)], UInt], Meta(max_length=MAX_COUNTERS)] = {}
    exits: Annotated[dict[Layer, UInt], Layers] = {}
    stranded: Annotated[dict[Layer, UInt], Layers] = {}
    sent_bytes: UInt = 0
    cpu_percent: Annotated[float, Meta(ge=0, le=1e5)] = 0.0
    links: Annotated[dict[Name, LinkLoad], Nodes] = {}
    board: Board | None = None
    scores: Annotated[dict[Layer, Annotated[tuple[UInt, ...], Meta(max_length=32)]], Layers] = {}


class Happening(Struct, frozen=True, array_like=True):
    """Something that people want to know of, ``age_s`` before the report: a join, a death, a gap, an order."""

    number: UInt
    age_s: Seconds
    kind: Annotated[str, Meta(max_length=40)]
    text: Text
    order: UInt = 0


class SourceReport(Struct, frozen=True, array_like=True, tag="source"):
    """What only the source knows, beside its telemetry and on the same topic; counts are totals of the run.

    ``right`` of ``judged`` items with a known truth had the right label; ``latency_s``: p50, p90, p99 of the last items;
    ``rate_per_s``: offered (None: as fast as admission allows); ``happened``: the last few, numbered without gaps.
    """

    run: UInt
    incarnation: UInt
    node: Name
    model: Digest
    offered: UInt
    admitted: UInt
    completed: UInt
    errors: UInt
    refused: UInt
    retried: UInt
    duplicates: UInt
    pending: UInt
    right: UInt
    judged: UInt
    exits: Annotated[dict[Layer, UInt], Layers]
    threshold: Score
    floor: Score
    adapt: Annotated[str, Meta(max_length=40)]
    rate_per_s: Real | None
    paused: bool
    latency_s: tuple[Seconds, Seconds, Seconds] | None = None
    happened: Annotated[tuple[Happening, ...], Meta(max_length=64)] = ()


class Frame(Struct, frozen=True, array_like=True, tag="frame"):
    """An item of the source's own input with its label, for people who watch. Payload: a small JPEG.

    ``label`` and ``truth`` (None: not known) are class indices; ``latency_s`` since admission.
    """

    run: UInt
    node: Name
    crc: UInt
    sample: Text
    label: UInt
    score: Score
    exit: Layer
    latency_s: Seconds
    path: Path = ()
    truth: UInt | None = None


class Order(Struct, frozen=True, array_like=True, tag="order"):
    """A one-off command of a person or a program. ``node``: whom it concerns; empty: all. ``number``: the client's own."""

    client: Name
    number: UInt
    what: Annotated[str, Meta(max_length=40)]
    value: Annotated[str, Meta(max_length=100)] = ""
    node: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,40}\Z")] = ""


class Status(Struct, frozen=True, array_like=True, tag="status"):
    """Who a node is. Retained; the last will says ``online=False`` with the same incarnation.

    ``entries``: layers at which it takes tasks now. ``window``: tasks that each sender may have waiting there
    for each entry layer. ``neighbours``: the only nodes that it may send to; None: all.

    ``auto``: the source may choose its span; ``memory_bytes``: for the model's layers, 0: enough. ``layer_s``: seconds that
    it expects of itself for one item in each layer of the model in force. ``leaving``: spans of earlier plans that it serves
    until others do.
    """

    node: Name
    incarnation: UInt
    online: bool
    role: Annotated[str, Meta(pattern=r"^(agent|source)\Z")] = "agent"
    state: Annotated[str, Meta(max_length=40)] = "offline"
    span: Span | None = None
    entries: Annotated[tuple[Layer, ...], Layers] = ()
    window: UInt = 0
    engine: Annotated[str, Meta(max_length=60)] = ""
    emulated: Annotated[str, Meta(max_length=60)] = ""
    version: Annotated[str, Meta(max_length=40)] = ""
    auto: bool = False
    memory_bytes: UInt = 0
    layer_s: Annotated[tuple[Seconds, ...], Layers] = ()
    leaving: Annotated[tuple[Span, ...], Meta(max_length=16)] = ()
    neighbours: Annotated[tuple[Name, ...], Nodes] | None = None


class Ack(Struct, frozen=True, array_like=True, tag="ack"):
    """Flow control of one link, from its receiver to its sender; every number but ``hold_s`` is cumulative.

    ``seq``: the highest sequence number received; ``hold_s``: how long ago that was, on the receiver's clock;
    ``released``: tasks that have left the sender's slots, by layer; ``missing``: recent numbers never received;
    ``probe``: the probe that this answers.
    """

    incarnation: UInt
    to_incarnation: UInt
    seq: UInt
    hold_s: Seconds
    released: Annotated[dict[Layer, UInt], Layers] = {}
    missing: Annotated[tuple[UInt, ...], Meta(max_length=1024)] = ()
    inputs: UInt = 0
    backlog_s: Seconds = 0.0
    probe: UInt | None = None


class Probe(Struct, frozen=True, array_like=True, tag="probe"):
    """Asks for an acknowledgement: to measure the delay, or because one is overdue. ``last_seq``: last sent."""

    incarnation: UInt
    number: UInt
    last_seq: UInt


class Share(Struct, frozen=True, array_like=True):
    """Of the tasks at ``node`` that enter ``layer`` next, ``to`` says which part goes to whom; itself among them."""

    layer: Layer
    node: Name
    to: Annotated[dict[Name, Score], Nodes]


class Control(Struct, frozen=True, array_like=True, tag="control"):
    """The state that the source wants, written by the source only. ``model``: digest of the artifact.

    ``offloading`` and ``log_level``: as ordered for all nodes; empty: nothing was ordered. ``codec``: of features at cuts for
    which the model's manifest has none; empty: float32. ``spans``: what each node that lets the source choose is to hold, by
    the plan of this ``epoch``; one that is not named keeps what it has. ``shares``: where tasks go under the offloading
    policy ``optimiser``; ``census``: telemetry is to tell ``scores``. ``thresholds``: of each exit but the last; empty: as
    ``threshold`` and the model say.
    """

    run: UInt
    incarnation: UInt
    source: Name
    epoch: UInt
    model: Digest
    threshold: Score
    paused: bool = False
    offloading: Annotated[str, Meta(max_length=40)] = ""
    log_level: Annotated[str, Meta(max_length=40)] = ""
    codec: Annotated[str, Meta(max_length=20)] = ""
    spans: Annotated[dict[Name, Span], Nodes] = {}
    shares: Annotated[tuple[Share, ...], Meta(max_length=4096)] = ()
    census: bool = False
    thresholds: Annotated[tuple[Score, ...], Layers] = ()


class SegmentFile(Struct, frozen=True, array_like=True):
    """A composed graph that the source offers: layers ``entry`` to ``stop - 1``. ``chunks``: of its outline; ``signature`` is
    empty: it has none.
    """

    entry: Layer
    stop: Layer
    head: bool
    bytes: Annotated[int, Meta(ge=1, le=MAX_GRAPH_BYTES)]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    chunks: Annotated[int, Meta(ge=1, le=100_000)]
    signature: Signature = b""


class Manifest(Struct, frozen=True, array_like=True, tag="manifest"):
    """The model in force: payload is the artifact's ``model.json``; ``segments`` are those on offer.

    ``signature``: of the manifest's digest (``mdi_exit.signing``); empty: it has none.
    """

    run: UInt
    source: Name
    model: Digest
    crc: UInt
    segments: Annotated[tuple[SegmentFile, ...], Layers] = ()
    signature: Signature = b""


class Chunk(Struct, frozen=True, array_like=True, tag="chunk"):
    """A part (at most 256 KiB) of a segment's outline, or of a file of weights, named by its digest. Payload: its bytes."""

    model: Digest
    file: FileName
    index: UInt
    count: Annotated[int, Meta(ge=1, le=100_000)]
    crc: UInt


class WeightFile(Struct, frozen=True, array_like=True):
    """Weights that segments share: a file that travels once."""

    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    bytes: Annotated[int, Meta(ge=1, le=MAX_GRAPH_BYTES)]


class Piece(Struct, frozen=True, array_like=True):
    """At byte ``at`` of the segment come ``bytes`` bytes of the file number ``file``, from its byte ``start`` on."""

    at: UInt
    bytes: Annotated[int, Meta(ge=1, le=MAX_GRAPH_BYTES)]
    file: Annotated[int, Meta(ge=0, lt=MAX_PIECES)]
    start: UInt


class Outline(Struct, frozen=True, array_like=True, tag="outline"):
    """A segment without its weights: never a message of its own, but what the chunks of a segment make up.

    Payload: the segment's bytes with the ``pieces`` (in order of ``at``) cut out.
    """

    crc: UInt
    weights: Annotated[tuple[WeightFile, ...], Meta(max_length=MAX_PIECES)] = ()
    pieces: Annotated[tuple[Piece, ...], Meta(max_length=MAX_PIECES)] = ()


class Request(Struct, frozen=True, array_like=True, tag="request"):
    """An item of another program. Payload: an image file, a text (UTF-8), or values in C order, little-endian.

    ``kind`` uint8: pixels, H×W or H×W×C; float32: just what enters layer 0, C×H×W. ``deadline_s``: how long the answer is
    worth having, from when the source gets the request.
    """

    client: Name
    id: RequestId
    kind: Annotated[str, Meta(pattern=r"^(image|text|uint8|float32)\Z")]
    crc: UInt
    shape: Annotated[tuple[Dim, ...], Meta(max_length=MAX_AXES)] = ()
    deadline_s: Patience | None = None


class Reply(Struct, frozen=True, array_like=True, tag="reply"):
    """The one answer to a request: a label, or ``error`` (refused, deadline, bad-request or failed) and its ``reason``.

    ``label_name`` is empty where the model has no names; ``latency_s``: from the request's arrival at the source to this.
    """

    client: Name
    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:#-]{0,64}\Z")]
    label: UInt | None = None
    label_name: Annotated[str, Meta(max_length=200)] = ""
    confidence: Score = 0.0
    exit: Layer = 0
    path: Path = ()
    latency_s: Seconds = 0.0
    error: Annotated[str, Meta(pattern=r"^(|refused|deadline|bad-request|failed)\Z")] = ""
    reason: Text = ""


class Lesson(Struct, frozen=True, array_like=True, tag="lesson"):
    """A batch of hierarchical training. Payload: ``count`` labels (uint16, little-endian; none with a gradient), then the
    encoded tensor of ``shape``.

    ``what``: ``features`` of the cut, detached; only in the baselines ``raw`` (uint8 images) and ``gradient`` (back to the
    edge). ``run`` is the cloud's start, ``incarnation`` the edge's; ``seq`` counts from 1 between the two. The edge made it
    in ``step``. It is number ``place``, from 0, of the ``steps`` batches that the edge has for the cloud.
    """

    run: UInt
    incarnation: UInt
    seq: UInt
    step: UInt
    steps: UInt
    what: Annotated[str, Meta(pattern=r"^(features|raw|gradient)\Z")]
    codec: Annotated[str, Meta(max_length=20)]
    shape: Annotated[tuple[Dim, ...], Meta(min_length=1, max_length=MAX_AXES)]
    count: Annotated[int, Meta(ge=0, le=65535)]
    crc: UInt
    place: UInt = 0


class EdgeReport(Struct, frozen=True, array_like=True, tag="learner"):
    """How far an edge is in hierarchical training. ``run``: the cloud's start that it knows, 0: none yet.

    ``step`` of ``steps`` done on ``samples`` samples of its own; ``last_seq``: last sent. ``bytes_per_s``: what it measured
    of its link, 0: nothing. ``step_s``: seconds of a whole training step of its part, by cut, as far as measured.
    ``terms``: a digest of the settings that have to be the cloud's too.
    """

    incarnation: UInt
    run: UInt
    state: Annotated[str, Meta(pattern=r"^(joining|training|finished)\Z")]
    samples: Samples
    step: UInt
    steps: UInt
    last_seq: UInt = 0
    bytes_per_s: Annotated[float, Meta(ge=0, le=MAX_REAL)] = 0.0
    step_s: Annotated[tuple[Seconds, ...], Layers] = ()
    terms: UInt = 0


class CloudReport(Struct, frozen=True, array_like=True, tag="teacher"):
    """The cloud to one edge: credits, and what became of its batches; the numbers are cumulative.

    ``cut``: the layer after which the network is cut, None: not decided, wait. The edge may send up to sequence number
    ``allowed``; up to ``settled`` all are trained, dropped as stale, or lost. ``round``: of the edge's weights received
    last; ``mean``: of the last mean that was made. ``terms``: as of the edge; if they are others, the edge has no part in it.
    ``study``: the training that this is, the same after a restart that goes on from a checkpoint.
    """

    run: UInt
    incarnation: UInt
    cut: Layer | None
    allowed: UInt
    settled: UInt
    trained: UInt = 0
    dropped: UInt = 0
    lost: UInt = 0
    round: UInt = 0
    mean: UInt = 0
    terms: UInt = 0
    study: UInt = 0


class Weights(Struct, frozen=True, array_like=True, tag="weights"):
    """A piece of an edge's part (safetensors) after ``round``, from the edge or as the mean of all from the cloud.

    ``samples``: what it weighs. Payload: piece ``index`` of ``count``.
    """

    run: UInt
    incarnation: UInt
    round: UInt
    samples: Samples
    index: UInt
    count: Annotated[int, Meta(ge=1, le=100_000)]
    crc: UInt


Message = (
    Features
    | Results
    | Telemetry
    | SourceReport
    | Frame
    | Status
    | Ack
    | Probe
    | Control
    | Order
    | Request
    | Reply
    | Manifest
    | Chunk
    | Outline
    | Lesson
    | EdgeReport
    | CloudReport
    | Weights
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message, payload: bytes | bytearray | memoryview = b"") -> bytes:
    """One frame. A message with a ``crc`` field must already carry ``crc32(payload)``."""
    header = _encoder.encode(message)
    if len(header) > MAX_HEADER_BYTES:
        raise WireError("header-size", f"expected at most {MAX_HEADER_BYTES} header bytes, got {len(header)}")
    return framed(header, payload)


def framed(header: bytes, payload: bytes | bytearray | memoryview = b"") -> bytes:
    """A frame with this header, whatever it says. Its checksum is what tells a label from one that was changed on the way."""
    length, check = len(header).to_bytes(4, "little"), crc32(header).to_bytes(4, "little")
    return b"".join((bytes((VERSION,)), length, check, header, payload))


def decode(frame: bytes) -> tuple[Message, memoryview]:
    """The message and its payload. Raises ``WireError`` with a short reason; never anything else."""
    if frame and frame[0] != VERSION:
        raise WireError("version", f"expected wire version {VERSION}, got {frame[0]}")
    if len(frame) < _PREFIX_BYTES:
        raise WireError("truncated", f"expected at least {_PREFIX_BYTES} bytes, got {len(frame)}")
    size = int.from_bytes(frame[1:_LENGTH_STOP], "little")
    if size > MAX_HEADER_BYTES:
        raise WireError("header-size", f"expected at most {MAX_HEADER_BYTES} header bytes, got {size}")
    stop = _PREFIX_BYTES + size
    if len(frame) < stop:
        raise WireError("truncated", f"expected {stop} bytes of header, got {len(frame)}")
    if len(frame) - stop > MAX_PAYLOAD_BYTES:
        raise WireError("payload-size", f"expected at most {MAX_PAYLOAD_BYTES} bytes, got {len(frame) - stop}")
    view = memoryview(frame)
    header, check = view[_PREFIX_BYTES:stop], int.from_bytes(frame[_LENGTH_STOP:_PREFIX_BYTES], "little")
    if crc32(header) != check:
        raise WireError("crc", f"expected CRC-32 {check:08x} of the header, got {crc32(header):08x}")
    try:
        message = _decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError("header", str(error)) from None
    payload = view[stop:]
    expected = getattr(message, "crc", None)
    if expected is not None and crc32(payload) != expected:
        raise WireError("crc", f"expected CRC-32 {expected:08x} of the payload, got {crc32(payload):08x}")
    if expected is None and payload:
        raise WireError("payload-size", f"expected no payload, got {len(payload)} bytes")
    return message, payload
