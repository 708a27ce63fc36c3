"""Depth against noise, and accuracy against depth, of both speech tasks in one picture (needs the extra plot).

Large marks are what calibration chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from mdi_exit.benchmark.daisy import CLEAN, MEAN
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.plot.timeline import BLUE, GREY, ORANGE, STYLE

__all__ = ["draw"]

_SHOWN: Final = 3
_NAMES: Final = {"daisy": "DAISY: frame entropy", "confidence": "supervised confidence"}
_NAMED: Final[dict[float | str, str]] = {CLEAN: "clean", MEAN: "clean and all ratios together"}
_COLOURS: Final = {"daisy": BLUE, "confidence": ORANGE}

Row = dict[str, Any]


def draw(rows: Sequence[Row], folder: Path) -> Path:
    """Writes a PNG; returns where. Raises ``UsageError`` without matplotlib, ``MdiExitError``."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("picture", "matplotlib (pip install 'mdi-exit[plot]')", "a Python without it") from None
    tasks = list(dict.fromkeys(row["task"] for row in rows if "task" in row))
    out = folder / f"daisy-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.png"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * (_SHOWN + 1), 3.3 * len(tasks) + 0.6), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(tasks), _SHOWN + 1, squeeze=False)
        for panels, task in zip(axes, tasks, strict=True):
            found = [row for row in rows if row.get("task") == task]
            snrs = [snr for snr in dict.fromkeys(row["snr_db"] for row in found) if snr != MEAN]
            _depth(panels[0], [row for row in found if row["snr_db"] != MEAN], task)
            for panel, snr in zip(panels[1:], (snrs[0], snrs[-1], MEAN), strict=True):
                _accuracy(panel, [row for row in found if row["snr_db"] == snr], task, snr)
        figure.legend(*axes[0][1].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
        try:
            figure.savefig(out, format="png")
        except OSError as error:
            raise MdiExitError(f"picture: could not write {out}: {error.strerror}") from None
    return out


def _depth(panel: Any, found: Sequence[Row], task: str) -> None:
    for rule, colour in _COLOURS.items():
        points = [row for row in found if row["name"] == "point" and row["rule"] == rule]
        panel.plot([_name(row["snr_db"]) for row in points], [row["layers"] for row in points], "o-", color=colour)
    depth = next(row["layers"] for row in found if row["name"] == "fixed" and row["chosen"])
    panel.axhline(depth, color=GREY, linestyle="--", linewidth=1)
    panel.set_ylim(0.8, max(row["layers"] for row in found if row["name"] == "fixed") + 0.2)
    panel.set_title(f"{task}: depth at the chosen thresholds", fontsize=10)
    panel.set_xlabel("SNR, dB")
    panel.set_ylabel("mean layers run")
    _gridded(panel)


def _accuracy(panel: Any, found: Sequence[Row], task: str, snr: float | str) -> None:
    for rule, colour in _COLOURS.items():
        for row in found:
            if row["name"] == "curve" and row["rule"] == rule:
                points = sorted((layers, 100 * accuracy) for _, layers, accuracy in row["points"])
                panel.plot(*zip(*points, strict=True), "-", color=colour, label=_NAMES[rule])
            if row["name"] == "point" and row["rule"] == rule:
                panel.plot(row["layers"], 100 * row["accuracy"], "o", color=colour, markersize=7)
    fixed = [(row["layers"], 100 * row["accuracy"]) for row in found if row["name"] == "fixed"]
    panel.plot(*zip(*fixed, strict=True), "s--", color=GREY, markersize=4, linewidth=1, label="fixed depth")
    chosen = [(row["layers"], 100 * row["accuracy"]) for row in found if row["name"] == "fixed" and row["chosen"]]
    panel.plot(*zip(*chosen, strict=True), "s", color=GREY, markersize=7)
    panel.set_title(f"{task}, {_NAMED.get(snr, f'{_name(snr)} dB')}", fontsize=10)
    panel.set_xlabel("mean layers run")
    panel.set_ylabel("accuracy, %")
    _gridded(panel)


def _name(snr: float | str) -> str:
    return snr if isinstance(snr, str) else f"{snr:g}"


def _gridded(panel: Any) -> None:
    panel.grid(axis="y", color="#E3E6EA", linewidth=0.7)
    panel.set_axisbelow(True)
