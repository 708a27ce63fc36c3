"""Where results go before anybody hears of them: a file that may be full for a while, and the journal.

A result that cannot be written is kept and tried again; meanwhile the core is told to admit nothing (``RecordingHeld``), so
what is kept is bounded by what was under way.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final, Protocol

import numpy as np

from mdi_exit.driver import Sample
from mdi_exit.errors import MdiExitError
from mdi_exit.events import KeepItem, KeepReply, KeepRequest, Record
from mdi_exit.histogram import RUN_BUCKETS_S, Histogram
from mdi_exit.journal import (
    AdmittedRow,
    FinishedRow,
    Journal,
    JournalFullError,
    Life,
    Operation,
    ReplyRow,
    RequestRow,
    SentRow,
)
from mdi_exit.results import ResultsWriter, UnwrittenError

__all__ = ["DirectRecorder", "Ears", "JournalRecorder", "Recorder", "Sent"]

_AGAIN_S: Final = 0.25
_GATHER_S: Final = 0.001
_COMPACT_S: Final = 1.0
_MOST_OPERATIONS: Final = 8192
_MOST_BYTES: Final = 256 * 1024 * 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sent:
    """A request's payload. ``kind``: image, text, uint8 or float32, as in ``wire.Request``; empty: a file of any kind."""

    kind: str
    shape: tuple[int, ...]
    data: bytes | memoryview


class Ears(Protocol):
    """Who is told, in the event loop."""

    def released(self, record: Record) -> None:
        """This result is recorded for good."""

    def held(self, reason: str) -> None:
        """Nothing can be recorded, and why; empty: it can again."""

    def settled(self) -> None:
        """All that was given is recorded."""

    def fail(self, error: BaseException) -> None:
        """It cannot go on."""


class Recorder(Protocol):
    """Takes what the core wants recorded; never blocks."""

    @property
    def idle(self) -> bool:
        """All that was given is recorded."""

    @property
    def unwritten(self) -> int:
        """Results that wait."""

    def keep(self, command: KeepItem | KeepRequest | KeepReply) -> None: ...

    def record(self, record: Record) -> None: ...

    def then(self, call: Callable[[], None]) -> None:
        """Call once all that was given before is recorded."""

    def reply_sent(self, client: str, identity: str) -> None: ...

    def flush(self) -> None:
        """What was given since the last flush stands or falls together."""

    async def close(self) -> None: ...

    def samples(self) -> Iterable[Sample]: ...


class DirectRecorder:
    """Without a journal: a result is recorded when its line is with the kernel."""

    def __init__(self, ears: Ears, writer: ResultsWriter | None = None, label_names: Sequence[str] = ()) -> None:
        self._ears, self._writer, self._label_names = ears, writer, label_names
        self._waiting: deque[Record] = deque()
        self._again: asyncio.TimerHandle | None = None
        self._trouble = ""

    @property
    def idle(self) -> bool:
        return not self._waiting

    @property
    def unwritten(self) -> int:
        return len(self._waiting)

    def keep(self, command: KeepItem | KeepRequest | KeepReply) -> None:
        raise TypeError(f"expected no {type(command).__name__} without a journal")

    def record(self, record: Record) -> None:
        """Raises ``MdiExitError`` where there is no hope that it can be written later."""
        if self._waiting or not self._wrote(record):
            self._waiting.append(record)
        else:
            self._ears.released(record)

    def then(self, call: Callable[[], None]) -> None:
        call()

    def reply_sent(self, client: str, identity: str) -> None:
        """Nobody wants to know."""

    def flush(self) -> None:
        """Everything is written at once."""

    async def close(self) -> None:
        """Raises ``MdiExitError`` if results wait that could not be written."""
        if self._again is not None:
            self._again.cancel()
        if self._waiting:
            raise MdiExitError(f"results: {len(self._waiting)} could not be written: {self._trouble}")

    def samples(self) -> Iterable[Sample]:
        yield "mdi_exit_results_unwritten", (), len(self._waiting)

    def _wrote(self, record: Record) -> bool:
        if self._writer is None:
            return True
        try:
            self._writer.write(record, self._label_names)
        except MdiExitError as error:
            if not self._writer.patient:
                raise
            loop, self._trouble = asyncio.get_running_loop(), str(error)
            if not self._waiting:
                log.error("%s; trying again until it can be written", error)
                loop.call_soon(self._ears.held, str(error))
            self._again = loop.call_later(_AGAIN_S, self._write_waiting)
            return False
        return True

    def _write_waiting(self) -> None:
        while self._waiting:
            if not self._wrote(self._waiting[0]):
                return
            self._ears.released(self._waiting.popleft())
        log.warning("results can be written again: nothing was lost")
        self._ears.held("")
        self._ears.settled()


class _StopError(Exception):
    """Closed while nothing could be written."""


@dataclass(slots=True)
class _Batch:
    operations: list[Operation]
    then: list[Callable[[], None]]
    life: Life
    size_bytes: int


class JournalRecorder:
    """A result is recorded when it is in the journal and its line is with the kernel, both by a thread of its own.

    What gathers while a transaction is under way is the next one. ``life``: asked for at each ``flush``, in the loop.
    """

    def __init__(
        self,
        ears: Ears,
        journal: Journal,
        life: Callable[[], Life],
        writer: ResultsWriter | None = None,
        label_names: Sequence[str] = (),
    ) -> None:
        self._ears, self._journal, self._writer, self._label_names = ears, journal, writer, label_names
        self._life = life
        self._loop = asyncio.get_running_loop()
        self._operations: list[Operation] = []
        self._then: list[Callable[[], None]] = []
        self._size_bytes = 0
        self._under_way = self._under_way_bytes = self._batches = self._results = 0
        self._crowded = self._troubled = False
        self._trouble = ""
        self._batches_in: SimpleQueue[_Batch | None] = SimpleQueue()
        self._closing = threading.Event()
        self._uncompacted = 0
        self._compacted_at = time.monotonic()
        self._journal_bytes = journal.size_bytes
        self._commit_s = Histogram(RUN_BUCKETS_S)
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    # --- in the event loop

    @property
    def idle(self) -> bool:
        return not (self._operations or self._then or self._batches)

    @property
    def unwritten(self) -> int:
        return self._results

    def keep(self, command: KeepItem | KeepRequest | KeepReply) -> None:
        match command:
            case KeepItem():
                self._give(_item_row(command), 0 if command.position >= 0 or command.client else command.size_bytes)
            case KeepRequest(client, identity, payload, deadline_s, plain):
                if not isinstance(payload, Sent):
                    raise TypeError(f"expected what came in a request, got {type(payload).__name__}")
                row = RequestRow(
                    client, identity, payload.kind, payload.shape, payload.data, time.time(), deadline_s, plain
                )
                self._give(row, len(payload.data))
            case KeepReply(reply, plain):
                self._give(ReplyRow(reply, plain))

    def record(self, record: Record) -> None:
        self._results += 1
        self._give(FinishedRow(record))

    def then(self, call: Callable[[], None]) -> None:
        if self.idle:
            call()
        else:
            self._then.append(call)

    def reply_sent(self, client: str, identity: str) -> None:
        self._give(SentRow(client, identity))
        self.flush()

    def flush(self) -> None:
        if self._operations or self._then:
            self._post()

    def _post(self) -> None:
        batch = _Batch(self._operations, self._then, self._life(), self._size_bytes)
        self._operations, self._then, self._size_bytes = [], [], 0
        self._batches += 1
        self._under_way += len(batch.operations)
        self._under_way_bytes += batch.size_bytes
        self._batches_in.put(batch)
        if not self._crowded and (self._under_way > _MOST_OPERATIONS or self._under_way_bytes > _MOST_BYTES):
            self._crowded = True
            self._loop.call_soon(self._ears.held, "the journal cannot keep up")

    async def close(self) -> None:
        """Write what waits if it can be written at once, and let go of the file. Raises ``MdiExitError`` if it cannot."""
        self._post()
        self._closing.set()
        self._batches_in.put(None)
        await self._ended.wait()
        self._thread.join()
        self._journal.close()
        if self._results:
            raise MdiExitError(f"results: {self._results} could not be written: {self._trouble}")

    def samples(self) -> Iterable[Sample]:
        yield "mdi_exit_results_unwritten", (), self._results
        yield "mdi_exit_journal_bytes", (), self._journal_bytes
        yield "mdi_exit_journal_backlog", (), self._under_way
        yield "mdi_exit_journal_commit_seconds", (), self._commit_s.copy()

    def _give(self, row: Operation, size_bytes: int = 0) -> None:
        self._operations.append(row)
        self._size_bytes += size_bytes

    def _recorded(self, batches: list[_Batch], seconds: float, size_bytes: int) -> None:
        self._commit_s.add(seconds)
        self._journal_bytes = size_bytes
        for batch in batches:
            self._batches -= 1
            self._under_way -= len(batch.operations)
            self._under_way_bytes -= batch.size_bytes
            for row in batch.operations:
                if isinstance(row, FinishedRow):
                    self._results -= 1
                    self._ears.released(row.record)
            for call in batch.then:
                call()
        if self._crowded and self._under_way <= _MOST_OPERATIONS // 2 and self._under_way_bytes <= _MOST_BYTES // 2:
            self._crowded = False
            if not self._troubled:
                self._ears.held("")
        if self.idle:
            self._ears.settled()

    def _in_trouble(self, reason: str) -> None:
        self._troubled = bool(reason)
        if reason:
            log.error("%s; trying again until it can be written", reason)
            self._ears.held(reason)
        else:
            log.warning("results can be written again: nothing was lost")
            self._ears.held("the journal cannot keep up" if self._crowded else "")

    # --- in the thread

    def _run(self) -> None:
        try:
            while self._once():
                pass
        except _StopError:
            pass
        except BaseException as error:  # noqa: BLE001 - the source ends with it
            self._tell(self._ears.fail, error)
        finally:
            self._tell(self._ended.set)

    def _once(self) -> bool:
        batches, going_on = self._gathered()
        if batches:
            begin = time.perf_counter()
            operations = [row for batch in batches for row in batch.operations]
            records = [row.record for row in operations if isinstance(row, FinishedRow)]
            self._until_done(lambda: self._journal.commit(operations, batches[-1].life))
            seconds = time.perf_counter() - begin
            if self._writer is not None and records:
                writer = self._writer
                self._until_done(lambda: writer.write_all(records, self._label_names))
            self._uncompacted += len(records)
            self._tell(self._recorded, batches, seconds, self._journal.size_bytes)
        if self._uncompacted and (not going_on or time.monotonic() - self._compacted_at >= _COMPACT_S):
            self._until_done(self._compact)
        return going_on

    def _gathered(self) -> tuple[list[_Batch], bool]:
        """What has come, waiting for the first of it a while; False: it is the last."""
        try:
            first = self._batches_in.get(timeout=_COMPACT_S)
        except Empty:
            return [], True
        batches: list[_Batch] = []
        if first is not None and not self._closing.is_set():
            time.sleep(_GATHER_S)
        while first is not None:
            batches.append(first)
            try:
                first = self._batches_in.get_nowait()
            except Empty:
                return batches, True
        return batches, False

    def _compact(self) -> None:
        """What is on the disk in the file of results need not be in the journal."""
        whole_bytes = 0
        if self._writer is not None:
            self._writer.sync()
            whole_bytes = self._writer.whole_bytes
        self._journal.compact(self._uncompacted, whole_bytes)
        self._uncompacted, self._compacted_at = 0, time.monotonic()

    def _until_done(self, work: Callable[[], None]) -> None:
        """Try until it succeeds: a disk that is full may have room later. Raises ``_StopError`` if closed before."""
        told = False
        while True:
            try:
                work()
            except (JournalFullError, UnwrittenError, OSError) as error:
                trouble = str(error)
            else:
                if told:
                    self._tell(self._in_trouble, "")
                return
            self._trouble = trouble
            if not told:
                self._tell(self._in_trouble, trouble)
                told = True
            if self._closing.wait(_AGAIN_S):
                raise _StopError

    def _tell(self, call: Callable[..., None], *given: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *given)


def _item_row(command: KeepItem) -> AdmittedRow:
    payload, shape = None, ()
    if command.position < 0 and not command.client:
        x = np.ascontiguousarray(command.payload, "<f4")
        payload, shape = x.data.cast("B"), x.shape
    return AdmittedRow(
        command.item, command.sample, command.truth, command.position, time.time(), command.deadline_s, command.client,
        command.request, command.size_bytes, shape, payload,
    )  # fmt: skip
