"""Requests of other programs as they come over the broker, and the replies to them.

A request is a frame of ``mdi_exit.Client``, or in plain: a file as it is (an image, sound, a text), or JSON with it in base64
or the text. A plain one is answered in JSON. Nothing here decides anything: ``SourceState`` does.
"""

from __future__ import annotations

import asyncio
import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from mdi_exit import topics as kinds
from mdi_exit.driver import NodeDriver
from mdi_exit.errors import MdiExitError, WireError
from mdi_exit.events import (
    PrepareRequest,
    ReplyFailed,
    RequestPrepared,
    RequestReceived,
    RequestUnusable,
    SendReply,
)
from mdi_exit.limits import MAX_REQUEST_BYTES
from mdi_exit.modality import Modality
from mdi_exit.model.manifest import Manifest
from mdi_exit.wire import VERSION, Patience, Reply, Request, RequestId, decode, encode
from source.recorder import Sent

__all__ = ["Reception", "read_request", "reply_json", "to_tensor"]

_PLAIN: Final = "JSON with image or audio (base64) or text"
_MAX_PLAIN_BYTES: Final = MAX_REQUEST_BYTES * 4 // 3 + 4096  # of an image in base64, and the JSON around it


class _PlainRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    image: bytes | None = None  # base64 in JSON, as audio is
    audio: bytes | None = None
    text: str | None = None
    id: RequestId | Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    deadline_s: Patience | None = None


def read_request(client: str, payload: bytes) -> RequestReceived:
    """The request in a message of ``client``. Raises ``WireError``."""
    if len(payload) > _MAX_PLAIN_BYTES:
        raise WireError("payload-size", f"expected at most {_MAX_PLAIN_BYTES} bytes, got {len(payload)}")
    opening = payload[:64].lstrip()[:1]
    if payload[:1] == bytes((VERSION,)):
        message, body = decode(payload)
        if not isinstance(message, Request):
            raise WireError("type", f"expected Request, got {type(message).__name__}")
        if message.client != client:
            raise WireError("identity", f"expected a request of {client}, got one of {message.client}")
        sent, identity, deadline_s = Sent(message.kind, message.shape, body), message.id, message.deadline_s
    elif opening == b"{":
        try:
            plain = msgspec.json.decode(payload, type=_PlainRequest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise WireError("request", f"expected {_PLAIN}, id, deadline_s: {error}") from None
        identity = "" if plain.id is None else str(plain.id)
        sent = _sent(plain)
        deadline_s = plain.deadline_s
    else:
        sent, identity, deadline_s = Sent("", (), payload), "", None
    if not 0 < len(sent.data) <= MAX_REQUEST_BYTES:
        raise WireError("payload-size", f"expected an item of 1 to {MAX_REQUEST_BYTES} bytes, got {len(sent.data)}")
    plainly = payload[:1] != bytes((VERSION,))
    return RequestReceived(client, identity, sent, len(sent.data), deadline_s, plainly)


def _sent(plain: _PlainRequest) -> Sent:
    text = None if plain.text is None else plain.text.encode("utf-8", "replace")
    given = [
        (kind, data)
        for kind, data in (("image", plain.image), ("image", plain.audio), ("text", text))
        if data is not None
    ]
    if len(given) != 1:
        raise WireError("request", f"expected {_PLAIN}, got {'several' if given else 'none'} of them")
    kind, data = given[0]
    return Sent(kind, (), data)


def to_tensor(sent: Sent, modality: Modality) -> NDArray[np.float32]:
    """What enters layer 0. Raises ``ValueError`` or ``MdiExitError``."""
    if sent.kind in ("", modality.kind) or (sent.kind, modality.kind) == ("image", "audio"):  # "image": a file's bytes
        return modality.prepared(modality.read(sent.data))
    if sent.kind in ("image", "text"):
        raise ValueError(f"item: expected {modality.kind}, as the model takes, got {sent.kind}")
    dtype = np.dtype(sent.kind).newbyteorder("<")
    wanted = math.prod(sent.shape) * dtype.itemsize
    if len(sent.data) != wanted:
        raise ValueError(f"array: expected {wanted} bytes for {sent.kind} of shape {sent.shape}, got {len(sent.data)}")
    x = np.frombuffer(sent.data, dtype).reshape(sent.shape)
    return modality.prepared(x) if sent.kind == "uint8" else modality.ready(x)


def reply_json(reply: Reply) -> bytes:
    """A reply in plain."""
    fields: dict[str, Any] = {"id": reply.id}
    if reply.error:
        fields |= {"error": reply.error, "reason": reply.reason}
    else:
        fields |= {"label": reply.label}
        if reply.label_name:
            fields |= {"label_name": reply.label_name}
        fields |= {"confidence": round(reply.confidence, 6), "exit": reply.exit, "path": list(reply.path)}
    fields |= {"latency_s": round(reply.latency_s, 6)}
    return json.dumps(fields, ensure_ascii=False).encode()


class Reception:
    """Gives ``driver`` the requests that come, makes tensors of them in a thread, and publishes its replies."""

    def __init__(self, driver: NodeDriver, manifest: Manifest, modality: Modality) -> None:
        self._driver, self._manifest, self._modality = driver, manifest, modality
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="requests")

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def received(self, client: str, payload: bytes, *, retained: bool) -> None:
        """A message on the topic of a client's requests. Raises ``WireError`` for one that is none."""
        if retained:
            raise WireError(
                "retained", f"expected a request of {client} that the broker does not keep, got one that it does"
            )
        try:
            event = read_request(client, payload)
        except WireError as error:
            reply = Reply(client, "", error="bad-request", reason=str(error)[:400])
            self.send(SendReply(reply, payload[:1] != bytes((VERSION,))))
            raise
        self._driver.feed(event)

    def prepare(self, command: PrepareRequest) -> None:
        self._driver.spawn(f"request {command.ticket}", self._prepare(command))

    async def _prepare(self, command: PrepareRequest) -> None:
        loop = asyncio.get_running_loop()
        try:
            sent = command.payload
            if not isinstance(sent, Sent):
                raise TypeError(f"expected what came in a request, got {type(sent).__name__}")
            x = await loop.run_in_executor(self._thread, to_tensor, sent, self._modality)
        except (ValueError, MdiExitError, MemoryError) as error:
            self._driver.feed(RequestUnusable(command.ticket, str(error) or type(error).__name__))
        else:
            self._driver.feed(RequestPrepared(command.ticket, x, self._driver.cuts.size_bytes(0, x.shape)))

    def frame(self, command: SendReply) -> bytes:
        """A reply as it is published."""
        reply, labels = command.reply, self._manifest.labels
        if reply.label is not None and reply.label < len(labels):
            reply = msgspec.structs.replace(reply, label_name=labels[reply.label][:200])
        return reply_json(reply) if command.plain else encode(reply)

    def send(self, command: SendReply) -> None:
        """Publish a reply; the core hears of one that the transport does not take."""
        reply, frame = command.reply, self.frame(command)
        topic = self._driver.topics.replies(reply.client)
        if not self._driver.publish(kinds.REPLIES, topic, frame) and reply.id:
            asyncio.get_running_loop().call_soon(self._driver.feed, ReplyFailed(command))
