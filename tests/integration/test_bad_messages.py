"""Whatever is published to the topics of a deployment: nothing stops, each bad message is counted by its reason."""

from __future__ import annotations

import math
import random
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zstandard
from live import Listener, Program, Source, System, until

from mdi_exit.errors import WireError
from mdi_exit.fuzzing.targets import changed_frame
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.span import LayerSpan
from mdi_exit.topics import Topics
from mdi_exit.wire import (
    MAX_HEADER_BYTES,
    VERSION,
    Ack,
    Chunk,
    Control,
    Features,
    Manifest,
    Message,
    Probe,
    ResultRow,
    Results,
    SegmentFile,
    Status,
    Telemetry,
    decode,
    encode,
)

pytestmark = pytest.mark.broker

TOPICS = Topics("test")
SPAN = LayerSpan(4, 9)
NODES = ("source", "a", "b")


@dataclass(frozen=True)
class Bad:
    """A message, the reason for which it is to be counted, and the nodes that hear it."""

    topic: str
    payload: bytes
    reason: str
    heard_by: tuple[str, ...]


def _frame(header: bytes, payload: bytes = b"", version: int = VERSION, size: int | None = None) -> bytes:
    return struct.pack("<BII", version, len(header) if size is None else size, zlib.crc32(header)) + header + payload


def _listeners() -> dict[str, tuple[str, ...]]:
    """Every topic of the deployment that somebody hears."""
    agents = ("a", "b")
    heard = {TOPICS.control: agents, TOPICS.manifest: agents}
    for name in (*NODES, "ghost"):
        heard[TOPICS.agents(name)] = NODES
        heard[TOPICS.telemetry(name)] = NODES
        heard[TOPICS.results(name)] = ("source",)
    for name in NODES:
        heard[TOPICS.links(name, "ghost")] = (name,)
    heard[TOPICS.layers(LayerSpan(0, 4), "source")] = ("source",)
    heard |= {TOPICS.layers(SPAN, name): (name,) for name in agents}
    return heard


def _undecodable(random_bytes: random.Random, frame: bytes) -> list[tuple[str, bytes]]:
    """Reasons, and payloads that are no frame on any topic. ``frame``: a good one with a payload."""
    noise = [bytes([7]) + random_bytes.randbytes(size) for size in (4, 60, 3000)]
    return [
        *(("version", payload) for payload in noise),
        ("version", frame.replace(frame[:1], bytes([VERSION + 1]), 1)),
        ("truncated", bytes([VERSION])),
        ("truncated", frame[:40]),
        ("header-size", _frame(b"", size=2**32 - 1)),
        ("header-size", _frame(bytes(MAX_HEADER_BYTES + 1))),
        ("header", _frame(random_bytes.randbytes(64))),
        ("header", _frame(b"\x91" * 60_000)),
        ("header", _frame(b"\x92\xa8features\xff")),
        ("header", _frame(b"")),
        ("crc", frame[:-1] + bytes([frame[-1] ^ 1])),
        ("crc", frame[:-9]),
        ("payload-size", encode(Probe(1, 1, 1)) + b"more"),
    ]


def _features(control: Control, body: bytes | None = None, **changes: object) -> bytes:
    shape = Artifact.open(DEFAULT_MODEL).manifest.in_shape(4)
    body = np.zeros(shape, np.float32).tobytes() if body is None else body
    values: dict[str, object] = {
        "run": control.run, "sender": "ghost", "incarnation": 1, "seq": 1, "item": 10**12, "attempt": 0, "epoch": 0,
        "model": control.model, "next_layer": 4, "codec": "float32", "shape": shape, "crc": zlib.crc32(body),
    }  # fmt: skip
    return encode(Features(**(values | changes)), body)  # type: ignore[arg-type]


def _unfit_features(control: Control) -> list[tuple[str, bytes]]:
    channels, *rest = Artifact.open(DEFAULT_MODEL).manifest.in_shape(4)
    bomb = zstandard.ZstdCompressor().compress(bytes(2**26))  # a few thousand bytes that want 64 MiB
    forged = zstandard.ZstdCompressor().compress(bytes(4 * channels * math.prod(rest)))[:-1]
    endless_scales = np.full(channels, np.inf, "<f4").tobytes() + bytes(channels * math.prod(rest))
    return [
        ("model", _features(control, model="ab" * 16)),
        ("shape", _features(control, shape=(1, 2, 3))),
        ("shape", _features(control, shape=(2**24,) * 8)),
        ("shape", _features(control, next_layer=65535)),
        ("dtype", _features(control, dtype="float64")),
        ("codec", _features(control, codec="pickle")),
        ("payload-size", _features(control, codec="int8")),
        ("payload", _features(control, endless_scales, codec="int8")),
        ("payload", _features(control, bomb, codec="float32+zstd")),
        ("payload", _features(control, forged, codec="float32+zstd")),
        ("run", _features(control, run=control.run + 1, seq=2)),
    ]


def _unfit_results(control: Control) -> list[tuple[str, bytes]]:
    def one(run: int, row: ResultRow) -> bytes:
        return encode(Results(run, 1, (row,)))

    return [
        ("item", one(control.run, ResultRow(10**15, 0, ("ghost",), 0, 1, 0.99))),
        ("item", one(control.run, ResultRow(10**15, 0, ("ghost",), error="forged", refused=True))),
        ("run", one(control.run - 1, ResultRow(1, 0, ("ghost",), 0, 1, 0.99))),
        ("result", one(control.run, ResultRow(1, 0, ("ghost",), 0, 99, 0.99))),
        ("result", one(control.run, ResultRow(1, 0, ("ghost",), 99, 1, 0.99))),
    ]


def _unfit_manifests(control: Control) -> list[tuple[str, bytes]]:
    def one(body: bytes, model: str = "cd" * 16, segments: tuple[SegmentFile, ...] = ()) -> bytes:
        return encode(Manifest(control.run, "source", model, zlib.crc32(body), segments), body)

    true_body = Artifact.open(DEFAULT_MODEL).manifest_bytes
    return [
        ("manifest", one(b"{}")),
        ("manifest", one(b"[" * 5000)),
        ("manifest", one(true_body.replace(b"layer-3", b"layer-4"))),
        ("manifest", one(true_body)),
    ]


def _of_wrong_type(control: Control) -> dict[str, Message]:
    return {
        "features": Results(control.run, 1),
        "results": Probe(1, 1, 1),
        "telemetry": Ack(1, 1, 1, 0.0),
        "agents": Telemetry(control.run, 1, "a", 0, 0, 0.0),
        "links": Status("a", 1, True),
        "control": Chunk(control.model, "f", 0, 1, 0),
        "model": control,
        "layers": Results(control.run, 1),
    }


def _everything_bad(control: Control) -> list[Bad]:
    heard = _listeners()
    junk = _undecodable(random.Random(2), _features(control))
    wrong = _of_wrong_type(control)
    found = [Bad(topic, payload, reason, who) for topic, who in heard.items() for reason, payload in junk]
    found += [Bad(topic, encode(wrong[topic.split("/")[2]]), "type", who) for topic, who in heard.items()]
    for name in ("a", "b"):
        topic = TOPICS.layers(SPAN, name)
        found += [Bad(topic, payload, reason, heard[topic]) for reason, payload in _unfit_features(control)]
        found.append(Bad(TOPICS.agents(name), encode(Status("ghost", 1, True)), "identity", NODES))
        report = encode(Telemetry(control.run, 1, "ghost", 0, 0, 0.0))
        found.append(Bad(TOPICS.telemetry(name), report, "identity", NODES))
    found += [Bad(TOPICS.results("ghost"), payload, reason, ("source",)) for reason, payload in _unfit_results(control)]
    found += [Bad(TOPICS.manifest, payload, reason, ("a", "b")) for reason, payload in _unfit_manifests(control)]
    return found


def _control(listener: Listener) -> Control:
    until(lambda: bool(listener.on(TOPICS.control)), lambda: "a control message")
    control, _ = decode(listener.on(TOPICS.control)[-1])
    assert isinstance(control, Control)
    return control


def _counted(program: Program, expected: Counter[str]) -> None:
    """Wait for exactly these bad messages in the program's metrics."""
    until(
        lambda: program.bad_messages() == dict(expected),
        lambda: f"{program.name}: {expected}, got {program.bad_messages()}",
    )


@pytest.fixture
def running(system: System) -> tuple[Source, dict[str, Program]]:
    agents = {name: system.agent(name, str(SPAN)) for name in ("a", "b")}
    for agent in agents.values():
        agent.until_says("connected")
    source = system.source("--layers", "0-3", "--rate", "150/s", "--duration", "100s")
    source.until_results(20)
    for agent in agents.values():
        agent.until_says("ready")
    return source, agents


def _ends_well(source: Source, agents: dict[str, Program]) -> None:
    source.until_results(len(source.rows) + 100)
    assert source.stop() == 0
    source.until_completed()
    for agent in agents.values():
        assert agent.running
        assert agent.stop() == 0
        assert "Traceback" not in agent.log
        assert "failed" not in agent.log
    assert "Traceback" not in source.log


def test_each_bad_message_is_counted_by_reason_and_none_does_harm(
    system: System, running: tuple[Source, dict[str, Program]]
) -> None:
    source, agents = running
    with Listener(system.url) as listener:
        control = _control(listener)
        bad = _everything_bad(control)
        for message in bad:
            listener.publish(message.topic, message.payload)
    for program in (source, *agents.values()):
        _counted(program, Counter(message.reason for message in bad if program.name in message.heard_by))
        # One line a sender, reason and minute, not one a message.
        assert len(program.log.splitlines()) < 200
    _ends_well(source, agents)


CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus" / "wire"
FLOOD = 6000


def _broken_frames(count: int) -> Iterator[bytes]:
    """The fuzzers' corpus, and mutations of it: those that are no message."""
    rng = random.Random(4)
    found = [file.read_bytes() for file in sorted(CORPUS.iterdir())]
    made = 0
    while made < count:
        frame = found[made] if made < len(found) else rng.choice(found)
        for _ in range(rng.randrange(1, 3)):
            frame = changed_frame(rng, frame)
        try:
            decode(frame)
        except WireError:
            made += bool(frame)  # an empty one is no message: it deletes what the broker keeps
            if frame:
                yield frame


def test_a_flood_of_the_fuzzers_messages_loses_nothing(
    system: System, running: tuple[Source, dict[str, Program]]
) -> None:
    source, agents = running
    heard = _listeners()
    topics = sorted(heard)
    sent: Counter[str] = Counter()
    with Listener(system.url) as listener:
        _control(listener)
        for number, frame in enumerate(_broken_frames(FLOOD)):
            topic = topics[number % len(topics)]
            listener.publish(topic, frame)
            sent.update(heard[topic])
    for program in (source, *agents.values()):
        until(
            lambda program=program: sum(program.bad_messages().values()) == sent[program.name],  # type: ignore[misc]
            lambda program=program: f"{program.name}: {sent}, got {program.bad_messages()}",  # type: ignore[misc]
        )
        assert len(program.log.splitlines()) < 400  # a line for each sender and reason, not for each message
    _ends_well(source, agents)


def test_features_of_an_unknown_item_are_run_and_their_result_put_aside(
    system: System, running: tuple[Source, dict[str, Program]]
) -> None:
    source, agents = running
    with Listener(system.url) as listener:
        listener.publish(TOPICS.layers(SPAN, "a"), _features(_control(listener)))
    _counted(source, Counter(item=1))
    _ends_well(source, agents)


def test_topics_that_are_none_and_other_deployments_change_nothing(
    system: System, running: tuple[Source, dict[str, Program]]
) -> None:
    source, agents = running
    with Listener(system.url) as listener:
        control = _control(listener)
        lower = msgspec.structs.replace(control, threshold=0.0, model="ab" * 16)
        for topic in ("mdi/other/control", "mdi/control", "mdi/test/control/x", "mdi/test", "control"):
            listener.publish(topic, encode(lower), retain=True)
        for topic in ("mdi/test/agents/not a name", "mdi/test/telemetry/ä", f"mdi/test/links/a/{'x' * 60}"):
            listener.publish(topic, b"junk")
    _counted(agents["a"], Counter(topic=3))
    _counted(agents["b"], Counter(topic=2))
    _counted(source, Counter(topic=2))
    _ends_well(source, agents)


def test_an_agent_that_comes_after_retained_junk_gets_its_model_all_the_same(
    system: System, running: tuple[Source, dict[str, Program]]
) -> None:
    source, agents = running
    with Listener(system.url) as listener:
        _control(listener)
        kept = [topic for topic in listener.topics() if "/model/" in topic or "/agents/" in topic]
        assert any("/segment-" in topic for topic in kept)
        for topic in (*kept, TOPICS.control, TOPICS.agents("c"), TOPICS.agents("ghost")):
            listener.publish(topic, b"junk" * 10, retain=True)
    late = system.agent("c", str(SPAN))
    late.until_says("ready")
    assert all(agent.stop() == 0 for agent in agents.values())  # the latecomer has to do the work alone
    until(lambda: any("c" in row["path"] for row in source.rows), lambda: f"work for c:\n{source.log}\n{late.log}")
    assert late.bad_messages()["version"] >= 3
    _ends_well(source, {"c": late})


def test_a_status_that_was_deleted_or_overwritten_is_published_again(
    system: System, running: tuple[Source, dict[str, Program]]
) -> None:
    source, agents = running
    for payload in (b"", b"junk" * 10):
        with Listener(system.url, TOPICS.agents("a")) as listener:
            listener.publish(TOPICS.agents("a"), payload, retain=True)
            until(lambda: len(listener.messages) >= 3, lambda: "a status of a after the junk")
            status, _ = decode(listener.messages[-1][1])
            assert isinstance(status, Status)
            assert (status.node, status.online, status.state) == ("a", True, "ready")
    _ends_well(source, agents)
