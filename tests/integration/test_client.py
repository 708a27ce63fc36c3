"""``mdi_exit.Client`` on a real broker against a source that a test plays."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mdi_exit
from mdi_exit import BadRequest, Client, DeadlineExceeded, Failed, Refused, RequestError
from mdi_exit.errors import StartError, UsageError
from mdi_exit.topics import Topics
from mdi_exit.transport.mqtt import MqttTransport
from mdi_exit.wire import Control, Reply, Request, decode, encode

pytestmark = pytest.mark.broker

DEADLINE_S = 20.0


class PlayedSource:
    """Answers each request as ``answer`` says (None: not); ``got`` are all requests with their payloads."""

    def __init__(self, url: str, deployment: str, answer: Callable[[Request, bytes], Reply | None]) -> None:
        self.topics = Topics(deployment)
        self.answer = answer
        self.got: list[tuple[Request, bytes]] = []
        self.connected = asyncio.Event()
        self.transport = MqttTransport(url, client_id=f"played-{deployment}", handler=self)

    def on_connected(self) -> None:
        self.connected.set()

    def on_disconnected(self, reason: str) -> None:
        self.connected.clear()

    def on_message(self, topic: str, payload: bytes, retained: bool) -> None:
        request, body = decode(payload)
        assert isinstance(request, Request)
        assert topic == self.topics.requests(request.client)
        self.got.append((request, bytes(body)))
        if (reply := self.answer(request, bytes(body))) is not None:
            self.reply(reply)

    def reply(self, reply: Reply) -> None:
        self.transport.publish(self.topics.replies(reply.client), encode(reply), qos=1)

    def begin_run(self, run: int) -> None:
        control = Control(run, 1, "source", 0, "ab" * 16, 0.5)
        self.transport.publish(self.topics.control, encode(control), qos=1, retain=True)

    async def until_got(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.got) < count:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def played(
    url: str, deployment: str, answer: Callable[[Request, bytes], Reply | None]
) -> AsyncIterator[PlayedSource]:
    source = PlayedSource(url, deployment, answer)
    await source.transport.subscribe(source.topics.requests("+"), 1)
    async with source.transport:
        await asyncio.wait_for(source.connected.wait(), DEADLINE_S)
        yield source


def first_byte(request: Request, body: bytes) -> Reply:
    return Reply(request.client, request.id, body[0], "name", 0.75, 2, ("a", "b"), 0.125)


def silence(request: Request, body: bytes) -> None:
    return None


async def test_every_kind_of_image_reaches_the_source_as_what_it_is(standing_mosquitto: str, tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    (tmp_path / "x.jpg").write_bytes(b"\x09file")
    async with (
        played(standing_mosquitto, "kinds", first_byte) as source,
        Client(standing_mosquitto, deployment="kinds", name="me") as client,
    ):
        answer = await client.infer(b"\x07raw", deadline_s=5.0)
        assert (answer.label, answer.name, answer.confidence, answer.exit) == (7, "name", 0.75, 2)
        assert (answer.path, answer.latency_s) == (("a", "b"), 0.125)
        assert (await client.infer(tmp_path / "x.jpg")).label == 9
        assert (await client.infer(str(tmp_path / "x.jpg"))).label == 9
        await client.infer(pixels[:, ::2])
        await client.infer(np.full((1, 2, 2), 0.5, ">f4"))
        await client.infer(Image.fromarray(pixels))
    kinds = [(request.kind, request.shape) for request, _ in source.got]
    image = ("image", ())
    assert kinds == [image, image, image, ("uint8", (3, 2)), ("float32", (1, 2, 2)), image]
    assert source.got[3][1] == bytes([0, 2, 4, 6, 8, 10])
    assert source.got[4][1] == np.full(4, 0.5, "<f4").tobytes()
    assert source.got[5][1].startswith(b"\x89PNG")
    assert 4.0 < (source.got[0][0].deadline_s or 0) <= 5.0
    assert source.got[1][0].deadline_s is None
    assert {request.client for request, _ in source.got} == {"me"}
    assert len({request.id for request, _ in source.got}) == 6
    assert all(request.crc == zlib.crc32(body) for request, body in source.got)


@pytest.mark.parametrize(
    ("kind", "error"),
    [("refused", Refused), ("deadline", DeadlineExceeded), ("bad-request", BadRequest), ("failed", Failed)],
)
async def test_each_kind_of_error_is_an_exception_of_its_own(standing_mosquitto: str, kind: str, error: type) -> None:
    def refuse(request: Request, body: bytes) -> Reply:
        return Reply(request.client, request.id, error=kind, reason="because")

    async with (
        played(standing_mosquitto, f"errors-{kind}", refuse) as source,
        Client(standing_mosquitto, deployment=f"errors-{kind}") as client,
    ):
        with pytest.raises(error) as raised:
            await client.infer(b"x")
        assert isinstance(raised.value, RequestError)
        assert raised.value.reason == "because"
        assert raised.value.id == source.got[0][0].id


@pytest.mark.parametrize("image", [b"", 5, np.zeros((2, 2), np.float64), np.zeros(3, np.uint8), bytes(9 * 1024 * 1024)])
async def test_what_is_no_image_is_not_even_sent(standing_mosquitto: str, image: object) -> None:
    async with (
        played(standing_mosquitto, "no-image", first_byte) as source,
        Client(standing_mosquitto, deployment="no-image") as client,
    ):
        with pytest.raises(BadRequest, match="expected"):
            await client.infer(image)
        with pytest.raises(OSError, match="nowhere"):
            await client.infer("/nowhere")
        with pytest.raises(UsageError, match="deadline_s"):
            await client.infer(b"x", deadline_s=0)
    assert not source.got


async def test_a_deadline_ends_the_wait_and_a_label_after_it_is_not_given(standing_mosquitto: str) -> None:
    async with (
        played(standing_mosquitto, "late", silence) as source,
        Client(standing_mosquitto, deployment="late") as client,
    ):
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
            await client.infer(b"x", deadline_s=0.05)
        late = source.got[0][0] if source.got else None
        if late is not None:
            source.reply(first_byte(late, b"x"))
        source.answer = first_byte
        assert (await client.infer(b"y", deadline_s=DEADLINE_S)).label == ord("y")


async def test_what_has_no_answer_is_sent_again_after_a_reconnect_and_for_a_new_run(mosquitto) -> None:
    async with played(mosquitto.url, "again", silence) as source:
        source.begin_run(1)
        async with Client(mosquitto.url, deployment="again") as client:
            asking = asyncio.create_task(client.infer(b"\x03", deadline_s=60.0))
            await source.until_got(1)
            (waiting,) = client._waiting.values()
            waiting.due_at = float("inf")  # so that it is not sent again merely because time has passed
            source.begin_run(2)
            await source.until_got(2)
            source.connected.clear()
            await asyncio.to_thread(mosquitto.restart)
            await asyncio.wait_for(source.connected.wait(), DEADLINE_S)
            source.answer = first_byte
            # Sent before the source had subscribed again, it is lost; the new run makes the client send it once more.
            source.begin_run(3)
            answer = await asyncio.wait_for(asking, DEADLINE_S)
            assert answer.label == 3
            first, *later = (request for request, _ in source.got)
            assert {request.id for request in later} == {first.id}
            assert all((request.deadline_s or 0) < (first.deadline_s or 0) for request in later), "what is left of it"


async def test_closing_fails_what_has_no_answer_and_a_closed_client_says_so(standing_mosquitto: str) -> None:
    async with (
        played(standing_mosquitto, "closing", silence) as source,
        Client(standing_mosquitto, deployment="closing") as client,
    ):
        asking = asyncio.create_task(client.infer(b"x"))
        await source.until_got(1)
    with pytest.raises(Failed, match="closed"):
        await asking
    with pytest.raises(UsageError, match="not open"):
        await client.infer(b"x")


async def test_without_a_broker_entering_says_why() -> None:
    with pytest.raises(StartError, match=r"no connection in 0\.5 s.*127\.0\.0\.1:9"):
        async with Client("mqtt://127.0.0.1:9", connect_s=0.5):
            pass
    with pytest.raises(UsageError, match="letters, digits"):
        Client(name="a/b")


async def test_a_stream_keeps_the_order_and_holds_up_its_producer(standing_mosquitto: str) -> None:
    held: list[tuple[Request, bytes]] = []

    def hold(request: Request, body: bytes) -> None:
        held.append((request, body))

    taken = 0

    async def images() -> AsyncIterator[bytes]:
        nonlocal taken
        for number in range(20):
            taken += 1
            yield bytes([number])

    async with (
        played(standing_mosquitto, "stream", hold) as source,
        Client(standing_mosquitto, deployment="stream") as client,
    ):
        labels = []
        stream = client.stream(images(), in_flight=4)
        asking = asyncio.create_task(anext(stream))
        await source.until_got(4)
        assert (len(source.got), taken) == (4, 4), "no more than four are under way"
        for request, body in reversed(held):
            source.reply(first_byte(request, body))
        labels.append((await asking).label)
        source.answer = first_byte
        labels += [answer.label async for answer in stream]
    assert labels == list(range(20))


async def test_a_stream_gives_an_answer_as_soon_as_it_is_there(standing_mosquitto: str) -> None:
    goes_on = asyncio.Event()

    async def camera() -> AsyncIterator[bytes]:
        yield b"\x01"
        await goes_on.wait()
        yield b"\x02"

    async with (
        played(standing_mosquitto, "camera", first_byte),
        Client(standing_mosquitto, deployment="camera") as client,
    ):
        stream = client.stream(camera(), in_flight=8)
        assert (await asyncio.wait_for(anext(stream), DEADLINE_S)).label == 1
        goes_on.set()
        assert [answer.label async for answer in stream] == [2]


async def test_an_error_ends_a_stream_or_stands_in_its_place(standing_mosquitto: str) -> None:
    def refuse_odd(request: Request, body: bytes) -> Reply:
        if body[0] % 2:
            return Reply(request.client, request.id, error="refused", reason="odd")
        return first_byte(request, body)

    def broken():
        yield b"\x02"
        raise LookupError("no more")

    images = [bytes([number]) for number in range(6)]
    async with played(standing_mosquitto, "odd", refuse_odd), Client(standing_mosquitto, deployment="odd") as client:
        found = [item async for item in client.stream(images, errors="yield")]
        assert [isinstance(item, Refused) for item in found] == [False, True] * 3
        with pytest.raises(Refused, match="odd"):
            async for _ in client.stream(images):
                pass
        with pytest.raises(LookupError, match="no more"):
            async for _ in client.stream(broken()):
                pass
        with pytest.raises(UsageError, match="in_flight"):
            async for _ in client.stream(images, in_flight=0):
                pass
        assert not client._waiting


async def test_what_others_say_to_its_name_does_it_no_harm(standing_mosquitto: str) -> None:
    async with (
        played(standing_mosquitto, "noise", silence) as source,
        Client(standing_mosquitto, deployment="noise", name="me") as client,
    ):
        asking = asyncio.create_task(client.infer(b"\x05"))
        await source.until_got(1)
        topic = source.topics.replies("me")
        for noise in (b"", b"junk", b'{"id": 1}', encode(Reply("me", "other", 1)), b"\x01" * 40):
            source.transport.publish(topic, noise, qos=1)
        source.reply(first_byte(*source.got[0]))
        source.reply(first_byte(source.got[0][0], b"\x06"))
        assert (await asking).label == 5


def test_the_public_names() -> None:
    assert sorted(mdi_exit.__all__) == [
        "Answer", "BadRequest", "Client", "DeadlineExceeded", "Failed", "Refused", "RequestError", "Text", "__version__",
    ]  # fmt: skip
    assert all(getattr(mdi_exit, name) for name in mdi_exit.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = mdi_exit.nothing
