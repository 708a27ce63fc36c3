"""Inputs that do not wait: the newest samples stand ready, what a slow system does not take is passed over and counted."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from mdi_exit.errors import MdiExitError
from mdi_exit.logs import Throttle
from mdi_exit.modality import Raw
from source.inputs.stored import Sample

__all__ = ["Frame", "LiveInput"]

_GOODBYE_S: Final = 6.0
_SAY_S: Final = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Frame:
    """A sample that stands ready, not decoded yet; ``size_bytes`` of what is held for it."""

    id: str
    read: Callable[[], Raw]
    truth: int | None = None
    size_bytes: int = 0


class LiveInput:
    """Samples as they come, in an ``async with``.

    ``feed`` runs in a thread of its own, offers frames and returns soon after ``stopping`` is set; without it someone else
    offers. ``room``: frames that may stand ready (None: any number), ``room_bytes`` the same in bytes; the oldest is passed
    over when they are more. ``newest_first``: the order in which they are drawn. After ``limit`` samples the input ends.
    ``skipped``: frames that came and were not drawn, or could not be read.
    """

    def __init__(
        self,
        name: str,
        feed: Callable[[LiveInput], None] | None,
        *,
        room: int | None = 1,
        room_bytes: int = 64 * 1024 * 1024,
        newest_first: bool = True,
        limit: int | None = None,
    ) -> None:
        self.name = name
        self.came = self.skipped = self.taken = 0
        self.stopping = threading.Event()
        self._feed, self._room, self._room_bytes, self._newest_first = feed, room, room_bytes, newest_first
        self._limit = limit
        self._lock = threading.Lock()
        self._frames: deque[Frame] = deque()
        self._held_bytes = 0
        self._told = 0
        self._ended = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived = asyncio.Event()
        self._throttle = Throttle(_SAY_S)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        if self._feed is not None:
            self._thread = threading.Thread(
                target=self._run, args=(self._feed,), name=f"input {self.name}", daemon=True
            )
            self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _GOODBYE_S)
        with self._lock:
            self._pass_over(len(self._frames))
        log.info("input %s: %d came, %d were taken, %d passed over", self.name, self.came, self.taken, self.skipped)

    # --- from any thread

    def offer(self, frame: Frame) -> None:
        """A new sample is there."""
        with self._lock:
            if self._ended:
                return
            self.came += 1
            self._frames.append(frame)
            self._held_bytes += frame.size_bytes
            too_many = len(self._frames) - self._room if self._room is not None else 0
            self._pass_over(max(too_many, 0))
            while len(self._frames) > 1 and self._held_bytes > self._room_bytes:
                self._pass_over(1)
        self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """No more will come; what stands ready may still be drawn."""
        with self._lock:
            self._ended, self._error = True, error
        self._wake()

    # --- from the event loop

    async def next(self) -> Sample | None:
        """The next sample, as soon as one is there; None after the last. Raises what made ``feed`` fail."""
        while True:
            if self._limit is not None and self.taken >= self._limit:
                self.end()
                return None
            frame = self._take()
            if frame is None:
                if self._error is not None:
                    raise self._error
                if self._ended:
                    return None
                await self._arrived.wait()
                continue
            try:
                pixels = await asyncio.to_thread(frame.read)
            except Exception as error:  # noqa: BLE001 - decoders of broken pictures raise anything
                self._unreadable(frame, error)
                continue
            self.taken += 1
            return Sample(frame.id, pixels, frame.truth)

    def newly_skipped(self) -> int:
        """Frames passed over since the last call."""
        with self._lock:
            count, self._told = self.skipped - self._told, self.skipped
        return count

    # --- inside

    def _run(self, feed: Callable[[LiveInput], None]) -> None:
        try:
            feed(self)
        except MdiExitError as error:
            self.end(error)
        except Exception as error:
            log.exception("input %s failed", self.name)
            self.end(MdiExitError(f"input {self.name}: {error or type(error).__name__}"))
        else:
            self.end()

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None and not self.stopping.is_set() and not loop.is_closed():
            loop.call_soon_threadsafe(self._arrived.set)

    def _take(self) -> Frame | None:
        with self._lock:
            self._arrived.clear()
            if not self._frames:
                return None
            frame = self._frames.pop() if self._newest_first else self._frames.popleft()
            self._held_bytes -= frame.size_bytes
            return frame

    def _pass_over(self, count: int) -> None:
        for _ in range(count):
            self._held_bytes -= self._frames.popleft().size_bytes
        self.skipped += count

    def _unreadable(self, frame: Frame, error: Exception) -> None:
        with self._lock:
            self.skipped += 1
        more = self._throttle.allow("unreadable", asyncio.get_running_loop().time())
        if more is not None:
            why = str(error) or type(error).__name__
            log.warning("input %s: %s passed over: %s (%d more like it before)", self.name, frame.id, why, more)
