"""The relays that the benchmark compares with: they come up, carry every message and end."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from mdi_exit.benchmark.relays import RelayResult, aiomqtt_relay, tcp_relay, transport_relay
from mdi_exit.items import percentile

LOAD = {"window": 8, "messages": 60, "round_trips": 10}


def fits(result: RelayResult, name: str, qos: int) -> None:
    assert (result.name, result.payload_bytes, result.qos, result.window, result.messages) == (name, 2000, qos, 8, 60)
    assert result.throughput_per_s == pytest.approx(60 / result.seconds)
    assert 0 < result.round_trip_p50_s <= result.round_trip_p90_s <= result.round_trip_p99_s
    assert "mdi_exit.benchmark.relays" not in [
        part for child in psutil.Process().children() for part in child.cmdline()
    ]


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize(("name", "relay"), [("aiomqtt", aiomqtt_relay), ("transport", transport_relay)])
async def test_over_mqtt(standing_mosquitto: str, name: str, relay: Any, qos: int) -> None:
    fits(await relay(standing_mosquitto, 2000, qos=qos, **LOAD), name, qos)


async def test_over_tcp() -> None:
    fits(await tcp_relay(2000, **LOAD), "asyncio TCP", 0)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1.0), (0.1, 1.0), (0.5, 5.0), (0.55, 6.0), (0.9, 9.0), (0.99, 10.0), (1.0, 10.0)]
)
def test_a_percentile_is_one_of_the_values(share: float, expected: float) -> None:
    assert percentile([float(number) for number in range(10, 0, -1)], share) == expected
    assert percentile([7.0], share) == 7.0
