"""The gateway before a real system: broker, source and agent are processes."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import pytest
from live import System, run_program, until

pytest.importorskip("aiohttp", reason="needs the extra web")

from aiohttp import ClientSession
from PIL import Image

from mdi_exit import values
from mdi_exit.data import shipped
from mdi_exit.gateway.app import serving
from mdi_exit.gateway.config import GatewaySettings

pytestmark = pytest.mark.broker


def shoe() -> tuple[bytes, str]:
    """The first shipped image as a file, and what it shows."""
    images = shipped()
    out = io.BytesIO()
    Image.fromarray(images.images_NHWC[0, :, :, 0]).save(out, "PNG")
    return out.getvalue(), images.classes[int(images.labels_N[0])]


async def updates(http: ClientSession, address: str) -> AsyncIterator[dict[str, Any]]:
    async with http.get(f"{address}v1/events") as stream:
        assert stream.content_type == "text/event-stream"
        async for line in stream.content:
            if line.startswith(b"data: {") and len(line) > 20:
                yield json.loads(line.removeprefix(b"data: "))


async def test_a_system_comes_up_is_seen_answers_and_is_missed(mosquitto: Any, system: System) -> None:
    """The gateway is there first, before the source and even before its broker."""
    mosquitto.stop()
    settings = GatewaySettings(
        broker=values.brokers(mosquitto.url), deployment="test", http=values.HostPort("127.0.0.1", 0)
    )
    image, what = shoe()
    async with asyncio.timeout(60), serving(settings) as address, ClientSession() as http:
        stream = updates(http, address)
        first = await anext(stream)
        assert first["state"]["problem"]["what"] == "broker"
        async with http.post(f"{address}v1/infer", data=image) as answer:
            assert answer.status == 503
        mosquitto.start()
        while (await anext(stream))["state"]["problem"]["what"] != "source":
            pass
        source = system.source("--layers", "0-3", "--rate", "20/s", "--frames", "10/s", "--duration", "600s")
        system.agent("one", "4-8")
        frames, samples, seen = [], 0, {}
        while not (frames and samples > 3 and seen.get("run") and seen["run"]["completed"] > 20):
            update = await anext(stream)
            seen, frames, samples = update["state"], frames + update["frames"], samples + len(update["samples"])
        assert seen["problem"] is None
        assert {(node["name"], node["span"], node["state"]) for node in seen["nodes"]} == {
            ("source", "0-3", "ready"),
            ("one", "4-8", "ready"),
        }
        assert any(link["sender"] == "source" and link["to"] == "one" and link["tasks"] for link in seen["links"])
        assert seen["labels"][9] == "Ankle boot"
        assert any("one joined" in each["text"] for each in seen["happenings"])
        assert {frame["via"] for frame in frames} == {"source"}
        assert all(frame["truth"] for frame in frames)
        async with http.get(f"{address}v1/frames/{frames[-1]['number']}.jpg") as picture:
            assert (picture.status, picture.content_type) == (200, "image/jpeg")
        async with http.post(f"{address}v1/infer", data=image) as answer:
            label = await answer.json()
        assert (label["name"], label["path"][0]) == (what, "source")
        async with http.post(f"{address}v1/infer", data=b"GIF89a, or not") as answer:
            assert (answer.status, (await answer.json())["error"]["reason"]) == (400, "image")
        source.signal(signal.SIGSTOP)  # it may be quicker than any deadline
        async with http.post(f"{address}v1/infer?deadline=300ms", data=image) as answer:
            assert answer.status == 504
        source.kill()
        while (await anext(stream))["state"]["problem"] is None:
            pass
        async with http.get(f"{address}readyz") as ready:
            assert ready.status == 503
            assert "silent" in await ready.text()
        await stream.aclose()  # type: ignore[attr-defined]


def test_the_program_serves_and_ends_with_a_signal(system: System) -> None:
    flags = ["--broker", system.url, "--deployment", system.deployment, "--http", "127.0.0.1:0"]
    program = system.program("mdi_exit.cli", "serve", "serve", *flags)
    program.until_says("on http://")
    address = program.log.split("on http://")[1].split("/")[0]
    stream = urllib.request.urlopen(f"http://{address}/v1/events", timeout=10)
    assert stream.readline() == b"event: update\n"
    taken = run_program("mdi_exit.cli", "serve", "--broker", system.url, "--http", address)
    assert taken.returncode == 3
    assert taken.stderr == f"mdi-exit serve: error: --http {address}: Address already in use\n"
    program.signal(signal.SIGTERM)
    until(lambda: not program.running, lambda: program.log, 10.0)
    assert program.process.returncode == 0, "an open stream does not keep it"
    stream.close()


@pytest.mark.slow
def test_the_demo_serves_the_page_meanwhile(system: System) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    flags = ["--broker", system.url, "--nodes", "2", "--duration", "4s", "--profile", "none"]
    program = system.program(
        "mdi_exit.cli", "demo", "demo", *flags, "--web", f"127.0.0.1:{port}", "--out", f"{system.folder}/out"
    )
    until(lambda: f"live page: http://127.0.0.1:{port}/" in program.stdout, lambda: program.log + program.stdout)

    def run() -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/state", timeout=10) as answer:
            return json.load(answer)["run"] or {"completed": 0}

    until(lambda: run()["completed"] > 20, lambda: program.log + program.stdout)
    assert program.until_ends() == 0, program.log + program.stdout
    with pytest.raises(OSError, match="refused"):
        run()


def test_help_and_check_name_the_settings() -> None:
    ended = run_program("mdi_exit.cli", "serve", "--http", "[::1]:0", "--check")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "[::1]:0" in ended.stdout
    assert run_program("mdi_exit.cli", "serve", "--gallery", "many").returncode == 2
    bare = run_program("mdi_exit.cli", "demo", "--web", "--nodes", "3", "--check")
    assert "127.0.0.1:8080" in bare.stdout
