"""MQTT packets told apart, and troubled: only messages, only their payloads."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit.chaos.packets import CALM, Packets, Trouble, client_id, corrupted, is_publish, payload_at, troubled
from mdi_exit.errors import TransportError
from mdi_exit.transport.frames import puback, publish_head

CONNECT = bytes.fromhex("101300044d5154540402000500076368616f732d61")


def publish(payload: bytes, packet_id: int = 0) -> bytes:
    return publish_head("mdi/x/results/a", len(payload), packet_id, retain=False) + payload


@given(
    st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 3)), max_size=12),
    st.lists(st.integers(1, 200), min_size=1),
)
def test_a_stream_cut_anywhere_gives_the_packets_that_went_in(
    messages: list[tuple[bytes, int]], cuts: list[int]
) -> None:
    packets = [publish(payload, packet_id) if packet_id < 3 else puback(7) for payload, packet_id in messages]
    stream, found, splitter = b"".join(packets), [], Packets()
    at = number = 0
    while at < len(stream):
        size = cuts[number % len(cuts)]
        found += splitter.fed(stream[at : at + size])
        at, number = at + size, number + 1
    assert found == packets


def test_what_is_no_mqtt_is_an_error() -> None:
    with pytest.raises(TransportError, match="at most 4 bytes"):
        Packets().fed(b"\x30\xff\xff\xff\xff\xff")


def test_a_client_is_known_by_its_connect() -> None:
    (packet,) = Packets().fed(CONNECT)
    assert client_id(packet) == "chaos-a"
    assert client_id(publish(b"x")) is None


@given(st.binary(min_size=1, max_size=200), st.integers(0, 9), st.integers(0, 2**32))
def test_corruption_stays_within_the_payload(payload: bytes, packet_id: int, seed: int) -> None:
    packet = publish(payload, packet_id)
    begin = payload_at(packet)
    assert packet[begin:] == payload
    changed = corrupted(packet, Random(seed))
    assert len(changed) == len(packet)
    assert changed[:begin] == packet[:begin]
    assert sum(a != b for a, b in zip(changed, packet, strict=True)) <= 4


def test_a_message_without_payload_cannot_be_corrupted() -> None:
    assert corrupted(publish(b""), Random(0)) == publish(b"")


def test_only_messages_are_harmed() -> None:
    everything = Trouble(delay_s=0.5, corrupt=1.0, duplicate=1.0, reorder=1.0)
    assert troubled(puback(1), everything, Random(0)) == [(0.5, puback(1))]
    assert troubled(publish(b"x"), CALM, Random(0)) == [(0.0, publish(b"x"))]
    going = troubled(publish(b"payload"), everything, Random(0))
    assert len(going) == 2
    assert going[0][1] == going[1][1] != publish(b"payload")
    assert is_publish(going[0][1])
    assert going[0][0] > 0.5


def test_the_same_seed_gives_the_same_harm() -> None:
    trouble = Trouble(corrupt=0.5, duplicate=0.5, reorder=0.5)
    harms = [
        [troubled(publish(bytes(20)), trouble, rng) for _ in range(50)] for rng in (Random(3), Random(3), Random(4))
    ]
    assert harms[0] == harms[1] != harms[2]
