from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit import wire
from mdi_exit.errors import WireError

GOLDEN = Path(__file__).parent.parent / "golden"
BODY = bytes(range(16))

# One of each message. The files under tests/golden hold their bytes in the present wire version; to write them for a new
# version: python tests/unit/test_wire.py
MESSAGES: dict[str, tuple[wire.Message, bytes]] = {
    "features": (
        wire.Features(
            run=7,
            sender="source",
            incarnation=11,
            seq=3,
            item=42,
            attempt=1,
            epoch=0,
            model="ab" * 16,
            next_layer=4,
            codec="float32",
            shape=(1, 2, 2),
            crc=zlib.crc32(BODY),
            path=("source", "nano-1"),
            deadline_s=0.5,
            best=wire.Best(1, 9, 0.625),
            exit_state=(0.25, 1.0),
            times=(0.125, 0.5),
        ),
        BODY,
    ),
    "results": (
        wire.Results(
            7,
            11,
            (
                wire.ResultRow(42, 1, ("source", "nano-1"), 2, 9, 0.75),
                wire.ResultRow(43, 0, (), error="no", refused=True),
            ),
            (wire.Moved(44, 0, "nano-2"),),
        ),
        b"",
    ),
    "telemetry": (
        wire.Telemetry(
            *(7, 11, "nano-1", 3, 1, 0.25, {4: 0.25}, {4: 0.0625}, {4: 13}, {"source": 9}, {"sent": 5}, {2: 7}),
            links={"nano-2": wire.LinkLoad(5, 4096, 0.002, 11, 2.5e6)},
            board=wire.Board(2**26, 48.5, 5.25, 99.5, True),
            scores={0: (0, 2, 5)},
        ),
        b"",
    ),
    "source": (
        wire.SourceReport(
            *(7, 11, "source", "ab" * 16, 50, 48, 40, 1, 2, 3, 1, 7, 30, 32, {0: 20, 2: 20}, 0.9, 0.5, "threshold"),
            rate_per_s=25.0,
            paused=False,
            latency_s=(0.02, 0.05, 0.125),
            happened=(wire.Happening(4, 1.5, "joined", "nano-1 joined with layers 4-8 (ready)"),),
        ),
        b"",
    ),
    "frame": (
        wire.Frame(7, "source", zlib.crc32(BODY), "shipped/12", 3, 0.9375, 1, 0.0625, ("source", "nano-1"), 3),
        BODY,
    ),
    "order": (wire.Order("desk", 1, "threshold", "0.7"), b""),
    "request": (wire.Request("desk", "a-1", "uint8", zlib.crc32(BODY), (4, 4), 0.5), BODY),
    "reply": (wire.Reply("desk", "a-1", 9, "Ankle boot", 0.75, 2, ("source", "nano-1"), 0.125), b""),
    "status": (
        wire.Status(
            *("nano-1", 11, True, "agent", "ready", (4, 9), (4, 6), 16, "onnxruntime CPU"),
            neighbours=("source",),
            auto=True,
            memory_bytes=2**28,
            layer_s=(0.25, 0.5),
            leaving=((0, 4),),
        ),
        b"",
    ),
    "ack": (wire.Ack(11, 12, 9, 0.004, {4: 8}, (5, 6), 3, 0.25, 2), b""),
    "probe": (wire.Probe(11, 2, 9), b""),
    "control": (
        wire.Control(
            *(7, 11, "source", 0, "ab" * 16, 0.9),
            codec="int8",
            spans={"nano-1": (4, 9)},
            shares=(wire.Share(4, "source", {"nano-1": 0.75, "source": 0.25}),),
            census=True,
            thresholds=(0.5, 0.75),
        ),
        b"",
    ),
    "manifest": (
        wire.Manifest(7, "source", "ab" * 16, zlib.crc32(BODY), (wire.SegmentFile(4, 6, True, 16, "cd" * 32, 1),)),
        BODY,
    ),
    "chunk": (wire.Chunk("ab" * 16, "segment-4-5-head", 0, 1, zlib.crc32(BODY)), BODY),
    "outline": (
        wire.Outline(zlib.crc32(BODY), (wire.WeightFile("cd" * 32, 4096),), (wire.Piece(2, 1024, 0, 512),)),
        BODY,
    ),
    "lesson": (wire.Lesson(7, 11, 3, 5, 200, "features", "int8", (2, 2, 2), 2, zlib.crc32(BODY), 4), BODY),
    "learner": (wire.EdgeReport(11, 7, "training", 1000, 5, 200, 3, 125e3, (0.25, 0.5), 2**40), b""),
    "teacher": (wire.CloudReport(7, 11, 4, 7, 3, 2, 1, 1, 1, 1, 2**40, 7), b""),
    "weights": (wire.Weights(7, 11, 1, 1000, 0, 2, zlib.crc32(BODY)), BODY),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_bytes_are_those_of_the_golden_files(name: str) -> None:
    message, body = MESSAGES[name]
    golden = (GOLDEN / f"{name}.v{wire.VERSION}.bin").read_bytes()
    assert wire.encode(message, body) == golden
    decoded, payload = wire.decode(golden)
    assert decoded == message
    assert bytes(payload) == body


REASONS = {"", "truncated", "version", "header-size", "header", "crc", "payload-size"}


def refusal(frame: bytes) -> str:
    """The reason why a frame is refused; empty if it is not. Anything but ``WireError`` fails the test."""
    try:
        wire.decode(frame)
    except WireError as error:
        return error.reason
    return ""


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_with_a_reason(frame: bytes) -> None:
    assert refusal(frame) in REASONS


@given(st.binary(max_size=200))
def test_random_headers_are_refused_with_a_reason(header: bytes) -> None:
    frame = wire.framed(header)
    assert refusal(frame) in {"", "header", "crc", "payload-size"}


@pytest.mark.parametrize("name", MESSAGES)
@given(data=st.data())
def test_a_cut_or_changed_frame_is_refused(name: str, data: st.DataObject) -> None:
    """It is never another message: a label that was changed on the way is no label."""
    frame = bytearray(wire.encode(*MESSAGES[name]))
    cut = data.draw(st.integers(0, len(frame)))
    position, value = data.draw(st.integers(0, len(frame) - 1)), data.draw(st.integers(0, 255))
    for damaged in (bytes(frame[:cut]), bytes(frame[:position]) + bytes([value]) + bytes(frame[position + 1 :])):
        assert refusal(damaged) in (REASONS - {""} if damaged != bytes(frame) else {""})


def framed(rows: object) -> bytes:
    header = msgspec.msgpack.encode(rows)
    return wire.framed(header)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.5, 1.5])
def test_scores_outside_their_range_are_refused(bad: float) -> None:
    rows = msgspec.to_builtins(MESSAGES["control"][0], builtin_types=(bytes,))
    rows[6] = bad
    with pytest.raises(WireError, match="header"):
        wire.decode(framed(rows))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_seconds_outside_their_range_are_refused(bad: float) -> None:
    rows = msgspec.to_builtins(MESSAGES["ack"][0], builtin_types=(bytes,))
    rows[4] = bad
    with pytest.raises(WireError, match="header"):
        wire.decode(framed(rows))


def test_fields_of_a_newer_writer_are_ignored() -> None:
    rows = [*msgspec.to_builtins(MESSAGES["probe"][0], builtin_types=(bytes,)), "new", {"more": 1}]
    assert wire.decode(framed(rows))[0] == MESSAGES["probe"][0]


def test_limits() -> None:
    with pytest.raises(WireError) as version:
        wire.decode(bytes([wire.VERSION + 1]) + bytes(8))
    assert version.value.reason == "version"
    with pytest.raises(WireError) as huge:
        wire.decode(bytes([wire.VERSION]) + (2**31).to_bytes(4, "little") + bytes(100))
    assert huge.value.reason == "header-size"
    frame = bytearray(wire.encode(*MESSAGES["chunk"]))
    frame[-1] ^= 1
    with pytest.raises(WireError) as damaged:
        wire.decode(bytes(frame))
    assert damaged.value.reason == "crc"
    with pytest.raises(WireError) as extra:
        wire.decode(wire.encode(MESSAGES["probe"][0]) + b"x")
    assert extra.value.reason == "payload-size"


def test_each_message_has_a_golden_file() -> None:
    assert {type(message) for message, _ in MESSAGES.values()} == set(get_args(wire.Message))
    assert {path.name for path in GOLDEN.glob("*.bin")} == {f"{name}.v{wire.VERSION}.bin" for name in MESSAGES}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_frame_cut_anywhere_is_refused(name: str) -> None:
    message, body = MESSAGES[name]
    frame = wire.encode(message, body)
    reasons = [refusal(frame[:length]) for length in range(len(frame))]
    header_end = len(frame) - len(body)
    assert set(reasons[:header_end]) == {"truncated"}
    assert set(reasons[header_end:]) <= {"crc"}


@pytest.mark.parametrize("name", MESSAGES)
def test_any_other_version_is_refused(name: str) -> None:
    frame = wire.encode(*MESSAGES[name])
    assert {refusal(bytes([version]) + frame[1:]) for version in range(256) if version != wire.VERSION} == {"version"}


@pytest.mark.parametrize("name", MESSAGES)
def test_each_message_may_have_fields_of_a_newer_writer(name: str) -> None:
    message, body = MESSAGES[name]
    rows = [*msgspec.to_builtins(message, builtin_types=(bytes,)), None, {"more": [1, 2.5]}, b"bytes"]
    assert wire.decode(framed(rows) + body)[0] == message


@pytest.mark.parametrize("name", MESSAGES)
@given(data=st.data())
def test_a_field_of_any_value_is_refused_or_valid(name: str, data: st.DataObject) -> None:
    message, body = MESSAGES[name]
    rows = msgspec.to_builtins(message, builtin_types=(bytes,))
    index = data.draw(st.integers(0, len(rows) - 1))
    numbers = st.integers(-(2**63), 2**64 - 1) | st.floats()
    values = (
        st.none()
        | st.booleans()
        | numbers
        | st.text(max_size=50)
        | st.binary(max_size=9)
        | st.lists(numbers, max_size=20)
    )
    rows[index] = data.draw(values | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), numbers, max_size=3))
    assert refusal(framed(rows) + body) in {"", "header", "crc", "payload-size"}


SECONDS = [
    ("features", 18, 0),
    ("telemetry", 6, None),
    ("telemetry", 7, 4),
    ("telemetry", 8, 4),
    ("telemetry", 15, None),
    ("ack", 4, None),
    ("reply", 8, None),
]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1e-9, 1e300])
@pytest.mark.parametrize(("name", "index", "inside"), [*SECONDS, ("ack", 8, None), ("control", 6, None)])
def test_bounded_numbers_out_of_bounds_are_refused(name: str, index: int, inside: int | None, bad: float) -> None:
    message, body = MESSAGES[name]
    rows = msgspec.to_builtins(message, builtin_types=(dict,))
    if inside is None:
        rows[index] = bad
    else:
        rows[index] = dict(rows[index]) | {inside: bad} if isinstance(rows[index], dict) else [bad, 0.0]
    assert refusal(framed(rows) + body) == "header"


@pytest.mark.parametrize("name", ["a\n", "a/b", "+", "", "a" * 41, "n\u00e4me", "a\x00"])
def test_names_that_could_not_stand_in_a_topic_or_a_log_are_refused(name: str) -> None:
    assert refusal(wire.encode(wire.Status(name, 1, online=True))) == "header"
    assert refusal(wire.encode(wire.Results(7, 1, (wire.ResultRow(1, 0, (name,)),)))) == "header"


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\x00", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
def test_deep_and_boastful_headers_are_refused(opening: bytes) -> None:
    header = opening * (60_000 // len(opening))
    frame = wire.framed(header)
    assert refusal(frame) == "header"
    known = b"\x93\xa5probe" + header  # inside a message that is known
    assert refusal(wire.framed(known)) == "header"


def test_a_payload_or_header_above_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_PAYLOAD_BYTES", 8)
    assert refusal(wire.encode(*MESSAGES["chunk"])) == "payload-size"
    rows = tuple(wire.ResultRow(item, 0, (), error="x" * 300) for item in range(1000))
    with pytest.raises(WireError, match="header bytes"):
        wire.encode(wire.Results(7, 1, rows))


if __name__ == "__main__":
    for name, (message, body) in MESSAGES.items():
        (GOLDEN / f"{name}.v{wire.VERSION}.bin").write_bytes(wire.encode(message, body))
