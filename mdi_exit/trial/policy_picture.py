"""The pictures of ``mdi-exit benchmark policies``: accuracy and rate of one scenario under each policy, and the bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.plot.timeline import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, STYLE

if TYPE_CHECKING:
    from mdi_exit.trial.policies import Row

__all__ = ["draw_policies"]

_STYLES = [
    (colour, marker, line)
    for line, colours in (("-", (BLUE, RED, GREEN, PURPLE, ORANGE)), ("--", (SKY, GREY, RED, BLUE)))
    for colour, marker in zip(colours, "osD^v", strict=False)
]


def draw_policies(rows: Sequence[Row], bound: Sequence[tuple[float, float]], whole: float, out: Path) -> None:
    """Left: rate against accuracy, a threshold at each point. Right: right labels against the rate offered.

    Accuracy is that above the whole network's on the same samples, since runs have different ones; ``whole``: of the whole
    network on all samples, from which the bound's is counted.

    Raises ``UsageError`` without matplotlib.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "mdi-exit benchmark policies", "the extra 'plot' (pip install 'mdi-exit[plot]')", "none"
        ) from None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.5, 5.2), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        _fixed_threshold(left, rows, bound, whole)
        _fixed_rate(right, rows)
        figure.suptitle(rows[0].scenario, x=0.01, ha="left", fontweight="bold")
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False)
        try:
            figure.savefig(out)
        except OSError as error:
            raise MdiExitError(f"could not write {out}: {error.strerror}") from None


def _by_policy(rows: Sequence[Row], sweep: str) -> list[tuple[str, list[Row]]]:
    names = dict.fromkeys(row.policy for row in rows)
    return [(name, [row for row in rows if (row.policy, row.sweep) == (name, sweep)]) for name in names]


def _fixed_threshold(panel: Any, rows: Sequence[Row], bound: Sequence[tuple[float, float]], whole: float) -> None:
    for (name, ran), (colour, marker, line) in zip(_by_policy(rows, "threshold"), _STYLES, strict=False):
        accuracy = [100 * (row.accuracy - row.whole_accuracy) for row in ran]
        rate = [row.rate_per_s for row in ran]
        panel.plot(accuracy, rate, line, color=colour, marker=marker, markersize=5, linewidth=1.2, label=name)
    edge = sorted((100 * (accuracy - whole), rate) for rate, accuracy in bound)
    least = min((100 * (row.accuracy - row.whole_accuracy) for row in rows), default=0.0)
    edge = [(min(least, edge[0][0]), edge[0][1]), *edge, (edge[-1][0], 0.0)]  # what is reached, less is too
    panel.plot(
        [x for x, _ in edge], [y for _, y in edge], ":", color="black", linewidth=1.8, label="bound of this placement"
    )
    panel.set_title("threshold fixed: rate reached", loc="left", fontsize=10)
    panel.set_xlabel("accuracy above the whole network's, points")
    panel.set_ylabel("items/s")
    panel.set_ylim(bottom=0)
    panel.grid(color="#E3E5E8")


def _fixed_rate(panel: Any, rows: Sequence[Row]) -> None:
    for (_, ran), (colour, marker, line) in zip(_by_policy(rows, "rate"), _STYLES, strict=False):
        right = [100 * row.right_of_offered for row in ran]
        panel.plot([row.at for row in ran], right, line, color=colour, marker=marker, markersize=5, linewidth=1.2)
    panel.set_title("rate fixed: right labels, what is refused being none", loc="left", fontsize=10)
    panel.set_xlabel("items/s offered")
    panel.set_ylabel("right labels in 100 items offered")
    panel.grid(color="#E3E5E8")
