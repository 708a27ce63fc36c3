"""Calibration in one picture: reliability of each exit before and after, and accuracy against cost by measure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mdi_exit.calibration.curves import curve_of
from mdi_exit.calibration.reliability import Reliability
from mdi_exit.errors import MdiExitError
from mdi_exit.outcomes import Outcomes, measures_of
from mdi_exit.plot.timeline import STYLE
from mdi_exit.workbench.calibration_report import Calibrated, reliabilities

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

_BEFORE, _AFTER = "#D55E00", "#0072B2"
_COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_COLUMNS: Final = 5
_LEAST: Final = 0.2


def draw(unseen: Outcomes, found: Calibrated, out: Path) -> None:
    """Write the picture (PNG or SVG by the suffix). Raises ``MdiExitError``."""
    columns = min(unseen.exits, _COLUMNS)
    rows = -(-unseen.exits // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(2.35 * columns, 7.0), 2.75 * rows + 4.1), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        upper, lower = np.ravel(figure.subfigures(2, 1, height_ratios=(2.75 * rows + 0.5, 3.6)))  # type: ignore[arg-type]
        upper.suptitle(
            f"{found.manifest.name}: is confidence the share that is right?\n({len(unseen):,} test samples)",
            fontsize=11.5, fontweight="bold",
        )  # fmt: skip
        axes = upper.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        before, after = reliabilities(unseen, (1.0,) * unseen.exits), reliabilities(unseen, found.temperatures)
        for number, axis in enumerate(axes):
            if number < unseen.exits:
                title = f"exit {number}, layer {unseen.exit_layers_S[number]}, T = {found.temperatures[number]:.3f}"
                _reliability(axis, before[number], after[number], title)
            else:
                axis.set_axis_off()
        axes[0].legend(frameon=False, fontsize=8, loc="upper left")
        axes[0].set_ylabel("right")
        upper.supxlabel("confidence (largest probability)", fontsize=9.5)
        _costs(lower.subplots(), unseen, found)
        try:
            figure.savefig(out, format=out.suffix.removeprefix("."))
        except OSError as error:
            raise MdiExitError(f"--picture: could not write {out}: {error.strerror}") from None


def _reliability(axis: Axes, before: Reliability, after: Reliability, title: str) -> None:
    axis.plot([0, 1], [0, 1], color="#B0B5BD", linewidth=1, zorder=0)
    for bins, colour, name in ((before, _BEFORE, "before"), (after, _AFTER, "after")):
        axis.plot(bins.confidence_B, bins.accuracy_B, "o-", color=colour, markersize=3.5, linewidth=1.2, label=name)
    axis.set_title(title, fontsize=9)
    axis.text(
        0.97, 0.05, f"ECE {100 * before.ece:.2f} % → {100 * after.ece:.2f} %", transform=axis.transAxes, ha="right",
        fontsize=8, color="#444444",
    )  # fmt: skip
    axis.set_xlim(_LEAST, 1.02)
    axis.set_ylim(_LEAST, 1.02)
    axis.set_aspect("equal")


def _costs(axis: Axes, unseen: Outcomes, found: Calibrated) -> None:
    """Each measure's curve, each exit alone, and the thresholds chosen."""
    lowest = 1.0
    for measure, colour in zip(measures_of(unseen), _COLOURS, strict=False):
        curve = curve_of(unseen.trace(measure, found.temperatures))
        axis.plot(curve.macs_P / 1e6, 100 * curve.accuracy_P, color=colour, linewidth=1.5, label=measure)
        lowest = min(lowest, float(curve.accuracy_P.min()))
    trace = unseen.trace(found.manifest.calibration.measure, found.temperatures)
    alone_S = np.cumsum(trace.layer_macs_L)[trace.exit_layers_S] + trace.head_macs_S
    accuracy_S = trace.right_NS.mean(axis=0)
    axis.plot(
        alone_S / 1e6, 100 * accuracy_S, "x", color="#595959", markersize=5,
        label="all items at one exit", zorder=1,
    )  # fmt: skip
    score = trace.score(found.thresholds)
    axis.plot(
        [score.mean_macs / 1e6], [100 * score.accuracy], "*", color="#000000", markersize=13, label="thresholds chosen",
    )  # fmt: skip
    axis.set_title("accuracy against cost, one threshold for all exits, by measure of confidence", fontsize=10)
    least, most = float(trace.layer_macs_L[: trace.exit_layers_S[0] + 1].sum()) / 1e6, float(trace.macs_S[-1]) / 1e6
    axis.set_xscale("log")
    axis.set_xlim(0.95 * least, 1.05 * most)
    ticks = [digit * 10.0**power for power in range(-6, 9) for digit in (1, 2, 3, 5)]
    axis.set_xticks([tick for tick in ticks if least <= tick <= most], minor=False)
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlabel("million multiply-accumulates a sample, mean")
    axis.set_ylabel("right, %")
    axis.grid(color="#E3E6EA", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.legend(frameon=False, fontsize=8, loc="lower right", ncols=2)
