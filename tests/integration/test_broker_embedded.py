"""The broker that starts by itself, and the configuration of the one that stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
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
        with pytest.raises(StartError, match=f"broker {kind}: expected port .* to be free"):
            async with embedded_broker(kind, port=holder.getsockname()[1]):
                pass


async def test_another_broker_on_the_port_is_not_taken_for_ours(standing_mosquitto: str) -> None:
    with pytest.raises(StartError, match="to be free"):
        async with embedded_broker(port=int(standing_mosquitto.rpartition(":")[2])):
            pass


async def test_a_broker_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "mosquitto_config", lambda _: "no_such_setting 1\n")
    with pytest.raises(StartError, match=r"broker mosquitto: expected an answer on port \d+, got: .*no_such_setting"):
        async with embedded_broker("mosquitto"):
            pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child that its parent is gone")
@pytest.mark.parametrize("kind", KINDS)
def test_the_broker_ends_when_its_parent_is_killed(kind: Kind, tmp_path: Path) -> None:
    program = (
        "import asyncio\nfrom broker.embedded import embedded_broker\n"
        "async def main():\n"
        f"    async with embedded_broker({kind!r}) as found:\n"
        "        print(found.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # nobody tidies up after a killed process
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as parent:
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


@contextlib.asynccontextmanager
async def running(config: str, folder: Path) -> AsyncIterator[list[int]]:
    """Mosquitto with this configuration; gives the ports. It must have nothing to complain about."""
    binary = find_mosquitto()
    if binary is None:
        pytest.skip("needs mosquitto on PATH")
    as_us = "user root\n" if os.geteuid() == 0 else ""
    file, log = folder / "mosquitto.conf", folder / "mosquitto.log"
    file.write_text(as_us + config)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(binary, "-c", str(file), stdout=output, stderr=output)
    try:
        yield [int(port) for port in re.findall(r"^listener (\d+)", config, re.MULTILINE)]
        assert process.returncode is None, log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
    said = log.read_text()
    assert "Error" not in said
    assert [line for line in said.splitlines() if "Warning" in line and "as root" not in line] == []


async def test_mosquitto_accepts_the_production_configuration(production: str, tmp_path: Path, recorder: Any) -> None:
    async with running(production, tmp_path) as ports:
        await echo(f"mqtt://127.0.0.1:{ports[0]}", recorder)
    assert (tmp_path / "mosquitto.db").exists()  # what it remembers lies where the configuration says


@pytest.mark.parametrize("kind", ["mosquitto", "amqtt"])
async def test_an_embedded_broker_listens_on_loopback_only(kind: Kind) -> None:
    if kind == "mosquitto" and find_mosquitto() is None:
        pytest.skip("needs mosquitto on PATH")
    async with embedded_broker(kind) as running_one:
        process = psutil.Process(running_one.pid)
        listening = {each.laddr[0] for each in process.net_connections() if each.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


def certificate(folder: Path) -> None:
    """As the notes say."""
    if shutil.which("openssl") is None or shutil.which("mosquitto_passwd") is None:
        pytest.skip("needs openssl and mosquitto_passwd on PATH")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    extensions = ("subjectAltName=DNS:localhost,IP:127.0.0.1", "keyUsage=critical,keyCertSign,digitalSignature")
    flags = [flag for extension in extensions for flag in ("-addext", extension)]
    files = ("-keyout", str(folder / "server.key"), "-out", str(folder / "server.crt"))
    subprocess.run([*command.split(), *flags, *files], check=True, capture_output=True)
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(folder / "passwd"), "agent", "secret"], check=True)


async def test_the_lines_for_the_network_hold_with_password_and_tls(
    production: str, tmp_path: Path, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate(tmp_path)
    shutil.copy(Path(broker.__file__).parent / "acl", tmp_path)
    topic = "mdi/default/layers/4-8/nano-2"  # where the list lets a board speak and hear
    config = re.sub(r"^#(?=\w)", "", production, flags=re.MULTILINE).replace("anonymous true", "anonymous false")
    config = config.replace("8883 0.0.0.0", f"{free_port()} 127.0.0.1")
    config = config.replace("/etc/mosquitto/certs", str(tmp_path)).replace("/etc/mosquitto", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.crt"))
    async with running(config, tmp_path) as ports:
        url = f"mqtts://localhost:{ports[1]}"
        handler, payloads = recorder(), [bytes([number]) * 1_000_000 for number in range(12)]
        async with MqttTransport(url, client_id="a", handler=handler, username="agent", password="secret") as client:  # noqa: S106
            await client.subscribe(topic, 1)
            await handler.until(lambda: handler.connects == 1)
            for payload in payloads:
                assert client.publish(topic, payload, qos=1)
            await handler.until(lambda: len(handler.messages) == len(payloads))
        assert handler.payloads == payloads
        for address in (url, f"mqtt://127.0.0.1:{ports[0]}"):
            stranger = recorder()
            async with MqttTransport(address, client_id="b", handler=stranger):
                await stranger.until(lambda stranger=stranger: len(stranger.reasons) == 1)
            assert "refused" in stranger.reasons[0]


def test_the_production_configuration_listens_on_loopback_only_and_says_why(production: str) -> None:
    listeners = re.findall(r"^listener \d+ ?(.*)$", production, re.MULTILINE)
    assert listeners == ["127.0.0.1"]
    for paragraph in production.strip().split("\n\n"):
        assert paragraph.startswith("#"), paragraph
