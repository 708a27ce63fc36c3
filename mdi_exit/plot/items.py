"""The items of a run: how long they took, how sure each exit was and how often it was right, where they went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mdi_exit.plot.files import Item
from mdi_exit.plot.timeline import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

__all__ = ["fill", "subtitle"]

_COLOURS: Final = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, GREY)
_PATHS: Final = 8
_BINS: Final = 40
_SURE_BINS: Final = np.linspace(0.0, 1.0, 41)


def subtitle(items: Sequence[Item]) -> str:
    """Counts, accuracy and errors in a line."""
    errors = Counter(item.error for item in items if item.error is not None)
    judged = [item.right for item in items if item.right is not None]
    parts = [f"{len(items):,} items"]
    if judged:
        parts.append(f"{sum(judged) / len(judged):.1%} of {len(judged):,} right")
    if errors:
        (reason, count), *_ = errors.most_common(1)
        parts.append(f"{errors.total():,} errors, most often ({count:,}): {reason}"[:90])
    else:
        parts.append("no errors")
    return "   ·   ".join(parts)


def fill(figure: SubFigure, items: Sequence[Item]) -> None:
    """Five panels on two columns."""
    by_exit = {
        number: [item for item in items if item.exit == number]
        for number in sorted({item.exit for item in items if item.exit is not None})
    }
    grid = figure.add_gridspec(
        3, 2, left=0.085, right=0.975, top=0.95, bottom=0.06, hspace=0.42, wspace=0.2, height_ratios=(1, 1.25, 0.75)
    )
    panels = [figure.add_subplot(cell) for cell in (grid[0, 0], grid[0, 1], grid[1, 0], grid[1, 1])]
    for panel, draw in zip(panels, (_shares, _latencies, _confidences, _exits), strict=True):
        draw(panel, by_exit)
        panel.set_axisbelow(True)
    _paths(figure.add_subplot(grid[2, :]), items)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _title(panel: Axes, text: str) -> None:
    panel.set_title(text, loc="left", fontsize=10, fontweight="bold", color="#333")


def _scale(by_exit: dict[int, list[Item]]) -> tuple[float, str]:
    longest = max((item.latency_s for items in by_exit.values() for item in items), default=0.0)
    return (1.0, "s") if longest >= 10 else (1000.0, "ms")


def _shares(panel: Axes, by_exit: dict[int, list[Item]]) -> None:
    """Which share was there by then, by exit."""
    _title(panel, "Latency by exit: share done by then")
    scale, unit = _scale(by_exit)
    for number, items in by_exit.items():
        times = np.sort([max(item.latency_s * scale, 1e-3) for item in items])
        shares = np.arange(1, len(times) + 1) / len(times)
        p50 = times[(len(times) - 1) // 2]
        label = f"exit {number}: p50 {p50:.{0 if p50 >= 10 else 1}f} {unit}"
        panel.step(
            np.append(times, times[-1]), np.append(shares, 1.0), where="post", color=_colour(number), label=label
        )
    _logarithmic(panel)
    panel.set_xlabel(f"latency, {unit} (admission to result)")
    panel.set_ylim(0, 1.02)
    panel.grid(color="#D8DCE2", linewidth=0.7)
    if by_exit:
        panel.legend(loc="lower right", frameon=False, fontsize=8.5)
    else:
        _nothing(panel)


def _latencies(panel: Axes, by_exit: dict[int, list[Item]]) -> None:
    """How many took how long, exits on top of each other."""
    _title(panel, "Latency: number of items")
    scale, unit = _scale(by_exit)
    times = [np.array([max(item.latency_s * scale, 1e-3) for item in items]) for items in by_exit.values()]
    if not times:
        _nothing(panel)
        return
    least, most = min(part.min() for part in times), max(part.max() for part in times)
    bins = np.geomspace(least * 0.98, most * 1.02, _BINS)
    panel.hist(times, bins=bins.tolist(), stacked=True, color=[_colour(number) for number in by_exit],
               label=[f"exit {number}" for number in by_exit])  # fmt: skip
    _logarithmic(panel)
    panel.set_xlabel(f"latency, {unit}")
    panel.grid(axis="y", color="#D8DCE2", linewidth=0.7)


def _confidences(panel: Axes, by_exit: dict[int, list[Item]]) -> None:
    """A row for each exit: right answers above the line, wrong ones below; heights are square roots of counts."""
    _title(panel, "Confidence by exit: right above, wrong below")
    judged = False
    for row, items in enumerate(by_exit.values()):
        line = -row
        right = np.sqrt(_histogram([item for item in items if item.right is not False]))
        wrong = np.sqrt(_histogram([item for item in items if item.right is False]))
        known = [item.right for item in items if item.right is not None]
        judged = judged or bool(known)
        full = 0.45 / max(right.max(), wrong.max(), 1.0)
        panel.stairs(line + full * right, _SURE_BINS, baseline=line, fill=True, color=GREEN if known else GREY)
        panel.stairs(line - full * wrong, _SURE_BINS, baseline=line, fill=True, color=RED)
        panel.axhline(line, color="#8A8F98", linewidth=0.6)
        if known:
            text = f"{sum(known) / len(known):.1%} right"
            panel.text(0.01, line + 0.12, text, fontsize=8.5, color="#444", transform=panel.get_yaxis_transform())
    panel.set_yticks([-row for row in range(len(by_exit))], [f"exit {number}" for number in by_exit])
    panel.set_ylim(0.45 - max(len(by_exit), 1), 0.55)
    panel.set_xlim(0, 1)
    note = "heights are square roots of counts" + ("" if judged else "; no truth is known")
    panel.set_xlabel(f"confidence ({note})")
    if not by_exit:
        _nothing(panel)


def _logarithmic(panel: Axes) -> None:
    """Decades in plain numbers."""
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.xaxis.set_minor_formatter(lambda value, _: "")


def _histogram(items: Sequence[Item]) -> Any:
    return np.histogram([item.confidence or 0.0 for item in items], bins=_SURE_BINS)[0]


def _exits(panel: Axes, by_exit: dict[int, list[Item]]) -> None:
    """How many stopped where."""
    _title(panel, "Where items stopped")
    total = sum(len(items) for items in by_exit.values())
    numbers = list(by_exit)
    counts = [len(by_exit[number]) for number in numbers]
    bars = panel.barh(range(len(numbers)), counts, color=[_colour(number) for number in numbers], height=0.6)
    for bar, count in zip(bars, counts, strict=True):
        panel.text(bar.get_width(), bar.get_y() + bar.get_height() / 2, f"  {count:,} ({count / total:.1%})",
                   va="center", fontsize=9, color="#444")  # fmt: skip
    panel.set_yticks(range(len(numbers)), [f"exit {number}" for number in numbers])
    panel.invert_yaxis()
    panel.set_xlim(0, max(counts, default=1) * 1.3)
    panel.set_xlabel("items")
    if not numbers:
        _nothing(panel)


def _paths(panel: Axes, items: Sequence[Item]) -> None:
    """By way of which nodes, the most frequent above."""
    _title(panel, "Paths")
    paths = Counter(item.path for item in items if item.error is None)
    shown = paths.most_common(_PATHS if len(paths) <= _PATHS else _PATHS - 1)
    rows = [(" → ".join(path) or "(nobody)", count) for path, count in shown]
    if len(shown) < len(paths):
        rows.append((f"{len(paths) - len(shown)} other paths", paths.total() - sum(count for _, count in shown)))
    total = max(paths.total(), 1)
    panel.barh(range(len(rows)), [count for _, count in rows], color=SKY, height=0.72)
    for row, (name, count) in enumerate(rows):
        panel.text(0.006, row, f"{name[:90]}   {count:,} ({count / total:.1%})", va="center", fontsize=8.5,
                   transform=panel.get_yaxis_transform())  # fmt: skip
    panel.set_yticks([])
    panel.invert_yaxis()
    panel.set_xlabel("items")
    if not rows:
        _nothing(panel)


def _nothing(panel: Axes) -> None:
    panel.text(0.5, 0.5, "no item was completed", transform=panel.transAxes, ha="center", va="center", color="#777")
