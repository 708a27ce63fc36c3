"""A broker is found by real multicast: within this process on the loopback interface, and by programs in a network
namespace of their own, where no other broker is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from mdi_exit import discovery, values
from mdi_exit.discovery import Broker, announced, best, find_brokers, look_for_broker, own_addresses
from mdi_exit.errors import TransportError
from mdi_exit.transport.mqtt import MqttTransport

LOOPBACK = ["127.0.0.1"]
LOCAL = values.BrokerAddress("127.0.0.1", 1883)


def broker(name: str, *addresses: str, port: int = 1883, tls: bool = False, marked: bool = False) -> Broker:
    return Broker(name, f"{name}.local", addresses, port, tls, marked)


async def test_an_announced_broker_is_found_and_its_facts_are_read() -> None:
    name = f"test {uuid.uuid4().hex[:8]}"
    async with announced(name, 28883, tls=True, addresses=["192.0.2.7", "127.0.0.1"], interfaces=LOOPBACK) as given:
        assert given == name
        for _ in range(5):
            found = {one.name: one for one in await find_brokers(3.0, interfaces=LOOPBACK)}
            if name in found:
                break
    one = found[name]
    assert (one.port, one.tls, one.marked) == (28883, True, True)
    assert sorted(one.addresses) == ["127.0.0.1", "192.0.2.7"]
    assert one.host.endswith(".local")
    assert str(one.candidates()[0]) == f"mqtts://{one.host}:28883"


def test_all_agents_choose_alike() -> None:
    ours, other, safe = broker("z", marked=True), broker("b"), broker("c", tls=True)
    assert best([other, safe, ours, broker("a")]) == [ours, safe, broker("a"), other]


async def looked(
    monkeypatch: pytest.MonkeyPatch, answering: set[str], found: list[Broker], *, has_password: bool = False
) -> tuple[values.BrokerAddress, str]:
    async def answers(address: values.BrokerAddress) -> bool:
        return str(address) in answering

    async def find(timeout_s: float) -> list[Broker]:
        return found

    monkeypatch.setattr(discovery, "answers", answers)
    monkeypatch.setattr(discovery, "find_brokers", find)
    return await look_for_broker(has_password=has_password)


async def test_this_machines_broker_comes_first_then_the_best_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [broker("a", "10.0.0.1"), broker("b", "10.0.0.2", "10.0.1.2"), broker("c", "10.0.0.3")]
    everywhere = {str(LOCAL), "mqtt://10.0.1.2:1883", "mqtt://10.0.0.3:1883"}
    assert await looked(monkeypatch, everywhere, there) == (LOCAL, "it answers on this machine")
    address, how = await looked(monkeypatch, everywhere - {str(LOCAL)}, there)
    assert str(address) == "mqtt://10.0.1.2:1883"
    assert how == "'b' announces it by mDNS, one of 3"


async def test_when_there_is_none_the_line_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TransportError, match=r"on this machine \(port 1883\) or announced by mDNS, got none"):
        await looked(monkeypatch, set(), [])
    with pytest.raises(TransportError, match="a announces itself, but does not answer"):
        await looked(monkeypatch, set(), [broker("a", "10.0.0.1")])


async def test_a_password_is_not_told_in_the_clear_to_whoever_calls_himself_a_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, safe = broker("a", "10.0.0.1"), broker("b", "10.0.0.2", port=8883, tls=True)
    everywhere = {"mqtt://10.0.0.1:1883", "mqtts://10.0.0.2:8883"}
    with pytest.raises(TransportError, match="a password goes to a broker with TLS only"):
        await looked(monkeypatch, everywhere, [plain], has_password=True)
    address, _ = await looked(monkeypatch, everywhere, [plain, safe], has_password=True)
    assert str(address) == "mqtts://10.0.0.2:8883"


def test_own_addresses_are_reachable_ones() -> None:
    found = own_addresses()
    assert found
    assert found == ["127.0.0.1"] or not any(address.startswith("127.") for address in found)


@pytest.mark.broker
async def test_a_found_broker_is_stayed_with_and_shared(
    mosquitto: Any, recorder: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = 0

    async def look(*, has_password: bool, tls_only: bool) -> tuple[values.BrokerAddress, str]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise TransportError("expected one, got none")
        return values.broker_address(mosquitto.url), "a friend told"

    monkeypatch.setattr("mdi_exit.transport.choice.look_for_broker", look)
    first, second = recorder(), recorder()
    with caplog.at_level(logging.INFO):
        one = MqttTransport("auto", client_id="one", handler=first)
        two = MqttTransport(one, client_id="two", handler=second)
        async with one, two:
            await second.until(lambda: second.connects == 1)
            assert first.reasons == ["broker auto: expected one, got none"]
            await asyncio.to_thread(mosquitto.restart)
            await second.until(lambda: second.connects == 2)
            await first.until(lambda: first.connects == 2)
    assert looks == 2
    assert caplog.text.count(f"broker {mosquitto.url}: a friend told") == 1


ALONE = """
set -e
ip link set lo up
{mosquitto} -p 18899 >/dev/null 2>&1 & broker=$!
{python} -m mdi_exit.cli announce --port 18899 --title kitchen & crier=$!
trap 'kill $broker $crier' EXIT
{python} -m edge_agent.cli --layers 4-8 & agent=$!
{python} -m source.cli --input shipped:30 --layers 0-3 --exit-threshold 1 --results {folder}/results.jsonl
kill $agent
wait $agent
"""


@pytest.mark.broker
def test_programs_without_an_address_find_the_broker_that_announces_itself(tmp_path: Path) -> None:
    unshare, mosquitto = (
        shutil.which("unshare"),
        shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin"),
    )
    ip = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")
    if not (unshare and mosquitto and ip) or subprocess.run([unshare, "-n", "true"], capture_output=True).returncode:
        pytest.skip("needs mosquitto, iproute2 and the right to make a network namespace")
    script = ALONE.format(mosquitto=mosquitto, python=sys.executable, folder=tmp_path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MDI_EXIT_")}
    done = subprocess.run(
        [unshare, "-n", "bash", "-c", script], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("broker mqtt://127.0.0.1:18899: 'kitchen' announces it by mDNS") == 2, done.stderr
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 30
