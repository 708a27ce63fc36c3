"""Depth and accuracy against noise, and accuracy against depth, of each task in one picture (needs the extra plot).

Lines are means over the seeds, bands reach from least to most; large marks are what calibration chose, one a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from mdi_exit.benchmark.daisy_page import RULE_NAMES, ratio_name, select, tasks_in
from mdi_exit.benchmark.daisy_rows import CLEAN, FIXED, MEAN, RULES, Row
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.plot.timeline import BLUE, GREY, ORANGE, STYLE

__all__ = ["draw"]

_COLOURS: Final = {"daisy": BLUE, "confidence": ORANGE, FIXED: GREY}
_COLUMNS: Final = 4


def draw(rows: Sequence[Row], out: Path) -> Path:
    """Writes a PNG; returns where. Raises ``UsageError`` without matplotlib, ``MdiExitError``."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("picture", "matplotlib (pip install 'mdi-exit[plot]')", "a Python without it") from None
    tasks = tasks_in(rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.5 * _COLUMNS, 3.0 * len(tasks) + 0.6), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(tasks), _COLUMNS, squeeze=False)
        for panels, task in zip(axes, tasks, strict=True):
            found = select(rows, task=task)
            _by_ratio(panels[0], found, f"{task}: depth", "layers", "mean layers run")
            panels[0].set_ylim(0.8, rows[0]["layers"] + 0.2)
            _by_ratio(panels[1], found, f"{task}: accuracy at that depth", "accuracy", "accuracy, %")
            for panel, snr, name in ((panels[2], CLEAN, "clean"), (panels[3], MEAN, "clean and noisy")):
                _by_depth(panel, select(found, snr_db=snr), f"{task}, {name}", rows[0]["read at"])
        figure.legend(*axes[0][2].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
        try:
            figure.savefig(out, format="png")
        except OSError as error:
            raise MdiExitError(f"picture: could not write {out}: {error.strerror}") from None
    return out


def _by_ratio(panel: Any, found: Sequence[Row], title: str, key: str, unit: str) -> None:
    """``key`` at the points that calibration chose."""
    snrs = [snr for snr in dict.fromkeys(row["snr_db"] for row in found) if snr != MEAN]
    scale = 100 if key == "accuracy" else 1
    for rule in RULES:
        values_RS = np.array(
            [[scale * row[key] for row in select(found, name="point", rule=rule, snr_db=snr)] for snr in snrs]
        )
        _banded(panel, [ratio_name(snr) for snr in snrs], values_RS.T, rule, "o-")
    fixed = [select(found, name="fixed", snr_db=snr) for snr in snrs]
    values_RS = np.array(
        [[100 * row["accuracy"][row["chosen"] - 1] if scale == 100 else row["chosen"] for row in at] for at in fixed]
    )
    _banded(panel, [ratio_name(snr) for snr in snrs], values_RS.T, FIXED, "--")
    _titled(panel, title, "SNR, dB", unit)


def _by_depth(panel: Any, found: Sequence[Row], title: str, read_at: Sequence[float]) -> None:
    for rule, colour in _COLOURS.items():
        values_SD = np.array([[100 * one for one in row["accuracy"]] for row in select(found, name="curve", rule=rule)])
        _banded(panel, read_at, values_SD, rule, "--" if rule == FIXED else "-")
        if rule == FIXED:
            chosen = [(row["chosen"], 100 * row["accuracy"][row["chosen"] - 1]) for row in select(found, name="fixed")]
        else:
            points = select(found, name="point", rule=rule)
            chosen = [(row["layers"], 100 * row["accuracy"]) for row in points]
        panel.plot(*zip(*chosen, strict=True), "s" if rule == FIXED else "o", color=colour, markersize=6)
    _titled(panel, title, "mean layers run", "accuracy, %")


def _banded(panel: Any, x: Sequence[Any], values_SX: Any, rule: str, form: str) -> None:
    colour = _COLOURS[rule]
    panel.plot(x, values_SX.mean(0), form, color=colour, label=RULE_NAMES[rule], markersize=4, linewidth=1.4)
    panel.fill_between(x, values_SX.min(0), values_SX.max(0), color=colour, alpha=0.18, linewidth=0)


def _titled(panel: Any, title: str, x: str, y: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.grid(axis="y", color="#E3E6EA", linewidth=0.7)
    panel.set_axisbelow(True)
