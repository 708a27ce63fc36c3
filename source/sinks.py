"""Where results go: files by their suffix, a topic; each behind the same small protocol."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from mdi_exit.errors import TransportError
from mdi_exit.events import Record
from source.results import ResultsWriter, result_line

__all__ = ["CSV_FIELDS", "CsvWriter", "Publisher", "Sink", "TopicSink", "results_file"]

CSV_FIELDS: Final = ("id", "label", "label_name", "error", "confidence", "exit", "path", "latency_s", "truth")

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes each result, as it is recorded; must not block."""

    def write(self, record: Record, label_names: Sequence[str] = ()) -> None: ...


class Publisher(Protocol):
    """What publishing takes; False: not connected, or too much waits already."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool: ...


def results_file(path: Path, overwrite: bool = False) -> ResultsWriter:
    """A new file of results: CSV by its suffix, else a JSON line each. Raises ``UsageError``."""
    return CsvWriter(path, overwrite) if path.suffix.lower() == ".csv" else ResultsWriter(path, overwrite)


class CsvWriter(ResultsWriter):
    """One CSV line per item after a header, the fields of the JSON line; the nodes of a path with spaces between."""

    _headed = False

    def line(self, record: Record, label_names: Sequence[str]) -> bytes:
        row = result_line(record, label_names)
        row["path"] = " ".join(row["path"])
        text = io.StringIO()
        writer = csv.DictWriter(text, CSV_FIELDS, extrasaction="ignore", lineterminator="\n")
        if not self._headed:
            writer.writeheader()
            self._headed = True
        writer.writerow(row)
        return text.getvalue().encode()


class TopicSink:
    """Publishes each result as JSON. What the broker does not take in time is dropped, counted and told, and holds
    nothing up.
    """

    def __init__(self, publisher: Publisher, topic: str, qos: int) -> None:
        self.published = self.dropped = 0
        self._publisher, self._topic, self._qos = publisher, topic, qos
        self._losing = False

    def write(self, record: Record, label_names: Sequence[str] = ()) -> None:
        payload = json.dumps(result_line(record, label_names), ensure_ascii=False).encode()
        try:
            taken = self._publisher.publish(self._topic, payload, qos=self._qos)
        except TransportError as error:
            log.warning("%s", error)
            taken = False
        if taken:
            self.published += 1
        else:
            self.dropped += 1
        if taken == self._losing:
            self._losing = not taken
            text = "again takes results" if taken else "takes no results: they are dropped, and counted"
            log.warning("--publish %s: the broker %s (%d dropped so far)", self._topic, text, self.dropped)
