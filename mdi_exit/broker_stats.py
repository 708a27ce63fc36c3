"""What Mosquitto says of itself under ``$SYS/broker/``, as metrics.

Topics and their metrics are in one table. A broker that publishes fewer of these gives fewer metrics; topics that are not in
the table are not read. Mosquitto publishes a value only when it has changed, so a value holds until another comes or the
connection is lost.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, Literal

from mdi_exit.topics import SYS_PREFIX

__all__ = ["BROKER_METRICS", "BrokerMetric", "BrokerStats", "reading"]

Reading = tuple[str, tuple[str, ...], float]

_PREFIX: Final = f"{SYS_PREFIX}broker/"
_MOST_BYTES: Final = 100
_NUMBER: Final = re.compile(r"[0-9]{1,19}(?:\.[0-9]{1,9})?")
_VERSION: Final = re.compile(r"[\x20-\x7e]{1,60}")


@dataclass(frozen=True, slots=True)
class BrokerMetric:
    """One metric of the broker: the topic under ``$SYS/broker/`` that carries it, and its row of the catalogue."""

    topic: str
    kind: Literal["counter", "gauge"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()


_M: Final = BrokerMetric
_C: Final[Literal["counter"]] = "counter"
_G: Final[Literal["gauge"]] = "gauge"

# fmt: off
_TABLE: Final[dict[str, BrokerMetric]] = {
    "info":                   _M("version",                   _G, "",              "1; the label says which.", ("version",)),
    "uptime_seconds":         _M("uptime",                    _G, "seconds",       "Time since the broker started."),
    "clients_connected":      _M("clients/connected",         _G, "clients",       "Clients connected now."),
    "clients_disconnected":   _M("clients/disconnected",      _G, "clients",       "Clients away with a session."),
    "clients_maximum":        _M("clients/maximum",           _G, "clients",       "Most clients connected at once."),
    "clients_expired":        _M("clients/expired",           _C, "sessions",      "Sessions given up: clients stayed away."),
    "messages_received":      _M("messages/received",         _C, "packets",       "MQTT packets of any type received."),
    "messages_sent":          _M("messages/sent",             _C, "packets",       "MQTT packets of any type sent."),
    "bytes_received":         _M("bytes/received",            _C, "bytes",         "Bytes received."),
    "bytes_sent":             _M("bytes/sent",                _C, "bytes",         "Bytes sent."),
    "publish_received":       _M("publish/messages/received", _C, "messages",      "Messages received."),
    "publish_sent":           _M("publish/messages/sent",     _C, "messages",      "Messages sent."),
    "publish_dropped":        _M("publish/messages/dropped",  _C, "messages",      "Messages dropped: a full queue."),
    "publish_received_bytes": _M("publish/bytes/received",    _C, "bytes",         "Payload bytes of received messages."),
    "publish_sent_bytes":     _M("publish/bytes/sent",        _C, "bytes",         "Payload bytes of sent messages."),
    "retained_messages":      _M("retained messages/count",   _G, "messages",      "Retained messages, its own too."),
    "stored_messages":        _M("store/messages/count",      _G, "messages",      "Messages kept, retained or waiting."),
    "stored_bytes":           _M("store/messages/bytes",      _G, "bytes",         "Payload bytes of the messages kept."),
    "subscriptions":          _M("subscriptions/count",       _G, "subscriptions", "Subscriptions of all clients."),
    "heap_bytes":             _M("heap/current",              _G, "bytes",         "Memory allocated."),
    "heap_maximum_bytes":     _M("heap/maximum",              _G, "bytes",         "Most memory allocated at once."),
}
# fmt: on

BROKER_METRICS: Final = {f"mdi_exit_mosquitto_{name}": metric for name, metric in _TABLE.items()}
_BY_TOPIC: Final = {f"{_PREFIX}{metric.topic}": name for name, metric in BROKER_METRICS.items()}


def reading(topic: str, payload: bytes) -> Reading | None:
    """The metric, its label values and its value that a ``$SYS`` message gives; None for what is not read, or malformed."""
    name = _BY_TOPIC.get(topic)
    if name is None or len(payload) > _MOST_BYTES:
        return None
    text = payload.decode("ascii", "replace")
    if BROKER_METRICS[name].labels:
        return (name, (text,), 1.0) if _VERSION.fullmatch(text) else None
    number = _NUMBER.match(text)  # "6 seconds" is a number too
    return (name, (), float(number[0])) if number and math.isfinite(float(number[0])) else None


class BrokerStats:
    """The latest values of the broker that we are connected to."""

    __slots__ = ("_latest",)

    def __init__(self) -> None:
        self._latest: dict[str, Reading] = {}

    def received(self, topic: str, payload: bytes) -> None:
        """Take in a message under ``$SYS/``."""
        if (found := reading(topic, payload)) is not None:
            self._latest[found[0]] = found

    def clear(self) -> None:
        """The connection is lost: what was known may no longer be so."""
        self._latest.clear()

    def samples(self) -> list[Reading]:
        """For the metrics endpoint, in the order of the table."""
        return [self._latest[name] for name in BROKER_METRICS if name in self._latest]
