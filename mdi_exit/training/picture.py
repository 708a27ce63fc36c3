"""Accuracy against cost in one picture: what each exit can do, and what thresholds make of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.plot.timeline import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Line", "draw"]

_COLOURS: Final = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, GREY)
_LOWEST_SHOWN_BELOW_BEST: Final = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A threshold curve: mean MACs, accuracies in [0, 1], and between which they lie over several seeds.

    ``exits``: cost and accuracy of each exit by itself; ``dots``: single points of interest.
    """

    name: str
    macs_T: NDArray[np.float64]
    accuracies_T: NDArray[np.float64]
    least_T: NDArray[np.float64] | None = None
    most_T: NDArray[np.float64] | None = None
    exits: Sequence[tuple[float, float]] = ()
    dots: Sequence[tuple[float, float]] = field(default=())
    dashed: bool = False


def draw(lines: Sequence[Line], out: Path, title: str, subtitle: str, *, marks: Sequence[float] = ()) -> None:
    """Write a PNG; ``marks``: costs to be marked. Raises ``UsageError`` without matplotlib, ``MdiExitError``."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("picture", "matplotlib (pip install 'mdi-exit[plot]')", "a Python without it") from None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 5.4), dpi=130)
        FigureCanvasAgg(figure)
        figure.text(0.03, 0.955, title, fontsize=13, fontweight="bold", va="center")
        figure.text(0.03, 0.912, subtitle, fontsize=9, color="#555", va="center")
        panel = figure.add_axes((0.085, 0.11, 0.89, 0.76))
        _fill(panel, lines, marks)
        try:
            figure.savefig(out, format="png")
        except OSError as error:
            raise MdiExitError(f"picture: could not write {out}: {error.strerror}") from None


def _fill(panel: Axes, lines: Sequence[Line], marks: Sequence[float]) -> None:
    unit, name = _unit(max(float(line.macs_T[-1]) for line in lines))
    for number, line in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        style: Any = (0, (4, 2)) if line.dashed else "-"
        x_T = line.macs_T / unit
        panel.plot(x_T, 100 * line.accuracies_T, color=colour, linestyle=style, linewidth=1.9, label=line.name)
        if line.least_T is not None and line.most_T is not None:
            panel.fill_between(x_T, 100 * line.least_T, 100 * line.most_T, color=colour, alpha=0.13, linewidth=0)
        for index, (cost, accuracy) in enumerate(line.exits):
            panel.plot(cost / unit, 100 * accuracy, "o", color=colour, markersize=6.5, markerfacecolor="white",
                       markeredgewidth=1.6, label="each exit by itself" if index == 0 else None)  # fmt: skip
            panel.annotate(f"exit {index}: {accuracy:.1%}", (cost / unit, 100 * accuracy), xytext=(0, -13),
                           textcoords="offset points", fontsize=8, color="#444", ha="center", va="center",
                           bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6})  # fmt: skip
        for cost, accuracy in line.dots:
            panel.plot(cost / unit, 100 * accuracy, "D", color=colour, markersize=4.5)
    for cost in marks:
        panel.axvline(cost / unit, color="#B4BAC3", linewidth=0.8, linestyle=(0, (4, 3)), zorder=-1)
    _limits(panel, lines)
    panel.set_xlabel(f"mean cost of a sample, {name}, heads included")
    panel.set_ylabel("accuracy, %")
    panel.grid(color="#D8DCE2", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.margins(x=0.06)
    panel.legend(loc="best", frameon=False, fontsize=9)


def _limits(panel: Axes, lines: Sequence[Line]) -> None:
    """From the worst exit up, unless that is hopeless: curves differ near the top."""
    best = max(float(line.accuracies_T.max()) for line in lines)
    least = min(
        min(float(line.accuracies_T.min()), *(accuracy for _, accuracy in line.exits or [(0.0, 1.0)])) for line in lines
    )
    low = max(least, best - _LOWEST_SHOWN_BELOW_BEST)
    room = max(best - low, 0.01)
    panel.set_ylim(100 * (low - 0.14 * room), 100 * (best + 0.08 * room))


def _unit(macs: float) -> tuple[float, str]:
    for unit, name in ((1e9, "billion MACs"), (1e6, "million MACs"), (1e3, "thousand MACs")):
        if macs >= unit:
            return unit, name
    return 1.0, "MACs"
