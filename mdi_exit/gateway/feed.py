"""The stream of server-sent events: at most five a second to a client, each with the newest state and what is new since.

Nothing is queued for a client. Each remembers which sample and frame it had last, so a slow one gets fewer events with
more in them, and samples and frames that have fallen out of their bounded stores in the meantime are gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Final

import msgspec

from mdi_exit.gateway.gallery import Frame, Gallery
from mdi_exit.gateway.state import History, Sample, State

__all__ = ["Feed", "Update"]

PERIOD_S: Final = 0.2
BEAT_S: Final = 1.0
_BYTES_PER_S: Final = 500_000.0  # a state of a thousand nodes goes out less often


class Update(msgspec.Struct, frozen=True):
    """The data of an event ``update``; of the first one after connecting ``samples`` are the last five minutes."""

    state: State
    samples: list[Sample]
    frames: list[Frame]


class Feed:
    """What changes, for any number of clients. ``state`` makes the present one."""

    def __init__(self, state: Callable[[], State], history: History, gallery: Gallery) -> None:
        self._state, self._history, self._gallery = state, history, gallery
        self._version = 0
        self._changed = asyncio.Event()
        self._encoded: tuple[int, bytes] = (-1, b"")
        self.closed = False
        self.clients = 0

    def touch(self) -> None:
        """Something has changed."""
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """End every stream."""
        self.closed = True
        self.touch()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Events for one client, until ``close``: an update for each change, and a beat each second without one."""
        self.clients += 1
        version, sample, frame = -1, 0, 0
        try:
            while not self.closed:
                if version == self._version and not await self._change():
                    yield b"event: beat\ndata: {}\n\n"
                    continue
                version = self._version
                samples, frames = self._history.since(sample), self._gallery.since(frame)
                sample, frame = self._history.number, self._gallery.number
                body = self._body(samples, frames)
                yield b"event: update\ndata: " + body + b"\n\n"
                await asyncio.sleep(max(PERIOD_S, len(self._encoded[1]) / _BYTES_PER_S))
        finally:
            self.clients -= 1

    async def _change(self) -> bool:
        try:
            await asyncio.wait_for(self._changed.wait(), BEAT_S)
        except TimeoutError:
            return False
        return True

    def _body(self, samples: list[Sample], frames: list[Frame]) -> bytes:
        """An ``Update``; its state, which is most of it, is encoded once for all clients."""
        if self._encoded[0] != self._version:
            self._encoded = (self._version, msgspec.json.encode(self._state()))
        rest = msgspec.json.encode({"samples": samples, "frames": frames})
        return b'{"state":' + self._encoded[1] + b"," + rest[1:]
