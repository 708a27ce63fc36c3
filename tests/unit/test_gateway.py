"""The parts of the gateway that need no broker: samples, gallery, the stream of events, who may ask."""

from __future__ import annotations

import asyncio
import io
import json
import random
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("aiohttp", reason="needs the extra web")

from aiohttp import TCPConnector
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request
from aiohttp.web import AppKey

from mdi_exit import values, wire
from mdi_exit.client import Answer as Reply
from mdi_exit.data.sound import Clip, wav_bytes
from mdi_exit.errors import BadRequest, DeadlineExceeded, Failed, Refused, UsageError
from mdi_exit.gateway import guard, openapi
from mdi_exit.gateway.app import Gateway
from mdi_exit.gateway.command import need_web
from mdi_exit.gateway.config import GatewaySettings
from mdi_exit.gateway.feed import Feed
from mdi_exit.gateway.gallery import Frame, Gallery, thumbnail
from mdi_exit.gateway.infer import RejectedError
from mdi_exit.gateway.state import History, State, state_of
from mdi_exit.observer import DeploymentView, NodeView, Watched

GATEWAY = AppKey("gateway", Gateway)
REPORT = wire.SourceReport(
    *(7, 11, "source", "ab" * 16, 50, 48, 40, 1, 2, 3, 1, 7, 30, 32, {0: 40}, 0.9, 0.5, "none"),
    rate_per_s=25.0,
    paused=False,
    latency_s=(0.02, 0.05, 0.125),
)
EMPTY = Watched("d").view(0.0)
NODE = NodeView("a", "agent", "ready", "4-8", "onnxruntime CPU", "", "1", inputs=3, outputs=1)
VIEW = replace(EMPTY, trouble="", source=REPORT, source_age_s=0.1, completed_per_s=12.5, nodes=(NODE,))
REPLY = Reply("x-1", 7, "Sneaker", 0.875, 1, ("source", "a"), 0.25)


def png(width: int = 28, height: int = 28, mode: str = "L", **saved: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height), 90).save(out, "PNG", **saved)
    return out.getvalue()


# --- state and samples


def test_the_state_is_what_is_seen() -> None:
    state = state_of(VIEW, 1000.0)
    assert (state.deployment, state.at, state.problem, state.takes) == ("d", 1000.0, None, "")
    assert state_of(replace(VIEW, takes="audio"), 1000.0).takes == "audio"
    assert state.run is not None
    assert (state.run.completed, state.run.completed_per_s, state.run.latency_s) == (40, 12.5, (0.02, 0.05, 0.125))
    assert (state.nodes[0].name, state.nodes[0].inputs, state.nodes[0].memory_bytes) == ("a", 3, None)
    assert msgspec.json.decode(msgspec.json.encode(state), type=State) == state


@pytest.mark.parametrize(("connected", "what"), [(True, "source"), (False, "broker")])
def test_a_problem_says_whose_it_is(*, connected: bool, what: str) -> None:
    problem = state_of(replace(EMPTY, connected=connected, trouble="gone"), 0.0).problem
    assert problem is not None
    assert (problem.what, problem.text) == (what, "gone")


def test_samples_are_numbered_bounded_and_only_of_a_source_that_is_there() -> None:
    history = History()
    assert not history.add(EMPTY, 0.0), "no source"
    assert not history.add(VIEW, 0.0), "its rates are known from the second look on"
    for step in range(700):
        assert history.add(VIEW, step / 2)
    assert not history.add(replace(VIEW, trouble="the source has been silent for 5 s"), 351.0)
    assert history.number == 700
    assert [sample.number for sample in history.since(698)] == [699, 700]
    assert len(history.since(0)) == 600, "five minutes"
    assert history.since(700) == []
    assert history.since(698)[0].queues == {"a": 4}


def test_accuracy_is_of_the_last_moments_and_of_one_run() -> None:
    history = History()
    history.add(VIEW, 0.0)

    def accuracy(at: float, right: int, judged: int, incarnation: int = 11) -> float | None:
        report = msgspec.structs.replace(REPORT, right=right, judged=judged, incarnation=incarnation)
        return history.since(history.number - 1)[0].accuracy if history.add(replace(VIEW, source=report), at) else -1.0

    assert accuracy(0.0, 30, 32) is None, "nothing judged since"
    assert accuracy(5.0, 35, 42) == 0.5
    assert accuracy(21.0, 45, 52) is None, "what is older than 15 s no longer counts"
    assert accuracy(30.0, 55, 62) == 1.0
    assert accuracy(31.0, 0, 0, incarnation=12) == -1.0, "another start is another run"
    assert accuracy(31.5, 1, 1, incarnation=12) is None
    assert accuracy(32.0, 1, 2, incarnation=12) == 0.0


# --- the gallery


def frame(number: int) -> Frame:
    return Frame(number, 0.0, 7, "Sneaker", 0.5, 1, ("a",), 0.1, "gateway")


def test_the_gallery_keeps_so_many_frames_and_their_pictures_a_little_longer() -> None:
    gallery = Gallery(2)
    for number in range(1, 7):
        gallery.add(frame(number), b"%d" % number)
    assert [each.number for each in gallery.since(0)] == [5, 6]
    assert [each.number for each in gallery.since(5)] == [6]
    assert [gallery.picture(number) for number in (2, 3, 6)] == [None, b"3", b"6"]
    assert gallery.number == 6


def test_a_thumbnail_is_small_upright_and_carries_nothing_along() -> None:
    wide = Image.new("RGB", (1000, 500), "red")
    wide.putpixel((999, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    exif[0x010E] = "where it was"
    out = io.BytesIO()
    wide.save(out, "JPEG", exif=exif)
    made = thumbnail(out.getvalue() + b"<script>trailing</script>")
    assert made is not None
    assert b"where it was" not in made
    assert b"trailing" not in made
    with Image.open(io.BytesIO(made)) as small:
        assert (small.format, small.size) == ("JPEG", (80, 160))
    assert thumbnail(b"no image") is None
    assert thumbnail(png(3, 3, "RGBA")) is not None
    assert thumbnail(png(3, 3, "I;16")) is not None


# --- the stream of events


def parsed(event: bytes) -> tuple[str, dict[str, Any]]:
    kind, data = event.decode().removesuffix("\n\n").split("\n")
    return kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))


async def test_events_bring_the_state_and_what_is_new_once() -> None:
    history, gallery = History(), Gallery(4)
    view = VIEW
    feed = Feed(lambda: state_of(view, 0.0), history, gallery)
    history.add(view, 0.0)
    history.add(view, 0.5)
    gallery.add(frame(1), b"")
    events = feed.events()
    kind, first = parsed(await anext(events))
    assert kind == "update"
    assert first["state"]["run"]["completed"] == 40
    assert ([each["number"] for each in first["samples"]], [each["number"] for each in first["frames"]]) == ([1], [1])
    history.add(view, 1.0)
    view = replace(view, source=msgspec.structs.replace(REPORT, completed=41))
    feed.touch()
    _, second = parsed(await anext(events))
    assert second["state"]["run"]["completed"] == 41
    assert ([each["number"] for each in second["samples"]], second["frames"]) == ([2], [])
    assert parsed(await anext(events)) == ("beat", {}), "nothing has changed for a second"
    assert feed.clients == 1
    feed.close()
    assert [event async for event in events] == []
    assert feed.clients == 0


async def test_many_changes_make_few_events_and_a_slow_reader_gets_all_samples_in_one() -> None:
    history = History()
    made: list[State] = []
    feed = Feed(lambda: made.append(state_of(VIEW, 0.0)) or made[-1], history, Gallery(0))
    slow, quick = feed.events(), feed.events()
    await anext(slow)
    history.add(VIEW, 0.0)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    for step in range(5):
        await anext(quick)
        for _ in range(50):
            history.add(VIEW, step)
            feed.touch()
    assert loop.time() - begin >= 4 * 0.2 - 0.05, "five a second at most"
    assert len(made) <= 6, "a state is made once for each event and not for each change"
    _, update = parsed(await anext(slow))
    assert len(update["samples"]) == 250
    for stream in (slow, quick):
        await stream.aclose()
    assert feed.clients == 0


# --- HTTP


class Asked:
    """Stands for the client: gives ``outcome``, or raises it."""

    def __init__(self) -> None:
        self.outcome: Reply | Exception = REPLY
        self.seen: list[tuple[bytes, float]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, image: bytes, *, deadline_s: float) -> Reply:
        self.seen.append((image, deadline_s))
        await self.may_answer.wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class Shown:
    def __init__(self, view: DeploymentView) -> None:
        self.view = view


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def shown() -> Shown:
    return Shown(VIEW)


@pytest.fixture
async def http(asked: Asked, shown: Shown) -> AsyncIterator[TestClient[Any, Any]]:
    gateway = Gateway(GatewaySettings(http=values.HostPort("127.0.0.1", 0)), lambda: shown.view, asked)
    gateway.app[GATEWAY] = gateway
    async with TestClient(TestServer(gateway.app, host="127.0.0.1"), connector=TCPConnector(limit=0)) as client:
        yield client
        gateway.feed.close()


async def test_a_posted_image_has_its_label_and_becomes_a_frame(http: TestClient[Any, Any], asked: Asked) -> None:
    answer = await http.post("/v1/infer?deadline=2s", data=png(), headers={"Content-Type": "image/png"})
    assert answer.status == 200
    assert await answer.json() == {
        "label": 7,
        "name": "Sneaker",
        "confidence": 0.875,
        "exit": 1,
        "path": ["source", "a"],
        "latency_s": 0.25,
        "frame": 1,
    }
    assert asked.seen == [(png(), 2.0)]
    picture = await http.get("/v1/frames/1.jpg")
    assert (picture.status, picture.content_type) == (200, "image/jpeg")
    assert (await http.get("/v1/frames/2.jpg")).status == 404


async def test_a_form_and_a_bare_body_do_as_well(http: TestClient[Any, Any], asked: Asked) -> None:
    assert (await http.post("/v1/infer", data={"other": "x", "image": io.BytesIO(png())})).status == 200
    bare = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl says of --data-binary
    assert (await http.post("/v1/infer", data=png(), headers=bare)).status == 200
    assert asked.seen == [(png(), 10.0)] * 2


async def test_sound_has_a_part_of_its_own_and_no_picture(http: TestClient[Any, Any], asked: Asked) -> None:
    sound = wav_bytes(Clip(np.arange(99, dtype=np.int16), 16_000))
    answer = await http.post("/v1/infer", data={"audio": io.BytesIO(sound)})
    assert (answer.status, (await answer.json())["frame"]) == (200, None)
    assert asked.seen == [(sound, 10.0)]


@pytest.mark.parametrize(
    ("outcome", "status", "reason", "text"),
    [
        (BadRequest("x", "not an image"), 400, "image", "not an image"),
        (Refused("x", "full"), 429, "refused", "full"),
        (DeadlineExceeded("x", "too late"), 504, "deadline", "too late"),
        (Failed("x", "no node could"), 502, "failed", "no node could"),
    ],
)
async def test_each_way_of_failing_has_its_status(
    http: TestClient[Any, Any], asked: Asked, outcome: Exception, status: int, reason: str, text: str
) -> None:
    asked.outcome = outcome
    answer = await http.post("/v1/infer", data=png())
    assert (answer.status, await answer.json()) == (status, {"error": {"reason": reason, "text": text}})
    assert ("Retry-After" in answer.headers) == (status == 429)


@pytest.mark.parametrize(
    ("query", "body", "status", "reason"),
    [
        ("", b"", 400, "empty"),
        ("?deadline=soon", b"x", 400, "deadline"),
        ("?deadline=2h", b"x", 400, "deadline"),
        ("", io.BytesIO(b"x" * (8 * 1024 * 1024 + 1)), 413, "size"),
        ("", {"imago": io.BytesIO(b"x")}, 400, "form"),
        ("", {"image": io.BytesIO(b"x" * (8 * 1024 * 1024 + 1))}, 413, "size"),
    ],
)
async def test_what_is_no_request_is_not_passed_on(
    http: TestClient[Any, Any], asked: Asked, query: str, body: Any, status: int, reason: str
) -> None:
    answer = await http.post("/v1/infer" + query, data=body)
    assert (answer.status, (await answer.json())["error"]["reason"]) == (status, reason)
    assert asked.seen == []


async def test_json_is_no_image(http: TestClient[Any, Any]) -> None:
    assert (await http.post("/v1/infer", json={"image": "x"})).status == 415


async def test_without_a_source_it_is_not_ready_and_says_why(http: TestClient[Any, Any], shown: Shown) -> None:
    assert (await http.get("/readyz")).status == 200
    shown.view = replace(EMPTY, trouble="no source in deployment d yet")
    answer = await http.post("/v1/infer", data=png())
    assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
    assert (await answer.json())["error"]["text"] == "no source in deployment d yet"
    ready = await http.get("/readyz")
    assert (ready.status, await ready.text()) == (503, "no source in deployment d yet\n")
    assert (await http.get("/healthz")).status == 200


async def test_only_so_many_requests_are_under_way(http: TestClient[Any, Any], asked: Asked) -> None:
    asked.may_answer.clear()
    posts = [asyncio.create_task(http.post("/v1/infer", data=b"x")) for _ in range(256)]
    async with asyncio.timeout(20):
        while len(asked.seen) < 256:
            await asyncio.sleep(0.01)
    answer = await http.post("/v1/infer", data=b"x")
    assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
    asked.may_answer.set()
    assert {answer.status for answer in await asyncio.gather(*posts)} == {200}


async def test_only_so_many_bytes_are_under_way(http: TestClient[Any, Any], asked: Asked) -> None:
    asked.may_answer.clear()
    large = b"x" * (8 * 1024 * 1024)
    posts = [asyncio.create_task(http.post("/v1/infer", data=io.BytesIO(large))) for _ in range(8)]
    async with asyncio.timeout(20):
        while len(asked.seen) < 8:
            await asyncio.sleep(0.01)
    assert (await http.post("/v1/infer", data=b"x")).status == 429
    asked.may_answer.set()
    assert {answer.status for answer in await asyncio.gather(*posts)} == {200}
    assert (await http.post("/v1/infer", data=b"x")).status == 200


async def test_a_reader_that_does_not_read_is_let_go(
    http: TestClient[Any, Any], shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdi_exit.gateway.app._STREAM_STALLS_S", 0.2)
    monkeypatch.setattr("mdi_exit.gateway.feed.PERIOD_S", 0.0)
    monkeypatch.setattr("mdi_exit.gateway.feed._BYTES_PER_S", 1e12)
    shown.view = replace(VIEW, nodes=(NODE,) * 3000)  # about a megabyte an event
    gateway = http.app[GATEWAY]
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.setblocking(False)
        await asyncio.get_running_loop().sock_connect(reader, ("127.0.0.1", http.port))
        request = f"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1:{http.port}\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(reader, request.encode())
        seen = 0
        async with asyncio.timeout(30):
            while not (seen and not gateway.feed.clients):
                seen = max(seen, gateway.feed.clients)
                gateway.feed.touch()
                await asyncio.sleep(0.01)
    assert seen == 1


async def test_a_stream_is_only_for_who_reads_it(http: TestClient[Any, Any]) -> None:
    assert (await http.head("/v1/events")).status == 405
    assert (await http.head("/v1/state")).status == 200
    assert (await http.get("/v1/infer")).status == 405


async def test_another_sites_page_may_not_ask_and_its_name_does_not_lead_here(http: TestClient[Any, Any]) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        answer = await http.post("/v1/infer", data=png(), headers=headers)
        assert (answer.status, (await answer.json())["error"]["reason"]) == (403, "origin")
    own = {"Origin": f"http://127.0.0.1:{http.port}", "Sec-Fetch-Site": "same-origin"}
    assert (await http.post("/v1/infer", data=png(), headers=own)).status == 200
    assert (await http.get("/v1/state", headers={"Host": "evil.example"})).status == 403
    assert (await http.get("/v1/state", headers={"Host": "localhost:1"})).status == 200


def test_a_listener_on_the_network_answers_to_any_name() -> None:
    request = make_mocked_request("GET", "/", headers={"Host": "board.lan:8080"})
    guard.check_host(request, "192.0.2.1")
    with pytest.raises(RejectedError):
        guard.check_host(request, "127.0.0.1")


async def test_every_answer_carries_the_policy(http: TestClient[Any, Any]) -> None:
    for path in ("/", "/docs", "/app.js", "/v1/state", "/openapi.json", "/nothing"):
        answer = await http.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';"), path
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_pages_come_with_a_tag_compressed_and_nothing_else_does(http: TestClient[Any, Any]) -> None:
    page = await http.get("/")
    assert (page.status, page.content_type, page.headers["Content-Encoding"]) == (200, "text/html", "gzip")
    again = await http.get("/", headers={"If-None-Match": page.headers["ETag"]})
    assert again.status == 304
    plain = await http.get("/app.js", headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    for path in ("/../app.py", "/%2e%2e/app.py", "/static/app.js", "/__init__.py", "/vendor", "/vendor/"):
        assert (await http.get(path)).status == 404, path
    assert (await http.get("/vendor/uPlot-LICENSE.txt")).status == 200


async def test_pages_name_no_other_site(http: TestClient[Any, Any]) -> None:
    for path in ("/", "/docs", "/app.js", "/charts.js", "/style.css", "/docs.js"):
        text = await (await http.get(path)).text()
        assert "https://" not in text, path
        assert "innerHTML" not in text, path


async def test_a_published_frame_is_shown_with_its_truth(http: TestClient[Any, Any], shown: Shown) -> None:
    shown.view = replace(VIEW, labels=("Bag", "Coat"))
    gateway = Gateway(GatewaySettings(http=values.HostPort("127.0.0.1", 0)), lambda: shown.view, Asked())
    sent = wire.Frame(7, "source", 0, "shipped/1", 0, 0.75, 2, 0.125, ("source", "a"), 1)
    gateway.frame(sent, memoryview(png()))
    gateway.frame(sent, memoryview(png()))  # comes while the first is looked at, and is passed over
    async with asyncio.timeout(10):
        while not gateway.gallery.number:
            await asyncio.sleep(0.01)
    (seen,) = gateway.gallery.since(0)
    assert (seen.name, seen.truth, seen.confidence, seen.via) == ("Bag", "Coat", 0.75, "source")
    gateway.frame(sent, memoryview(b"no image"))
    gateway.frame(sent, memoryview(png()))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while gateway._looking is not None:
            await asyncio.sleep(0.01)
    assert gateway.gallery.number == 1, "what is no picture is not shown"


def test_without_the_extra_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    need_web("mdi-exit serve")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        UsageError, match=r"^mdi-exit serve: expected the extra 'web' \(pip install 'mdi-exit\[web\]'\)"
    ):
        need_web("mdi-exit serve")


# --- OpenAPI


def test_the_description_refers_to_schemas_that_it_has_and_names_every_route() -> None:
    described = openapi.description()
    schemas = described["components"]["schemas"]
    for reference in json.dumps(described).split('"$ref": "')[1:]:
        assert reference.split('"')[0].removeprefix("#/components/schemas/") in schemas
    gateway = Gateway(GatewaySettings(), lambda: VIEW, Asked())
    routes = {resource.canonical for resource in gateway.app.router.resources()} - {"/{path}", "/openapi.json"}
    assert set(described["paths"]) == routes
    assert set(described["paths"]["/v1/infer"]["post"]["responses"]) >= {"200", "400", "429", "503", "504"}


# --- the source's pictures


def test_pictures_are_few_small_and_of_labelled_items() -> None:
    from mdi_exit.events import Record
    from source.pictures import Pictures

    pictures = Pictures(2.0)
    noise = np.frombuffer(random.Random(0).randbytes(1000 * 500 * 3), np.uint8).reshape(1000, 500, 3)
    for number in range(4):
        pictures.offer(f"i/{number}", noise)

    def record(number: int, label: int | None = 3) -> Record:
        row = wire.ResultRow(number, 0, ("source",), 1, label, 0.5, None if label is not None else "lost")
        return Record(f"i/{number}", 4, row, 0.25)

    assert pictures.frame(0.0, record(9), run=7, node="source") is None, "its pixels are not known"
    assert pictures.frame(0.0, record(0, None), run=7, node="source") is None, "it has no label"
    made = pictures.frame(0.0, record(1), run=7, node="source")
    assert made is not None
    message, picture = made
    assert (message.label, message.truth, message.exit, message.score) == (3, 4, 1, 0.5)
    decoded, body = wire.decode(wire.encode(message, picture))
    assert decoded == message
    with Image.open(io.BytesIO(body)) as image:
        assert max(image.size) <= 160
    assert pictures.frame(0.4, record(2), run=7, node="source") is None, "two a second"
    assert pictures.frame(0.5, record(2), run=7, node="source") is None, "nor is one kept for later"
    assert pictures.frame(0.5, record(3), run=7, node="source") is not None
