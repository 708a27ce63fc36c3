"""The true loss of each calibration set in one picture (needs the extra plot)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mdi_exit.benchmark.risk import CONFIDENCE, METHODS, Draw, allowed
from mdi_exit.plot.timeline import STYLE

__all__ = ["draw_picture"]

_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"


def draw_picture(found: Sequence[Draw], out: Path, title: str) -> None:
    """The true loss of every set, by method, size and promised loss."""
    max_losses = sorted({draw.max_loss for draw in found})
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(max_losses) + 0.8, 4.6), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=11.5, fontweight="bold")
        axes = np.ravel(figure.subplots(1, len(max_losses), squeeze=False))
        for axis, max_loss in zip(axes, max_losses, strict=True):
            _losses_of(axis, [draw for draw in found if draw.max_loss == max_loss], max_loss)
        axes[0].set_ylabel("lost by leaving early, on the whole pool, %")
        handles = [
            Line2D([], [], color=colour, marker="o", linestyle="", markersize=4, label=name)
            for name, colour in zip(METHODS, (_BLUE, _GREEN, _ORANGE), strict=True)
        ]
        figure.legend(handles=handles, frameon=False, loc="outside lower center", ncols=3)
        figure.savefig(out)


def _losses_of(axis: Any, found: Sequence[Draw], max_loss: float) -> None:
    sizes = sorted({draw.samples for draw in found})
    rng = np.random.default_rng(0)
    limit = allowed(sum(d.method == "naive" and d.samples == sizes[0] for d in found), CONFIDENCE)
    top = 100 * max(draw.loss for draw in found)
    for column, samples in enumerate(sizes):
        for place, (method, colour) in enumerate(zip(METHODS, (_BLUE, _GREEN, _ORANGE), strict=True)):
            cell = [draw for draw in found if (draw.samples, draw.method) == (samples, method)]
            if not cell:
                continue
            x = column + 0.28 * (place - 1)
            axis.plot(
                x + rng.uniform(-0.1, 0.1, len(cell)), [100 * draw.loss for draw in cell], "o", color=colour,
                markersize=2.2, alpha=0.45, markeredgewidth=0,
            )  # fmt: skip
            broken = sum(draw.exceeds for draw in cell)
            axis.text(x, 1.06 * top, str(broken), color=colour, ha="center", fontsize=9, fontweight="bold")
    axis.axhline(100 * max_loss, color="#000000", linewidth=1)
    axis.set_title(f"promised: at most {100 * max_loss:g} %\nexceeded, of at most {limit}:", fontsize=9.5)
    axis.set_xticks(range(len(sizes)), [f"{samples:,}" for samples in sizes])
    axis.set_xlabel("calibration samples")
    axis.set_ylim(0, 1.13 * top)
    axis.grid(axis="y", color="#E3E6EA", linewidth=0.7)
    axis.set_axisbelow(True)
