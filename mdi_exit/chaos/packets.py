"""An MQTT 3.1.1 stream cut into whole packets, and a few of them troubled. Pure: no socket, no clock.

The transport's own splitter hands out what a receiver wants; here every packet is kept as it came, to be passed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from mdi_exit.errors import TransportError

__all__ = ["CALM", "Packets", "Trouble", "client_id", "corrupted", "is_publish", "payload_at", "troubled"]

_CONNECT: Final = 0x10
_PUBLISH: Final = 0x30
_LENGTH_BYTES: Final = 4
_LATE_S: Final = (0.02, 0.2)
_MOST_FLIPPED: Final = 4


@dataclass(frozen=True, slots=True)
class Trouble:
    """What happens to connections. ``corrupt``, ``duplicate``, ``reorder``: shares of the PUBLISH packets, each way.

    ``refuse``: nobody is let in; ``silent``: half-open, everything is accepted and nothing answered; ``delay_s`` each way;
    ``bytes_per_s`` each way, None: as fast as it goes.
    """

    refuse: bool = False
    silent: bool = False
    delay_s: float = 0.0
    bytes_per_s: float | None = None
    corrupt: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0


CALM: Final = Trouble()


class Packets:
    """Whole packets of one direction of one connection."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def fed(self, chunk: bytes) -> list[bytes]:
        """The packets that ``chunk`` completes. Raises ``TransportError`` if it is not MQTT."""
        self._rest += chunk
        found = []
        while (stop := _packet_end(self._rest)) is not None and stop <= len(self._rest):
            found.append(bytes(self._rest[:stop]))
            del self._rest[:stop]
        return found


def _head(packet: bytes | bytearray) -> tuple[int, int] | None:
    """Where the body begins and how long it is; None: not all of the head is there."""
    length = 0
    for place in range(1, _LENGTH_BYTES + 1):
        if place >= len(packet):
            return None
        length |= (packet[place] & 127) << 7 * (place - 1)
        if packet[place] < 128:
            return place + 1, length
    raise TransportError("MQTT packet: expected a length of at most 4 bytes, got more")


def _packet_end(buffer: bytearray) -> int | None:
    head = _head(buffer)
    return None if head is None else sum(head)


def is_publish(packet: bytes) -> bool:
    return packet[0] & 0xF0 == _PUBLISH


def payload_at(packet: bytes) -> int:
    """Where the payload of a whole PUBLISH begins; its length where there is none."""
    at, _ = _head(packet) or (len(packet), 0)
    topic_bytes = int.from_bytes(packet[at : at + 2], "big")
    has_id = packet[0] & 0x06 != 0
    return min(at + 2 + topic_bytes + (2 if has_id else 0), len(packet))


def client_id(packet: bytes) -> str | None:
    """Who a CONNECT is from; None: it is no CONNECT."""
    if packet[0] & 0xF0 != _CONNECT:
        return None
    at, _ = _head(packet) or (len(packet), 0)
    at += 2 + int.from_bytes(packet[at : at + 2], "big") + 4  # protocol's name, level, flags, keepalive
    size = int.from_bytes(packet[at : at + 2], "big")
    return packet[at + 2 : at + 2 + size].decode(errors="replace")


def corrupted(packet: bytes, rng: Random) -> bytes:
    """A PUBLISH with one to four bytes of its payload changed; one without a payload as it is."""
    begin = payload_at(packet)
    if begin == len(packet):
        return packet
    changed = bytearray(packet)
    for _ in range(rng.randint(1, _MOST_FLIPPED)):
        changed[rng.randrange(begin, len(packet))] ^= rng.randint(1, 255)
    return packet if bytes(changed) == packet else bytes(changed)


def troubled(packet: bytes, trouble: Trouble, rng: Random) -> list[tuple[float, bytes]]:
    """What becomes of a packet: (seconds until it goes on, bytes), in no order. Only PUBLISH packets are harmed."""
    late_s = trouble.delay_s
    if not is_publish(packet):
        return [(late_s, packet)]
    if rng.random() < trouble.corrupt:
        packet = corrupted(packet, rng)
    if rng.random() < trouble.reorder:
        late_s += rng.uniform(*_LATE_S)
    found = [(late_s, packet)]
    if rng.random() < trouble.duplicate:
        found.append((trouble.delay_s + rng.uniform(0.0, _LATE_S[1]), packet))
    return found
