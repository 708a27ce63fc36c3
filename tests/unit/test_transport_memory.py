"""What the broker in memory does on request that a real one only does when it hurts."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from mdi_exit.transport import topic_matches
from mdi_exit.transport.memory import MemoryBroker, MemoryTransport


async def pair(broker: MemoryBroker, recorder: Any, qos: int, count: int, size: int = 1) -> tuple[Any, float]:
    """Publish ``count`` messages and wait until the link is empty; gives the receiver and the seconds it took."""
    receiving, sending = recorder(), recorder()
    loop = asyncio.get_running_loop()
    async with (
        MemoryTransport(broker, client_id="r", handler=receiving) as receiver,
        MemoryTransport(broker, client_id="s", handler=sending) as sender,
    ):
        await receiver.subscribe("a", qos)
        await receiving.until(lambda: receiving.connects == 1)
        await sending.until(lambda: sending.connects == 1)
        begin = loop.time()
        for number in range(count):
            assert sender.publish("a", b"%d" % number + bytes(size), qos=qos)
        async with asyncio.timeout(10):
            while receiver.queued:
                await asyncio.sleep(0.001)
        return receiving, loop.time() - begin


async def test_delay(recorder: Any) -> None:
    receiving, seconds = await pair(MemoryBroker(delay_s=0.05), recorder, 0, 10)
    assert len(receiving.messages) == 10
    assert seconds >= 0.05


async def test_bandwidth(recorder: Any) -> None:
    receiving, seconds = await pair(MemoryBroker(bytes_per_s=100_000), recorder, 0, 10, size=1_000)
    assert len(receiving.messages) == 10
    assert seconds >= 0.1


@pytest.mark.parametrize("qos", [0, 1])
async def test_loss_strikes_qos_0_only_and_is_counted_and_repeatable(recorder: Any, qos: int) -> None:
    brokers = [MemoryBroker(loss=0.3, rng=Random(5)) for _ in range(2)]
    first, second = [(await pair(broker, recorder, qos, 200))[0].payloads for broker in brokers]
    assert first == second
    assert len(first) == 200 - brokers[0].dropped
    assert (brokers[0].dropped > 0) == (qos == 0)


async def test_duplicates_at_qos_1(recorder: Any) -> None:
    receiving, _ = await pair(MemoryBroker(twice=0.5), recorder, 1, 100)
    assert len(set(receiving.payloads)) == 100
    assert len(receiving.payloads) > 100


async def test_a_full_link_drops_qos_0_and_counts_it(recorder: Any) -> None:
    broker = MemoryBroker(max_queued=10, delay_s=0.01)
    receiving, _ = await pair(broker, recorder, 0, 50)
    assert len(receiving.messages) == 10
    assert broker.dropped == 40


async def test_a_stopped_broker_refuses_and_comes_back_with_or_without_its_memory(recorder: Any) -> None:
    broker, handler = MemoryBroker(), recorder()
    async with MemoryTransport(broker, client_id="c", handler=handler) as client:
        await handler.until(lambda: handler.connects == 1)
        await client.subscribe("a")
        assert client.publish("a", b"kept", retain=True)
        await handler.until(lambda: len(handler.messages) == 1)
        broker.stop()
        assert handler.reasons == ["broker in memory: connection lost"]
        assert not client.publish("a", b"x")
        broker.start()
        await handler.until(lambda: handler.payloads == [b"kept", b"kept"])
        broker.stop(forget=True)
        broker.start()
        await handler.until(lambda: handler.connects == 3)
        assert broker.retained == {}


async def test_a_broker_that_is_down_is_told_once(recorder: Any) -> None:
    broker, handler = MemoryBroker(up=False), recorder()
    async with MemoryTransport(broker, client_id="c", handler=handler, reconnect_s=0.001) as client:
        await handler.until(lambda: len(handler.reasons) == 1)
        await asyncio.sleep(0.01)
        assert not client.connected
        broker.start()
        await handler.until(lambda: handler.connects == 1)
    assert len(handler.reasons) == 1


@pytest.mark.parametrize(
    ("pattern", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/", True),
        ("+", "a/b", False),
        ("+/+", "/a", True),
        ("#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "ab", False),
        ("#", "$SYS/uptime", False),
        ("+/uptime", "$SYS/uptime", False),
        ("$SYS/#", "$SYS/uptime", True),
        ("a/b/c", "a/b", False),
    ],
)
def test_topics(pattern: str, topic: str, matches: bool) -> None:
    assert topic_matches(pattern, topic) is matches
