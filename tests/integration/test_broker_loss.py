"""The transport when the broker is late, leaves, dies, freezes, refuses or is no broker."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiomqtt
import paho.mqtt.client
import pytest

from broker.embedded import free_port
from mdi_exit.errors import UsageError
from mdi_exit.transport import Will
from mdi_exit.transport import mqtt as module
from mdi_exit.transport.mqtt import MqttTransport


@pytest.fixture(autouse=True)
async def quiet_loop() -> AsyncIterator[None]:
    """Whatever a dying socket does, nothing may reach the loop's handler of last resort."""
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
    yield
    assert seen == []


def client(url: str, handler: Any, **options: Any) -> MqttTransport:
    return MqttTransport(url, client_id=uuid.uuid4().hex, handler=handler, **options)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_broker_that_comes_back_finds_its_clients(mosquitto: Any, recorder: Any, end: str) -> None:
    handler = recorder()
    async with client(mosquitto.url, handler) as transport:
        await transport.subscribe("a/+", 1)
        await handler.until(lambda: handler.connects == 1)
        getattr(mosquitto, end)()
        await handler.until(lambda: len(handler.reasons) >= 1)
        assert not transport.connected
        assert transport.socket is None or transport.socket.fileno() < 0 or not transport.publish("a/b", b"lost")
        assert not transport.publish("a/b", b"lost", qos=1)
        assert not await transport.publish_confirmed("a/b", b"lost")
        await transport.subscribe("b/+", 1)
        mosquitto.start()
        await handler.until(lambda: handler.connects == 2)
        assert await transport.publish_confirmed("a/b", b"a")
        assert await transport.publish_confirmed("b/b", b"b")
        await handler.until(lambda: handler.payloads == [b"a", b"b"])
    assert transport.counters.reconnects == 1
    assert "closed the connection" in handler.reasons[0] or "reset" in handler.reasons[0].lower()


async def test_a_broker_that_is_late_is_waited_for_and_its_absence_told_once(mosquitto: Any, recorder: Any) -> None:
    mosquitto.stop()
    handler, attempts = recorder(), asyncio.Semaphore(0)

    async def turn_away(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x20\x02\x00\x03")  # CONNACK: server unavailable
        attempts.release()
        writer.close()

    server = await asyncio.start_server(turn_away, "127.0.0.1", mosquitto.port)
    async with client(mosquitto.url, handler) as transport:
        async with server:
            for _ in range(4):  # several attempts, all for the same reason
                await asyncio.wait_for(attempts.acquire(), 20)
        mosquitto.start()
        await handler.until(lambda: handler.connects == 1)
        assert transport.counters.reconnects == 0
    assert len(handler.reasons) == len(set(handler.reasons))
    assert handler.reasons[0].startswith(f"broker {mosquitto.url}: refused: ")


async def test_a_peer_that_hangs_up_at_once_does_not_upset_the_loop(
    recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port forwarder with nothing behind it. The loop is about to see the end just when the greeting is to be written."""
    is_reading, is_greeted, attempts = threading.Event(), threading.Event(), asyncio.Semaphore(0)
    paho_client = paho.mqtt.client.Client
    greet, read = paho_client._send_connect, paho_client.loop_read

    def greet_meanwhile(self: Any, *arguments: Any) -> Any:
        is_reading.wait(10)
        try:
            return greet(self, *arguments)
        finally:
            is_greeted.set()

    def read_late(self: Any, *arguments: Any) -> Any:
        is_reading.set()
        is_greeted.wait(10)
        attempts.release()
        return read(self, *arguments)

    monkeypatch.setattr(paho_client, "_send_connect", greet_meanwhile)
    monkeypatch.setattr(paho_client, "loop_read", read_late)
    monkeypatch.setattr(module, "_ANSWER_S", 0.2)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    handler = recorder()
    async with server, client(f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}", handler):
        await asyncio.wait_for(attempts.acquire(), 20)
        await handler.until(lambda: bool(handler.reasons))
    assert handler.connects == 0


@pytest.mark.parametrize("when", ["at once", "once connected"])
async def test_a_broker_that_accepts_and_closes_is_asked_again_less_and_less_often(
    recorder: Any, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    waits: list[float] = []
    handler = recorder()

    def jitter(least: float, most: float) -> float:
        waits.append(most)
        return least

    monkeypatch.setattr(module.random, "uniform", jitter)
    monkeypatch.setattr(module, "_LASTING_S", 60.0)  # on a busy machine even a connection that is closed at once lasts

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\x00\x04MQTT\x04")
        before = handler.connects
        writer.write(b"\x20\x02\x00\x00")
        if when == "once connected":
            await handler.until(lambda: handler.connects > before)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server, client(f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}", handler) as transport:
        await handler.until(lambda: bool(handler.reasons))
        task = transport._task
        assert task is not None
        async with asyncio.timeout(20):
            while len(waits) < 8:
                assert not task.done()
                await asyncio.sleep(0.005)
    assert waits[:8] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0], "as for a short outage: this one is"


async def test_a_connection_that_lives_is_not_given_up_because_subscriptions_are_answered_late(
    recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind what is retained of a whole model, on a slow link."""
    monkeypatch.setattr(module, "_ANSWER_S", 0.2)

    async def answer_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\x00\x04MQTT\x04")
        writer.write(b"\x20\x02\x00\x00")
        asked = await reader.readuntil(b"\x00\x03a/b")
        await asyncio.sleep(4 * module._ANSWER_S)
        writer.write(b"\x90\x03" + asked[-7:-5] + b"\x01")
        await reader.read()
        writer.close()

    handler, server = recorder(), await asyncio.start_server(answer_late, "127.0.0.1", 0)
    async with server, client(f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}", handler) as transport:
        await transport.subscribe("a/b", 1)
        await handler.until(lambda: handler.connects or handler.reasons)
        assert handler.reasons == []
        assert transport.connected


async def test_who_is_to_stop_waits_for_no_answer_to_its_subscriptions(recorder: Any) -> None:
    asked = asyncio.Event()

    async def answer_never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\x00\x04MQTT\x04")
        writer.write(b"\x20\x02\x00\x00")
        await reader.readuntil(b"\x00\x03a/b")
        asked.set()
        await reader.read()
        writer.close()

    handler, server = recorder(), await asyncio.start_server(answer_never, "127.0.0.1", 0)
    url = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(20), server, client(url, handler, keepalive_s=60) as transport:
        await transport.subscribe("a/b", 1)
        await asked.wait()
    assert handler.connects == 0


async def test_an_answer_to_who_has_stopped_waiting_is_no_news(recorder: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It may come between the end of the wait and the goodbye: too short a time to be hit from outside."""
    library = aiomqtt.Client(**client("mqtt://127.0.0.1:1", recorder())._options)
    library._on_subscribe(library._client, None, 1, [])
    assert caplog.records == []


async def test_a_slow_broker_that_still_takes_what_waits_is_not_given_up(recorder: Any) -> None:
    """Its answer to a ping waits behind a long message of ours for longer than the keepalive interval."""
    payload, received = bytes(1_000_000), asyncio.Event()

    async def read_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\x00\x04MQTT\x04")
        writer.write(b"\x20\x02\x00\x00")
        left = 8 * len(payload)
        while left > 0:
            left -= len(await reader.read(20_000))
            await asyncio.sleep(0.01)  # a link of at most 2 MB/s
        received.set()
        await reader.read()
        writer.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        server = await asyncio.start_server(read_slowly, sock=listener, limit=20_000)
        handler, url = recorder(), f"mqtt://127.0.0.1:{listener.getsockname()[1]}"
        async with server, client(url, handler, keepalive_s=1) as transport:
            await handler.until(lambda: handler.connects == 1)
            for _ in range(8):
                assert transport.publish("a", payload)
            assert transport.pending_bytes() > 0
            await asyncio.wait_for(received.wait(), 60)
            assert handler.reasons == []


async def test_the_first_confirmed_message_after_the_loss_is_answered_false_not_hung(
    mosquitto: Any, recorder: Any
) -> None:
    handler = recorder()
    async with client(mosquitto.url, handler, keepalive_s=60) as transport:
        await handler.until(lambda: handler.connects == 1)
        mosquitto.freeze()
        waiting = asyncio.create_task(transport.publish_confirmed("a", b"x", timeout_s=60))
        await asyncio.sleep(0)
        mosquitto.kill()
        assert await waiting is False


async def test_a_frozen_broker_is_noticed(mosquitto: Any, recorder: Any) -> None:
    handler = recorder()
    async with client(mosquitto.url, handler, keepalive_s=1) as transport:
        await handler.until(lambda: handler.connects == 1)
        mosquitto.freeze()
        assert not await transport.publish_confirmed("a", b"x", timeout_s=0.05)
        await handler.until(lambda: len(handler.reasons) == 1)
        assert handler.reasons[0].endswith("no answer within the keepalive interval")
        mosquitto.thaw()
        await handler.until(lambda: handler.connects == 2)


async def test_what_a_stalled_broker_does_not_take_is_bounded_and_then_arrives(mosquitto: Any, recorder: Any) -> None:
    handler, payload, most = recorder(), bytes(200_000), 4_000_000
    async with client(mosquitto.url, handler, keepalive_s=60, max_pending_bytes=most) as transport:
        await transport.subscribe("a")
        await handler.until(lambda: handler.connects == 1)
        mosquitto.freeze()
        taken = 0
        while transport.publish("a", payload):
            taken += 1
            assert taken < 10_000
            await asyncio.sleep(0)
        assert most - len(payload) < transport.pending_bytes() <= most
        assert transport.counters.refused == 1
        mosquitto.thaw()
        await handler.until(lambda: len(handler.messages) == taken)
        assert transport.pending_bytes() == 0


async def test_wrong_credentials_are_a_reason_and_not_the_end(mosquitto: Any, recorder: Any, tmp_path: Path) -> None:
    mosquitto.stop()
    (tmp_path / "passwd").write_text("")
    config = f"listener {mosquitto.port} 127.0.0.1\nallow_anonymous false\npassword_file {tmp_path / 'passwd'}\n"
    mosquitto.config = config + "user root\n"
    mosquitto.start()
    handler = recorder()
    async with client(mosquitto.url, handler, username="somebody", password="wrong") as transport:  # noqa: S106
        await handler.until(lambda: len(handler.reasons) == 1)
        assert "refused" in handler.reasons[0]
        assert "refused: unknown user" in handler.reasons[0]
        assert not transport.connected


@pytest.mark.parametrize(
    "says",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x02\x00\x01", b"\xff" * 100],
    ids=["silence", "http", "refusal", "noise"],
)
async def test_something_that_is_no_broker_is_a_reason(
    recorder: Any, monkeypatch: pytest.MonkeyPatch, says: bytes
) -> None:
    monkeypatch.setattr(module, "_ANSWER_S", 0.3)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
            writer.write(says)
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    handler = recorder()
    async with server, client(f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}", handler) as transport:
        await handler.until(lambda: len(handler.reasons) >= 1)
        assert not transport.connected
    assert handler.connects == 0


@pytest.mark.parametrize(
    "says",
    [
        b"\x90\x03\x12\x34\x00",  # SUBACK, UNSUBACK and PUBACK that nobody waits for
        b"\xb0\x02\x12\x34",
        b"\x40\x02\x90\x00",
        b"\x90\x00",  # SUBACK and UNSUBACK without anything
        b"\xb0\x00",
        b"\x20\x02\x00\x05",  # one more CONNACK, a refusal
        b"\x50\x02\x00\x01\x62\x02\x00\x01\x70\x02\x00\x01",  # QoS 2
        b"\x34\x06\x00\x01a\x00\x01x",
        b"\x30\x01\x00",  # a PUBLISH cut short
        b"\x30\x03\x00\x01\xff",  # a topic that is not UTF-8
        b"\x10\x00\xe0\x00\xf0\x00",  # what only clients send, and what nobody does
        b"\x00" * 64,
        bytes(range(256)),
    ],
)
async def test_a_broker_that_talks_nonsense_costs_a_connection_at_most(recorder: Any, says: bytes) -> None:
    turns = iter([says, b""])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\x00\x04MQTT\x04")
            writer.write(b"\x20\x02\x00\x00")
            if nonsense := next(turns, b""):
                await handler.until(lambda: handler.connects == 1)
                writer.write(nonsense)
                writer.write_eof()
            await reader.read()
        writer.close()

    handler = recorder()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, client(f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}", handler) as transport:
        await handler.until(lambda: handler.connects == 2)
        assert transport.connected
        assert transport.counters.reconnects == 1


async def test_an_unknown_host_is_a_reason(recorder: Any) -> None:
    handler = recorder()
    async with client("mqtt://no-such-host.invalid", handler):
        await handler.until(lambda: len(handler.reasons) == 1)
    assert handler.reasons[0].startswith("broker mqtt://no-such-host.invalid:1883: ")


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # paho lets a failed handshake's socket lie
async def test_tls_to_a_plain_broker_is_a_reason(mosquitto: Any, recorder: Any) -> None:
    handler = recorder()
    async with client(f"mqtts://127.0.0.1:{mosquitto.port}", handler):
        await handler.until(lambda: len(handler.reasons) == 1)


def test_a_malformed_url_is_a_usage_error(recorder: Any) -> None:
    with pytest.raises(UsageError, match="broker: expected mqtt://HOST:PORT"):
        MqttTransport("http://somewhere", client_id="x", handler=recorder())


async def test_nagle_is_off(mosquitto: Any, recorder: Any) -> None:
    handler = recorder()
    async with client(mosquitto.url, handler) as transport:
        await handler.until(lambda: handler.connects == 1)
        assert transport.socket is not None
        assert transport.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    assert transport.socket is None


async def test_a_message_over_ones_own_limit_is_skipped_and_counted(mosquitto: Any, recorder: Any) -> None:
    receiving, sending = recorder(), recorder()
    async with (
        client(mosquitto.url, receiving, max_packet_bytes=100_000) as receiver,
        client(mosquitto.url, sending) as sender,
    ):
        await receiver.subscribe("a", 1)
        await receiving.until(lambda: receiving.connects == 1)
        await sending.until(lambda: sending.connects == 1)
        for number in range(5):
            assert await sender.publish_confirmed("a", b"before")
            assert await sender.publish_confirmed("a", bytes(1_000_000 + number))
        assert await sender.publish_confirmed("a", b"after")
        await receiving.until(lambda: b"after" in receiving.payloads)
    assert receiving.payloads == [b"before"] * 5 + [b"after"]
    assert receiver.counters.oversize == 5
    assert receiving.connects == 1


async def test_leaving_while_there_is_no_broker(recorder: Any) -> None:
    async with client(f"mqtt://127.0.0.1:{free_port()}", recorder(), will=Will("a", b"x")):
        pass


async def test_many_patterns_come_back_after_a_reconnect(mosquitto: Any, recorder: Any) -> None:
    handler, patterns = recorder(), [f"p/{number}/+" for number in range(60)]
    async with client(mosquitto.url, handler) as transport:
        for pattern in patterns:
            await transport.subscribe(pattern, 1)
        await handler.until(lambda: handler.connects == 1)
        mosquitto.restart()
        await handler.until(lambda: handler.connects == 2)
        for number in range(60):
            assert transport.publish(f"p/{number}/x", b"", qos=1)
        await handler.until(lambda: len(handler.messages) == 60)
