"""The few MQTT 3.1.1 packets that carry messages, as bytes: PUBLISH and PUBACK, and a splitter of the incoming stream.

Pure: no socket, no clock. Everything else of the protocol is left to the client library.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from mdi_exit.errors import TransportError

__all__ = ["Acknowledged", "Arrived", "Other", "Splitter", "TooLarge", "puback", "publish_head"]

_PUBLISH: Final = 0x30
_PUBACK: Final = 0x40
_START_BYTES: Final = 256 * 1024
_LENGTH_BYTES: Final = 4


class Arrived(NamedTuple):
    """A PUBLISH. ``packet_id`` is 0 at QoS 0."""

    topic: bytes
    payload: bytes
    packet_id: int
    retained: bool


class Acknowledged(NamedTuple):
    """A PUBACK."""

    packet_id: int


class TooLarge(NamedTuple):
    """A PUBLISH over the limit; its payload is skipped."""

    topic: bytes
    packet_id: int
    size: int


class Other(NamedTuple):
    """Any other packet, whole."""

    packet: bytes


@lru_cache(maxsize=4096)
def _topic_field(topic: str) -> bytes:
    encoded = topic.encode()
    if not 0 < len(encoded) < 65536 or b"+" in encoded or b"#" in encoded or b"\x00" in encoded:
        raise TransportError(f"topic to publish to: expected 1 to 65535 bytes without + # NUL, got {topic[:120]!r}")
    return len(encoded).to_bytes(2, "big") + encoded


def publish_head(topic: str, payload_bytes: int, packet_id: int, *, retain: bool) -> bytes:
    """All of a PUBLISH but its payload of ``payload_bytes``; QoS 1 if ``packet_id`` is not 0.

    Raises ``TransportError`` if one cannot publish to ``topic``.
    """
    field = _topic_field(topic)
    first = _PUBLISH | (0x02 if packet_id else 0) | (0x01 if retain else 0)
    remaining = len(field) + (2 if packet_id else 0) + payload_bytes
    head = bytearray((first,))
    while remaining > 127:
        head.append(remaining & 127 | 128)
        remaining >>= 7
    head.append(remaining)
    head += field
    if packet_id:
        head += packet_id.to_bytes(2, "big")
    return bytes(head)


def puback(packet_id: int) -> bytes:
    return bytes((_PUBACK, 2, packet_id >> 8, packet_id & 255))


class Splitter:
    """Cuts a stream into packets. ``space`` is where the next bytes go, ``fed`` says how many came.

    One buffer is used again and again; it grows to the largest packet, at most ``limit`` bytes, and shrinks after it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray(_START_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._skip = 0
        self._needs = 0

    def space(self) -> memoryview:
        """Room for at least one byte."""
        if self._start == self._end:
            self._start = self._end = 0
        kept = self._end - self._start
        wanted = max(_START_BYTES, self._needs)
        if len(self._buffer) != wanted and (self._needs > len(self._buffer) or not kept):
            grown = bytearray(wanted)
            grown[:kept] = self._view[self._start : self._end]
            self._buffer, self._view = grown, memoryview(grown)
            self._start, self._end = 0, kept
        elif self._start and (self._start + self._needs > len(self._buffer) or self._end == len(self._buffer)):
            self._buffer[:kept] = self._buffer[self._start : self._end]
            self._start, self._end = 0, kept
        return self._view[self._end :]

    def fed(self, count: int) -> Iterator[Arrived | Acknowledged | TooLarge | Other]:
        """The packets that ``count`` more bytes in ``space`` complete. Raises ``TransportError`` if it is not MQTT."""
        self._end += count
        while True:
            skipped = min(self._skip, self._end - self._start)
            self._skip -= skipped
            self._start += skipped
            packet = self._next()
            if packet is None:
                return
            yield packet

    def _next(self) -> Arrived | Acknowledged | TooLarge | Other | None:
        buffer, at, end = self._buffer, self._start + 1, self._end
        remaining = shift = 0
        while True:
            if at >= end:
                self._needs = 0
                return None
            byte = buffer[at]
            at += 1
            remaining |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
            if shift == 7 * _LENGTH_BYTES:
                raise TransportError("packet from the broker: expected a length of at most 4 bytes, got more")
        first, stop = buffer[self._start], at + remaining
        is_publish = first & 0xF0 == _PUBLISH
        if stop - self._start > self._limit:
            return self._too_large(first, at, stop)
        if stop > end:
            self._needs = stop - self._start
            return None
        begin, self._start, self._needs = self._start, stop, 0
        if is_publish:
            topic, packet_id, body = self._publish_fields(first, at, stop)
            return Arrived(topic, bytes(self._view[body:stop]), packet_id, bool(first & 1))
        if first & 0xF0 == _PUBACK and remaining == 2:
            return Acknowledged(buffer[at] << 8 | buffer[at + 1])
        return Other(bytes(self._view[begin:stop]))

    def _publish_fields(self, first: int, at: int, stop: int) -> tuple[bytes, int, int]:
        buffer = self._buffer
        after = at + 2 + (buffer[at] << 8 | buffer[at + 1]) if stop - at >= 2 else stop + 1
        body = after + 2 if first & 0x06 else after
        if body > stop:
            raise TransportError("PUBLISH from the broker: expected a topic within the packet, got a shorter packet")
        packet_id = buffer[after] << 8 | buffer[after + 1] if first & 0x06 else 0
        return bytes(self._view[at + 2 : after]), packet_id, body

    def _too_large(self, first: int, at: int, stop: int) -> TooLarge | None:
        if first & 0xF0 != _PUBLISH:
            raise TransportError(f"packet from the broker: expected at most {self._limit} bytes, got {stop - at}")
        have = self._end - at
        head = 4 + (self._buffer[at] << 8 | self._buffer[at + 1]) if have >= 2 else 4
        if have < head:
            self._needs = at - self._start + head
            return None
        topic, packet_id, body = self._publish_fields(first, at, stop)
        self._start, self._skip, self._needs = body, stop - body, 0
        return TooLarge(topic, packet_id, stop - at)
