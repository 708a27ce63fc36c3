"""What is fuzzed: each reader of bytes from outside, the errors that it may raise, and where its inputs begin.

A target that accepts an input also checks what it made of it: what was read is written and read again, and has to be the
same.
"""

from __future__ import annotations

import io
import json
import tempfile
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Final

import msgspec
import numpy as np
from PIL import Image

from mdi_exit import wire
from mdi_exit.benchmark.synthetic import write_identity_artifact
from mdi_exit.config import resolve
from mdi_exit.data.sound import read_wav, wav_bytes
from mdi_exit.engine.onnx import OnnxEngine
from mdi_exit.errors import ArtifactError, EngineError, MdiExitError, UsageError, WireError
from mdi_exit.fuzzing.mutation import Mutator, blind, changed_tree, of_tokens
from mdi_exit.modality.audio import AudioInput
from mdi_exit.modality.image import ImageInput
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.model.manifest import AudioSpec, InputSpec, Manifest, parse_manifest
from mdi_exit.outline import assembled, outlined, parse_outline
from mdi_exit.segments import SegmentKey
from mdi_exit.settings import NodeSettings
from mdi_exit.tensors import CODECS, decode_tensor, encode_tensor
from mdi_exit.topics import Topics, checked_name, user_pattern, user_topic
from source.reception import read_request, to_tensor
from source.recorder import Sent

__all__ = ["TARGETS", "Target", "changed_frame", "sample_frames"]

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """``run`` raises nothing but ``refuses``; ``examples`` are good inputs, ``mutate`` makes others of them.

    ``usual`` and ``guided``: executions of a benchmark run, without and with coverage. Memory that an input may take:
    ``base_bytes`` and ``times`` its length.
    """

    name: str
    about: str
    run: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...]
    examples: Callable[[], list[bytes]]
    mutate: Mutator
    usual: int
    guided: int
    base_bytes: int = _MIB
    times: int = 64

    def most_bytes(self, data: bytes) -> int:
        return self.base_bytes + self.times * len(data)


class _NotTheSame(Exception):  # noqa: N818 - a finding, which no target declares
    """What was read, written and read again is not what it was."""


# --- messages


def _wire(data: bytes) -> None:
    message, payload = wire.decode(data)
    again, body = wire.decode(wire.encode(message, payload))
    if again != message or body != payload:
        raise _NotTheSame(f"{message} became {again}")


@cache
def sample_frames() -> tuple[bytes, ...]:
    """One frame of each message."""
    body = bytes(range(16))
    crc = wire.crc32(body)
    model = "ab" * 16
    report = (
        7,
        11,
        "source",
        model,
        50,
        48,
        40,
        1,
        2,
        3,
        1,
        7,
        30,
        32,
        {0: 20, 2: 20},
        0.9,
        0.5,
        "threshold",
        25.0,
        False,
    )
    bare: tuple[wire.Message, ...] = (
        wire.Results(7, 11, (wire.ResultRow(42, 1, ("a", "b"), 2, 9, 0.75),), (wire.Moved(44, 0, "b"),)),
        wire.Telemetry(
            *(7, 11, "a", 3, 1, 0.25, {4: 0.25}, {4: 0.5}, {4: 13}, {"b": 9}, {"sent": 5}, {2: 7}),
            links={"b": wire.LinkLoad(5, 4096, 0.002, 11, 2.5e6)},
            board=wire.Board(2**26, 48.5, 5.25, 99.5, True),
            scores={0: (0, 2, 5)},
        ),
        wire.SourceReport(*report, (0.02, 0.05, 0.125), (wire.Happening(4, 1.5, "joined", "a joined"),)),
        wire.Order("desk", 1, "threshold", "0.7"),
        wire.Reply("desk", "a-1", 3, "Dress", 0.75, 1, ("a",), 0.02),
        wire.Status("a", 11, True, "agent", "ready", (4, 9), (4, 5, 6), 16, layer_s=(0.1,) * 9, neighbours=("b",)),
        wire.Ack(11, 12, 9, 0.01, {4: 3}, (7, 8), 2, 0.5, 4),
        wire.Probe(11, 4, 9),
        wire.EdgeReport(11, 7, "training", 1000, 5, 200, 3, 125e3, (0.25, 0.5), 2**40),
        wire.CloudReport(7, 11, 4, 7, 3, 2, 1, 1, 1, 1, 2**40, 7),
        wire.Control(7, 11, "source", 1, model, 0.9, spans={"a": (4, 9)}, shares=(wire.Share(4, "b", {"a": 1.0}),)),
    )
    loaded: tuple[wire.Message, ...] = (
        wire.Features(7, "a", 11, 3, 42, 1, 0, model, 4, "float32", (1, 2, 2), crc, ("a",), best=wire.Best(1, 9, 0.6)),
        wire.Frame(7, "source", crc, "shipped/12", 3, 0.9, 1, 0.06, ("a",), 3),
        wire.Request("desk", "a-1", "uint8", crc, (4, 4), 0.5),
        wire.Manifest(7, "source", model, crc, (wire.SegmentFile(4, 9, True, 16, "ab" * 32, 1),)),
        wire.Chunk(model, "segment-4-8-head", 0, 1, crc),
        wire.Lesson(7, 11, 3, 5, 200, "features", "int8", (2, 2, 2), 2, crc, 4),
        wire.Weights(7, 11, 1, 1000, 0, 2, crc),
        wire.Outline(crc, (wire.WeightFile("ab" * 32, 64),), (wire.Piece(0, 32, 0, 0), wire.Piece(40, 8, 0, 56))),
    )
    return (*map(wire.encode, bare), *(wire.encode(message, body) for message in loaded))


_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder().decode


def changed_frame(rng: Random, data: bytes) -> bytes:
    """A frame whose header says something strange, its length and most often its checksum being right; or blindly changed."""
    way = rng.random()
    size = int.from_bytes(data[1:5], "little")
    header, payload = data[9 : 9 + size], data[9 + size :]
    if way < 0.6:
        try:
            tree = _unpack(header)
            for _ in range(1 if rng.random() < 0.8 else 3):
                tree = changed_tree(rng, tree)
            if payload and rng.random() < 0.2:
                old, payload = wire.crc32(payload), blind(rng, payload)
                tree = [wire.crc32(payload) if field == old else field for field in tree]
            header = _pack(tree)
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
            header = blind(rng, header)
    elif way < 0.8:
        header = blind(rng, header)
    else:
        return blind(rng, data)
    return wire.framed(header, payload)


# --- outlines of segments

_SEGMENT_BYTES: Final = 4096


def _outline(data: bytes) -> None:
    outline, body = parse_outline(data, "fuzz", _SEGMENT_BYTES)
    weights = {file.sha256: bytes(file.bytes) for file in outline.weights}
    if len(assembled(outline, body, weights)) > _SEGMENT_BYTES:
        raise _NotTheSame(f"a segment of more than {_SEGMENT_BYTES} bytes")


def _outlines() -> list[bytes]:
    files = {"ab" * 32: bytes(range(256)) * 8, "cd" * 32: bytes(range(255, -1, -1)) * 4}
    tensors = [files["ab" * 32][:1000], files["cd" * 32][:500], files["ab" * 32][1000:1300]]
    places = {
        memoryview(raw): (name, at) for raw in tensors for name, file in files.items() if (at := file.find(raw)) >= 0
    }
    graph = b"".join(b"graph" + raw for raw in tensors).ljust(_SEGMENT_BYTES, b".")
    return [wire.encode(*outlined(graph, tensors, places, {digest: len(raw) for digest, raw in files.items()}))]


# --- topics

_TOPICS: Final = Topics("fuzz")
_EXAMPLES: Final = (
    "layers/0-3/a", "results/a", "telemetry/a", "agents/a", "links/a/b", "control", "commands/desk", "requests/desk",
    "model/manifest", "model/abcdef0123456789/segment-0-1-head/7", "frames/source",
)  # fmt: skip


def _topics(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for read in (_TOPICS.parse, checked_name, user_topic, user_pattern):
        try:
            read(text)
        except (WireError, UsageError):
            continue


# --- manifests


def _manifest(data: bytes) -> None:
    manifest = parse_manifest(data, "fuzz")
    plan = manifest.plan
    if len(plan.feature_bytes) != plan.layer_count:
        raise _NotTheSame(f"{plan.layer_count} layers and {len(plan.feature_bytes)} shapes")


@cache
def _small_artifact() -> Artifact:
    with tempfile.TemporaryDirectory() as folder:
        return write_identity_artifact(Path(folder), (1, 4, 4), 2)


def _manifests() -> list[bytes]:
    graph = {"file": "exit.onnx", "bytes": 9, "sha256": "ab" * 32}
    full = json.loads(_small_artifact().manifest_bytes)
    code = {"encoder": graph, "decoder": graph, "shape": [1, 2, 2], "macs": 9, "params": 9}
    full["layers"][1] |= {"codec": "int8", "bottleneck": code, "seconds": 0.1, "name": "last"}
    early = {"layer": 0, "graph": graph, "macs": 1, "params": 1, "threshold": 0.5, "temperature": 1.5, "gate": graph}
    full["exits"].insert(0, early)
    promise = {"max_accuracy_loss": 0.01, "confidence": 0.95, "samples": 10, "observed_loss": 0.0}
    full["calibration"] = {"measure": "gate", "threshold": 0.5, "promise": promise}
    full |= {"network": {"kind": "x", "blocks": [1, 2]}, "weights": graph, "files": [graph]}
    return [_sealed(_small_artifact().manifest_bytes), _sealed(json.dumps(full).encode())]


def _sealed(raw: bytes) -> bytes:
    """With the digest that its content has, if it is a manifest at all."""
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
        tree = msgspec.json.decode(raw)
        tree["digest"] = manifest.computed_digest()
        return msgspec.json.encode(tree)
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError):
        return raw


def _changed_manifest(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return blind(rng, data)
    try:
        tree = msgspec.json.decode(data)
        raw = msgspec.json.encode(changed_tree(rng, tree))
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return blind(rng, data)
    return _sealed(raw) if rng.random() < 0.6 else raw


# --- configuration

_SETTINGS: Final = b"""[agent]
broker = "mqtt://10.0.0.7:1883"
deployment = "lab"
neighbours = ["a", "b"]
metrics = "off"
telemetry_period = "500ms"
window = 16

[demo]
x.y = 1
"""
_WORDS: Final = (
    b"[", b"]", b"[[", b"=", b'"', b'"""', b"'''", b".", b"a.", b"\n", b"{a=", b"1e9999", b"0x", b"true",
    b"1979-05-27T07:32:00Z", b"inf", b"nan", b"#", b"\\u0000", b"[agent]", b"password_file = ", b"_", b"9" * 50,
)  # fmt: skip


@cache
def _config_file() -> Path:
    """In memory where there is such a folder: it is written a million times."""
    shared = Path("/dev/shm")  # noqa: S108 - a private folder is made in it
    folder = tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)
    _kept.append(folder)
    return Path(folder.name) / "fuzz.toml"


_kept: Final[list[tempfile.TemporaryDirectory[str]]] = []


def _config(data: bytes) -> None:
    file = _config_file()
    file.write_bytes(data)
    resolve(NodeSettings, ["--config", str(file)], {}, prog="fuzz", description="", section="agent")


# --- tensors


def _tensor(data: bytes) -> None:
    codec = CODECS[data[0] % len(CODECS)] if data else ""
    shape = tuple(1 + size % 64 for size in data[2 : 2 + data[1] % 4]) if len(data) > 1 else ()
    x = decode_tensor(codec, shape, data[5:])
    if x.shape != shape or x.dtype != np.float32:
        raise _NotTheSame(f"shape {shape} became {x.dtype} {x.shape}")


def _tensors() -> list[bytes]:
    x = np.linspace(-3, 3, 3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    return [bytes((index, 3, 2, 3, 4)) + encode_tensor(codec, x) for index, codec in enumerate(CODECS)]


# --- ONNX


_BODY, _HEAD = SegmentKey(0, 1, head=False), SegmentKey(0, 2, head=True)


def _graph(data: bytes) -> None:
    OnnxEngine().load(_HEAD if b"logits" in data else _BODY, data)


@cache
def _graphs() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        small = Composer(write_identity_artifact(Path(folder), (1, 4, 4), 2))
        made = [small.segment(key) for key in (_BODY, _HEAD)]
    return [*made, Composer(Artifact.open(DEFAULT_MODEL)).segment(_BODY)]


# --- requests

_IMAGES: Final = ImageInput(InputSpec(kind="image", shape=(1, 8, 8), mean=(0.5,), std=(0.25,)))


def _request(data: bytes) -> None:
    event = read_request("desk", data)
    if isinstance(event.payload, Sent):
        to_tensor(event.payload, _IMAGES)


def _requests() -> list[bytes]:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    files = []
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        files.append(buffer.getvalue())
    body = pixels.tobytes()
    frame = wire.encode(wire.Request("desk", "a-1", "uint8", wire.crc32(body), (8, 8), 0.5), body)
    plain = msgspec.json.encode({"image": files[1], "id": "x:1", "deadline_s": 2})
    return [*files, frame, plain]


def _changed_request(rng: Random, data: bytes) -> bytes:
    return changed_frame(rng, data) if data[:1] == bytes((wire.VERSION,)) else blind(rng, data)


# --- sound

_SOUND: Final = AudioInput(InputSpec(kind="audio", shape=(10, 8), mean=(-3.0,) * 8, std=(2.0,) * 8, audio=AudioSpec()))
_WAV_FIELDS: Final = ((4, 4), (16, 4), (20, 2), (22, 2), (24, 4), (28, 4), (32, 2), (34, 2), (40, 4))
"""Places and sizes of the header's numbers: lengths, format, channels, rates, bytes and bits of a sample."""
_WAV_NUMBERS: Final = (0, 1, 2, 3, 8, 16, 24, 32, 255, 1000, 16_000, 384_000, 65_534, 65_535, 2**31, 2**32 - 1)


def _sound(data: bytes) -> None:
    clip = read_wav(data)
    again = read_wav(wav_bytes(clip))
    if again.rate_hz != clip.rate_hz or (again.samples_T != clip.samples_T).any():
        raise _NotTheSame(f"{len(clip.samples_T)} samples became {len(again.samples_T)}, or others")
    _SOUND.ready(_SOUND.prepared(clip))


def _sounds() -> list[bytes]:
    """One of each width, one of two channels."""
    made = []
    for width, channels, rate_hz in ((2, 1, 16_000), (1, 1, 8_000), (3, 1, 22_050), (4, 1, 44_100), (2, 2, 16_000)):
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setparams((channels, width, rate_hz, 0, "NONE", ""))
            file.writeframes(bytes(range(240)))
        made.append(buffer.getvalue())
    return made


def _changed_sound(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.5:
        return blind(rng, data)
    made = bytearray(data)
    for _ in range(1 + int(rng.random() * 3)):
        place, size = rng.choice(_WAV_FIELDS)
        made[place : place + size] = (rng.choice(_WAV_NUMBERS) % 256**size).to_bytes(size, "little")
    return bytes(made)


_ALL: Final[Sequence[Target]] = (
    Target("wire", "messages", _wire, (WireError,), lambda: list(sample_frames()), changed_frame, 10_000_000, 1_000_000),
    Target(
        "manifest", "model.json", _manifest, (ArtifactError,), _manifests, _changed_manifest, 1_000_000, 200_000, 4 * _MIB
    ),
    Target("outline", "segments on their way", _outline, (WireError,), _outlines, changed_frame, 500_000, 100_000),
    Target(
        "topics", "topics and names", _topics, (), lambda: [f"mdi/fuzz/{rest}".encode() for rest in _EXAMPLES], blind,
        500_000, 200_000,
    ),
    Target(
        "config", "TOML files", _config, (UsageError,), lambda: [_SETTINGS], of_tokens(_WORDS), 50_000, 20_000,
        base_bytes=4 * _MIB, times=2000,
    ),
    Target("tensors", "codecs", _tensor, (WireError,), _tensors, blind, 500_000, 200_000, 8 * _MIB),
    Target("onnx", "graphs", _graph, (EngineError,), _graphs, blind, 100_000, 100_000, 4 * _MIB),
    Target(
        "requests", "requests and images", _request, (WireError, ValueError, MdiExitError), _requests, _changed_request,
        100_000, 50_000, 16 * _MIB,
    ),
    Target("sound", "WAV files", _sound, (ValueError,), _sounds, _changed_sound, 200_000, 50_000, 4 * _MIB),
)  # fmt: skip
TARGETS: Final[dict[str, Target]] = {target.name: target for target in _ALL}
