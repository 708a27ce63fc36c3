from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.plot.timeline import Phase, draw, orders_of, phases_of
from mdi_exit.snapshot import NodeSnapshot, Snapshot


def timeline(*, truth: bool = True, phase: bool = True) -> list[Snapshot]:
    found = []
    for step in range(20):
        node = NodeSnapshot("pi", "ready", "4-8", step % 5, 1, 0.1, 5.0, 50.0, step, 0, "laptop")
        found.append(
            Snapshot(
                elapsed_s=step / 2, phase=("calm" if step < 10 else "load") if phase else "", offered_per_s=20.0,
                admitted_per_s=19.0, completed_per_s=18.0, admitted=step * 10, completed=step * 9, errors=0, refused=0,
                pending=step, accuracy=0.9 if truth else None, threshold=0.9 - step / 100, source_queue=3,
                latency_p50_s=0.1 if truth else None, exits={1: step}, nodes=(node,) if step > 5 else (),
            )
        )  # fmt: skip
    return found


def test_phases_are_read_from_the_timeline() -> None:
    assert phases_of(timeline()) == (Phase("calm", 0.0, 5.0), Phase("load", 5.0, 9.5))
    assert phases_of(timeline(phase=False)) == ()
    assert phases_of([]) == ()


def test_obeyed_orders_are_read_from_the_timeline_and_marked(tmp_path: Path) -> None:
    run = timeline()
    plain = tmp_path / "plain.png"
    draw(run, plain, "a run")
    notices = ("desk: threshold 0.7", "pi joined", "desk: drain x refused: no", "pi: something else")
    run[4] = dataclasses.replace(run[4], notices=notices)
    assert orders_of(run) == ((2.0, "threshold 0.7"),)
    draw(run, tmp_path / "marked.png", "a run")
    assert plain.read_bytes() != (tmp_path / "marked.png").read_bytes()


@pytest.mark.parametrize("truth", [True, False])
def test_a_picture_is_a_png_that_is_large_enough_to_read(tmp_path: Path, truth: bool) -> None:
    out = tmp_path / "run.png"
    draw(timeline(truth=truth), out, "A run with $ and _ in its name")
    content = out.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20]) >= 1000
    assert int.from_bytes(content[20:24]) >= 1000
    assert len(content) > 20_000


def test_no_picture_of_nothing_nor_into_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 2 snapshots"):
        draw(timeline()[:1], tmp_path / "x.png", "t")
    with pytest.raises(MdiExitError, match="could not write"):
        draw(timeline(), tmp_path / "no" / "x.png", "t")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"mdi-exit\[plot\]"):
        draw(timeline(), tmp_path / "x.png", "t")
