"""A source that goes on where an earlier one stopped: what its journal says is made one with its file of results."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdi_exit.errors import UsageError
from mdi_exit.events import Record
from mdi_exit.journal import AdmittedRow, FinishedRow, HadRow, Identity, Journal, Left, Life, Operation
from mdi_exit.model.manifest import Manifest
from mdi_exit.results import ResultsWriter, Summary, SummaryBuilder
from mdi_exit.wire import ResultRow
from source.config import SourceSettings
from source.inputs import Input, LiveInput
from source.revival import totals_of
from source.sinks import CSV_FIELDS, is_csv, results_file

__all__ = ["Kept", "mended", "opened_journal", "reconcile"]


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    """An open journal, what is left to do, and the file of results."""

    journal: Journal
    left: Left
    writer: ResultsWriter | None

    def close(self) -> None:
        self.journal.close()
        if self.writer is not None:
            self.writer.close()

    def summary(self) -> Summary:
        """The totals of all lives so far."""
        builder, totals = SummaryBuilder(), totals_of(self.left)
        builder.go_on(self.left.counts, self.left.latencies_s)
        return builder.finish(
            admitted=totals.admitted,
            pending=len(self.left.items),
            refused=totals.own_refused + totals.turned_away,
            duplicates=totals.duplicates,
            retried=totals.retried,
            elapsed_s=self.left.life.elapsed_s,
            bytes_sent={},
        )


def opened_journal(settings: SourceSettings, path: Path, manifest: Manifest, samples: Input | LiveInput | None) -> Kept:
    """Begin a journal, or go on with one. Raises ``UsageError`` for one of another source, model, input or deployment."""
    results = settings.results.resolve() if settings.results is not None else None
    if results is not None and results.exists() and not results.is_file():
        raise UsageError("--results", "a file, which can be gone on with, beside --journal", results)
    identity = Identity(
        deployment=settings.deployment,
        name=settings.name,
        model=manifest.plan.digest,
        input=str(settings.input),
        fingerprint=samples.fingerprint if isinstance(samples, Input) else "",
        results=str(results or ""),
    )
    journal = Journal(path, identity, settings.journal_sync)
    try:
        left, writer = reconcile(journal, results, manifest.labels, overwrite=settings.overwrite)
    except BaseException:
        journal.close()
        raise
    if left.lives > 1:
        log.info(
            "journal %s, life %d: %d items admitted, %d of them without a result, %d requests wait",
            path, left.lives, left.admitted, len(left.items), len(left.requests),
        )  # fmt: skip
    return Kept(journal, left, writer)


def reconcile(
    journal: Journal, results: Path | None, label_names: Sequence[str], *, overwrite: bool
) -> tuple[Left, ResultsWriter | None]:
    """What is left to do, and the file of results, with each finished item's line in it once.

    Lines that the file has and the journal lacks, as after a loss of power, count as finished. Raises ``UsageError`` for a
    file that is not the one that the journal goes with, and ``MdiExitError``.
    """
    left = journal.left()
    if results is None:
        journal.compact(len(left.finished), 0)
        return journal.left(), None
    if not journal.begun:
        writer = results_file(results, overwrite)
        journal.begin()
        return left, writer
    lines = mended(results, left.counts.results_bytes)
    unwritten, unknown = _compared(left, lines)
    _take_over(journal, left, unknown)
    writer = results_file(results, go_on=True)
    writer.write_all(unwritten, label_names)
    writer.sync()
    journal.compact(len(left.finished) + len(unknown), writer.whole_bytes)
    return journal.left(), writer


def mended(path: Path, begin: int) -> list[Record]:
    """The results in a file from byte ``begin`` on, whose torn last line is cut off. Raises ``UsageError``."""
    size = path.stat().st_size if path.exists() else 0
    if size < begin:
        expected = f"the file that the journal goes with, of {begin:,} bytes or more"
        raise UsageError("--results", expected, f"{path} of {size:,}")
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(begin)
        tail = file.read()
    whole = _whole(tail, quoted=is_csv(path))
    if len(whole) < len(tail):
        os.truncate(path, begin + len(whole))
    try:
        text = whole.decode()
        return _of_csv(text) if is_csv(path) else [_record(json.loads(line)) for line in text.split("\n") if line]
    except (ValueError, KeyError, TypeError) as error:
        expected = f"results as this program writes them from byte {begin:,} on"
        raise UsageError("--results", expected, f"{path}: {error}") from None


def _whole(tail: bytes, *, quoted: bool) -> bytes:
    """The lines that are complete; in CSV a line may go on inside quotes."""
    stop = len(tail)
    while (stop := tail.rfind(b"\n", 0, stop)) >= 0:
        if not quoted or tail.count(b'"', 0, stop) % 2 == 0:
            return tail[: stop + 1]
    return b""


def _of_csv(text: str) -> list[Record]:
    rows = list(csv.reader(io.StringIO(text, newline="")))
    found = []
    for row in rows:
        if tuple(row) == CSV_FIELDS:
            continue
        fields = {name: value for name, value in zip(CSV_FIELDS, row, strict=True) if value}
        numbers = {"label": int, "exit": int, "truth": int, "confidence": float, "latency_s": float}
        line = {name: numbers.get(name, str)(value) for name, value in fields.items()}
        line["path"] = fields.get("path", "").split()
        found.append(_record(line))
    return found


def _record(line: Any) -> Record:
    """What was written as this line; the number of the item is not in it."""
    path, label, truth = tuple(line["path"]), line.get("label"), line.get("truth")
    if label is None:
        row = ResultRow(0, 0, path, error=line["error"])
    else:
        row = ResultRow(0, 0, path, line["exit"], label, line["confidence"])
    return Record(line["id"], truth, row, line["latency_s"])


def _compared(left: Left, lines: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The finished items that the file lacks, and the lines that the journal lacks."""
    waiting: dict[str, deque[int]] = defaultdict(deque)
    for place, row in enumerate(left.finished):
        waiting[row.record.sample].append(place)
    written, unknown = set(), []
    for line in lines:
        if waiting[line.sample]:
            written.add(waiting[line.sample].popleft())
        else:
            unknown.append(line)
    return [row.record for place, row in enumerate(left.finished) if place not in written], unknown


def _take_over(journal: Journal, left: Left, unknown: Sequence[Record]) -> None:
    """Write down as finished what only the file of results knows of."""
    if not unknown:
        return
    unfinished: dict[str, deque[int]] = defaultdict(deque)
    for item in left.items:
        unfinished[item.sample].append(item.item)
    following = left.admitted + 1
    operations: list[Operation] = []
    for record in unknown:
        if unfinished[record.sample]:
            number = unfinished[record.sample].popleft()
        else:
            number, following = following, following + 1
            operations.append(AdmittedRow(number, record.sample, record.truth, -1, 0.0, None, "", "", 0))
            operations.append(HadRow(record.sample))
        row = record.row
        mine = ResultRow(number, 0, row.path, row.exit, row.label, row.score, row.error)
        operations.append(FinishedRow(Record(record.sample, record.truth, mine, record.latency_s)))
    life = left.life
    journal.commit(operations, Life(life.totals, life.position, life.drawn, life.elapsed_s))
