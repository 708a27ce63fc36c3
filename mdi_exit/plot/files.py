"""The files of a run, read back and told apart by what is in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from mdi_exit.errors import UsageError
from mdi_exit.snapshot import Snapshot, read_timeline

__all__ = ["Item", "Run", "read_run"]

_NAMES: Final = ("results.jsonl", "timeline.jsonl", "summary.json")
_EXPECTED: Final = "a run's folder, or a file of results, timeline or summary as the source writes it"


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a results file. ``exit`` and ``confidence`` are None for an error; ``latency_s`` since admission."""

    id: str
    latency_s: float
    path: tuple[str, ...] = ()
    label: int | None = None
    error: str | None = None
    confidence: float | None = None
    exit: int | None = None
    truth: int | None = None

    @property
    def right(self) -> bool | None:
        """Whether the label is the truth; None where either is missing."""
        return None if self.label is None or self.truth is None else self.label == self.truth


@dataclass(frozen=True, slots=True)
class Run:
    """What was found; what was not is empty. ``name`` is for the title."""

    name: str
    items: tuple[Item, ...] = ()
    timeline: tuple[Snapshot, ...] = ()
    summary: dict[str, Any] | None = None


def read_run(place: Path) -> Run:
    """The files of a folder, or one file. Raises ``UsageError`` for what is none."""
    if place.is_dir():
        files = [place / name for name in _NAMES if (place / name).is_file()]
        if not files:
            raise UsageError("RUN", _EXPECTED, f"{place}, a folder without {', '.join(_NAMES)}")
        name = place.resolve().name
    elif place.exists():
        files, name = [place], place.name
    else:
        raise UsageError("RUN", _EXPECTED, f"{place}: no such file or folder")
    found: dict[str, Any] = {}
    for file in files:
        found |= _read(file)
    run = Run(name, **found)
    if not run.items and len(run.timeline) < 2 and run.summary is None:
        raise UsageError("RUN", "at least one result or two moments of a timeline", f"{place}, which is empty")
    return run


def _read(file: Path) -> dict[str, Any]:
    """One file, as the field of ``Run`` that it is."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError("RUN", _EXPECTED, f"{file}, which is not text") from None
    except OSError as error:
        raise UsageError("RUN", "a readable file", f"{file}: {error.strerror}") from None
    first = _first_object(text)
    if first is None and text.strip():
        raise UsageError("RUN", _EXPECTED, f"{file}, which begins with {text.strip()[:30]!r}")
    if first is None:
        return {}
    if {"id", "latency_s"} <= first.keys():
        return {"items": tuple(_items(file, text.splitlines(keepends=True)))}
    if {"elapsed_s", "offered_per_s"} <= first.keys():
        return {"timeline": tuple(read_timeline(file))}
    if {"admitted", "bytes_sent"} <= first.keys():
        return {"summary": first}
    raise UsageError("RUN", _EXPECTED, f"{file}, an object with {', '.join(sorted(first)[:5]) or 'nothing'}")


def _first_object(text: str) -> dict[str, Any] | None:
    """The object that the text begins with: a line of JSON lines, or a whole JSON file."""
    for part in (text.partition("\n")[0], text):
        try:
            content = json.loads(part)
        except ValueError:
            continue
        return content if isinstance(content, dict) else None
    return None


def _items(file: Path, lines: Sequence[str]) -> list[Item]:
    """The lines of a results file; a last one cut short, as a kill leaves it, is passed over."""
    items = []
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith("\n"):
            break
        try:
            items.append(msgspec.json.decode(line, type=Item))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UsageError(f"{file}, line {number}", "a result as the source writes it", error) from None
    return items
