"""Several brokers, one bridged to the other; brokers that restart, or remember what is over."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import Listener, System, until

from broker.embedded import mosquitto_config
from mdi_exit.topics import Topics
from mdi_exit.transport import choice
from mdi_exit.transport.mqtt import MqttTransport
from mdi_exit.wire import Control, Status, decode, encode

pytestmark = pytest.mark.broker

TOPICS = Topics("test")
BRIDGE = Path(__file__).parents[2] / "broker" / "bridge.conf"


@pytest.fixture
def second(mosquitto: Any, tmp_path: Path) -> Iterator[Any]:
    """Another Mosquitto, with the bridge of the example to the first."""
    folder = tmp_path / "second"
    folder.mkdir()
    broker = type(mosquitto)(folder)
    bridge = BRIDGE.read_text().replace("address first:1883", f"address {mosquitto.host}:{mosquitto.port}")
    broker.config = mosquitto_config(broker.port) + bridge
    broker.start()
    yield broker
    broker.kill()


def bridged(first: Any, second: Any) -> None:
    """Wait until the bridge carries messages both ways."""
    for sender, receiver in ((first, second), (second, first)):
        with Listener(receiver.url, "mdi/probe/#") as ear, Listener(sender.url, "nothing") as mouth:
            until(
                lambda ear=ear, mouth=mouth: mouth.publish("mdi/probe/x", b"?") or bool(ear.messages), lambda: "bridge"
            )


def test_the_bridge_of_the_example_carries_each_message_once_and_what_is_retained(mosquitto: Any, second: Any) -> None:
    bridged(mosquitto, second)
    with Listener(mosquitto.url, "mdi/a/#") as here, Listener(second.url, "mdi/a/#") as there:
        for number in range(20):
            (here if number % 2 else there).publish("mdi/a/x", b"%d" % number)
        here.publish("mdi/a/end", b"", retain=False)
        there.publish("mdi/a/end", b"", retain=False)
        for ear in (here, there):
            until(lambda ear=ear: len(ear.on("mdi/a/end")) >= 2, lambda: "the end on both sides")
            assert sorted(map(int, ear.on("mdi/a/x"))) == list(range(20)), "each once: no loop, no loss"
        here.publish("mdi/a/kept", b"kept", retain=True)
        until(lambda: bool(there.on("mdi/a/kept")), lambda: "the retained message over the bridge")
    with Listener(second.url, "mdi/a/kept") as late:
        until(lambda: late.messages == [("mdi/a/kept", b"kept", True)], lambda: f"retained there, got {late.messages}")


async def test_a_client_goes_to_the_next_broker_and_comes_back_to_the_first(
    mosquitto: Any, second: Any, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_LOOK_BACK_S", 0.05)
    handler, beside = recorder(), recorder()
    urls = f"{mosquitto.url},{second.url}"
    one = MqttTransport(urls, client_id=uuid.uuid4().hex, handler=handler)
    two = MqttTransport(one, client_id=uuid.uuid4().hex, handler=beside)
    async with one, two:
        await one.subscribe("a/+", 1)
        await beside.until(lambda: beside.connects == 1)
        assert one._choice.address.port == two._choice.address.port == mosquitto.port
        mosquitto.kill()
        await handler.until(lambda: handler.connects == 2)
        await beside.until(lambda: beside.connects == 2)
        assert one._choice.address.port == two._choice.address.port == second.port
        assert await one.publish_confirmed("a/b", b"there")
        await handler.until(lambda: handler.payloads == [b"there"])
        await asyncio.to_thread(mosquitto.start)
        await handler.until(lambda: handler.connects == 3)
        await beside.until(lambda: beside.connects == 3)
        assert one._choice.address.port == two._choice.address.port == mosquitto.port
        assert await one.publish_confirmed("a/b", b"back")
        await handler.until(lambda: handler.payloads == [b"there", b"back"])
    assert any("left for an earlier one that is back" in reason for reason in handler.reasons)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_run_carries_on_through_fail_over_to_a_bridged_broker(
    mosquitto: Any, second: Any, system: System, end: str
) -> None:
    """One agent is on the second broker from the start, and the others change over when the first one ends."""
    bridged(mosquitto, second)
    system.url = f"{mosquitto.url},{second.url}"
    ahead = System(second.url, system.folder, programs=system.programs)
    early = ahead.agent("early", "4-8", "--telemetry-period", "200ms")
    late = system.agent("late", "4-8", "--telemetry-period", "200ms")
    source = system.source("--layers", "0-3", "--input", "shipped:300", "--rate", "40/s", "--exit-threshold", "1")
    source.until_results(40)
    getattr(mosquitto, end)()
    source.until_results(120)
    for node in (source, late):
        node.until_says(f"broker {mosquitto.url}: ")
    mosquitto.start()
    summary = source.until_completed(300)
    assert summary["exits"] == {"4": 300}
    assert {"early", "late"} <= {name for row in source.rows for name in row["path"]}
    assert early.stop() == late.stop() == 0


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_run_carries_on_through_a_restart_of_its_broker(mosquitto: Any, system: System, end: str) -> None:
    for name in ("a", "b"):
        system.agent(name, "4-8")
    source = system.source("--layers", "0-3", "--input", "shipped:200", "--rate", "40/s", "--exit-threshold", "1")
    source.until_results(40)
    getattr(mosquitto, end)()
    source.until_says("trying again")
    mosquitto.start()
    source.until_completed(200)
    with Listener(mosquitto.url) as late:  # whoever comes later finds what an empty broker was told again
        wanted = {TOPICS.agents(name) for name in ("a", "b")}
        until(lambda: wanted <= {t for t, _, kept in late.messages if kept}, lambda: f"retained: {late.topics()}")


def test_words_that_are_not_the_nodes_own_are_overwritten(mosquitto: Any, system: System) -> None:
    """As when a broker comes back with what it remembers: a control of an earlier start, a will of this one."""
    agent = system.agent("a", "4-8")
    source = system.source("--layers", "0-3", "--input", "shipped:2000", "--rate", "20/s")
    source.until_results(10)
    with Listener(mosquitto.url) as ear:
        until(
            lambda: {TOPICS.control, TOPICS.manifest, TOPICS.agents("a")} <= {*ear.topics()}, lambda: "what is retained"
        )
        control, _ = decode(ear.on(TOPICS.control)[-1])
        status, _ = decode(ear.on(TOPICS.agents("a"))[-1])
        assert isinstance(control, Control)
        assert isinstance(status, Status)
        stale = Control(1, 1, control.source, 0, control.model, 0.3, paused=True)
        will = Status(node="a", incarnation=status.incarnation, online=False)
        manifest = ear.on(TOPICS.manifest)[-1]
        ear.publish(TOPICS.control, encode(stale), retain=True)
        ear.publish(TOPICS.manifest, b"", retain=True)
        ear.publish(TOPICS.agents("a"), encode(will), retain=True)

        def is_mended() -> bool:
            newest, _ = decode(ear.on(TOPICS.control)[-1])
            there, _ = decode(ear.on(TOPICS.agents("a"))[-1])
            return newest == control and ear.on(TOPICS.manifest)[-1] == manifest and there.online

        until(is_mended, lambda: "the nodes' own words are back")
    count = len(source.rows)
    source.until_results(count + 20)
    assert agent.running
