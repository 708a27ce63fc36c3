"""Small pictures of a few of the source's own items, published with what came of them, for people who watch.

Off unless asked for: what a camera sees leaves the source only as features otherwise.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdi_exit.data.sound import Clip
from mdi_exit.events import Record
from mdi_exit.modality import Raw
from mdi_exit.wire import Frame, crc32

__all__ = ["Pictures"]

_SIDE: Final = 160
_QUALITY: Final = 85
_KEPT: Final = 256
_MOST_BYTES: Final = 64 * 1024


class Pictures:
    """At most ``per_s`` pictures a second. ``offer`` is called in the thread that reads the input, the rest in the loop."""

    def __init__(self, per_s: float) -> None:
        self._period_s = 1.0 / per_s
        self._next_at = float("-inf")
        self._kept: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def offer(self, sample: str, raw: Raw) -> None:
        """Remember an item's pixels (uint8, H×W, H×W×1 or H×W×3), thinned out; the oldest are forgotten. Of a text or
        sound there is no picture.
        """
        if isinstance(raw, str | Clip) or raw.dtype != np.uint8:
            return
        pixels = np.asarray(raw, np.uint8)
        step = max(-(-max(pixels.shape[:2]) // _SIDE), 1)
        small = pixels[::step, ::step].copy()
        with self._lock:
            self._kept[sample] = small
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)

    def frame(self, now: float, record: Record, *, run: int, node: str) -> tuple[Frame, bytes] | None:
        """The message and its picture for an item that has its label; None: not this one. ``now``: seconds."""
        with self._lock:
            pixels = self._kept.pop(record.sample, None)
        label = record.row.label
        if pixels is None or label is None or now < self._next_at:
            return None
        picture = _jpeg(pixels)
        if len(picture) > _MOST_BYTES:
            return None
        self._next_at = now + self._period_s
        row = record.row
        return (
            Frame(
                run=run,
                node=node,
                crc=crc32(picture),
                sample=record.sample[:400],
                label=label,
                score=row.score,
                exit=row.exit,
                latency_s=max(record.latency_s, 0.0),
                path=row.path,
                truth=record.truth,
            ),
            picture,
        )


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
