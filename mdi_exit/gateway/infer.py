"""``POST /v1/infer``: the item of an HTTP request, and which status each way of failing has."""

from __future__ import annotations

import math
from typing import Final

import msgspec
from aiohttp import BodyPartReader, web
from msgspec import Struct

from mdi_exit import values
from mdi_exit.client import Text
from mdi_exit.errors import UsageError
from mdi_exit.limits import MAX_REQUEST_BYTES

__all__ = ["MAX_IMAGE_BYTES", "Answer", "Fault", "RejectedError", "deadline_of", "item_of"]

MAX_IMAGE_BYTES: Final = MAX_REQUEST_BYTES
_LONGEST_DEADLINE_S: Final = 60.0
_FILES: Final = ("image", "audio")
_EXPECTED: Final = "expected a form with a part 'image', 'audio' or 'text'"


class _JsonText(Struct, frozen=True, forbid_unknown_fields=True):
    text: str


class Answer(Struct, frozen=True):
    """The label of an image, a sound or a text. ``frame``: its number among the frames of late, null if none is kept."""

    label: int
    name: str
    confidence: float
    exit: int
    path: tuple[str, ...]
    latency_s: float
    frame: int | None


class Fault(Struct, frozen=True):
    """``reason`` is a short word for programs, ``text`` a line for people."""

    reason: str
    text: str


class RejectedError(Exception):
    """A request that ends with ``status``; ``retry_after_s``: when another try may do better."""

    def __init__(self, status: int, reason: str, text: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.status, self.fault, self.retry_after_s = status, Fault(reason, text), retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        after_s = self.retry_after_s
        return {} if after_s is None else {"Retry-After": str(max(1, math.ceil(after_s)))}


def deadline_of(request: web.Request, default_s: float) -> float:
    """Seconds, from ``?deadline=2s``. Raises ``RejectedError``."""
    text = request.query.get("deadline")
    if text is None:
        return default_s
    try:
        deadline_s = values.duration(text)
    except UsageError as error:
        raise RejectedError(400, "deadline", f"deadline: expected {error.expected}, got {error.got}") from None
    if deadline_s > _LONGEST_DEADLINE_S:
        raise RejectedError(
            400, "deadline", f"deadline: expected at most {_LONGEST_DEADLINE_S:g}s, got {deadline_s:g}s"
        )
    return deadline_s


async def item_of(request: web.Request) -> bytes | Text:
    """The bytes of an image or of sound, or a text: the body, or the part ``image``, ``audio`` or ``text`` of a form, or
    ``text`` of JSON.

    Raises ``RejectedError``.
    """
    try:
        match request.content_type:
            case "multipart/form-data":
                item = await _part(request)
            case "text/plain":
                item = _text(await request.read())
            case "application/json":
                item = _json_text(await request.read())
            case _:
                item = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large() from None
    except ValueError as error:
        raise RejectedError(400, "form", f"body: {_EXPECTED}, got {error}") from None
    if not item:
        raise RejectedError(400, "empty", "body: expected an image, a sound or a text, got none")
    return item


async def _part(request: web.Request) -> bytes | Text:
    async for part in await request.multipart():
        if isinstance(part, BodyPartReader) and part.name in (*_FILES, "text"):
            read = bytearray()
            while chunk := await part.read_chunk(64 * 1024):
                read += chunk
                if len(read) > MAX_IMAGE_BYTES:
                    raise _too_large()
            return bytes(read) if part.name in _FILES else _text(bytes(read))
    raise RejectedError(400, "form", f"body: {_EXPECTED}, got one without")


def _text(raw: bytes) -> Text:
    try:
        return Text(raw.decode())
    except UnicodeDecodeError as error:
        raise RejectedError(400, "text", f"body: expected UTF-8, got {error.reason} at byte {error.start}") from None


def _json_text(raw: bytes) -> Text:
    try:
        return Text(msgspec.json.decode(raw, type=_JsonText).text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        expected = 'the bytes of an image or of sound, or {"text": ...}'
        raise RejectedError(415, "type", f"body: expected {expected}, got other JSON") from None


def _too_large() -> RejectedError:
    return RejectedError(413, "size", f"body: expected at most {MAX_IMAGE_BYTES:,} bytes, got more")
