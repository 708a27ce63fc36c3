from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mdi_exit.demo.view import LiveView, plain_line, screen
from mdi_exit.errors import UsageError
from mdi_exit.snapshot import NodeSnapshot, Snapshot, read_timeline

NODE = NodeSnapshot("pi", "ready", "4-8", 3, 2, 0.25, 12.5, 80.0, 40, 7, "raspberry-pi-4")


def snapshot(**changes: Any) -> Snapshot:
    made = Snapshot(
        elapsed_s=12.0, phase="load step", offered_per_s=40.0, admitted_per_s=39.0, completed_per_s=38.5, admitted=400,
        completed=390, errors=0, refused=2, pending=10, accuracy=0.912, threshold=0.75, source_queue=9,
        latency_p50_s=0.125, exits={1: 300, 8: 90}, nodes=(NODE,),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def shown(one: Snapshot, width: int = 110, notices: tuple[str, ...] = ()) -> str:
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=width, color_system=None).print(screen(one, "demo", notices, width))
    return out.getvalue()


def test_a_snapshot_survives_the_timeline_file(tmp_path: Path) -> None:
    first, second = snapshot(notices=("pi joined",)), snapshot(elapsed_s=12.5, accuracy=None, latency_p50_s=None)
    file = tmp_path / "timeline.jsonl"
    file.write_text(first.to_line() + second.to_line() + first.to_line()[:30])
    assert read_timeline(file) == [first, second]


def test_a_wrong_timeline_is_told_by_line(tmp_path: Path) -> None:
    file = tmp_path / "timeline.jsonl"
    file.write_text(snapshot().to_line() + "{}\n")
    with pytest.raises(UsageError, match="line 2"):
        read_timeline(file)
    file.write_text("nonsense\n")
    with pytest.raises(UsageError, match="line 1: expected JSON"):
        read_timeline(file)
    with pytest.raises(UsageError, match="No such file"):
        read_timeline(tmp_path / "none")
    with pytest.raises(UsageError, match="expected an object"):
        Snapshot.from_json({**json.loads(snapshot().to_line()), "threshold": "high"})


def test_the_screen_shows_what_the_run_does() -> None:
    text = shown(snapshot(), notices=("12.0 s  pi joined",))
    for part in ("load step", "38.5/s", "91.2 %", "0.75", "125 ms", "exit 8", "77%", "pi", "4-8", "3+2", "80 %",
                 "emulated: raspberry-pi-4", "pi joined"):  # fmt: skip
        assert part in text
    assert "emulated" not in shown(snapshot(nodes=()))
    assert "unknown" in shown(snapshot(accuracy=None))


def test_the_screen_keeps_its_shape_on_a_narrow_terminal() -> None:
    nodes = (NODE, dataclasses.replace(NODE, name="jetson-fast", state="waiting for source", inputs=16, outputs=16))
    text = shown(snapshot(nodes=nodes, admitted=12_345, completed=12_345, offered_per_s=1234.5), width=80)
    assert all(len(line) == 80 for line in text.splitlines())
    assert "…" not in text, "nothing is cut off"


def test_text_of_other_machines_is_not_obeyed() -> None:
    hostile = dataclasses.replace(NODE, state="[red]\x1b[2J", span="[/]")
    text = shown(snapshot(nodes=(hostile,), phase="[b]"), notices=("\x1b]0;title\x07",))
    assert "\x1b[2J" not in text
    assert "\x1b]0" not in text
    assert "[b]" in text


def test_without_a_terminal_a_line_each_two_seconds_and_each_notice_at_once() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, force_terminal=False, width=60)) as view:
        for tenth in range(50):
            notices = ("pi joined",) if tenth == 31 else ()
            view.update(snapshot(elapsed_s=tenth / 10, notices=notices))
    lines = out.getvalue().splitlines()
    assert [line.split(" s ")[0].strip() for line in lines] == ["0.0", "2.0", "3.1", "4.0"]
    assert lines[2].endswith("pi joined")
    assert "queues pi:5" in lines[0]
    assert "\x1b" not in out.getvalue()


def test_a_threshold_that_moves_a_tenth_is_told_once() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, force_terminal=False, width=60)) as view:
        for tenth, threshold in enumerate([0.9, 0.86, 0.82, 0.8, 0.78, 0.74, 0.85, 0.9]):
            view.update(snapshot(elapsed_s=tenth / 10, threshold=threshold))
    told = [line.split("  ")[-1] for line in out.getvalue().splitlines() if "exit threshold" in line]
    assert told == ["exit threshold falls from 0.90 to 0.80", "exit threshold rises from 0.80 to 0.90"]


def test_errors_appear_in_the_plain_line_when_there_are_any() -> None:
    assert "errors" not in plain_line(snapshot())
    assert plain_line(snapshot(errors=3)).endswith("errors 3")


def test_on_a_terminal_the_screen_is_drawn_and_left_in_place() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=110, height=40, color_system=None)
    with LiveView(console, title="mdi-exit demo") as view:
        view.update(snapshot(notices=("pi joined",)))
        view.update(snapshot(elapsed_s=13.0, completed_per_s=41.5))
    assert "41.5/s" in out.getvalue()
    assert out.getvalue().count("pi joined") >= 2, "a notice stays for a while"
