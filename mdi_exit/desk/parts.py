"""Numbers and names as a terminal shows them: bars, sparklines, units. Text only; colours are the callers'."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from mdi_exit.observer import DeploymentView, NodeView

__all__ = [
    "Row",
    "bar",
    "celsius",
    "clock",
    "counts",
    "headline",
    "joules",
    "ms_per_task",
    "node_row",
    "printable",
    "quantity",
    "queue_colour",
    "seconds",
    "share",
    "spark",
    "waits_for",
]

_EIGHTHS = " ▏▎▍▌▋▊▉"
_LEVELS = "▁▂▃▄▅▆▇█"
_UNITS = ("B", "kB", "MB", "GB", "TB")
FULL_QUEUE = 24


def printable(text: str, keep: str = "") -> str:
    """Names and errors come from other machines: what moves the cursor does not reach the terminal."""
    return "".join(char if char.isprintable() or char in keep else "?" for char in text)


def bar(value: float, full: float, cells: int) -> str:
    """A bar of ``cells`` columns, filled to ``value / full``."""
    eighths = round(min(max(value / full, 0.0), 1.0) * cells * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(cells)


def spark(values: Sequence[float], cells: int, *, low: float | None = None, high: float | None = None) -> str:
    """The last ``cells`` values as columns between ``low`` and ``high`` (their own extremes, if not given)."""
    shown = [value for value in values[-cells:] if math.isfinite(value)]
    if not shown:
        return " " * cells
    least = min(shown) if low is None else low
    most = max(shown) if high is None else high
    scale = (len(_LEVELS) - 1) / (most - least) if most > least else 0.0
    levels = (round(min(max((value - least) * scale, 0.0), len(_LEVELS) - 1.0)) for value in shown)
    return "".join(_LEVELS[level] for level in levels).rjust(cells)


def seconds(value: float | None) -> str:
    """Seconds as ms below two of them."""
    if value is None:
        return "-"
    return f"{value:.1f} s" if value >= 2 else f"{value * 1000:.0f} ms" if value >= 0.01 else f"{value * 1000:.1f} ms"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.1f} %"


def counts(value: float) -> str:
    """A count in at most five columns or so."""
    if value < 100_000:
        return f"{value:,.0f}"
    return f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value / 1e3:.0f}k"


def quantity(count: float) -> str:
    """Bytes with a unit of thousands."""
    unit = min(int(math.log10(count) // 3), len(_UNITS) - 1) if count >= 1 else 0
    scaled = count / 1000.0**unit
    return f"{scaled:.{1 if unit and scaled < 100 else 0}f} {_UNITS[unit]}"


def clock(at: float) -> str:
    """Seconds since 1970 as the time of day here."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def waits_for(view: DeploymentView, url: str) -> str:
    """What is missing before there is anything to show; empty when nothing is."""
    if not view.connected:
        why = printable(view.trouble).removeprefix(f"broker {url}: ")
        return f"waiting for the broker at {url}" + (f": {why}" if why and not why.startswith("connecting") else "")
    if view.trouble:
        return f"waiting: {printable(view.trouble)}"
    return ""


def headline(view: DeploymentView) -> str:
    """Who and what this is, in one line."""
    source = view.source
    parts = [view.deployment]
    if source is not None:
        parts.append("PAUSED" if source.paused else f"adapts: {source.adapt}")
    if view.emulated:
        first, *others = view.emulated.split(", ")
        parts.append(f"emulated: {first}" + (f" and {len(others)} more" if others else ""))
    if view.model:
        parts.append(f"{view.model}, {view.layer_count} layers")
    return printable(" · ".join(parts))


# --- nodes

Row = tuple[str, ...]


def ms_per_task(node: NodeView) -> float | None:
    """Milliseconds a task, the mean over its entry layers; None for a node that runs none."""
    return 1000 * sum(node.speed_s.values()) / len(node.speed_s) if node.speed_s else None


def celsius(node: NodeView) -> str:
    board = node.board
    return "-" if board is None or board.temperature_c is None else f"{board.temperature_c:.0f}"


def joules(node: NodeView) -> str:
    """Joules since its start; one that is only reckoned has a ~ before it."""
    board = node.board
    if board is None or board.energy_j is None:
        return "-"
    value, unit = (board.energy_j / 1000, "kJ") if board.energy_j >= 10_000 else (board.energy_j, "J")
    return f"{'' if board.measured else '~'}{value:.{1 if value < 100 else 0}f} {unit}"


def node_row(node: NodeView, queue_cells: int) -> Row:
    """Name, state, layers, queue, ms a task, tasks a second, CPU, sent, temperature, energy."""
    waiting = node.inputs + node.outputs
    speed = ms_per_task(node)
    return (
        printable(node.name),
        printable(node.state),
        node.span or "-",
        f"{f'{node.inputs}+{node.outputs}':<5}{bar(waiting, FULL_QUEUE, queue_cells)}",
        "-" if speed is None else f"{speed:.1f}" if speed < 100 else f"{speed:.0f}",
        f"{node.executed_per_s:.1f}",
        f"{node.cpu_percent:.0f} %",
        quantity(node.sent_bytes),
        celsius(node),
        joules(node),
    )


def queue_colour(node: NodeView) -> str:
    waiting = node.inputs + node.outputs
    return "red" if waiting >= FULL_QUEUE else "yellow" if waiting >= FULL_QUEUE // 2 else "green"
