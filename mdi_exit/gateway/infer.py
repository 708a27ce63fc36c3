"""``POST /v1/infer``: the image of an HTTP request, and which status each way of failing has."""

from __future__ import annotations

import math
from typing import Final

from aiohttp import BodyPartReader, web
from msgspec import Struct

from mdi_exit import values
from mdi_exit.errors import UsageError
from mdi_exit.limits import MAX_REQUEST_BYTES

__all__ = ["MAX_IMAGE_BYTES", "Answer", "Fault", "RejectedError", "deadline_of", "image_of"]

MAX_IMAGE_BYTES: Final = MAX_REQUEST_BYTES
_LONGEST_DEADLINE_S: Final = 60.0


class Answer(Struct, frozen=True):
    """The label of an image. ``frame``: its number among the frames of late, null if none is kept."""

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


async def image_of(request: web.Request) -> bytes:
    """The bytes of the image: the body, or the part ``image`` of a form. Raises ``RejectedError``."""
    try:
        if request.content_type == "multipart/form-data":
            image = await _part(request)
        elif request.content_type == "application/json":
            raise RejectedError(415, "type", f"body: expected the bytes of an image, got {request.content_type}")
        else:
            image = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large() from None
    except ValueError as error:
        raise RejectedError(400, "form", f"body: expected a form with a part 'image', got {error}") from None
    if not image:
        raise RejectedError(400, "empty", "body: expected the bytes of an image, got none")
    return image


async def _part(request: web.Request) -> bytes:
    async for part in await request.multipart():
        if isinstance(part, BodyPartReader) and part.name == "image":
            read = bytearray()
            while chunk := await part.read_chunk(64 * 1024):
                read += chunk
                if len(read) > MAX_IMAGE_BYTES:
                    raise _too_large()
            return bytes(read)
    raise RejectedError(400, "form", "body: expected a form with a part 'image', got one without")


def _too_large() -> RejectedError:
    return RejectedError(413, "size", f"body: expected at most {MAX_IMAGE_BYTES:,} bytes, got more")
