"""What the broker says of itself becomes metrics, and nothing that it says does harm."""

from __future__ import annotations

import pytest

from mdi_exit.broker_stats import BROKER_METRICS, BrokerStats, reading
from mdi_exit.metrics import CATALOGUE

VALUES = {
    "version": b"mosquitto version 2.0.11",
    "uptime": b"6 seconds",
    "clients/connected": b"3",
    "messages/received": b"120",
    "publish/messages/dropped": b"0",
    "retained messages/count": b"53",
    "heap/current": b"46760",
}


@pytest.mark.parametrize(
    ("topic", "payload", "sample"),
    [
        ("$SYS/broker/version", b"mosquitto version 2.0.11", ("info", ("mosquitto version 2.0.11",), 1.0)),
        ("$SYS/broker/uptime", b"6 seconds", ("uptime_seconds", (), 6.0)),
        ("$SYS/broker/bytes/sent", b"3509", ("bytes_sent", (), 3509.0)),
        ("$SYS/broker/retained messages/count", b"53", ("retained_messages", (), 53.0)),
        ("$SYS/broker/publish/messages/dropped", b"7", ("publish_dropped", (), 7.0)),
        ("$SYS/broker/store/messages/bytes", b"1.5", ("stored_bytes", (), 1.5)),
    ],
)
def test_a_topic_of_the_table_gives_its_metric(
    topic: str, payload: bytes, sample: tuple[str, tuple[str, ...], float]
) -> None:
    name, labels, value = sample
    assert reading(topic, payload) == (f"mdi_exit_mosquitto_{name}", labels, value)


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("$SYS/broker/load/bytes/sent/1min", b"12.5"),  # rates are Prometheus's to make
        ("$SYS/brokers/node/uptime", b"6"),  # another broker's way
        ("broker/uptime", b"6 seconds"),
        ("$SYS/broker/uptime", b"some time"),
        ("$SYS/broker/uptime", b"-3"),
        ("$SYS/broker/uptime", b""),
        ("$SYS/broker/uptime", b"1" * 101),
        ("$SYS/broker/uptime", b"\xff\xfe"),
        ("$SYS/broker/version", b"two\nlines"),
        ("$SYS/broker/version", b"v" * 61),
        ("$SYS/broker/version", b""),
    ],
)
def test_what_is_not_read_or_malformed_gives_nothing(topic: str, payload: bytes) -> None:
    assert reading(topic, payload) is None
    stats = BrokerStats()
    stats.received(topic, payload)
    assert stats.samples() == []


def test_the_latest_value_holds_until_the_connection_is_lost() -> None:
    stats = BrokerStats()
    for tail, payload in VALUES.items():
        stats.received(f"$SYS/broker/{tail}", payload)
    stats.received("$SYS/broker/clients/connected", b"4")
    stats.received("$SYS/broker/clients/connected", b"nonsense")
    samples = {name: value for name, _, value in stats.samples()}
    assert len(samples) == len(VALUES)
    assert samples["mdi_exit_mosquitto_clients_connected"] == 4.0
    stats.clear()
    assert stats.samples() == []


def test_another_version_takes_the_place_of_the_one_before() -> None:
    stats = BrokerStats()
    stats.received("$SYS/broker/version", b"mosquitto version 2.0.11")
    stats.received("$SYS/broker/version", b"mosquitto version 2.0.22")
    assert [labels for _, labels, _ in stats.samples()] == [("mosquitto version 2.0.22",)]


def test_the_metrics_are_in_the_catalogue_and_each_topic_gives_one() -> None:
    assert set(BROKER_METRICS) <= set(CATALOGUE)
    topics = [metric.topic for metric in BROKER_METRICS.values()]
    assert len(set(topics)) == len(topics)
