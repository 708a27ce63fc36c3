"""What a driver may count on, whatever carries its messages: memory, Mosquitto, amqtt."""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from mdi_exit.errors import TransportError
from mdi_exit.transport import Transport, Will
from mdi_exit.transport.memory import MemoryBroker, MemoryTransport
from mdi_exit.transport.mqtt import MqttTransport

LIMIT = 300_000


@dataclass
class Network:
    """A broker of some kind. ``topic`` makes names of this test only: brokers are shared between tests."""

    url: str | None
    kind: str
    memory: MemoryBroker = field(default_factory=MemoryBroker)
    prefix: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:8]}")

    def topic(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def client(self, handler: Any, will: Will | None = None) -> Transport:
        client_id = uuid.uuid4().hex
        if self.url is None:
            return MemoryTransport(self.memory, client_id=client_id, handler=handler, will=will, max_packet_bytes=LIMIT)
        return MqttTransport(self.url, client_id=client_id, handler=handler, will=will, max_packet_bytes=LIMIT)

    def kill(self, client: Transport) -> None:
        """The client's connection breaks; no goodbye."""
        if isinstance(client, MemoryTransport):
            self.memory.kill(client.client_id)
        elif isinstance(client, MqttTransport):
            assert client.socket is not None
            client.socket.shutdown(socket.SHUT_RDWR)


@pytest.fixture(params=["memory", "mosquitto", "amqtt"])
def network(request: pytest.FixtureRequest) -> Network:
    if request.param == "memory":
        return Network(None, "memory")
    return Network(request.getfixturevalue(f"standing_{request.param}"), request.param)


async def up(*handlers: Any) -> None:
    for handler in handlers:
        await handler.until(lambda handler=handler: handler.connects > 0)


@pytest.mark.parametrize("qos", [0, 1])
async def test_messages_of_one_publisher_arrive_in_order(network: Network, recorder: Any, qos: int) -> None:
    receiving, sending = recorder(), recorder()
    async with network.client(receiving) as receiver, network.client(sending) as sender:
        await up(receiving, sending)
        await receiver.subscribe(network.topic("a"), qos)
        sent = [f"{number}".encode() for number in range(300)]
        for payload in sent:
            assert sender.publish(network.topic("a"), payload, qos=qos)
        await receiving.until(lambda: len(receiving.messages) == len(sent))
    assert receiving.payloads == sent
    assert receiver.counters.messages_in == 300
    assert receiver.counters.bytes_in == sum(map(len, sent)) == sender.counters.bytes_out


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("a/b", ["a/b"], ["a", "a/b/c", "a/c"]),
        ("a/+", ["a/b", "a/c"], ["a", "a/b/c", "b/a"]),
        ("a/+/c", ["a/b/c"], ["a/b", "a/b/d", "a/b/c/d"]),
        ("a/#", ["a", "a/b", "a/b/c"], ["b", "ab"]),
        ("#", ["a", "b/c"], []),
    ],
)
async def test_wildcards(network: Network, recorder: Any, pattern: str, matching: list[str], other: list[str]) -> None:
    handler = recorder()
    async with network.client(handler) as client:
        await up(handler)
        await client.subscribe(network.topic(pattern))
        await client.subscribe(network.topic("z/end"))
        for name in [*other, *matching, "z/end"]:
            assert client.publish(network.topic(name), b"x")
        await handler.until(lambda: network.topic("z/end") in [topic for topic, *_ in handler.messages])
    got = {topic for topic, *_ in handler.messages} - {network.topic("z/end")}
    assert got == {network.topic(name) for name in matching}


async def test_a_subscription_made_before_the_connection_holds(network: Network, recorder: Any) -> None:
    handler = recorder()
    client = network.client(handler)
    await client.subscribe(network.topic("a"))
    async with client:
        await up(handler)
        assert client.publish(network.topic("a"), b"x")
        await handler.until(lambda: handler.payloads == [b"x"])


async def test_after_unsubscribing_nothing_comes(network: Network, recorder: Any) -> None:
    handler = recorder()
    async with network.client(handler) as client:
        await up(handler)
        await client.subscribe(network.topic("a"))
        await client.subscribe(network.topic("b"))
        await client.unsubscribe(network.topic("a"))
        assert client.publish(network.topic("a"), b"no")
        assert client.publish(network.topic("b"), b"yes")
        await handler.until(lambda: bool(handler.messages))
    assert handler.payloads == [b"yes"]


async def test_retained_messages_are_remembered_replaced_and_deleted(network: Network, recorder: Any) -> None:
    writing, late, later = recorder(), recorder(), recorder()
    a, b, end = network.topic("a"), network.topic("b"), network.topic("end")
    async with network.client(writing) as writer:
        await up(writing)
        for topic, payload in ((a, b"1"), (a, b"2"), (b, b"3"), (end, b"end")):
            assert await writer.publish_confirmed(topic, payload, retain=True)
        async with network.client(late) as reader:
            await up(late)
            await reader.subscribe(network.topic("#"), 1)
            await late.until(lambda: len(set(late.messages)) >= 3)
        assert set(late.messages) == {
            (a, b"2", True),
            (b, b"3", True),
            (end, b"end", True),
        }  # once or, at QoS 1, more often
        assert await writer.publish_confirmed(a, b"", retain=True)
        async with network.client(later) as reader:
            await up(later)
            await reader.subscribe(network.topic("#"), 1)
            assert writer.publish(network.topic("last"), b"last", qos=1)
            await later.until(lambda: b"last" in later.payloads)
            await later.until(lambda: len(set(later.messages)) >= 3)
        assert set(later.payloads) == {b"3", b"end", b"last"}
        assert {topic for topic, _, retained in later.messages if retained} == {b, end}
        for topic in (b, end):
            assert await writer.publish_confirmed(topic, b"", retain=True)


async def test_a_killed_client_leaves_its_will_and_comes_back(network: Network, recorder: Any) -> None:
    watching, dying = recorder(), recorder()
    will = Will(network.topic("status"), b"gone: start 7")
    async with network.client(watching) as watcher, network.client(dying, will) as client:
        await up(watching, dying)
        await watcher.subscribe(network.topic("status"), 1)
        await client.subscribe(network.topic("work"))
        network.kill(client)
        await watching.until(lambda: set(watching.payloads) == {b"gone: start 7"})
        await dying.until(lambda: dying.connects == 2)
        assert len(dying.reasons) == 1
        assert dying.reasons[0].startswith("broker ")
        assert client.counters.reconnects == 1
        assert watcher.publish(network.topic("work"), b"again")
        await dying.until(lambda: dying.payloads == [b"again"])
        assert await watcher.publish_confirmed(network.topic("status"), b"", retain=True)


async def test_a_clean_close_sends_what_was_accepted_and_no_will(network: Network, recorder: Any) -> None:
    watching, leaving = recorder(), recorder()
    async with network.client(watching) as watcher:
        await up(watching)
        await watcher.subscribe(network.topic("#"), 1)
        async with network.client(leaving, Will(network.topic("will"), b"will")) as client:
            await up(leaving)
            await client.subscribe(network.topic("#"))  # what it is sent meanwhile must not spoil its goodbye
            for number in range(50):
                assert client.publish(network.topic("last"), b"%d" % number, qos=number % 2)
        assert not client.connected
        if network.kind != "amqtt":  # which drops what it has not yet passed on when its sender says goodbye
            await watching.until(lambda: len(watching.messages) == 50)
        assert watcher.publish(network.topic("end"), b"end", qos=1)
        await watching.until(lambda: b"end" in watching.payloads)
    assert b"will" not in watching.payloads
    assert leaving.reasons == []


async def test_an_oversize_message_is_refused_and_the_connection_stays(network: Network, recorder: Any) -> None:
    handler = recorder()
    async with network.client(handler) as client:
        await up(handler)
        await client.subscribe(network.topic("a"))
        with pytest.raises(TransportError, match="expected at most 300000 bytes, got 300001"):
            client.publish(network.topic("a"), bytes(LIMIT + 1))
        with pytest.raises(TransportError, match="expected at most"):
            await client.publish_confirmed(network.topic("a"), bytes(LIMIT))
        payload = bytes(LIMIT - 64)
        assert client.publish(network.topic("a"), payload)
        await handler.until(lambda: len(handler.messages) == 1)
    assert handler.payloads == [payload]
    assert client.counters.oversize == 2
    assert handler.connects == 1


@pytest.mark.parametrize("topic", ["a/+", "a/#", "", "a\x00b"])
async def test_a_topic_that_cannot_be_published_to_is_refused(network: Network, recorder: Any, topic: str) -> None:
    handler = recorder()
    async with network.client(handler) as client:
        await up(handler)
        with pytest.raises(TransportError, match="topic to publish to"):
            client.publish(topic, b"x")
        assert client.connected


@pytest.mark.parametrize("qos", [0, 1])
async def test_nothing_is_dropped_with_a_window_of_credits(network: Network, recorder: Any, qos: int) -> None:
    receiving, sending = recorder(), recorder()
    count = 1000 if network.kind == "amqtt" else 5000
    async with network.client(receiving) as receiver, network.client(sending) as sender:
        await up(receiving, sending)
        await receiver.subscribe(network.topic("a"), qos)
        for number in range(count):
            await receiving.until(lambda number=number: number - len(receiving.messages) < 64)
            assert sender.publish(network.topic("a"), b"%d" % number, qos=qos)
        await receiving.until(lambda: len(receiving.messages) == count)
    assert receiving.payloads == [b"%d" % number for number in range(count)]


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_burst_to_a_slow_handler_arrives_whole_and_in_order(network: Network, recorder: Any, qos: int) -> None:
    class Slow(recorder):  # type: ignore[misc]
        def on_message(self, topic: str, payload: bytes, retained: bool, /) -> None:
            time.sleep(0.0001)  # work that holds up the loop
            super().on_message(topic, payload, retained)

    handler = Slow()
    count = 1000 if network.kind == "amqtt" else 5000
    async with network.client(handler) as client:
        await up(handler)
        await client.subscribe(network.topic("a"), qos)
        assert all(client.publish(network.topic("a"), b"%d" % number, qos=qos) for number in range(count))
        await handler.until(lambda: len(handler.messages) == count)
    assert handler.payloads == [b"%d" % number for number in range(count)]
    assert client.counters.refused == 0


async def test_confirmed_means_that_the_broker_has_it(network: Network, recorder: Any) -> None:
    handler = recorder()
    async with network.client(handler) as client:
        await up(handler)
        await client.subscribe(network.topic("a"), 1)
        confirmed = await asyncio.gather(*(client.publish_confirmed(network.topic("a"), b"%d" % n) for n in range(40)))
        assert all(confirmed)
        await handler.until(lambda: len(handler.messages) == 40)


async def test_while_disconnected_a_publish_says_so(network: Network, recorder: Any) -> None:
    client = network.client(recorder())
    assert not client.connected
    assert not client.publish(network.topic("a"), b"x")
    assert not await client.publish_confirmed(network.topic("a"), b"x")
    assert client.counters.refused == 2
    assert client.pending_bytes() == 0


async def test_a_handler_that_fails_does_not_stop_delivery(network: Network, recorder: Any, caplog: Any) -> None:
    class Failing(recorder):  # type: ignore[misc]
        def on_message(self, topic: str, payload: bytes, retained: bool, /) -> None:
            super().on_message(topic, payload, retained)
            raise ValueError("of the handler")

        def on_connected(self) -> None:
            super().on_connected()
            raise ValueError("of the handler")

    handler = Failing()
    async with network.client(handler) as client:
        await up(handler)
        await client.subscribe(network.topic("a"), 1)
        for number in range(10):
            assert client.publish(network.topic("a"), b"%d" % number, qos=1)
        await handler.until(lambda: len(handler.messages) == 10)
        assert client.connected
    assert client.counters.handler_errors == 11
    assert handler.reasons == []
    assert "handling a message" in caplog.text


async def test_binary_payloads_come_as_they_went(network: Network, recorder: Any) -> None:
    handler = recorder()
    payloads = [b"", bytes(range(256)), b"\x00" * 127, b"\xff" * 128, bytes(16383), bytes(16384), bytes(200_000)]
    async with network.client(handler) as client:
        await up(handler)
        await client.subscribe(network.topic("a"))
        for payload in payloads:
            assert client.publish(network.topic("a"), payload)
        await handler.until(lambda: len(handler.messages) == len(payloads))
    assert handler.payloads == payloads


async def test_publishing_from_a_handler(network: Network, recorder: Any) -> None:
    handler = recorder()
    clients: list[Transport] = []

    def answer(original: Callable[[str, bytes, bool], None]) -> Callable[[str, bytes, bool], None]:
        def on_message(topic: str, payload: bytes, retained: bool, /) -> None:
            original(topic, payload, retained)
            if int(payload) < 50:
                clients[0].publish(topic, b"%d" % (int(payload) + 1), qos=int(payload) % 2)

        return on_message

    handler.on_message = answer(handler.on_message)
    async with network.client(handler) as client:
        clients.append(client)
        await up(handler)
        await client.subscribe(network.topic("a"), 1)
        assert client.publish(network.topic("a"), b"0")
        await handler.until(lambda: len(handler.messages) == 51)
    assert handler.payloads == [b"%d" % number for number in range(51)]
