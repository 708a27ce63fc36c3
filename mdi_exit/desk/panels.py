"""The panels of the terminal view: each a text that fits the place it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.text import Text

from mdi_exit.desk.parts import bar, clock, counts, printable, quantity, seconds, share, spark
from mdi_exit.observer import DeploymentView, Happened, LinkView

__all__ = ["exits", "figures", "flows", "happened_line", "happenings"]

_RATE: Final = "#5fd787"
_THRESHOLD: Final = "#c792ea"
_KINDS: Final = {
    "order": "bold cyan", "left": "red", "silent": "red", "gap": "bold red", "floor": "yellow", "promise": "bold yellow",
    "joined": "green", "covered": "green", "segment-failed": "red", "state": "dim",
}  # fmt: skip


def figures(view: DeploymentView, rates: Sequence[float], thresholds: Sequence[float], width: int) -> Text:
    """The run in six lines, with the past of rate and threshold."""
    source = view.source
    if source is None:
        return Text("no report of a source yet", style="dim")
    text = Text(no_wrap=True, overflow="ellipsis")
    cells = max(min(width - 38, 60), 4)

    def line(name: str, value: str, note: str, style: str = "bold", past: str = "") -> None:
        text.append(f"{name:<10}", style="dim")
        text.append(f"{value:>8}", style=style)
        text.append(f"  {note:<17} " if past else f"  {note}")
        text.append(past, style=style.removeprefix("bold "))
        text.append("\n")

    offered = "max" if source.rate_per_s is None else f"{view.offered_per_s:.1f}/s"
    rate = f"{view.completed_per_s:.1f}/s"
    line("completed", rate, f"of {offered} offered", f"bold {_RATE}", spark(rates, cells, low=0.0))
    levels = spark(thresholds, cells, low=min([*thresholds, source.floor]), high=1.0)
    style = "bold yellow" if source.threshold <= source.floor else f"bold {_THRESHOLD}"
    line("threshold", f"{source.threshold:.2f}", f"floor {source.floor:.2f}", style, levels)
    judged = f"of {counts(source.judged)} with a truth" if source.judged else "no truth is known"
    line("accuracy", share(view.accuracy), judged)
    p50, p90, p99 = source.latency_s or (None, None, None)
    line("latency", seconds(p50), f"p90 {seconds(p90)}, p99 {seconds(p99)}")
    wrong = "bold red" if source.errors else "bold"
    line("errors", counts(source.errors), f"{counts(source.retried)} retried, {counts(source.refused)} refused", wrong)
    line("pending", counts(source.pending), f"of {counts(source.admitted)} admitted")
    text.rstrip()
    if view.trouble:
        text.stylize("dim")  # as it was
    return text


def exits(view: DeploymentView, width: int, height: int) -> Text:
    """A bar for each exit, of the whole run."""
    found = view.source.exits if view.source else {}
    total = sum(found.values())
    if not total:
        return Text("nothing yet", style="dim")
    text = Text(no_wrap=True, overflow="ellipsis")
    cells = max(width - 16, 4)
    shown = sorted(found.items())
    for number, count in shown[:height]:
        text.append(f"exit {number:<2} ", style="dim")
        text.append(bar(count, total, cells), style="cyan")
        text.append(f" {count / total:>6.1%}\n")
    text.rstrip()
    return text


def flows(view: DeploymentView, width: int, height: int) -> Text:
    """Who sends how much to whom, the busiest first."""
    links = sorted(view.links, key=lambda link: (-link.tasks_per_s, -link.tasks, link.sender, link.to))
    if not links:
        return Text("no features have been sent", style="dim")
    most = max(link.tasks_per_s for link in links) or 1.0
    longest = max(len(_arrow(link)) for link in links)
    bars = width >= longest + 25
    place = min(longest, max(width - (25 if bars else 19), 12))
    shown = links if len(links) <= height else links[: height - 1]
    text = Text(no_wrap=True, overflow="ellipsis")
    for link in shown:
        name = _arrow(link)
        text.append(name[: place - 1] + "…" if len(name) > place else name.ljust(place), style="bold")
        text.append(f" {bar(link.tasks_per_s, most, 5)}" if bars else "", style="cyan")
        text.append(f" {link.tasks_per_s:>5.1f}/s {quantity(link.bytes_per_s):>8}/s")
        text.append(f"  {seconds(link.delay_s)} away\n" if width > place + 42 else "\n", style="dim")
    if len(shown) < len(links):
        text.append(f"and {len(links) - len(shown)} more", style="dim")
    text.rstrip()
    return text


def _arrow(link: LinkView) -> str:
    return printable(f"{link.sender} → {link.to}")


def happenings(happened: Sequence[Happened], lines: int) -> Text:
    """The last few, newest below."""
    if not happened:
        return Text("nothing yet", style="dim")
    text = Text(no_wrap=True, overflow="ellipsis")
    for number, one in enumerate(happened[-lines:]):
        text.append("\n" if number else "")
        text.append_text(happened_line(one))
    return text


def happened_line(one: Happened) -> Text:
    """One line, coloured by its kind."""
    text = Text.assemble((f"{clock(one.at)} ", "dim"))
    refused = one.kind == "order" and " refused: " in one.text
    text.append(printable(one.text), style="bold yellow" if refused else _KINDS.get(one.kind, ""))
    return text
