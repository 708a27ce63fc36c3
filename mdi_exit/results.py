"""What a run leaves behind: one JSON line per admitted item, and the totals."""

from __future__ import annotations

import json
import os
import random
import stat
import sys
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.events import Record
from mdi_exit.journal import Counts
from mdi_exit.run_energy import RunEnergy

__all__ = [
    "STDOUT",
    "Latency",
    "ResultsWriter",
    "Summary",
    "SummaryBuilder",
    "UnwrittenError",
    "result_line",
    "write_out",
]

STDOUT = Path("-")
_EXACT_LATENCIES = 200_000


def result_line(record: Record, label_names: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON object of one item. ``latency_s`` is seconds since admission; ``exit`` and ``confidence`` of an error
    are null."""
    row = record.row
    line: dict[str, Any] = {"id": record.sample}
    if row.error is None and row.label is not None:
        line |= {"label": row.label}
        if row.label < len(label_names):
            line |= {"label_name": label_names[row.label]}
        line |= {"confidence": round(row.score, 6), "exit": row.exit}
    else:
        line |= {"error": row.error or "no label", "confidence": None, "exit": None}
    line |= {"path": list(row.path), "latency_s": round(record.latency_s, 6)}
    if record.truth is not None:
        line["truth"] = record.truth
    return line


class UnwrittenError(MdiExitError):
    """Results could not be written; the file is as it was before."""


class ResultsWriter:
    """Appends one JSON line per item to a new file, or to stdout for ``-``; a line is with the kernel when ``write``
    returns. ``go_on``: append to what an earlier writer has left.

    Raises ``UsageError`` for a file that cannot be had or would be overwritten unasked.
    """

    def __init__(self, path: Path, overwrite: bool = False, *, place: str = "--results", go_on: bool = False) -> None:
        self.path = path
        self.whole_bytes = 0
        self._file: IO[bytes] | None = None
        if path == STDOUT:
            return
        try:
            found = path.stat() if path.exists() else None
            if go_on:
                self.whole_bytes = found.st_size if found else 0
            elif found and stat.S_ISREG(found.st_mode) and found.st_size and not overwrite:
                taken = f"{path}, which has {found.st_size} bytes"
                raise UsageError(place, "a new or empty file (or --overwrite)", taken)
            self._file = path.open("ab" if go_on else "wb", buffering=0)
        except OSError as error:
            raise UsageError(place, "a file that can be written", f"{path}: {error.strerror}") from None

    def write(self, record: Record, label_names: Sequence[str] = ()) -> None:
        """Raises ``MdiExitError`` if the line cannot be written; the file then ends with the last whole line."""
        self.write_all((record,), label_names)

    def write_all(self, records: Iterable[Record], label_names: Sequence[str] = ()) -> None:
        """All of them, or none. Raises ``UnwrittenError``."""
        lines = b"".join(self.line(record, label_names) for record in records)
        if not self.whole_bytes:
            lines = self.header + lines
        try:
            if self._file is None:
                sys.stdout.write(lines.decode())
                sys.stdout.flush()
            else:
                _write_all(self._file, lines)
        except OSError as error:
            self._cut()
            raise UnwrittenError(f"results: could not write {self.path}: {error.strerror}") from None
        self.whole_bytes += len(lines)

    @property
    def patient(self) -> bool:
        """It is a file on a disk, on which there may be room later."""
        return self._file is not None and stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)

    def sync(self) -> None:
        """Wait until all that was written will outlast a loss of power. Raises ``OSError``."""
        if self._file is not None:
            os.fdatasync(self._file.fileno())

    @property
    def header(self) -> bytes:
        """What the file begins with."""
        return b""

    def line(self, record: Record, label_names: Sequence[str]) -> bytes:
        """How an item is written."""
        return json.dumps(result_line(record, label_names), ensure_ascii=False).encode() + b"\n"

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> ResultsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cut(self) -> None:
        if self.patient and self._file is not None:
            self._file.truncate(self.whole_bytes)
            self._file.seek(self.whole_bytes)  # else the next line would come behind a hole


def _write_all(file: IO[bytes], line: bytes) -> None:
    """An unbuffered file may take a part only, as when the disk fills up: the next write then says why."""
    rest = memoryview(line)
    while rest:
        rest = rest[file.write(rest) :]


def write_out(path: Path, content: str, what: str) -> None:
    """Text to a file; ``-`` is stdout. Raises ``MdiExitError``."""
    try:
        if path == STDOUT:
            sys.stdout.write(content)
        else:
            path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise MdiExitError(f"{what}: could not write {path}: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of the seconds from admission to result, over completed items."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A run's totals; ``admitted = completed + errors + pending``.

    ``refused``: turned away before admission; ``duplicates``: results received and discarded; ``retried``: attempts
    beyond the first; ``accuracy``: share of completed items with a known truth that are right, None without any;
    ``exits``: completed items by exit; ``bytes_sent``: by node; ``error_reasons``: errors by their text;
    ``single_process_per_s``: what one process alone reaches on this machine, unemulated; ``energy_j``: by node, as far as
    known, ``energy_method`` being ``sensor`` or ``estimate``; ``joules_per_item``: of all of them by completed items, None
    where the energy of a node that ran layers is not known.
    """

    admitted: int
    completed: int
    errors: int
    pending: int
    refused: int
    duplicates: int
    retried: int
    accuracy: float | None
    rate_per_s: float
    elapsed_s: float
    latency_s: Latency | None
    exits: Mapping[int, int]
    bytes_sent: Mapping[str, int]
    threshold: float | None = None
    emulated: str | None = None
    single_process_per_s: float | None = None
    error_reasons: Mapping[str, int] | None = None
    energy_j: Mapping[str, float] | None = None
    energy_method: Mapping[str, str] | None = None
    joules_per_item: float | None = None

    @property
    def balanced(self) -> bool:
        """Every admitted item is accounted for."""
        return self.admitted == self.completed + self.errors + self.pending

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, path: Path) -> None:
        """As JSON; ``-`` is stdout. Raises ``MdiExitError``."""
        write_out(path, json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n", "summary")

    def rows(self) -> list[tuple[str, str, str]]:
        """What, how much, and what it means: for people."""
        rows = [
            ("admitted", f"{self.admitted:,}", "items taken in"),
            ("completed", f"{self.completed:,}", "items with a label"),
            ("errors", f"{self.errors:,}", self._reasons()),
        ]
        if self.pending or not self.balanced:
            rows.append(("pending", f"{self.pending:,}", "admitted, and without a result when the run ended"))
        if not self.balanced:
            rows.append(
                ("unaccounted", f"{self.admitted - self.completed - self.errors - self.pending:+,}", "a defect")
            )
        rows += [
            ("refused", f"{self.refused:,}", "turned away before admission, because the system was full"),
            ("retried", f"{self.retried:,}", "attempts made again after a loss or a refusal"),
            ("duplicates", f"{self.duplicates:,}", "second results for one item, discarded"),
            ("accuracy", _percent(self.accuracy), "right labels among the completed items whose truth is known"),
            ("rate", f"{self.rate_per_s:.1f}/s", f"completed items a second, over {self.elapsed_s:.1f} s"),
        ]
        if self.latency_s:
            values = (self.latency_s.p50, self.latency_s.p90, self.latency_s.p99)
            digits = 1 if self.latency_s.p50 < 0.01 else 0
            shown = " / ".join(f"{value * 1000:.{digits}f}" for value in values) + " ms"
            rows.append(("latency", shown, "from admission to result: half, 90 % and 99 % are faster"))
        total = sum(self.exits.values())
        for number, count in sorted(self.exits.items()):
            rows.append((f"exit {number}", f"{count:,}", f"{_percent(count / total)} of the items stopped here"))
        for node, sent in sorted(self.bytes_sent.items()):
            rows.append((f"sent by {node}", _bytes(sent), ""))
        rows += self._energy_rows()
        if self.threshold is not None:
            rows.append(("threshold", f"{self.threshold:.2f}", "confidence asked for an early exit, at the end"))
        if self.emulated:
            rows.append(("emulated", "yes", f"compute stretched to {self.emulated}: not this machine's own speed"))
        if self.single_process_per_s is not None:
            shown = f"{self.single_process_per_s:.0f}/s"
            rows.append(("one process", shown, "the whole model in one process on this machine, not emulated"))
        return rows

    def _energy_rows(self) -> list[tuple[str, str, str]]:
        said = {
            "sensor": "by the board's sensor, everything on the board",
            "estimate": "an estimate, not a measurement",
        }
        methods = self.energy_method or {}
        rows = [
            (f"energy of {node}", f"{joules:,.0f} J", said[methods[node]])
            for node, joules in sorted((self.energy_j or {}).items())
        ]
        if self.joules_per_item is not None:
            kinds = set(methods.values())
            how = "estimated" if kinds == {"estimate"} else "measured" if kinds == {"sensor"} else "partly estimated"
            rows.append(("energy per item", f"{self.joules_per_item:.2g} J", f"all of these nodes together, {how}"))
        return rows

    def render(self, console: Console) -> None:
        """A table on a terminal, plain lines elsewhere."""
        rows = self.rows()
        if not console.is_terminal:
            wide = max(len(what) for what, _, _ in rows)
            high = max(len(amount) for _, amount, _ in rows)
            for what, amount, meaning in rows:
                console.out(f"{what:<{wide}}  {amount:>{high}}  {meaning}".rstrip(), highlight=False)
            return
        table = Table(title="Summary", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(style="dim")
        for what, amount, meaning in rows:
            bad = (what in {"errors", "pending"} and amount != "0") or what == "unaccounted"
            table.add_row(what, f"[red]{amount}[/red]" if bad else amount, meaning)
        console.print(table)

    def _reasons(self) -> str:
        if not self.error_reasons:
            return "items that ended without a label"
        top = sorted(self.error_reasons.items(), key=lambda pair: -pair[1])[:3]
        return "; ".join(f"{count:,} x {_clean(reason)}" for reason, count in top)


class SummaryBuilder:
    """Counts results as they come.

    Percentiles are exact up to 200,000 completed items, then over a uniform sample of that size: a camera may run for
    months.
    """

    def __init__(self) -> None:
        self.completed = 0
        self.errors = 0
        self._right = 0
        self._judged = 0
        self._latencies_s = array("d")
        self._exits: Counter[int] = Counter()
        self._reasons: Counter[str] = Counter()
        self._random = random.Random(0)

    def go_on(self, counts: Counts, latencies_s: Iterable[float]) -> None:
        """Begin with what an earlier life has counted."""
        self.completed, self.errors = counts.completed, counts.errors
        self._right, self._judged = counts.right, counts.judged
        self._exits.update(counts.exits)
        self._reasons.update(counts.reasons)
        self._latencies_s.extend(map(float, latencies_s))

    def add(self, record: Record) -> None:
        row = record.row
        if row.error is not None or row.label is None:
            self.errors += 1
            self._reasons[(row.error or "no label") if len(self._reasons) < 100 else "other"] += 1
            return
        self.completed += 1
        self._exits[row.exit] += 1
        if record.truth is not None:
            self._judged += 1
            self._right += row.label == record.truth
        self._sample(record.latency_s)

    def finish(
        self,
        *,
        admitted: int,
        pending: int,
        refused: int,
        duplicates: int,
        retried: int,
        elapsed_s: float,
        bytes_sent: Mapping[str, int],
        threshold: float | None = None,
        emulated: str | None = None,
        single_process_per_s: float | None = None,
        energy: RunEnergy | None = None,
        worked: Collection[str] = (),
    ) -> Summary:
        """``elapsed_s``: from the first admission to the last result; ``worked``: the nodes that ran layers."""
        known = energy is not None and bool(energy.joules) and set(worked) <= set(energy.joules)
        return Summary(
            admitted=admitted,
            completed=self.completed,
            errors=self.errors,
            pending=pending,
            refused=refused,
            duplicates=duplicates,
            retried=retried,
            accuracy=self._right / self._judged if self._judged else None,
            rate_per_s=self.completed / elapsed_s if elapsed_s > 0 else 0.0,
            elapsed_s=elapsed_s,
            latency_s=self._latency(),
            exits=dict(sorted(self._exits.items())),
            bytes_sent=dict(sorted(bytes_sent.items())),
            threshold=threshold,
            emulated=emulated,
            single_process_per_s=single_process_per_s,
            error_reasons=dict(self._reasons.most_common()),
            energy_j=energy.joules if energy else {},
            energy_method=energy.method if energy else {},
            joules_per_item=energy.total_j / self.completed if energy and known and self.completed else None,
        )

    def _sample(self, latency_s: float) -> None:
        if len(self._latencies_s) < _EXACT_LATENCIES:
            self._latencies_s.append(latency_s)
        elif (place := self._random.randrange(self.completed)) < _EXACT_LATENCIES:
            self._latencies_s[place] = latency_s

    def _latency(self) -> Latency | None:
        if not self._latencies_s:
            return None
        p50, p90, p99 = np.percentile(np.asarray(self._latencies_s), (50, 90, 99)).tolist()
        return Latency(p50, p90, p99)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}".replace("%", " %")


def _bytes(count: int) -> str:
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
