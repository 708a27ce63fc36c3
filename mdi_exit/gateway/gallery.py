"""The images of late with what came of them: small, re-encoded, a bounded number."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Final

from msgspec import Struct
from PIL import Image, ImageOps

from mdi_exit.limits import MAX_IMAGE_FILE_PIXELS

__all__ = ["Frame", "Gallery", "thumbnail"]

_SIDE: Final = 160
_QUALITY: Final = 82


class Frame(Struct, frozen=True):
    """An image and its label; its picture is at ``/v1/frames/NUMBER.jpg``. ``truth``: the right label, where known.

    ``via``: ``gateway`` for an image posted here, else the source whose input it is. ``path``: the nodes that worked on it.
    """

    number: int
    at: float
    label: int
    name: str
    confidence: float
    exit: int
    path: tuple[str, ...]
    latency_s: float
    via: str
    truth: str | None = None


class Gallery:
    """The last ``most`` frames; 0: none is kept. Their pictures stay twice as long, for who has just been told of them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.number = 0
        self._frames: OrderedDict[int, tuple[Frame, bytes]] = OrderedDict()

    def add(self, frame: Frame, picture: bytes) -> None:
        """``frame.number`` must be ``self.number + 1``."""
        self.number = frame.number
        self._frames[frame.number] = (frame, picture)
        while len(self._frames) > 2 * self.most:
            self._frames.popitem(last=False)

    def since(self, number: int) -> list[Frame]:
        """The frames after that one, oldest first."""
        return [frame for frame, _ in self._frames.values() if frame.number > number][-self.most :] if self.most else []

    def picture(self, number: int) -> bytes | None:
        found = self._frames.get(number)
        return found[1] if found else None


def thumbnail(raw: bytes) -> bytes | None:
    """A JPEG of at most 160 pixels a side made of an image file, upright; None if it cannot be read.

    Whatever else the file held (place, camera, trailing bytes) does not come along.
    """
    try:
        with Image.open(io.BytesIO(raw)) as image:
            if image.width * image.height > MAX_IMAGE_FILE_PIXELS:
                return None
            image.draft("RGB", (_SIDE, _SIDE))
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits a pixel
                upright = upright.point(lambda value: value / 256)
            small = upright.convert("RGB")
            small.thumbnail((_SIDE, _SIDE))
            out = io.BytesIO()
            small.save(out, "JPEG", quality=_QUALITY)
    except Exception:  # noqa: BLE001 - decoders of broken files raise anything
        return None
    return out.getvalue()
