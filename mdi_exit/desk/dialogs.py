"""What comes up over the terminal view: one node, all events, help, and a question before something is stopped."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from mdi_exit.desk.panels import happened_line
from mdi_exit.desk.parts import bar, celsius, counts, joules, printable, quantity, seconds
from mdi_exit.observer import DeploymentView, NodeView

__all__ = ["EventsScreen", "HelpScreen", "NodeScreen", "Question"]

_BOX: Final = """
{name} {{ align: center middle; }}
{name} > VerticalScroll {{ width: {width}; max-width: 96%; height: auto; max-height: 90%; padding: 1 2;
    background: $surface; border: round $primary; }}
{name} Static {{ height: auto; }}
"""
_CLOSE: Final = Binding("escape,q,o,enter", "dismiss", "Close", key_display="esc")
_HELP: Final = (
    ("↑ ↓", "choose a node"),
    ("o, Enter", "open it"),
    ("s / S", "sort by the next column / the other way round"),
    ("+ / -", "exit threshold up / down by 0.05; adaptation goes on from there"),
    ("a", "what follows the load: none, rate, threshold in turn"),
    ("p", "pause the source (asks), or resume it"),
    ("d", "drain the chosen node (asks), or let it take part again"),
    ("e", "all events"),
    ("?", "this help"),
    ("q", "quit"),
)


class _Box(ModalScreen[None]):
    """A box over the view that Escape closes."""

    BINDINGS: ClassVar[list[Any]] = [_CLOSE]
    title_text = ""
    _shown: Text | None = None

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title = self.title_text
            box.border_subtitle = "esc closes"
            yield Static(id="body")

    def _fill(self, content: Text) -> None:
        if self._shown is None or (self._shown.plain, self._shown.spans) != (content.plain, content.spans):
            self.query_one("#body", Static).update(content)
            self._shown = content


class HelpScreen(_Box):
    """The keys."""

    CSS = _BOX.format(name="HelpScreen", width=70)
    title_text = "keys"

    def on_mount(self) -> None:
        text = Text()
        for keys, what in _HELP:
            text.append(f"{keys:<10}", style="bold")
            text.append(f"{what}\n")
        text.append(
            "\nOrders go to the source and the nodes through the broker; the source says what became of each, here "
            "among the events and in its log.", style="dim",
        )  # fmt: skip
        self._fill(text)


class EventsScreen(_Box):
    """Everything that happened since this program started, newest first."""

    CSS = _BOX.format(name="EventsScreen", width=100)
    title_text = "events, newest first"
    BINDINGS: ClassVar[list[Any]] = [Binding("escape,q,e,enter", "dismiss", "Close", key_display="esc")]

    def __init__(self, view: DeploymentView) -> None:
        super().__init__()
        self._view = view

    def on_mount(self) -> None:
        self.show(self._view)

    def show(self, view: DeploymentView) -> None:
        lines = [happened_line(one) for one in reversed(view.happened)]
        self._fill(Text("\n").join(lines) if lines else Text("nothing yet", style="dim"))


class NodeScreen(_Box):
    """All that is known of one node."""

    CSS = _BOX.format(name="NodeScreen", width=74)

    def __init__(self, name: str, view: DeploymentView) -> None:
        super().__init__()
        self._node, self._view = name, view
        self.title_text = printable(name)

    def on_mount(self) -> None:
        self.show(self._view)

    def show(self, view: DeploymentView) -> None:
        node = next((node for node in view.nodes if node.name == self._node), None)
        self._fill(_node_text(node, view) if node else Text(f"{printable(self._node)} is no longer there"))


class Question(ModalScreen[bool]):
    """y or n."""

    CSS = _BOX.format(name="Question", width=60)
    BINDINGS: ClassVar[list[Any]] = [Binding("y", "answer(True)", "Yes"), Binding("n,escape,q", "answer(False)", "No")]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(Text.assemble(printable(self._text), "\n\n", ("y", "bold"), " yes    ", ("n", "bold"), " no"))

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)


def _node_text(node: NodeView, view: DeploymentView) -> Text:
    text = Text()

    def line(name: str, value: str) -> None:
        text.append(f"{name:<12}", style="dim")
        text.append(f"{printable(value)}\n")

    line("role", f"{node.role}, layers {node.span or '-'}, {node.state}")
    line("engine", f"{node.engine or '-'}{f', emulating {node.emulated}' if node.emulated else ''}")
    line("version", node.version or "-")
    line("report", "none yet" if node.age_s is None else f"{node.age_s:.1f} s ago")
    line("queues", f"{node.inputs} to run, {node.outputs} to send; {seconds(node.backlog_s)} of work")
    line("tasks", f"{counts(node.executed)} run ({node.executed_per_s:.1f}/s), {counts(node.exited)} exited, "
                  f"{counts(node.sent)} sent on")  # fmt: skip
    line("board", f"CPU {node.cpu_percent:.0f} %, {celsius(node)} °C, {joules(node)}, {_memory(node)}")
    line("sent", quantity(node.sent_bytes))
    for layer, speed_s in sorted(node.speed_s.items()):
        line(f"layer {layer}", f"{seconds(speed_s)} a task from here")
    total = sum(node.exits.values())
    for number, count in sorted(node.exits.items()):
        line(f"exit {number}", f"{bar(count, total, 24)} {count / total:.0%} of {counts(total)}")
    for link in view.links:
        if node.name in (link.sender, link.to):
            what = f"to {link.to}" if link.sender == node.name else f"from {link.sender}"
            line(what[:11], f"{link.tasks_per_s:.1f}/s, {quantity(link.bytes_per_s)}/s, delay {seconds(link.delay_s)}, "
                            f"{link.credits} credits, {counts(link.tasks)} in all")  # fmt: skip
    text.rstrip()
    return text


def _memory(node: NodeView) -> str:
    return f"{quantity(node.board.memory_bytes)} of memory" if node.board and node.board.memory_bytes else "memory -"
