"""What no policy can pass, as a line of accuracy against rate, and where the run stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mdi_exit.plot.timeline import BLUE

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

__all__ = ["edge_of", "fill", "point_of"]

Point = tuple[float, float]


def edge_of(summary: Mapping[str, Any] | None) -> tuple[Point, ...]:
    """(items a second, accuracy), rates falling, where the run's summary says so; else nothing."""
    found = (summary or {}).get("frontier") or ()
    return tuple((float(rate), float(accuracy)) for rate, accuracy in found)


def point_of(summary: Mapping[str, Any] | None) -> Point | None:
    """The run's own rate and accuracy."""
    rate, accuracy = ((summary or {}).get(key) for key in ("rate_per_s", "accuracy"))
    numbers = isinstance(rate, int | float) and isinstance(accuracy, int | float)
    return (float(rate), float(accuracy)) if numbers else None  # type: ignore[arg-type] # numbers says so


def fill(figure: Figure | SubFigure, edge: Sequence[Point], run: Point | None) -> None:
    """One panel: the frontier, all that is below it, and the run's point."""
    panel = figure.subplots()
    figure.subplots_adjust(left=0.085, right=0.83, top=0.84, bottom=0.16)
    figure.text(0.03, 0.93, "what no policy can pass", fontsize=14, fontweight="bold", va="center")
    rates = [0.0, *(rate for rate, _ in reversed(edge)), edge[0][0]]
    accuracy = [100 * edge[-1][1], *(100 * one for _, one in reversed(edge)), 0.0]
    panel.plot(rates, accuracy, ":", color="black", linewidth=1.8, label="bound, on the\nsamples of\nthis run")
    panel.fill_between(rates[:-1], accuracy[:-1], color="#EFF1F4", zorder=-2)
    lowest = min(one for _, one in edge)
    if run is not None:
        lowest = min(lowest, run[1])
        panel.plot(*_percent(run), "o", color=BLUE, markersize=8, label=f"this run\n{run[0]:.1f}/s,\n{run[1]:.1%}")
    highest = max(one for _, one in edge)
    margin = max(0.15 * (highest - lowest), 0.005)
    panel.set_ylim(100 * (lowest - margin), min(100 * (highest + margin), 100.5))
    panel.set_xlim(0, 1.05 * max(edge[0][0], run[0] if run else 0.0))
    panel.set_xlabel("items/s")
    panel.set_ylabel("accuracy, %")
    panel.grid(axis="y", color="#D8DCE2", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, handlelength=1.6, labelspacing=1.0)


def _percent(point: Point) -> Point:
    return point[0], 100 * point[1]
