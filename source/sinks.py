"""Where results go: files by their suffix, a topic; each behind the same small protocol."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from mdi_exit.errors import TransportError
from mdi_exit.events import Record
from mdi_exit.results import ResultsWriter, result_line

__all__ = ["CSV_FIELDS", "CsvWriter", "Publisher", "Sink", "TopicSink", "is_csv", "results_file"]

CSV_FIELDS: Final = ("id", "label", "label_name", "error", "confidence", "exit", "path", "latency_s", "truth")

_ROOM: Final = 1000
_GOODBYE_S: Final = 3.0

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes each result, as it is recorded; must not block."""

    def write(self, record: Record, label_names: Sequence[str] = ()) -> None: ...


class Publisher(Protocol):
    """What publishing takes; False: not connected, or too much waits already."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool: ...


def results_file(path: Path, overwrite: bool = False, *, go_on: bool = False) -> ResultsWriter:
    """A new file of results, or (``go_on``) one of an earlier life: CSV by its suffix, else a JSON line each.

    Raises ``UsageError``.
    """
    kind = CsvWriter if is_csv(path) else ResultsWriter
    return kind(path, overwrite, go_on=go_on)


def is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


class CsvWriter(ResultsWriter):
    """One CSV line per item after a header, the fields of the JSON line; the nodes of a path with spaces between."""

    @property
    def header(self) -> bytes:
        return (",".join(CSV_FIELDS) + "\n").encode()

    def line(self, record: Record, label_names: Sequence[str]) -> bytes:
        row = result_line(record, label_names)
        row["path"] = " ".join(row["path"])
        text = io.StringIO()
        writer = csv.DictWriter(text, CSV_FIELDS, extrasaction="ignore", lineterminator="\n")
        writer.writerow(row)
        return text.getvalue().encode()


class TopicSink:
    """Publishes each result as JSON, in order. Up to 1,000 wait for a broker that is away; older ones are dropped, counted
    and told of. Nothing is held up.
    """

    def __init__(self, publisher: Publisher, topic: str, qos: int) -> None:
        self.published = self.dropped = 0
        self._publisher, self._topic, self._qos = publisher, topic, qos
        self._waiting: deque[bytes] = deque()
        self._losing = False

    def write(self, record: Record, label_names: Sequence[str] = ()) -> None:
        self._waiting.append(json.dumps(result_line(record, label_names), ensure_ascii=False).encode())
        self.flush()
        while len(self._waiting) > _ROOM:
            self._waiting.popleft()
            self._drop()

    def flush(self) -> None:
        """Publish what waits, as far as the broker takes it."""
        while self._waiting:
            try:
                if not self._publisher.publish(self._topic, self._waiting[0], qos=self._qos):
                    return
                self.published += 1
                self._losing = False
            except TransportError as error:
                log.warning("--publish: %s", error)
                self.dropped += 1
            self._waiting.popleft()

    async def goodbye(self) -> None:
        """Give what still waits a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                while self._waiting:
                    self.flush()
                    await asyncio.sleep(0.02)
        self.dropped += len(self._waiting)
        self._waiting.clear()
        if self.dropped:
            log.warning("--publish %s: %d results published, %d dropped", self._topic, self.published, self.dropped)

    def _drop(self) -> None:
        self.dropped += 1
        if not self._losing:
            log.warning("--publish %s: the broker takes no results; the oldest are dropped", self._topic)
        self._losing = True
