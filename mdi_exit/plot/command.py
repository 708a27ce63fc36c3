"""``mdi-exit plot RUN``: the pictures of a run in one file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from mdi_exit import values
from mdi_exit.config import resolve, setting
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.plot.files import Run, read_run

__all__ = ["PlotSettings", "draw_run", "main"]

_WIDTH: Final = 10.0
_ITEMS_HEIGHT: Final = 10.0
_TIMELINE_HEIGHT: Final = 10.5
_FRONTIER_HEIGHT: Final = 3.6
_HEAD_HEIGHT: Final = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotSettings:
    """``out`` None: beside what is drawn."""

    out: Path | None = setting(
        None,
        help="where to draw (default: RUN/plot.png, or beside a file)",
        parse=values.picture,
        metavar="FILE.png|.svg",
    )


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    resolved = resolve(
        PlotSettings,
        argv,
        os.environ,
        prog="mdi-exit plot",
        section="plot",
        description="Draws a run: items by exit (latency, confidence, paths) and the run over time.",
        words="RUN",
        epilog="RUN: a folder with results.jsonl, timeline.jsonl, summary.json (any of them), or one such file.",
    )
    place = Path(resolved.only_word("mdi-exit plot", "RUN")).expanduser()
    out = resolved.settings.out or (place / "plot.png" if place.is_dir() else place.with_suffix(".png"))
    draw_run(read_run(place), out)
    sys.stdout.write(f"{out}\n")
    return 0


def draw_run(run: Run, out: Path) -> None:
    """Write the picture. Raises ``UsageError`` without matplotlib or with nothing to draw."""
    if not run.items and len(run.timeline) < 2:
        raise UsageError("RUN", "results or a timeline beside the summary", f"{run.name}, a summary only")
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("mdi-exit plot", "the extra 'plot' (pip install 'mdi-exit[plot]')", "none") from None
    from mdi_exit.plot import frontier, items, timeline

    edge = frontier.edge_of(run.summary)
    heights = [_HEAD_HEIGHT]
    heights += [_FRONTIER_HEIGHT] if edge else []
    heights += [_ITEMS_HEIGHT] if run.items else []
    heights += [_TIMELINE_HEIGHT] if len(run.timeline) >= 2 else []
    with mpl.rc_context(timeline.STYLE):
        figure = Figure(figsize=(_WIDTH, sum(heights)), dpi=110)
        FigureCanvasAgg(figure)
        head, *parts = np.ravel(figure.subfigures(len(heights), 1, height_ratios=heights, hspace=0.0))  # type: ignore[arg-type]
        _write_head(head, run)
        if edge:
            frontier.fill(parts.pop(0), edge, frontier.point_of(run.summary))
        if run.items:
            items.fill(parts.pop(0), run.items)
        if parts:
            timeline.fill(parts[0], run.timeline, "over time", timeline.phases_of(run.timeline), _bound_of(run))
        try:
            figure.savefig(out, format=out.suffix.removeprefix("."))
        except OSError as error:
            raise MdiExitError(f"--out: could not write {out}: {error.strerror}") from None


def _bound_of(run: Run) -> float | None:
    """Items a second that no policy can pass, where the run's summary says so, as a simulated run's does."""
    bound = (run.summary or {}).get("bound_per_s")
    return float(bound) if isinstance(bound, int | float) and bound > 0 else None


def _write_head(head: Any, run: Run) -> None:
    from mdi_exit.plot import items

    head.text(0.03, 0.62, run.name, fontsize=15, fontweight="bold", va="center")
    emulated = (run.summary or {}).get("emulated")
    parts = [items.subtitle(run.items)] if run.items else []
    if (bound_per_s := _bound_of(run)) is not None:  # beside the name: the line below is long enough
        reached = f"{(run.summary or {}).get('efficiency', 0.0):.1%} of the bound {bound_per_s:.1f}/s"
        head.text(0.97, 0.62, reached, fontsize=9.5, color="#555", va="center", ha="right")
    parts += [f"compute emulated: {emulated}"] if emulated else []
    head.text(0.03, 0.12, "   ·   ".join(parts), fontsize=9.5, color="#555", va="center")
