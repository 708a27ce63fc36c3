"""Log lines on stderr: plain ones for people, JSON on request."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import OrderedDict
from datetime import UTC, datetime

__all__ = ["FORMATS", "LEVELS", "Throttle", "configure", "set_level"]

FORMATS = ("plain", "json")
LEVELS = ("debug", "info", "warning", "error")
OURS = ("broker", "edge_agent", "mdi_exit", "source")
_MAX_KEYS = 1024
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(level: str, format: str) -> None:  # noqa: A002 - the word of the setting
    """Log to stderr from ``level`` up. Libraries' own lines appear from warning up, or all of them at debug."""
    handler = _Stderr()
    handler.setFormatter(_Json() if format == "json" else _Plain())
    logging.getLogger().handlers[:] = [handler]
    set_level(level)


def set_level(level: str) -> None:
    """Log from ``level`` up from now on; where and how stays."""
    threshold = getattr(logging, level.upper())
    root = logging.getLogger()
    root.setLevel(threshold if level == "debug" else max(threshold, logging.WARNING))
    for name in OURS:
        logging.getLogger(name).setLevel(threshold)


class Throttle:
    """Once per key and period, with the number of those kept back; at most 1,024 keys are remembered."""

    def __init__(self, period_s: float = 60.0) -> None:
        self._period_s = period_s
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def allow(self, key: str, now: float) -> int | None:
        """None: say nothing. Else speak, and this many were kept back since the last time. ``now``: seconds."""
        last = self._seen.get(key)
        if last is not None and now - last[0] < self._period_s:
            self._seen[key] = (last[0], last[1] + 1)
            return None
        self._seen[key] = (now, 0)
        self._seen.move_to_end(key)
        if len(self._seen) > _MAX_KEYS:
            self._seen.popitem(last=False)
        return last[1] if last else 0


class _Stderr(logging.Handler):
    """Looks ``sys.stderr`` up for each line, so that a live view which takes it over gets the lines too."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # stderr is closed or full: there is nobody left to tell
            return


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname.lower():<7} {_one_line(record.getMessage())}"
        if not record.exc_info or record.exc_info[1] is None:
            return line
        if logging.getLogger().level <= logging.DEBUG:
            return f"{line}\n{self.formatException(record.exc_info)}"
        error = record.exc_info[1]
        return f"{line}: {type(error).__name__}: {_one_line(str(error))}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        row: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": record.getMessage(),
        }
        row.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
        if record.exc_info:
            row["exception"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str, ensure_ascii=False)


def _one_line(text: str) -> str:
    """Control characters escaped: what a peer sent may not forge lines or move a terminal's cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
