"""A run in one picture: rates, threshold, queues, accuracy and latency over the same time axis."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.orders import ORDERS
from mdi_exit.snapshot import NodeSnapshot, Snapshot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["STYLE", "Phase", "draw", "fill", "orders_of", "phases_of"]

# Okabe and Ito's palette: told apart with every common kind of colour blindness.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#595959",
)  # fmt: skip
_NODE_STYLES = [(BLUE, "-"), (RED, "-"), (GREEN, "-"), (PURPLE, "-"), (ORANGE, "-"), (SKY, "-"), (GREY, "--")]
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": "#8A8F98",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "text.parse_math": False,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}
_BANDS = ("#FFFFFF", "#EFF1F4")
_LONGEST_LABEL = 20
_LONGEST_ORDER = 24
_ORDER = re.compile(rf"[A-Za-z0-9_-]{{1,40}}: (?P<words>(?:{'|'.join(ORDERS)})\b.*)")


@dataclass(frozen=True, slots=True)
class Phase:
    """A named stretch of the run, seconds since its start."""

    name: str
    start_s: float
    stop_s: float


def phases_of(timeline: Sequence[Snapshot]) -> tuple[Phase, ...]:
    """The stretches of equal ``phase`` in a timeline; those without a name are left out."""
    found: list[Phase] = []
    for before, now in zip(timeline, [*timeline[1:], timeline[-1]], strict=True) if timeline else ():
        if found and found[-1].name == before.phase and found[-1].stop_s == before.elapsed_s:
            found[-1] = Phase(before.phase, found[-1].start_s, now.elapsed_s)
        else:
            found.append(Phase(before.phase, before.elapsed_s, now.elapsed_s))
    return tuple(phase for phase in found if phase.name and phase.stop_s > phase.start_s)


def orders_of(timeline: Sequence[Snapshot]) -> tuple[tuple[float, str], ...]:
    """The orders that were obeyed, and when, in seconds since the start."""
    told = [
        (one.elapsed_s, match["words"]) for one in timeline for notice in one.notices if (match := _ORDER.match(notice))
    ]
    return tuple((at_s, words) for at_s, words in told if " refused: " not in words)


def draw(timeline: Sequence[Snapshot], out: Path, title: str, phases: Sequence[Phase] = ()) -> None:
    """Write a PNG. Without ``phases`` those of the timeline are marked.

    Raises ``UsageError`` without matplotlib or with fewer than two snapshots, ``MdiExitError`` if it cannot be written.
    """
    if len(timeline) < 2:
        raise UsageError("picture", "a timeline of at least 2 snapshots", len(timeline))
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("picture", "matplotlib (pip install 'mdi-exit[plot]')", "a Python without it") from None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 10.5), dpi=130)
        FigureCanvasAgg(figure)
        fill(figure, timeline, title, phases or phases_of(timeline))
        try:
            figure.savefig(out, format="png")
        except OSError as error:
            raise MdiExitError(f"picture: could not write {out}: {error.strerror}") from None


def fill(
    figure: Figure | SubFigure,
    timeline: Sequence[Snapshot],
    title: str,
    phases: Sequence[Phase],
    bound_per_s: float | None = None,
) -> None:
    """Five panels over the same seconds, with a title; ``bound_per_s``: the rate that no policy can pass."""
    orders = orders_of(timeline)
    panels = figure.subplots(5, 1, sharex=True, height_ratios=(1.35, 0.8, 1.2, 0.8, 0.8))
    figure.subplots_adjust(left=0.085, right=0.83, top=0.9, bottom=0.055, hspace=0.2)
    figure.text(0.03, 0.972, title, fontsize=14, fontweight="bold", va="center")
    figure.text(0.03, 0.949, _subtitle(timeline), fontsize=9.5, color="#555", va="center")
    for panel, draw_panel in zip(panels, (_rates, _threshold, _queues, _accuracy, _latency), strict=True):
        draw_panel(panel, timeline)
        panel.grid(axis="y", color="#D8DCE2", linewidth=0.7)
        panel.set_axisbelow(True)
        panel.margins(x=0)
        _mark(panel, phases)
        for at_s, _ in orders:
            panel.axvline(at_s, color=RED, linewidth=0.8, linestyle=(0, (1, 2)))
    for at_s, words in orders:
        panels[0].text(at_s, 0.97, f" {words[:_LONGEST_ORDER]}", transform=panels[0].get_xaxis_transform(), rotation=90,
                       ha="right", va="top", fontsize=7, color=RED)  # fmt: skip
    _name(panels[0], phases)
    if bound_per_s is not None:
        _bound(panels[0], bound_per_s)
    if timeline[0].elapsed_s < timeline[-1].elapsed_s:
        panels[-1].set_xlim(timeline[0].elapsed_s, timeline[-1].elapsed_s)
    panels[-1].set_xlabel("seconds since the start")
    figure.align_ylabels()


def _subtitle(timeline: Sequence[Snapshot]) -> str:
    last = timeline[-1]
    emulated = next((snapshot.emulated for snapshot in reversed(timeline) if snapshot.emulated), "")
    parts = [
        f"{last.admitted:,} admitted, {last.completed:,} completed, {last.errors:,} errors, {last.refused:,} refused"
    ]
    if emulated:
        parts.append(f"compute emulated: {emulated}")
    return "   ·   ".join(parts)


def _mark(panel: Axes, phases: Sequence[Phase]) -> None:
    for number, phase in enumerate(phases):
        panel.axvspan(phase.start_s, phase.stop_s, color=_BANDS[number % 2], zorder=-2, linewidth=0)
        if number:
            panel.axvline(phase.start_s, color="#B4BAC3", linewidth=0.8, linestyle=(0, (4, 3)), zorder=-1)


def _name(panel: Axes, phases: Sequence[Phase]) -> None:
    for phase in phases:
        panel.text(
            (phase.start_s + phase.stop_s) / 2, 1.03, phase.name, transform=panel.get_xaxis_transform(),
            ha="center", va="bottom", fontsize=9.5, color="#444", fontweight="bold",
        )  # fmt: skip


def _rates(panel: Axes, timeline: Sequence[Snapshot]) -> None:
    times = [snapshot.elapsed_s for snapshot in timeline]
    panel.step(times, [one.offered_per_s for one in timeline], where="post", color=GREY, linestyle=(0, (4, 2)),
               linewidth=1.4, label="offered")  # fmt: skip
    panel.plot(times, [one.admitted_per_s for one in timeline], color=ORANGE, linewidth=1.6, label="admitted")
    panel.plot(times, [one.completed_per_s for one in timeline], color=BLUE, linewidth=2, label="completed")
    panel.set_ylabel("items/s")
    panel.set_ylim(bottom=0)
    _legend(panel)


def _bound(panel: Axes, bound_per_s: float) -> None:
    """Over the whole run, at its mean accuracy: the rate of an easy moment may pass it."""
    panel.axhline(
        bound_per_s, color="black", linestyle=":", linewidth=1.8, label=f"bound\n{bound_per_s:.1f}/s at\nthis accuracy"
    )
    panel.set_ylim(top=max(panel.get_ylim()[1], 1.08 * bound_per_s))
    _legend(panel)


def _threshold(panel: Axes, timeline: Sequence[Snapshot]) -> None:
    times = [snapshot.elapsed_s for snapshot in timeline]
    panel.step(times, [one.threshold for one in timeline], where="post", color=PURPLE, linewidth=2)
    panel.set_ylabel("exit threshold")
    least = min(one.threshold for one in timeline)
    panel.set_ylim(min(0.45, least - 0.05), 1.03)
    _note(panel, f"start  {timeline[0].threshold:.2f}", f"lowest  {least:.2f}", f"end  {timeline[-1].threshold:.2f}")


def _queues(panel: Axes, timeline: Sequence[Snapshot]) -> None:
    """Input and output queue of each node; a gap where a node was not there."""
    times = [snapshot.elapsed_s for snapshot in timeline]
    names = list(dict.fromkeys(node.name for snapshot in timeline for node in snapshot.nodes))
    by_name = [{node.name: node for node in snapshot.nodes} for snapshot in timeline]
    for number, name in enumerate(names):
        colour, line = _NODE_STYLES[number % len(_NODE_STYLES)]
        since = next(time for time, nodes in zip(times, by_name, strict=True) if name in nodes)
        short = name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…"
        label = short if since == times[0] else f"{short}\nfrom {since:.0f} s"
        panel.plot(times, _waiting(name, by_name), color=colour, linestyle=line, linewidth=1.5, label=label)
    panel.set_ylabel("tasks waiting")
    panel.set_ylim(bottom=0)
    if names:
        _legend(panel)


def _waiting(name: str, by_name: Sequence[dict[str, NodeSnapshot]]) -> list[float]:
    found = [nodes.get(name) for nodes in by_name]
    return [float("nan") if node is None else float(node.inputs + node.outputs) for node in found]


def _accuracy(panel: Axes, timeline: Sequence[Snapshot]) -> None:
    times = [snapshot.elapsed_s for snapshot in timeline]
    known = [one.accuracy * 100 for one in timeline if one.accuracy is not None]
    values = [float("nan") if one.accuracy is None else one.accuracy * 100 for one in timeline]
    panel.plot(times, values, color=GREEN, linewidth=2)
    panel.set_ylabel("accuracy, %\n(last 200)")
    if known:
        panel.set_ylim(max(0.0, min(min(known) - 3, 80.0)), 101)
        _note(panel, f"lowest  {min(known):.1f} %", f"end  {known[-1]:.1f} %")
    else:
        _nothing(panel, "the input's truth is unknown")


def _latency(panel: Axes, timeline: Sequence[Snapshot]) -> None:
    points = [(one.elapsed_s, one.latency_p50_s) for one in timeline]
    known = [latency for _, latency in points if latency is not None]
    scale, unit = (1.0, "s") if known and max(known) >= 2 else (1000.0, "ms")
    values = [float("nan") if latency is None else latency * scale for _, latency in points]
    panel.plot([time for time, _ in points], values, color=RED, linewidth=2)
    panel.set_ylabel(f"median\nlatency, {unit}")
    panel.set_ylim(bottom=0)
    if known:
        _note(panel, f"highest  {max(known) * scale:.{1 if unit == 's' else 0}f} {unit}")
    else:
        _nothing(panel, "no item completed")


def _nothing(panel: Axes, why: str) -> None:
    panel.text(0.5, 0.5, why, transform=panel.transAxes, ha="center", va="center", color="#777")


def _note(panel: Axes, *lines: str) -> None:
    text = "\n".join(lines)
    panel.text(1.03, 0.97, text, transform=panel.transAxes, ha="left", va="top", color="#555", linespacing=1.6)


def _legend(panel: Axes) -> None:
    panel.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, handlelength=1.6, borderaxespad=0.2)
