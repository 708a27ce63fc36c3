"""Other programs as clients of a real source: in Python, with Mosquitto's tools, badly, and many at once."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from live import Listener, System, environment, until
from PIL import Image

from mdi_exit import Client
from mdi_exit.benchmark.clients import ClientLoad, measure_clients
from mdi_exit.data import shipped
from mdi_exit.topics import Topics
from mdi_exit.wire import MAX_REQUEST_BYTES, Reply, Request, decode, encode

pytestmark = pytest.mark.broker

ROOT = Path(__file__).parents[2]
CLIENTS_MD = (ROOT / "docs" / "clients.md").read_text()
EXAMPLE = ROOT / "examples" / "client.py"


IMAGES = shipped()


def image_file(index: int, kind: str = "PNG", side: int = 28) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(IMAGES.images_NHWC[index][..., 0])
    picture.resize((side, side)).save(buffer, kind)
    return buffer.getvalue()


def test_the_ten_line_program_gets_the_labels_of_a_thousand_images(system: System, tmp_path: Path) -> None:
    assert EXAMPLE.read_text() in CLIENTS_MD, "the documentation shows the program that is tested"
    assert sum(bool(line.strip()) for line in EXAMPLE.read_text().splitlines()) <= 10
    system.deployment = "default"
    system.agent("a", "4-8")
    source = system.source("--input", "requests", "--layers", "0-3")
    paths = [tmp_path / f"{index}.png" for index in range(1000)]
    for index, path in enumerate(paths):
        path.write_bytes(image_file(index))
    command = [sys.executable, str(EXAMPLE), system.url, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
    assert done.returncode == 0, done.stderr + source.log
    names = [line.split("  ")[0] for line in done.stdout.splitlines()]
    truths = [IMAGES.classes[label] for label in IMAGES.labels_N[:1000].tolist()]
    assert len(names) == 1000
    assert sum(name == truth for name, truth in zip(names, truths, strict=True)) > 850, "in the order of the images"
    source.signal(15)
    summary = source.until_completed(1000)
    assert summary["refused"] == 0
    assert all(re.fullmatch(r"client-[0-9a-f]{8}/[0-9a-f]{8}-[0-9]+", row["id"]) for row in source.rows)


def lines_of_the_documentation() -> list[str]:
    return [block for block in re.findall(r"```sh\n(.*?)```", CLIENTS_MD, re.DOTALL) if "mosquitto_pub" in block]


def bad_requests() -> list[tuple[bytes, str]]:
    """Payloads, and a piece of the reason that each is answered with."""
    bombs = [io.BytesIO(), io.BytesIO()]
    for file, side in zip(bombs, (6_000, 20_000), strict=True):
        Image.new("1", (side, side)).save(file, "PNG")
    good = image_file(0, "JPEG", 200)
    frame = encode(Request("somebody", "1", "image", zlib.crc32(good)), good)
    return [
        (b"", "payload-size"),
        (b"junk", "expected a file of JPEG"),
        (os.urandom(3000).lstrip(b"{ \x01"), "expected a file of JPEG"),
        (good[: len(good) // 2], "truncated"),
        (good[:20], "expected a file of JPEG"),
        (bombs[0].getvalue(), "more than 25,000,000"),
        (bombs[1].getvalue(), "400000000 pixels"),
        (good + bytes(MAX_REQUEST_BYTES), "payload-size"),
        (b'{"image": 5}', "expected JSON with image"),
        (b'{"id": "x", "deadline_s": -1, "image": "AAAA"}', "expected JSON with image"),
        (b"{" * 50_000, "expected JSON with image"),
        (json.dumps({"id": "x", "image": base64.b64encode(b"junk").decode()}).encode(), "expected a file of JPEG"),
        (frame, "expected a request of bad"),
    ]


def test_mosquittos_tools_are_clients_and_nothing_that_is_sent_stops_the_source(system: System, tmp_path: Path) -> None:
    if shutil.which("mosquitto_pub") is None:
        pytest.skip("needs mosquitto_pub and mosquitto_sub (Debian: mosquitto-clients)")
    system.deployment = "default"
    topics = Topics("default")
    with Listener(system.url, "none") as listener:
        listener.publish(topics.requests("late"), image_file(1), retain=True)
    source = system.source("--input", "requests", "--layers", "0-8")
    source.until_says("all layers are held")
    until(lambda: source.bad_messages() == {"retained": 1.0}, lambda: f"{source.bad_messages()}")
    (tmp_path / "shoe.jpg").write_bytes(image_file(0, "JPEG", 300))
    host, port = system.url.removeprefix("mqtt://").split(":")
    blocks = lines_of_the_documentation()
    assert len(blocks) == 2
    for block, identity in zip(blocks, ("#1", "frame-17"), strict=True):
        # The subscriber is given a moment, as a person would.
        script = block.replace("-h BROKER", f"-h {host} -p {port}").replace("&\n", "&\nsleep 0.5\n") + "\nwait\n"
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, timeout=30, cwd=tmp_path, env=environment()
        )
        assert done.returncode == 0, done.stderr
        reply = json.loads(done.stdout)
        assert (reply["id"], reply["label"], reply["label_name"]) == (identity, 9, "Ankle boot")
        assert set(reply) == {"id", "label", "label_name", "confidence", "exit", "path", "latency_s"}
    with Listener(system.url, topics.replies("+")) as listener:
        said: list[str] = []
        for number, (payload, reason) in enumerate(bad_requests(), start=1):
            listener.publish(topics.requests("bad"), payload)
            until(lambda n=number: len(listener.on(topics.replies("bad"))) >= n, partial("{!r}".format, payload[:40]))
            raw = listener.on(topics.replies("bad"))[-1]
            if raw.startswith(b"{"):
                reply = json.loads(raw)
                assert reply["error"] == "bad-request"
                said.append(reply["reason"])
            else:
                answer, _ = decode(raw)
                assert isinstance(answer, Reply)
                said.append(answer.reason)
            assert reason in said[-1]
        for format_ in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
            listener.publish(topics.requests("good"), image_file(0, format_, 60))
        until(lambda: len(listener.on(topics.replies("good"))) == 6, lambda: f"{listener.messages}\n{source.log}")
        assert {json.loads(raw)["label"] for raw in listener.on(topics.replies("good"))} == {9}
        assert not listener.on(topics.replies("late"))
    source.signal(15)
    assert source.until_completed(8)["errors"] == 0


async def test_a_stream_goes_on_through_the_death_of_the_broker_and_of_the_source(system: System, mosquitto) -> None:
    source = system.source("--input", "requests", "--layers", "0-8")
    sources, ids = [source], []
    async with Client(system.url, deployment="test", name="me") as client:
        async for answer in client.stream(IMAGES.images_NHWC[:300]):
            ids.append(answer.id)
            if len(ids) == 100:
                await asyncio.to_thread(mosquitto.kill)
                await asyncio.to_thread(mosquitto.start)
            elif len(ids) == 200:
                await asyncio.to_thread(source.kill)
                source = system.source("--input", "requests", "--layers", "0-8")
                sources.append(source)
    assert [identity.split("-")[1] for identity in ids] == [str(number) for number in range(1, 301)]
    rows = Counter(row["id"] for program in sources for row in program.rows)
    assert {f"me/{identity}" for identity in ids} == set(rows)
    # What the first source had answered when it was killed, and the client not yet read, the second did again.
    assert rows.total() <= 300 + 8
    assert not [row for program in sources for row in program.rows if "error" in row]


@pytest.mark.slow
async def test_fifty_clients_that_ask_for_too_much_are_served_alike_and_in_time(mosquitto) -> None:
    # What a machine can do while it is measured and a moment later differ: ask for more, until it is too much.
    for times in (3.0, 6.0, 12.0):
        load = ClientLoad(50, times, seconds=6.0, deadline_s=4.0, agents=1, profile="jetson-nanox0.7", capacity_s=3.0)
        capacity, rows = await measure_clients(mosquitto.url, load)
        outcomes = sum((row.outcomes for row in rows), Counter[str]())
        if outcomes["DeadlineExceeded"]:
            break
    assert set(outcomes) == {"label", "DeadlineExceeded"}, "it is more than can be had in time"
    labels = [row.labels for row in rows]
    mean = sum(labels) / len(labels)
    assert all(abs(count - mean) <= 0.2 * mean for count in labels), (capacity, sorted(labels))
    assert all(row.outcomes.total() == row.asked for row in rows), "each request has its one outcome"
    # A label may come in the very last moment: the test's clock began before the client's.
    assert all(round(latency_s, 2) <= 4.0 for row in rows for latency_s in row.latency_s)
