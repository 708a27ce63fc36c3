"""What the terminal view shows of what is known, what its keys order, and the same printed once."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
from contextlib import asynccontextmanager
from typing import Any

import pytest
from rich.console import Console
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from mdi_exit.desk.app import TopApp
from mdi_exit.desk.control import main as control
from mdi_exit.desk.dialogs import EventsScreen, HelpScreen, NodeScreen, Question
from mdi_exit.desk.giving import Answer
from mdi_exit.desk.panels import exits, figures, flows, happenings
from mdi_exit.desk.parts import bar, counts, headline, joules, node_row, quantity, seconds, spark, waits_for
from mdi_exit.desk.plain import everything, status
from mdi_exit.desk.top import main as top
from mdi_exit.errors import UsageError
from mdi_exit.observer import DeploymentView, Happened, LinkView, NodeView
from mdi_exit.orders import order_of, sentence
from mdi_exit.wire import Board, Order, SourceReport

SOURCE = NodeView("source", "source", "ready", "0-3", "onnxruntime CPU", "jetson-nano", "0.1.0", 2, 1, 0.05, 90, 10.0, 50,
                  40, 4_200_000, 12.0, {0: 50}, {0: 0.01, 2: 0.02}, Board(2**26, 48.5, 5.25, 99.5, True), 0.2)  # fmt: skip
AGENT = NodeView("pi", "agent", "ready", "4-8", "onnxruntime CPU", "", "0.1.0", 30, 0, 1.5, 40, 4.0, 40, 0, 9_000, 95.0,
                 {3: 10, 4: 30}, {4: 0.05}, Board(energy_j=12_345.0), 0.3)  # fmt: skip
REPORT = SourceReport(
    *(7, 11, "source", "ab" * 16, 100, 98, 90, 1, 2, 3, 1, 7, 80, 88, {0: 60, 3: 10, 4: 20}, 0.8, 0.5, "threshold"),
    rate_per_s=25.0, paused=False, latency_s=(0.02, 0.05, 2.5),
)  # fmt: skip
VIEW = DeploymentView(
    deployment="hall", connected=True, trouble="", source=REPORT, source_age_s=0.1, offered_per_s=25.0, admitted_per_s=24.0,
    completed_per_s=23.5, control=None, model="mobilenet", labels=(), layer_count=9, nodes=(SOURCE, AGENT),
    links=(LinkView("source", "pi", 40, 4.0, 12_500.0, 0.002, 48), LinkView("pi", "source", 4, 0.0, 0.0, 0.003, 9)),
    happened=(Happened(1e9, "joined", "pi joined", 0), Happened(1e9 + 1, "order", "desk: threshold 0.1 refused: no", 3)),
)  # fmt: skip


def changed(**changes: Any) -> DeploymentView:
    return dataclasses.replace(VIEW, **changes)


# --- parts


def test_numbers_are_short_and_have_units() -> None:
    assert [bar(value, 4.0, 2) for value in (0.0, 1.0, 4.0, 9.0)] == ["  ", "▌ ", "██", "██"]
    assert spark([0, 1, 2, 3], 6) == "  ▁▃▆█"
    assert spark([5.0], 2, low=0.0) == " █"
    assert spark([0.8] * 3, 2, low=0.5, high=1.0) == "▅▅"
    assert spark([], 3) == "   "
    assert [seconds(value) for value in (None, 0.0012, 0.25, 2.5)] == ["-", "1.2 ms", "250 ms", "2.5 s"]
    assert [quantity(count) for count in (0, 999, 12_345, 2_500_000)] == ["0 B", "999 B", "12.3 kB", "2.5 MB"]
    assert [counts(count) for count in (7, 99_999, 123_456, 2_500_000)] == ["7", "99,999", "123k", "2.5M"]


def test_a_node_has_a_row_and_its_energy_says_if_it_is_reckoned() -> None:
    assert node_row(SOURCE, 3) == (
        "source", "ready", "0-3", "2+1  ▍  ", "15.0", "10.0", "12 %", "4.2 MB", "48", "99.5 J",
    )  # fmt: skip
    assert joules(AGENT) == "~12.3 kJ"
    assert node_row(dataclasses.replace(AGENT, board=None, speed_s={}), 3)[4:] == (
        "-", "4.0", "95 %", "9.0 kB", "-", "-",
    )  # fmt: skip


def test_it_says_what_it_waits_for() -> None:
    assert waits_for(VIEW, "mqtt://x") == ""
    away = changed(connected=False, trouble="broker mqtt://x: refused")
    assert waits_for(away, "mqtt://x") == "waiting for the broker at mqtt://x: refused"
    assert (
        waits_for(changed(trouble="no source in hall yet", source=None), "mqtt://x") == "waiting: no source in hall yet"
    )


def test_the_panels_fit_and_say_the_numbers() -> None:
    text = figures(VIEW, [20.0, 25.0], [0.9, 0.8], 44).plain
    for part in ("23.5/s", "of 25.0/s offered", "0.80", "floor 0.50", "90.9 %", "20 ms", "p99 2.5 s", "2 refused", "7"):
        assert part in text
    assert "no report" in figures(changed(source=None), [], [], 44).plain
    assert exits(VIEW, 28, 5).plain.splitlines()[0].split() == ["exit", "0", "████████", "66.7%"]
    assert max(map(len, exits(VIEW, 28, 5).plain.splitlines())) <= 28
    assert flows(VIEW, 40, 6).plain.splitlines()[0].startswith("source → pi █████   4.0/s  12.5 kB/s")
    assert max(map(len, flows(VIEW, 40, 6).plain.splitlines())) <= 40
    assert flows(VIEW, 34, 6).plain.splitlines()[0] == "source → pi   4.0/s  12.5 kB/s", "the names before the bars"
    many = changed(links=tuple(LinkView("a" * 40, f"b{i}", i, i, 9.0, 0.1, 1) for i in range(9)))
    assert flows(many, 40, 4).plain.splitlines()[-1] == "and 6 more"
    assert max(map(len, flows(many, 40, 4).plain.splitlines())) <= 40
    assert [line[9:] for line in happenings(VIEW.happened, 1).plain.splitlines()] == ["desk: threshold 0.1 refused: no"]


def test_text_of_other_machines_is_not_obeyed() -> None:
    hostile = changed(
        nodes=(dataclasses.replace(AGENT, state="\x1b[2J"),), happened=(Happened(0.0, "x", "\x1b]0;t\x07", 0),),
        model="m\x1b[2J",
    )  # fmt: skip
    shown = printed(everything(hostile)) + headline(hostile)
    assert "\x1b[2J" not in shown
    assert "\x1b]0" not in shown


def printed(what: Any, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(what)
    return out.getvalue()


def test_everything_can_be_printed_once() -> None:
    text = printed(everything(VIEW))
    for part in ("hall · adapts: threshold · emulated: jetson-nano", "completed 23.5/s, 25.0/s offered", "threshold 0.80",
                 "source ready 0-3", "~12.3 kJ", "exit 4", "22%", "12.5 kB", "pi joined"):  # fmt: skip
        assert part in text
    assert "paused" in printed(status(changed(source=dataclasses_replace(REPORT, paused=True))))
    assert "pi" in printed(everything(changed(source=None, links=(), happened=())))


def dataclasses_replace(report: SourceReport, **changes: Any) -> SourceReport:
    return SourceReport(**{name: getattr(report, name) for name in report.__struct_fields__} | changes)


# --- the screen


class FakeDesk:
    """Keeps the orders; ``answers`` come at once. Not connected: takes none."""

    def __init__(self) -> None:
        self.given: list[str] = []
        self.connected = True
        self.answers: dict[int, Answer] = {}

    def order(self, words: Any) -> Order:
        return order_of("desk", len(self.given) + 1, words)

    def give(self, order: Order) -> bool:
        if self.connected:
            self.given.append(sentence(order))
        return self.connected

    def answer(self, order: Order) -> Answer | None:
        return self.answers.get(order.number)


class Stage:
    """The application with what it is shown."""

    def __init__(self) -> None:
        self.view, self.desk = VIEW, FakeDesk()
        self.app = TopApp(lambda: self.view, self.desk, "mqtt://x")  # type: ignore[arg-type]

    def text(self, name: str) -> str:
        return str(self.app.screen_stack[0].query_one(f"#{name}", Static).render())

    def rows(self) -> list[list[str]]:
        table = self.app.screen_stack[0].query_one("#nodes", DataTable)
        return [[str(cell) for cell in table.get_row_at(row)] for row in range(table.row_count)]


@asynccontextmanager
async def staged(size: tuple[int, int] = (80, 24)) -> Any:
    stage = Stage()
    async with stage.app.run_test(size=size) as pilot:
        await shown(stage, pilot)
        yield stage, pilot


async def shown(stage: Stage, pilot: Pilot[None]) -> None:
    await pilot.pause()
    stage.app.listen()
    stage.app.redraw()
    await pilot.pause()


async def test_a_small_screen_shows_it_all() -> None:
    async with staged() as (stage, _):
        assert "hall · adapts: threshold" in stage.text("headline")
        assert "23.5/s" in stage.text("figures")
        assert "exit 4" in stage.text("exits")
        assert [row[0] for row in stage.rows()] == ["source", "pi"]
        assert len(stage.rows()[0]) == 9
        assert "source → pi" in stage.text("flows")
        assert "pi joined" in stage.text("happened")
        assert not stage.app.query_one("#waits").display
        table = stage.app.query_one("#nodes", DataTable)
        assert table.virtual_size.width <= 80, "nothing to scroll sideways for"


async def test_a_wide_screen_shows_more_columns() -> None:
    async with staged((120, 32)) as (stage, _):
        assert len(stage.rows()[0]) == 10


async def test_nothing_there_is_said_and_what_comes_is_shown() -> None:
    stage = Stage()
    stage.view = changed(connected=False, trouble="refused", source=None, nodes=(), links=(), happened=())
    async with stage.app.run_test(size=(80, 24)) as pilot:
        await shown(stage, pilot)
        assert stage.app.query_one("#waits").display
        assert stage.text("waits") == "waiting for the broker at mqtt://x: refused"
        await pilot.press("plus", "p", "d", "o")
        assert stage.desk.given == []
        stage.view = VIEW
        await shown(stage, pilot)
        assert not stage.app.query_one("#waits").display
        assert len(stage.rows()) == 2
        stage.view = changed(nodes=(SOURCE, dataclasses.replace(AGENT, state="gone")))
        await shown(stage, pilot)
        assert stage.rows()[1][1] == "gone"


async def test_the_threshold_goes_by_steps_from_where_it_was_aimed_at() -> None:
    async with staged() as (stage, pilot):
        await pilot.press("plus", "plus", "minus", "minus")
        assert stage.desk.given == ["threshold 0.85", "threshold 0.9", "threshold 0.85", "threshold 0.8"]
        stage.desk.answers = {number: Answer("desk: ok", refused=False) for number in range(1, 5)}
        stage.view = changed(source=dataclasses_replace(REPORT, threshold=0.98))
        await shown(stage, pilot)
        await pilot.press("plus", "plus")
        assert stage.desk.given[4:] == ["threshold 1"], "not above 1"


async def test_what_follows_the_load_goes_round() -> None:
    async with staged() as (stage, pilot):
        for adapt in ("optimiser", "none", "rate"):
            stage.view = changed(source=dataclasses_replace(REPORT, adapt=adapt))
            await shown(stage, pilot)
            await pilot.press("a")
        assert stage.desk.given == ["adapt none", "adapt rate", "adapt threshold"]


async def test_pausing_asks_and_resuming_does_not() -> None:
    async with staged() as (stage, pilot):
        await pilot.press("p")
        assert isinstance(stage.app.screen, Question)
        await pilot.press("n")
        assert stage.desk.given == []
        await pilot.press("p", "y")
        assert stage.desk.given == ["pause"]
        stage.view = changed(source=dataclasses_replace(REPORT, paused=True))
        await shown(stage, pilot)
        assert "PAUSED" in stage.text("headline")
        await pilot.press("p")
        assert stage.desk.given == ["pause", "resume"]


async def test_a_chosen_node_is_drained_after_a_question_and_let_back_in() -> None:
    async with staged() as (stage, pilot):
        await pilot.press("d")
        assert not isinstance(stage.app.screen, Question), "the source is paused instead"
        await pilot.press("down", "d", "y")
        assert stage.desk.given == ["drain pi"]
        stage.view = changed(nodes=(SOURCE, dataclasses.replace(AGENT, state="drained")))
        await shown(stage, pilot)
        await pilot.press("d", "y")
        assert stage.desk.given == ["drain pi", "undrain pi"]


async def test_refusals_silence_and_a_lost_connection_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged() as (stage, pilot):
        told: list[str] = []
        monkeypatch.setattr(stage.app, "notify", lambda text, **_: told.append(text))
        await pilot.press("minus")
        stage.desk.answers[1] = Answer("desk: threshold 0.75 refused: no", refused=True)
        await shown(stage, pilot)
        assert told == ["desk: threshold 0.75 refused: no"]
        monkeypatch.setattr("mdi_exit.desk.app._ANSWER_S", 0.0)
        await pilot.press("minus")
        await shown(stage, pilot)
        assert told[1:] == ["no source answered to: threshold"]
        stage.desk.connected = False
        await pilot.press("plus")
        assert told[2:] == ["not connected to the broker"]


async def test_nodes_are_sorted_by_any_column_and_the_cursor_stays_with_its_node() -> None:
    async with staged() as (stage, pilot):
        assert stage.app._chosen == "source"
        await pilot.press("s", "s")  # by state, by queue
        assert [row[0] for row in stage.rows()] == ["pi", "source"]
        assert stage.app._chosen == "source"
        await pilot.press("S")
        assert [row[0] for row in stage.rows()] == ["source", "pi"]
        for _ in range(6):
            await pilot.press("s")
        assert stage.app._sort == 0


async def test_a_node_events_and_help_can_be_opened_and_closed() -> None:
    async with staged() as (stage, pilot):
        for key, screen in (
            ("o", NodeScreen),
            ("enter", NodeScreen),
            ("e", EventsScreen),
            ("question_mark", HelpScreen),
        ):
            await pilot.press(key)
            await pilot.pause()
            assert isinstance(stage.app.screen, screen)
            await pilot.press("escape")
            await pilot.pause()
            assert len(stage.app.screen_stack) == 1
        await pilot.press("down", "o")
        await shown(stage, pilot)
        body = str(stage.app.screen.query_one("#body", Static).render())
        for part in ("layers 4-8", "exit 4", "75%", "from source", "~12.3 kJ", "30 to run"):
            assert part in body
        stage.view = changed(nodes=(SOURCE,))
        await shown(stage, pilot)
        assert "no longer there" in str(stage.app.screen.query_one("#body", Static).render())
        await pilot.press("escape", "q")
    assert stage.app.return_code == 0


async def test_a_picture_is_an_svg_of_the_screen() -> None:
    stage = Stage()
    stage.app.draw_after(0.05)
    await stage.app.run_async(headless=True, size=(100, 30))
    assert stage.app.picture.startswith("<svg")
    assert "jetson-nano" in stage.app.picture
    assert "url(" not in stage.app.picture.replace("url(#", ""), "whoever looks at it fetches nothing"


@pytest.fixture(autouse=True)
def _no_animation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")


def test_without_textual_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"mdi-exit\[top\]"):
        top(["--picture", "x.svg"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "order: expected one of status, pause"),
        (["pase"], "got pase; did you mean pause?"),
        (["status", "now"], "status: expected nothing after it, got now"),
        (["drain", "--timeout", "1s"], "drain: expected the name of a node, got nothing"),
    ],
)
def test_a_slip_is_told_before_anything_is_asked_of_the_broker(words: list[str], expected: str) -> None:
    with pytest.raises(UsageError) as told:
        control(words)
    assert expected in str(told.value)
