"""One moment of a run, as the view shows it, the picture draws it and the timeline file keeps it."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from mdi_exit.errors import UsageError

__all__ = ["NodeSnapshot", "Rate", "Snapshot", "read_timeline"]


@dataclass(slots=True)
class Rate:
    """A counter's growth per second over the last ``window_s`` seconds."""

    window_s: float = 2.0
    seen: deque[tuple[float, int]] = field(default_factory=deque)

    def update(self, now: float, total: int) -> float:
        """The rate, with ``total`` read at ``now``."""
        self.seen.append((now, total))
        while len(self.seen) > 2 and now - self.seen[0][0] > self.window_s:
            self.seen.popleft()
        (then, before) = self.seen[0]
        return (total - before) / (now - then) if now > then else 0.0


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """One node, from its last telemetry.

    ``span`` as people write it (``4-8``; empty: none); ``inputs`` and ``outputs`` are queue lengths, tasks;
    ``executed_per_s`` tasks a second; ``exited`` and ``sent`` are totals of tasks; ``emulated`` is the device's name.
    """

    name: str
    state: str
    span: str
    inputs: int
    outputs: int
    backlog_s: float
    executed_per_s: float
    cpu_percent: float
    exited: int
    sent: int
    emulated: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The system ``elapsed_s`` after the start. Rates are items a second over the last moments, counts are totals.

    ``accuracy``: of the last 200 items with a known truth, None if none is; ``source_queue``: tasks waiting at the
    source; ``exits``: completed items by exit; ``notices``: lines that are new since the previous snapshot.
    """

    elapsed_s: float
    phase: str
    offered_per_s: float
    admitted_per_s: float
    completed_per_s: float
    admitted: int
    completed: int
    errors: int
    refused: int
    pending: int
    accuracy: float | None
    threshold: float
    source_queue: int
    latency_p50_s: float | None
    exits: dict[int, int]
    nodes: tuple[NodeSnapshot, ...] = ()
    notices: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_line(self) -> str:
        """One line of a timeline file, newline included."""
        return json.dumps(self.to_json(), ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Snapshot:
        """The inverse of ``to_json``; keys of ``exits`` may be text, as JSON makes them. Raises ``UsageError``."""
        try:
            return msgspec.convert(row, cls, strict=False)
        except msgspec.ValidationError as error:
            raise UsageError("snapshot", "an object as Snapshot.to_json gives it", error) from None

    @property
    def emulated(self) -> str:
        """The devices that nodes are stretched to, or nothing."""
        return ", ".join(sorted({node.emulated for node in self.nodes if node.emulated}))


def read_timeline(path: Path) -> list[Snapshot]:
    """The snapshots of a timeline file; a last line cut short, as a kill leaves it, is passed over.

    Raises ``UsageError``.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("timeline", "a readable file of JSON lines", f"{path}: {error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith("\n"):
            break
        try:
            found.append(Snapshot.from_json(json.loads(line)))
        except ValueError as error:
            raise UsageError(f"{path}, line {number}", "JSON", error) from None
        except UsageError as error:
            raise UsageError(f"{path}, line {number}", error.expected, error.got) from None
    return found
