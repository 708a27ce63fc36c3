"""A deployment in a few tables, printed once."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mdi_exit.desk.parts import (
    bar,
    clock,
    counts,
    headline,
    node_row,
    printable,
    quantity,
    queue_colour,
    seconds,
    share,
)
from mdi_exit.observer import DeploymentView

__all__ = ["everything", "status"]

_HEADINGS = ("node", "state", "layers", "queue", "ms/task", "tasks/s", "CPU", "sent", "°C", "energy")
_LEFT = 4
_HAPPENED = 8


def status(view: DeploymentView) -> RenderableType:
    """The run in three lines, and the nodes."""
    return Group(Text(headline(view), style="bold"), *_run(view), Text(), _nodes(view))


def everything(view: DeploymentView) -> RenderableType:
    """Also flows, exits and what has happened."""
    parts: list[RenderableType] = [status(view), Text(), _exits(view), Text(), _flows(view)]
    if view.happened:
        shown = view.happened[-_HAPPENED:]
        parts += [Text(), Text("\n".join(f"{clock(one.at)}  {printable(one.text)}" for one in shown))]
    return Group(*parts)


def _run(view: DeploymentView) -> list[Text]:
    source = view.source
    if source is None:
        return []
    offered = "as fast as admission allows" if source.rate_per_s is None else f"{view.offered_per_s:.1f}/s offered"
    latency = source.latency_s
    p50_p99 = f"latency p50 {seconds(latency[0])}, p99 {seconds(latency[2])}" if latency else "latency -"
    return [
        Text(f"completed {view.completed_per_s:.1f}/s, {offered}; accuracy {share(view.accuracy)}; {p50_p99}"),
        Text(f"threshold {source.threshold:.2f} (floor {source.floor:.2f}), adapts: {source.adapt}"
             + (", paused" if source.paused else "")),
        Text(f"{counts(source.admitted)} admitted, {counts(source.completed)} completed, {source.errors} errors, "
             f"{counts(source.pending)} pending, {counts(source.refused)} refused, {counts(source.retried)} retried"),
    ]  # fmt: skip


def _nodes(view: DeploymentView) -> Table:
    table = _table()
    for number, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if number < _LEFT else "right", no_wrap=True)
    for node in view.nodes:
        cells = [Text(cell) for cell in node_row(node, 4)]
        cells[0].stylize("bold")
        cells[1].stylize("" if node.state == "ready" else "red" if node.state == "gone" else "yellow")
        cells[3].stylize(queue_colour(node))
        table.add_row(*cells)
    return table


def _exits(view: DeploymentView) -> Table:
    table = _table(title="where items stopped")
    for justify in ("left", "left", "right"):
        table.add_column(justify=justify, no_wrap=True)
    table.show_header = False
    exits = view.source.exits if view.source else {}
    total = sum(exits.values())
    for number, count in sorted(exits.items()):
        table.add_row(f"exit {number}", Text(bar(count, total, 30), style="cyan"), f"{count / total:.0%}")
    return table


def _flows(view: DeploymentView) -> Table:
    table = _table(title="flows")
    for number, heading in enumerate(("from", "to", "tasks/s", "bytes/s", "tasks", "delay", "credits")):
        table.add_column(heading, justify="left" if number < 2 else "right", no_wrap=True)
    for link in view.links:
        table.add_row(
            printable(link.sender), printable(link.to), f"{link.tasks_per_s:.1f}", quantity(link.bytes_per_s),
            counts(link.tasks), seconds(link.delay_s), str(link.credits),
        )  # fmt: skip
    return table


def _table(title: str | None = None) -> Table:
    return Table(
        title=title, title_justify="left", title_style="dim", box=None, header_style="dim", padding=(0, 1, 0, 0)
    )
