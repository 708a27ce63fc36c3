"""The run as it happens: a live screen on a terminal, a plain line every two seconds elsewhere."""

from __future__ import annotations

from collections import deque
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mdi_exit.snapshot import NodeSnapshot, Snapshot

__all__ = ["LiveView", "plain_line", "screen"]

_LINE_PERIOD_S = 2.0
_KEPT_NOTICES = 4
_WIDE = 100
_FULL_QUEUE = 24
_TOLD_MOVE = 0.1


class LiveView:
    """``with LiveView() as view: view.update(snapshot)`` several times a second."""

    def __init__(self, console: Console | None = None, *, title: str = "mdi-exit") -> None:
        self._console = console or Console()
        self._title = title
        self._notices: deque[str] = deque(maxlen=_KEPT_NOTICES)
        self._next_line_s = 0.0
        self._told_threshold: float | None = None
        self._live: Live | None = None

    def __enter__(self) -> LiveView:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def update(self, snapshot: Snapshot) -> None:
        """Show it; notices appear at once, and on a terminal stay for a while."""
        notices = (*snapshot.notices, *self._threshold_move(snapshot.threshold))
        self._notices.extend(f"{snapshot.elapsed_s:5.1f} s  {notice}" for notice in notices)
        if self._live:
            self._live.update(screen(snapshot, self._title, tuple(self._notices), self._console.width), refresh=True)
            return
        for notice in notices:
            self._line(f"{snapshot.elapsed_s:6.1f} s  {notice}")
        if snapshot.elapsed_s >= self._next_line_s:
            self._line(plain_line(snapshot))
            self._next_line_s = snapshot.elapsed_s + _LINE_PERIOD_S

    def _threshold_move(self, threshold: float) -> tuple[str, ...]:
        """A notice when the threshold is a tenth away from where it was last told."""
        told = self._told_threshold
        if told is not None and abs(threshold - told) < _TOLD_MOVE - 1e-9:
            return ()
        self._told_threshold = threshold
        if told is None:
            return ()
        return (f"exit threshold {'falls' if threshold < told else 'rises'} from {told:.2f} to {threshold:.2f}",)

    def _line(self, text: str) -> None:
        self._console.out(_printable(text), highlight=False)
        self._console.file.flush()


def plain_line(snapshot: Snapshot) -> str:
    """One line of everything that matters."""
    queues = " ".join(f"{node.name}:{node.inputs + node.outputs}" for node in snapshot.nodes) or "-"
    parts = (
        f"{snapshot.elapsed_s:6.1f} s",
        f"{snapshot.phase or '-':<10}",
        f"offered {snapshot.offered_per_s:5.1f}/s",
        f"completed {snapshot.completed_per_s:5.1f}/s",
        f"total {snapshot.completed:,} of {snapshot.admitted:,}",
        f"accuracy {_share(snapshot.accuracy)}",
        f"threshold {snapshot.threshold:.2f}",
        f"p50 {_milliseconds(snapshot.latency_p50_s)}",
        f"queues {queues}",
    )
    return "  ".join(parts) + (f"  errors {snapshot.errors}" if snapshot.errors else "")


def screen(snapshot: Snapshot, title: str, notices: tuple[str, ...], width: int = _WIDE) -> RenderableType:
    """The whole live screen; below 100 columns with shorter bars and fewer columns, down to 80."""
    wide = width >= _WIDE
    upper = Table.grid(padding=(0, 4))
    upper.add_row(_figures(snapshot), _exits(snapshot, 28 if wide else 14))
    parts: list[RenderableType] = [upper, Text(), _nodes(snapshot.nodes, wide)]
    if notices:
        parts += [Text(), Text(_printable("\n".join(notices), keep="\n"), style="yellow")]
    return Panel(
        Group(*parts),
        title=_header(snapshot, title),
        title_align="left",
        subtitle=f"[magenta]emulated: {escape(_printable(snapshot.emulated))}[/magenta]" if snapshot.emulated else None,
        subtitle_align="left",
        padding=(1, 2),
    )


def _header(snapshot: Snapshot, title: str) -> str:
    phase = f" · [bold cyan]{escape(snapshot.phase)}[/bold cyan]" if snapshot.phase else ""
    return f"[bold]{escape(title)}[/bold]{phase} · {snapshot.elapsed_s:.1f} s"


def _figures(snapshot: Snapshot) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_row("offered", f"{snapshot.offered_per_s:.1f}/s", f"refused {snapshot.refused:,}")
    table.add_row("admitted", f"{snapshot.admitted_per_s:.1f}/s", f"{snapshot.admitted:,}")
    completed = f"[bold green]{snapshot.completed_per_s:.1f}/s[/bold green]"
    table.add_row("completed", completed, f"{snapshot.completed:,}, {snapshot.pending:,} pending")
    table.add_row("accuracy", _share(snapshot.accuracy), "last 200" if snapshot.accuracy is not None else "")
    table.add_row("threshold", f"{snapshot.threshold:.2f}", _bar(snapshot.threshold, 1.0, 10))
    table.add_row("latency", _milliseconds(snapshot.latency_p50_s), "median")
    errors = f"[red]{snapshot.errors:,}[/red]" if snapshot.errors else "0"
    table.add_row("errors", errors, f"queue at source {snapshot.source_queue}")
    return table


def _exits(snapshot: Snapshot, cells: int) -> Table:
    table = Table(
        title="where items stopped",
        title_justify="left",
        title_style="dim",
        box=None,
        show_header=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="cyan", no_wrap=True, min_width=cells)
    table.add_column(justify="right", no_wrap=True)
    total = sum(snapshot.exits.values())
    for number, count in sorted(snapshot.exits.items()):
        share = count / total if total else 0.0
        table.add_row(f"exit {number}", _bar(share, 1.0, cells), f"{share:.0%}")
    return table


def _nodes(nodes: tuple[NodeSnapshot, ...], wide: bool) -> Table:
    table = Table(box=None, expand=True, padding=(0, 1), header_style="dim")
    for heading in ("node", "layers"):
        table.add_column(heading, no_wrap=True)
    table.add_column("state")
    table.add_column("queue", no_wrap=True)
    for heading in ("backlog", "tasks/s", "exited", "sent on", "CPU") if wide else ("tasks/s", "exited", "CPU"):
        table.add_column(heading, justify="right", no_wrap=True)
    for node in nodes:
        waiting = node.inputs + node.outputs
        colour = "red" if waiting >= _FULL_QUEUE else "yellow" if waiting >= _FULL_QUEUE // 2 else "green"
        cells: list[RenderableType] = [
            f"[bold]{escape(_printable(node.name))}[/bold]",
            escape(_printable(node.span)) or "-",
            Text(_printable(node.state), style="" if node.state == "ready" else "yellow"),
            Text.assemble((_bar(waiting, _FULL_QUEUE, 10 if wide else 5), colour), f" {node.inputs}+{node.outputs}"),
            _milliseconds(node.backlog_s),
            f"{node.executed_per_s:.1f}",
            f"{node.exited:,}",
            f"{node.sent:,}",
            f"{node.cpu_percent:.0f} %",
        ]
        table.add_row(*(cells if wide else [*cells[:4], cells[5], cells[6], cells[8]]))
    return table


def _bar(value: float, full: float, cells: int) -> str:
    eighths = round(min(max(value / full, 0.0), 1.0) * cells * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(cells)


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value * 100:.1f} %"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.{1 if value < 0.01 else 0}f} ms"


def _printable(text: str, keep: str = "") -> str:
    """Names and errors come from other machines: what moves the cursor does not reach the terminal."""
    return "".join(char if char.isprintable() or char in keep else "?" for char in text)
