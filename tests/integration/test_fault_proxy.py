"""The fault proxy between this project's transport and a real Mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from mdi_exit.chaos.packets import Trouble
from mdi_exit.chaos.proxy import FaultProxy
from mdi_exit.errors import StartError
from mdi_exit.transport.mqtt import MqttTransport


@pytest.fixture
async def proxy(mosquitto: Any) -> AsyncIterator[FaultProxy]:
    async with FaultProxy((mosquitto.host, mosquitto.port), rng=Random(1)) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def joined(url: str, handler: Any, name: str = "a") -> AsyncIterator[MqttTransport]:
    client = MqttTransport(url, client_id=f"{name}-{uuid.uuid4().hex}", handler=handler, keepalive_s=1)
    async with client:
        await client.subscribe("t/#", 1)
        await handler.until(lambda: handler.connects == 1)
        yield client


async def test_without_trouble_everything_passes_both_ways(proxy: FaultProxy, recorder: Any) -> None:
    handler = recorder()
    async with joined(proxy.url, handler) as client:
        assert [name[:2] for name in proxy.clients] == ["a-"]
        payloads = [bytes([number]) * 5000 for number in range(50)]
        for payload in payloads:
            assert client.publish("t/x", payload, qos=1)
        await handler.until(lambda: len(handler.messages) == 50)
        assert handler.payloads == payloads
    assert handler.reasons == []


async def test_one_client_is_cut_and_kept_out_and_let_in_again(proxy: FaultProxy, recorder: Any) -> None:
    cut, spared = recorder(), recorder()
    async with joined(proxy.url, cut, "cut"), joined(proxy.url, spared, "spared") as other:
        proxy.trouble("cut-*", Trouble(refuse=True))
        await cut.until(lambda: len(cut.reasons) >= 1)
        assert await other.publish_confirmed("t/x", b"still here")
        await spared.until(lambda: spared.payloads == [b"still here"])
        assert cut.connects == 1
        proxy.calm("cut-*")
        await cut.until(lambda: cut.connects == 2)
    assert spared.reasons == []


async def test_a_half_open_connection_answers_nothing_and_says_nothing(proxy: FaultProxy, recorder: Any) -> None:
    handler = recorder()
    async with joined(proxy.url, handler) as client:
        proxy.trouble("*", Trouble(silent=True))
        assert client.publish("t/x", b"swallowed")
        await handler.until(lambda: len(handler.reasons) == 1)
        assert handler.reasons[0].endswith("no answer within the keepalive interval")
        assert handler.messages == []
        assert proxy.counts["swallowed"] > 0
        proxy.calm("*")
        await handler.until(lambda: handler.connects == 2)
        assert await client.publish_confirmed("t/x", b"through")


async def test_messages_come_twice_changed_or_late_and_the_session_stays_sound(
    proxy: FaultProxy, recorder: Any
) -> None:
    handler = recorder()
    async with joined(proxy.url, handler) as client:
        proxy.trouble("*", Trouble(duplicate=0.5, corrupt=0.3, reorder=0.5))
        sent = [f"{number:04}".encode() for number in range(200)]
        for payload in sent:
            assert client.publish("t/x", payload)
        await handler.until(lambda: len(handler.messages) >= 200)
        proxy.calm("*")
        assert await client.publish_confirmed("t/end", b"end")
        await handler.until(lambda: b"end" in handler.payloads)
        came = [payload for payload in handler.payloads if payload in set(sent)]
        assert len(came) > len(set(came)), "some came twice"
        assert sorted(came) != came, "some were overtaken"
        assert proxy.counts["corrupted"] > 0
        assert len(set(came)) < 200, "some were changed"
    assert handler.reasons == [], "nobody noticed at the level of MQTT"


async def test_a_slow_way_pushes_back_on_the_sender_and_loses_nothing(proxy: FaultProxy, recorder: Any) -> None:
    handler = recorder()
    async with joined(proxy.url, handler) as client:
        proxy.trouble("*", Trouble(bytes_per_s=2_000_000.0, delay_s=0.01))
        for _ in range(100):
            assert client.publish("t/x", bytes(20_000))
        assert client.pending_bytes() > 0
        await handler.until(lambda: len(handler.messages) == 100, 60)
    assert handler.reasons == []


async def test_a_packet_of_ones_own_comes_between_the_brokers(proxy: FaultProxy, recorder: Any) -> None:
    handler = recorder()
    async with joined(proxy.url, handler):
        proxy.send("nobody-*", b"\x30\x05\x00\x01txy")
        proxy.send("a-*", b"\x30\x05\x00\x01tok")
        await handler.until(lambda: handler.payloads == [b"ok"])


async def test_a_broker_that_is_away_is_a_closed_connection(mosquitto: Any, proxy: FaultProxy, recorder: Any) -> None:
    handler = recorder()
    async with joined(proxy.url, handler):
        mosquitto.kill()
        await handler.until(lambda: len(handler.reasons) >= 1)
        mosquitto.start()
        await handler.until(lambda: handler.connects == 2)


async def test_a_port_that_is_taken_is_told(proxy: FaultProxy) -> None:
    with pytest.raises(StartError, match=r"proxy on 127\.0\.0\.1"):
        async with FaultProxy(("127.0.0.1", 1), port=proxy.port):
            await asyncio.sleep(0)
