"""Items published on the broker, one a message, as the model takes them: texts, or images as IP cameras and Frigate publish
them (JPEG, or whatever Pillow reads).
"""

from __future__ import annotations

import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final

from mdi_exit.modality import Raw
from mdi_exit.modality.image import decode_image
from source.inputs.live import Frame, LiveInput

__all__ = ["TopicInput"]

_ROOM: Final = 32
_REMEMBERED_TOPICS: Final = 1000


class TopicInput(LiveInput):
    """Whoever has a connection to the broker subscribes to ``pattern`` and hands over what comes (``on_image``).

    The last 32 images stand ready (64 MiB of them at most), the newest is drawn first. ids are topic and number.
    """

    def __init__(self, pattern: str, *, limit: int | None = None, read: Callable[[bytes], Raw] = decode_image) -> None:
        super().__init__(f"mqtt:{pattern}", None, room=_ROOM, limit=limit)
        self.pattern, self._decode = pattern, read
        self._numbers: Counter[str] = Counter()
        self._last: OrderedDict[str, int] = OrderedDict()

    def on_image(self, topic: str, payload: bytes, retained: bool) -> None:
        """A message has come. One that the broker remembers and that was here already is left alone: it comes with each
        reconnect.
        """
        if not payload:
            return
        digest = zlib.crc32(payload)
        if retained and self._last.get(topic) == digest:
            return
        self._last[topic] = digest
        self._last.move_to_end(topic)
        if len(self._last) > _REMEMBERED_TOPICS:
            forgotten, _ = self._last.popitem(last=False)
            del self._numbers[forgotten]
        self._numbers[topic] += 1
        self.offer(Frame(f"{topic}/{self._numbers[topic]}", partial(self._decode, payload), size_bytes=len(payload)))
