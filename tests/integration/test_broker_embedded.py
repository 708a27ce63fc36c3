"""The broker that starts by itself, and the configuration of the one that stays."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

import broker
from broker import embedded
from broker.embedded import Kind, embedded_broker, find_mosquitto, free_port
from mdi_exit.errors import StartError
from mdi_exit.transport.mqtt import MqttTransport

KINDS: list[Kind] = ["mosquitto", "amqtt"]


def is_there(pid: int) -> bool:
    """A process, and not only the entry of one that nobody has reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


async def echo(url: str, recorder: Any) -> None:
    handler, topic = recorder(), uuid.uuid4().hex
    async with MqttTransport(url, client_id=topic, handler=handler) as client:
        await client.subscribe(topic, 1)
        await handler.until(lambda: handler.connects == 1)
        assert await client.publish_confirmed(topic, b"echo")
        await handler.until(lambda: handler.payloads == [b"echo"])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_broker_starts_serves_and_is_gone_afterwards(kind: Kind, recorder: Any) -> None:
    async with embedded_broker(kind) as found:
        assert found.kind == kind
        assert re.fullmatch(r"mqtt://127\.0\.0\.1:\d+", found.url)
        assert is_there(found.pid)
        assert os.getsid(found.pid) == found.pid  # Ctrl-C in our terminal is not for it
        await echo(found.url, recorder)
    assert not is_there(found.pid)


async def test_the_port_can_be_chosen() -> None:
    port = free_port()
    async with embedded_broker(port=port) as found:
        assert found.port == port


async def test_without_mosquitto_it_is_amqtt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_mosquitto", lambda: None)
    async with embedded_broker() as found:
        assert found.kind == "amqtt"
    with pytest.raises(StartError, match="expected mosquitto on PATH, got none"):
        async with embedded_broker("mosquitto"):
            pass


@pytest.mark.parametrize("kind", KINDS)
async def test_a_taken_port_is_a_start_error(kind: Kind) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        with pytest.raises(StartError, match=f"broker {kind}: expected an answer on port"):
            async with embedded_broker(kind, port=holder.getsockname()[1]):
                pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child that its parent is gone")
@pytest.mark.parametrize("kind", KINDS)
def test_the_broker_ends_when_its_parent_is_killed(kind: Kind) -> None:
    program = (
        "import asyncio\nfrom broker.embedded import embedded_broker\n"
        "async def main():\n"
        f"    async with embedded_broker({kind!r}) as found:\n"
        "        print(found.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_there(pid)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while is_there(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def production(tmp_path: Path) -> str:
    """The shipped configuration with this test's port and folder in it, and nothing else changed."""
    text = (Path(broker.__file__).parent / "mosquitto.conf").read_text()
    for there, here in (
        ("listener 1883 127.0.0.1", f"listener {free_port()} 127.0.0.1"),
        ("/var/lib/mosquitto/", f"{tmp_path}/"),
    ):
        assert text.count(there) == 1
        text = text.replace(there, here)
    return text


async def test_mosquitto_accepts_the_production_configuration(production: str, tmp_path: Path, recorder: Any) -> None:
    binary = find_mosquitto()
    if binary is None:
        pytest.skip("needs mosquitto on PATH")
    listener = re.search(r"^listener (\d+)", production, re.MULTILINE)
    assert listener is not None
    as_us = "user root\n" if os.geteuid() == 0 else ""
    file, log = tmp_path / "mosquitto.conf", tmp_path / "mosquitto.log"
    file.write_text(production + as_us)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(binary, "-c", str(file), stdout=output, stderr=output)
    try:
        await echo(f"mqtt://127.0.0.1:{listener[1]}", recorder)
        assert process.returncode is None
    finally:
        process.terminate()
        await process.wait()
    said = log.read_text()
    assert "Error" not in said
    assert [line for line in said.splitlines() if "Warning" in line and "as root" not in line] == []
    assert (tmp_path / "mosquitto.db").exists()  # what it remembers lies where the configuration says


def test_the_production_configuration_listens_on_loopback_only_and_says_why(production: str) -> None:
    listeners = re.findall(r"^listener \d+ ?(.*)$", production, re.MULTILINE)
    assert listeners == ["127.0.0.1"]
    for paragraph in production.strip().split("\n\n"):
        assert paragraph.startswith("#"), paragraph
