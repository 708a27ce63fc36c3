"""PUBLISH and PUBACK as bytes, and the splitter, whatever the pieces in which the stream comes."""

from __future__ import annotations

import contextlib
from random import Random

import pytest

from mdi_exit.errors import TransportError
from mdi_exit.transport.frames import Acknowledged, Arrived, Other, Splitter, TooLarge, puback, publish_head

PINGRESP = b"\xd0\x00"


def publish(topic: str, payload: bytes, packet_id: int = 0, *, retain: bool = False) -> bytes:
    return publish_head(topic, len(payload), packet_id, retain=retain) + payload


def split(stream: bytes, pieces: list[int], limit: int = 1 << 20) -> list[Arrived | Acknowledged | TooLarge | Other]:
    """Feed ``stream`` in pieces of the given sizes, over and over."""
    splitter, found, at, turn = Splitter(limit), [], 0, 0
    while at < len(stream):
        space = splitter.space()
        assert len(space) > 0
        size = min(pieces[turn % len(pieces)], len(space), len(stream) - at)
        space[:size] = stream[at : at + size]
        found += list(splitter.fed(size))
        at, turn = at + size, turn + 1
    return found


def test_a_publish_is_laid_out_as_the_standard_says() -> None:
    assert publish("a/b", b"hi") == b"\x30\x07\x00\x03a/bhi"
    assert publish("a/b", b"hi", 258, retain=True) == b"\x33\x09\x00\x03a/b\x01\x02hi"
    assert publish("é", b"") == b"\x30\x04\x00\x02\xc3\xa9"
    assert puback(0x1234) == b"\x40\x02\x12\x34"


@pytest.mark.parametrize("size", [0, 122, 123, 16_378, 16_379, 300_000])
def test_every_length_of_the_length_field(size: int) -> None:
    payload = Random(size).randbytes(size)
    assert split(publish("abc", payload), [1 << 20]) == [Arrived(b"abc", payload, 0, retained=False)]


@pytest.mark.parametrize("topic", ["", "+", "a/#", "a\x00", "x" * 65536])
def test_a_topic_one_cannot_publish_to(topic: str) -> None:
    with pytest.raises(TransportError, match="topic to publish to"):
        publish_head(topic, 0, 0, retain=False)


@pytest.mark.parametrize("seed", range(30))
def test_any_packets_in_any_pieces(seed: int) -> None:
    rng, stream = Random(seed), b""
    wanted: list[Arrived | Acknowledged | TooLarge | Other] = []
    for number in range(rng.randint(1, 60)):
        match rng.randrange(5):
            case 0:
                wanted.append(Acknowledged(number + 1))
                stream += puback(number + 1)
            case 1:
                wanted.append(Other(PINGRESP))
                stream += PINGRESP
            case kind:
                size = rng.choice([0, 1, 100, 5_000, 70_000 if kind == 2 else 10, 400_000 if number % 9 == 8 else 2])
                packet_id, retain = rng.choice([0, number + 1]), rng.random() < 0.5
                topic, payload = f"topic/{number}", rng.randbytes(size)
                wanted.append(Arrived(topic.encode(), payload, packet_id, retained=retain))
                stream += publish(topic, payload, packet_id, retain=retain)
    pieces = [rng.choice([1, 2, 3, 7, 100, 4_096, 65_536, 262_144]) for _ in range(20)] + [50_000]
    assert split(stream, pieces) == wanted


@pytest.mark.parametrize("pieces", [[1], [3], [100], [1 << 20]])
@pytest.mark.parametrize("packet_id", [0, 7])
def test_a_packet_over_the_limit_is_skipped_and_the_rest_is_read(pieces: list[int], packet_id: int) -> None:
    large = publish("large", bytes(5_000), packet_id)
    found = split(publish("a", b"1") + large + publish("b", b"2"), pieces, limit=1_000)
    assert [type(packet) for packet in found] == [Arrived, TooLarge, Arrived]
    assert isinstance(found[1], TooLarge)
    assert (found[1].topic, found[1].packet_id) == (b"large", packet_id)


@pytest.mark.parametrize(
    "stream",
    [
        b"\x30\xff\xff\xff\xff\x01",  # a length of five bytes
        b"\x30\x01\x00",  # no room for the length of the topic
        b"\x30\x03\x00\x05a",  # a topic beyond the packet
        b"\x32\x04\x00\x01ab",  # QoS 1 without a whole packet identifier
        b"\xd0\xff\xff\x7f",  # a PINGRESP of 2 MiB
    ],
)
def test_what_is_not_mqtt_is_said(stream: bytes) -> None:
    with pytest.raises(TransportError):
        split(stream, [1 << 20], limit=1_000_000)


@pytest.mark.parametrize("seed", range(50))
def test_random_bytes_end_in_packets_or_a_transport_error(seed: int) -> None:
    rng = Random(seed)
    with contextlib.suppress(TransportError):
        split(rng.randbytes(3_000), [rng.randint(1, 500)], limit=1_000)


def test_the_buffer_of_a_large_packet_is_given_back() -> None:
    splitter = Splitter(1 << 24)
    stream = publish("a", bytes(5_000_000))
    at = 0
    while at < len(stream):
        space = splitter.space()
        size = min(len(space), len(stream) - at)
        space[:size] = stream[at : at + size]
        assert len(list(splitter.fed(size))) == (at + size == len(stream))
        at += size
    assert len(splitter.space()) < 1_000_000
