"""A file of raw rows that a benchmark goes on with after it was cut short: JSON lines, the first says how it was made."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mdi_exit import __version__
from mdi_exit.errors import UsageError

__all__ = ["Row", "RowFile"]

Row = dict[str, Any]


class RowFile:
    """``path`` None: rows are kept in memory only. Raises ``UsageError`` for a file of another benchmark."""

    def __init__(self, path: Path | None, benchmark: str, argv: Sequence[str]) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path is not None and path.exists() and path.stat().st_size:
            head, *self.rows = _read(path)
            if head.get("benchmark") != benchmark:
                raise UsageError("--out", f"a new file, or rows of the benchmark {benchmark}", path)
        elif path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(
                {
                    "benchmark": benchmark,
                    "command": " ".join(["mdi-exit benchmark", benchmark, *argv]),
                    "at": datetime.now(UTC).isoformat(timespec="seconds"),
                    "version": __version__,
                    "cores": os.cpu_count(),
                    "machine": platform.machine(),
                    "python": platform.python_version(),
                }
            )

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self._write(row)

    def write_page(self, text: str) -> None:
        """The table beside the rows."""
        if self.path is not None:
            self.path.with_suffix(".md").write_text(text)

    def _write(self, row: Row) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def _read(path: Path) -> list[Row]:
    """A last line cut short is passed over, and taken away, so that the next one begins anew."""
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        path.write_bytes(whole)
    try:
        return [json.loads(line) for line in whole.splitlines()] or [{}]
    except ValueError as error:
        raise UsageError("--out", "a file of JSON lines", f"{path}: {error}") from None
