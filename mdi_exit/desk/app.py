"""The terminal view as a Textual application: draws what it is shown once a second, and gives orders by keys."""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult, ScreenStackError
from textual.binding import Binding
from textual.containers import Horizontal
from textual.css.query import NoMatches
from textual.widgets import DataTable, Footer, Static

from mdi_exit.desk.dialogs import EventsScreen, HelpScreen, NodeScreen, Question
from mdi_exit.desk.giving import Desk
from mdi_exit.desk.panels import exits, figures, flows, happenings
from mdi_exit.desk.parts import headline, ms_per_task, node_row, printable, queue_colour, waits_for
from mdi_exit.errors import MdiExitError
from mdi_exit.observer import DeploymentView, NodeView
from mdi_exit.orders import ADAPTATIONS
from mdi_exit.wire import Order

__all__ = ["TopApp"]

_REDRAW_S: Final = 1.0  # every time some 10 kB go to the terminal, which may be far away
_LISTEN_S: Final = 0.1
_SAMPLES: Final = 120
_ANSWER_S: Final = 5.0
_STEP: Final = 0.05
_WIDE: Final = 100
_TALL: Final = 28
_FONT_FROM_ELSEWHERE: Final = re.compile(r',\s*url\("https?://[^"]*"\) format\("[^"]*"\)')
_SHORT: Final = {"waiting for source": "waiting", "model not signed": "unsigned", "loading segments": "loading"}


@dataclass(frozen=True, slots=True)
class _Column:
    """``narrow`` and ``wide``: columns on a narrow and on a wide terminal (0: not shown)."""

    heading: str
    narrow: int
    wide: int
    right: bool
    order: Callable[[NodeView], Any] | None = None


_COLUMNS: Final = (
    _Column("node", 10, 14, False, lambda node: (node.role != "source", node.name)),
    _Column("state", 8, 8, False, lambda node: node.state),
    _Column("layers", 6, 6, False),
    _Column("queue", 8, 13, False, lambda node: -(node.inputs + node.outputs)),
    _Column("ms/task", 7, 7, True, lambda node: -(ms_per_task(node) or 0.0)),
    _Column("tasks/s", 0, 7, True, lambda node: -node.executed_per_s),
    _Column("CPU", 5, 5, True, lambda node: -node.cpu_percent),
    _Column("sent", 7, 7, True, lambda node: -node.sent_bytes),
    _Column("°C", 3, 3, True, lambda node: -(node.board.temperature_c or 0.0) if node.board else 0.0),
    _Column("energy", 7, 8, True, lambda node: -(node.board.energy_j or 0.0) if node.board else 0.0),
)


@dataclass(slots=True)
class _Given:
    """An order on its way, given at ``at``."""

    order: Order
    at: float


class TopApp(App[None]):
    """``look`` gives what is known now; ``url`` names the broker to people."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; }
    #headline { height: 1; background: $primary; color: $text; text-style: bold; padding: 0 1; }
    #waits { height: auto; background: $warning; color: $text; padding: 0 1; }
    #upper { height: 7; }
    #figures { width: 1fr; padding: 0 1; border-top: solid $primary; }
    #exits { width: 28; padding: 0 1; border-top: solid $primary; }
    #upper Static, #lower Static { height: 100%; }
    #headline, #upper Static, #lower Static { text-wrap: nowrap; text-overflow: ellipsis; }
    #nodes { height: 1fr; min-height: 4; scrollbar-size-vertical: 1; border-top: solid $primary; }
    Screen.wide #exits { width: 40; }
    #lower { height: 7; }
    Screen.tall #lower { height: 10; }
    #flows { width: 1fr; padding: 0 1; border-top: solid $primary; }
    #happened { width: 1fr; padding: 0 1; border-top: solid $primary; }
    """
    BINDINGS: ClassVar[list[Any]] = [
        Binding("question_mark,f1", "help", "Help", key_display="?"),
        Binding("q,ctrl+c", "quit", "Quit", key_display="q"),
        Binding("plus,equals_sign", "threshold(1)", "T up", key_display="+"),
        Binding("minus", "threshold(-1)", "T down", key_display="-"),
        Binding("a", "adapt", "Adapt"),
        Binding("p", "pause", "Pause"),
        Binding("d", "drain", "Drain"),
        Binding("o", "open", "Node"),
        Binding("e", "events", "Events"),
        Binding("s", "sort(1)", "Sort"),
        Binding("S", "reverse", show=False),
    ]

    def __init__(self, look: Callable[[], DeploymentView], desk: Desk, url: str) -> None:
        super().__init__()
        self.look, self.desk, self.url = look, desk, url
        self.view = look()
        self.thresholds: deque[float] = deque(maxlen=_SAMPLES)
        self.rates: deque[float] = deque(maxlen=_SAMPLES)
        self._sort, self._backwards = 0, False
        self._given: list[_Given] = []
        self._aim: float | None = None
        self.picture = ""
        self._draw_after_s: float | None = None
        self._shown: dict[str, Text] = {}
        self._noticed: tuple[Any, ...] = ()
        self._drawn_columns: tuple[Any, ...] = ()
        self._drawn_rows: dict[str, tuple[Text, ...]] = {}

    def draw_after(self, wait_s: float) -> None:
        """Keep an SVG of the screen as ``picture`` some seconds after the start, and end."""
        self._draw_after_s = wait_s

    def compose(self) -> ComposeResult:
        yield Static(id="headline")
        yield Static(id="waits")
        with Horizontal(id="upper"):
            yield Static(id="figures")
            yield Static(id="exits")
        yield DataTable(id="nodes", cursor_type="row", cell_padding=1)
        with Horizontal(id="lower"):
            yield Static(id="flows")
            yield Static(id="happened")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self.title = "mdi-exit top"
        titles = {
            "figures": "run",
            "exits": "where items stopped",
            "nodes": "nodes",
            "flows": "flows",
            "happened": "events",
        }
        for name, title in titles.items():
            self.query_one(f"#{name}").border_title = title
        self.query_one("#nodes", DataTable).focus()
        self.set_interval(_REDRAW_S, self.sample)
        self.set_interval(_LISTEN_S, self.listen)
        if self._draw_after_s is not None:
            self.set_timer(self._draw_after_s, self._keep_picture)
        self.redraw()

    def _keep_picture(self) -> None:
        self.picture = _FONT_FROM_ELSEWHERE.sub("", self.export_screenshot(title="mdi-exit top"))
        self.exit()

    # --- drawing

    def sample(self) -> None:
        """One more column of the sparklines, and all the rest."""
        view = self.look()
        if view.source is not None and not view.trouble:
            self.thresholds.append(view.source.threshold)
            self.rates.append(view.completed_per_s)
        self.redraw()

    def listen(self) -> None:
        """Draw at once what an order has changed, and what has come or gone altogether."""
        view = self.look()
        now = (view.connected, view.source is None, bool(view.trouble), len(view.nodes), view.happened[-1:])
        if self._hear_answers() or now != self._noticed:
            self._noticed = now
            self.redraw()

    def redraw(self) -> None:
        """Show what is known now; what lies under a dialog waits."""
        view = self.view = self.look()
        with contextlib.suppress(NoMatches, ScreenStackError):  # a timer may come while a screen is built or taken down
            if isinstance(self.screen, NodeScreen | EventsScreen):
                self.screen.show(view)
            if len(self.screen_stack) == 1:
                self._draw_panels(view)

    def _draw_panels(self, view: DeploymentView) -> None:
        self.screen_stack[0].set_class(self._wide, "wide").set_class(self.size.height >= _TALL, "tall")
        waits = waits_for(view, self.url)
        self._show("headline", Text(f"mdi-exit top · {headline(view)}", no_wrap=True, overflow="ellipsis"))
        self.screen_stack[0].query_one("#waits", Static).display = bool(waits)
        self._show("waits", Text(waits), layout=True)
        self._show("figures", figures(view, tuple(self.rates), tuple(self.thresholds), self._inside("figures")[0]))
        self._show("exits", exits(view, *self._inside("exits")))
        self._show("flows", flows(view, *self._inside("flows")))
        self._show("happened", happenings(view.happened, self._inside("happened")[1]))
        self._draw_nodes()

    def _show(self, name: str, content: Text, *, layout: bool = False) -> None:
        """Update a panel, if it is not what it shows: every update is drawn, and travels to a terminal far away."""
        before = self._shown.get(name)
        if before is None or (before.plain, before.spans) != (content.plain, content.spans):
            self.screen_stack[0].query_one(f"#{name}", Static).update(content, layout=layout)
            self._shown[name] = content

    def _inside(self, name: str) -> tuple[int, int]:
        """Columns and lines that a panel has."""
        size = self.screen_stack[0].query_one(f"#{name}").content_size
        return max(size.width, 10), max(size.height, 1)

    @property
    def _wide(self) -> bool:
        return self.size.width >= _WIDE

    def _sorted(self) -> list[NodeView]:
        order = _COLUMNS[self._sort].order or _COLUMNS[0].order
        return sorted(self.view.nodes, key=order, reverse=self._backwards) if order else list(self.view.nodes)

    def _draw_nodes(self) -> None:
        table: DataTable[Text] = self.screen_stack[0].query_one("#nodes", DataTable)
        columns = [(index, column.wide if self._wide else column.narrow) for index, column in enumerate(_COLUMNS)]
        shown = [(index, width) for index, width in columns if width]
        mark = "▼" if self._backwards else "▲"
        look = (self._wide, self._sort, self._backwards)
        rows = {node.name: self._cells(node, shown) for node in self._sorted()}
        if look == self._drawn_columns and list(rows) == list(self._drawn_rows):
            for row, (name, cells) in enumerate(rows.items()):
                for place, cell in enumerate(cells):
                    if cell != self._drawn_rows[name][place] or cell.spans != self._drawn_rows[name][place].spans:
                        table.update_cell_at((row, place), cell)  # type: ignore[arg-type]  # a Coordinate is a tuple
        else:
            chosen = self._chosen
            table.clear(columns=True)
            for index, width in shown:
                heading = _COLUMNS[index].heading + (mark if index == self._sort else "")
                table.add_column(Text(heading, justify="right" if _COLUMNS[index].right else "left"), width=width)
            for name, cells in rows.items():
                table.add_row(*cells, key=name)
            if chosen in rows:
                table.move_cursor(row=list(rows).index(chosen))
        self._drawn_columns, self._drawn_rows = look, rows

    def _cells(self, node: NodeView, shown: list[tuple[int, int]]) -> tuple[Text, ...]:
        row = node_row(node, 7 if self._wide else 3)
        cells = []
        for index, width in shown:
            text = _SHORT.get(row[index], row[index]) if index == 1 else row[index]
            cell = Text(text, no_wrap=True, overflow="ellipsis", justify="right" if _COLUMNS[index].right else "left")
            cell.truncate(width, overflow="ellipsis")
            cells.append(cell)
        cells[0].stylize("bold" if node.alive else "dim")
        cells[1].stylize({"ready": "green", "gone": "bold red"}.get(node.state, "yellow"))
        cells[3].stylize(queue_colour(node))
        return tuple(cells)

    # --- orders

    def order(self, *words: str) -> None:
        """Give an order; its answer is told when it comes."""
        try:
            order = self.desk.order(words)
            if not self.desk.give(order):
                self.notify("not connected to the broker", severity="error")
                return
        except MdiExitError as error:
            self.notify(printable(str(error)), severity="error")
            return
        self._given.append(_Given(order, time.monotonic()))

    def _hear_answers(self) -> bool:
        """Tell of refusals and silence; whether anything came."""
        before = len(self._given)
        for given in list(self._given):
            answer = self.desk.answer(given.order)
            late = time.monotonic() - given.at > _ANSWER_S
            if answer is None and not late:
                continue
            self._given.remove(given)
            if answer is None:
                self.notify(f"no source answered to: {given.order.what}", severity="error")
            elif answer.refused:
                self.notify(printable(answer.text), severity="warning")
        if not self._given:
            self._aim = None
        return len(self._given) < before

    def action_threshold(self, direction: int) -> None:
        source = self.view.source
        if source is None:
            self.notify("there is no source to tell", severity="warning")
            return
        now = source.threshold if self._aim is None else self._aim
        aim = round(min(max(now + direction * _STEP, 0.0), 1.0), 2)
        if aim != now:
            self._aim = aim
            self.order("threshold", f"{aim:g}")

    def action_adapt(self) -> None:
        """What follows the load: the next of the list."""
        source = self.view.source
        if source is None:
            self.notify("there is no source to tell", severity="warning")
            return
        place = ADAPTATIONS.index(source.adapt) if source.adapt in ADAPTATIONS else -1
        self.order("adapt", ADAPTATIONS[(place + 1) % len(ADAPTATIONS)])

    def action_pause(self) -> None:
        source = self.view.source
        if source is None:
            self.notify("there is no source to tell", severity="warning")
            return
        if source.paused:
            self.order("resume")
        else:
            self._ask("Pause the source? It admits nothing more; what is under way is finished.", "pause")

    def action_drain(self) -> None:
        node = next((node for node in self.view.nodes if node.name == self._chosen), None)
        if node is None or not node.alive:
            return
        if node.role == "source":
            self.notify("the source is not drained but paused (p)", severity="warning")
        elif node.state in ("draining", "drained"):
            self._ask(f"Let {node.name} take part again?", "undrain", node.name)
        else:
            held = node.inputs + node.outputs
            text = f"Drain {node.name}? It finishes what it holds (tasks waiting: {held}) and takes nothing new."
            self._ask(text, "drain", node.name)

    def _ask(self, question: str, *words: str) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                self.order(*words)

        self.push_screen(Question(question), answered)

    # --- looking

    @property
    def _chosen(self) -> str:
        """The node under the cursor."""
        table: DataTable[Text] = self.screen_stack[0].query_one("#nodes", DataTable)
        names = list(self._drawn_rows)
        return names[table.cursor_row] if 0 <= table.cursor_row < len(names) else ""

    def action_sort(self, step: int) -> None:
        able = [
            i for i, column in enumerate(_COLUMNS) if column.order and (column.wide if self._wide else column.narrow)
        ]
        self._sort = able[(able.index(self._sort) + step) % len(able)] if self._sort in able else 0
        self.redraw()

    def action_reverse(self) -> None:
        self._backwards = not self._backwards
        self.redraw()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        self.action_open()

    def action_open(self) -> None:
        if self._chosen:
            self.push_screen(NodeScreen(self._chosen, self.view))

    def action_events(self) -> None:
        self.push_screen(EventsScreen(self.view))

    def action_help(self) -> None:
        self.push_screen(HelpScreen())
