"""``Client``: labels for other programs' items, from a running deployment.

    async with Client("mqtt://host") as client:
        answer = await client.infer("shoe.jpg", deadline_s=2.0)
        answer = await client.infer(Text("You have won a prize"))  # where the model takes texts

A request is known by its id, so it may be sent twice and is answered once: the client sends again what has no answer after
a reconnect, when another run of the source begins, and now and then.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import logging
import secrets
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, overload

import numpy as np

from mdi_exit.errors import (
    BadRequest,
    DeadlineExceeded,
    Failed,
    Refused,
    RequestError,
    StartError,
    TransportError,
    UsageError,
    WireError,
)
from mdi_exit.limits import MAX_REQUEST_BYTES
from mdi_exit.topics import CONTROL, REPLIES, REQUESTS, Topics, checked_name
from mdi_exit.transport.mqtt import MqttTransport
from mdi_exit.wire import Control, Reply, Request, crc32, decode, encode

__all__ = ["Answer", "Client", "Text"]

Item = Any
"""A ``Text``; bytes of an image file, its path, a PIL image, pixels (uint8, H×W or H×W×C); or just what enters layer 0."""

_ERRORS: Final[dict[str, type[RequestError]]] = {
    "refused": Refused,
    "deadline": DeadlineExceeded,
    "bad-request": BadRequest,
    "failed": Failed,
}
_LOOK_S: Final = 0.1
_AGAIN_S: Final = 5.0
_AGAIN_MOST_S: Final = 60.0
_LONGEST_DEADLINE_S: Final = 3600.0

log = logging.getLogger(__name__)


class Text(str):
    """A text to be labelled itself: a plain ``str`` is the path of a file."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A label. ``name`` is empty where the model has no names; ``path``: the nodes that worked on it.

    ``latency_s``: seconds from the request's arrival at the source to the answer.
    """

    id: str
    label: int
    name: str
    confidence: float
    exit: int
    path: tuple[str, ...]
    latency_s: float


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request without an answer. ``due_at``: when it is to be sent (again)."""

    request: Request
    payload: bytes
    deadline_at: float | None
    answer: asyncio.Future[Answer]
    due_at: float = 0.0
    again_s: float = _AGAIN_S


class Client:
    """A client of the deployment on the broker at ``broker`` (``mqtt[s]://HOST[:PORT]``, or several with commas between).

    ``name`` stands in the topics and is the party among which the source shares its capacity; by default a new one. Entering
    raises ``StartError`` if the broker cannot be reached within ``connect_s`` seconds.
    """

    def __init__(
        self,
        broker: str = "mqtt://127.0.0.1:1883",
        *,
        deployment: str = "default",
        name: str | None = None,
        username: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        connect_s: float = 10.0,
    ) -> None:
        token = secrets.token_hex(4)
        self.name = checked_name(name, "client's name") if name is not None else f"client-{token}"
        self._topics = Topics(deployment)
        self._connect_s, self._broker = connect_s, broker
        self._ids = (f"{token}-{number}" for number in itertools.count(1))
        self._waiting: dict[str, _Waiting] = {}
        self._run: int | None = None
        self._trouble = ""
        self._denial: StartError | None = None
        self._connected = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._open = False
        self._transport = MqttTransport(
            broker,
            client_id=f"{deployment}-{self.name}-{token}",
            handler=self,
            username=username,
            password=password,
            tls=tls,
            on_denied=self._on_denied,
        )

    async def __aenter__(self) -> Self:
        await self._transport.subscribe(self._topics.replies(self.name), REPLIES.qos)
        await self._transport.subscribe(self._topics.control, CONTROL.qos)
        await self._transport.__aenter__()
        try:
            await asyncio.wait_for(self._connected.wait(), self._connect_s)
            if self._denial is not None:
                raise self._denial
        except BaseException as error:
            await self._transport.__aexit__(None, None, None)
            if isinstance(error, TimeoutError):
                trouble = self._trouble or "no answer"
                raise StartError(f"client {self.name}: no connection in {self._connect_s:g} s: {trouble}") from None
            raise
        self._open = True
        self._watch = asyncio.create_task(self._look_after(), name=f"client {self.name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What has no answer yet fails."""
        self._open = False
        for waiting in list(self._waiting.values()):
            self._fail(waiting, Failed(waiting.request.id, "the client was closed before an answer came"))
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        await self._transport.__aexit__(kind, error, trace)

    # --- what it is for

    async def infer(self, item: Item, *, deadline_s: float | None = None) -> Answer:
        """The label of one item. Without a deadline it waits for as long as it takes, even for a source to come up.

        Raises ``Refused``, ``DeadlineExceeded``, ``BadRequest`` or ``Failed``; ``OSError`` for a path that cannot be read.
        """
        if not self._open:
            raise UsageError("Client", "use inside 'async with'", "a client that is not open")
        if deadline_s is not None and not 0 < deadline_s <= _LONGEST_DEADLINE_S:
            raise UsageError("deadline_s", f"above 0 and at most {_LONGEST_DEADLINE_S:g} s", deadline_s)
        loop = asyncio.get_running_loop()
        deadline_at = None if deadline_s is None else loop.time() + deadline_s
        identity = next(self._ids)
        kind, shape, payload = await _payload(identity, item)
        request = Request(self.name, identity, kind, crc32(payload), shape, deadline_s)
        waiting = _Waiting(request, payload, deadline_at, loop.create_future())
        timer = None
        if deadline_at is not None:
            late = DeadlineExceeded(identity, f"no answer within {deadline_s:g} s")
            timer = loop.call_at(deadline_at, self._fail, waiting, late)
        self._waiting[identity] = waiting
        try:
            self._send(waiting, loop.time())
            return await waiting.answer
        finally:
            del self._waiting[identity]
            if timer is not None:
                timer.cancel()

    @overload
    def stream(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        in_flight: int = ...,
        deadline_s: float | None = ...,
        errors: Literal["raise"] = ...,
    ) -> AsyncIterator[Answer]: ...

    @overload
    def stream(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        in_flight: int = ...,
        deadline_s: float | None = ...,
        errors: Literal["yield"],
    ) -> AsyncIterator[Answer | RequestError]: ...

    async def stream(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        in_flight: int = 8,
        deadline_s: float | None = None,
        errors: str = "raise",
    ) -> AsyncIterator[Answer | RequestError]:
        """Answers in the order of ``items``, of which no more than ``in_flight`` are taken ahead of those given out.

        ``errors="yield"`` gives the exception in the place of its answer instead of ending the stream with it.
        """
        if in_flight < 1:
            raise UsageError("in_flight", "at least 1", in_flight)
        room = asyncio.Semaphore(in_flight)
        asked: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue()
        tasks: set[asyncio.Task[Any]] = set()

        async def ask() -> None:
            try:
                source = _each(items)
                while True:
                    await room.acquire()
                    try:
                        item = await anext(source)
                    except StopAsyncIteration:
                        return
                    task = asyncio.create_task(self.infer(item, deadline_s=deadline_s), name=f"{self.name} asks")
                    tasks.add(task)
                    asked.put_nowait(task)
            finally:
                asked.put_nowait(None)

        asking = asyncio.create_task(ask(), name=f"{self.name} streams")
        try:
            while (task := await asked.get()) is not None:
                outcome = await _outcome(task, raises=errors == "raise")
                tasks.discard(task)
                room.release()
                yield outcome
            await asking  # for the exception of ``items``
        finally:
            tasks.add(asking)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- sending, again where needed

    def _send(self, waiting: _Waiting, now: float) -> None:
        """Send if the transport takes it; else it stays due."""
        left_s = None if waiting.deadline_at is None else waiting.deadline_at - now
        if waiting.answer.done() or (left_s is not None and left_s <= 0):
            return
        request = waiting.request
        frame = encode(_with_deadline(request, left_s), waiting.payload)
        try:
            taken = self._transport.publish(self._topics.requests(self.name), frame, qos=REQUESTS.qos)
        except TransportError as error:
            self._fail(waiting, BadRequest(request.id, str(error)))
            return
        if taken:
            waiting.due_at = now + waiting.again_s
            waiting.again_s = min(2 * waiting.again_s, _AGAIN_MOST_S)

    def _send_all_again(self) -> None:
        for waiting in self._waiting.values():
            waiting.due_at, waiting.again_s = 0.0, _AGAIN_S
        self._send_due()

    def _send_due(self) -> None:
        now = asyncio.get_running_loop().time()
        for waiting in list(self._waiting.values()):
            if waiting.due_at <= now and self._transport.connected:
                self._send(waiting, now)

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self._send_due()

    def _fail(self, waiting: _Waiting, error: RequestError) -> None:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)

    # --- what the transport tells

    def _on_denied(self, error: StartError) -> None:
        self._denial = error
        self._connected.set()  # there is nothing more to wait for

    def on_connected(self) -> None:
        self._connected.set()
        if self._open:
            self._send_all_again()

    def on_disconnected(self, reason: str) -> None:
        self._trouble = reason
        log.warning("client %s: %s; trying again", self.name, reason)

    def on_message(self, topic: str, payload: bytes, retained: bool) -> None:
        del retained
        try:
            kind = self._topics.parse(topic).kind
            if not payload or (kind is REPLIES and payload[:1] == b"{"):
                return  # the answer to somebody of this name who asked in plain
            message, _ = decode(payload)
        except WireError as error:
            log.warning("client %s: bad message on %s: %s", self.name, topic[:80], error)
            return
        if isinstance(message, Control):
            known, self._run = self._run, message.run
            if known is not None and known != message.run:
                self._send_all_again()
        elif isinstance(message, Reply) and (waiting := self._waiting.get(message.id)) is not None:
            self._answered(waiting, message)

    def _answered(self, waiting: _Waiting, reply: Reply) -> None:
        if waiting.answer.done():
            return
        if reply.error or reply.label is None:
            self._fail(waiting, _ERRORS.get(reply.error, Failed)(reply.id, reply.reason))
            return
        waiting.answer.set_result(
            Answer(reply.id, reply.label, reply.label_name, reply.confidence, reply.exit, reply.path, reply.latency_s)
        )


def _with_deadline(request: Request, left_s: float | None) -> Request:
    return Request(request.client, request.id, request.kind, request.crc, request.shape, left_s)


async def _outcome(task: asyncio.Task[Answer], *, raises: bool) -> Answer | RequestError:
    try:
        return await task
    except RequestError as error:
        if raises:
            raise
        return error


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def _payload(identity: str, item: Item) -> tuple[str, tuple[int, ...], bytes]:
    """Kind, shape and bytes of the request for ``item``. Raises ``BadRequest``."""
    shape: tuple[int, ...] = ()
    kind = "image"
    if isinstance(item, Text):
        kind, payload = "text", item.encode("utf-8", "replace")
    elif isinstance(item, bytes | bytearray | memoryview):
        payload = bytes(item)
    elif isinstance(item, str | PathLike):
        payload = await asyncio.to_thread(_of_file, Path(item))
    elif isinstance(item, np.ndarray):
        kind, shape, payload = _of_array(identity, item)
    elif hasattr(item, "save") and hasattr(item, "getbands"):
        payload = await asyncio.to_thread(_png, item)
    else:
        expected = "bytes, a path, a Text, a PIL image, or a uint8 or float32 array"
        raise BadRequest(identity, f"item: expected {expected}, got {type(item).__name__}")
    if not 0 < len(payload) <= MAX_REQUEST_BYTES:
        raise BadRequest(identity, f"item: expected 1 to {MAX_REQUEST_BYTES:,} bytes, got {len(payload):,}")
    return kind, shape, payload


def _of_file(path: Path) -> bytes:
    """No more of it than shows that it is too large."""
    with path.open("rb") as stream:
        return stream.read(MAX_REQUEST_BYTES + 1)


def _of_array(identity: str, array: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...], bytes]:
    kind = array.dtype.name
    if array.ndim not in {"uint8": (2, 3), "float32": (1, 2, 3, 4)}.get(kind, ()):
        expected = "uint8 pixels (H×W or H×W×C) or float32 as layer 0 takes it"
        raise BadRequest(identity, f"array: expected {expected}, got {kind} of shape {array.shape}")
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return kind, array.shape, little.tobytes()


def _png(image: Any) -> bytes:
    """Without loss."""
    buffer = io.BytesIO()
    (image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else image.convert("RGB")).save(buffer, "PNG")
    return buffer.getvalue()
