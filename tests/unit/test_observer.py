"""What an outsider makes of a deployment's messages."""

from __future__ import annotations

import zlib

import msgspec
import pytest

from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.observer import Watched
from mdi_exit.wire import Board, Control, Happening, LinkLoad, Manifest, SourceReport, Status, Telemetry

REPORT = SourceReport(
    *(7, 11, "source", "ab" * 16, 50, 48, 40, 1, 2, 3, 1, 7, 30, 32, {0: 40}, 0.9, 0.5, "none"),
    rate_per_s=25.0,
    paused=False,
    happened=(Happening(1, 2.0, "joined", "a joined"), Happening(2, 1.0, "gap", "no node holds layer 3")),
)


def status(name: str, incarnation: int = 5, *, online: bool = True, role: str = "agent") -> Status:
    return Status(name, incarnation, online, role, "ready", (4, 9), (4,), 16, "onnxruntime CPU", "jetson-nano", "1")


def report(name: str, executed: int, incarnation: int = 5, **fields) -> Telemetry:
    counters = {"executed": executed, "exited": 3, "sent": 2}
    return Telemetry(7, incarnation, name, 3, 1, 0.25, counters=counters, exits={2: 3}, **fields)


def test_a_node_is_what_its_status_and_its_reports_say() -> None:
    watched = Watched("d")
    watched.message(1.0, 0.0, status("a"))
    watched.message(1.0, 0.0, status("source", role="source"))
    for step in range(5):
        link = {"b": LinkLoad(10 * step, 1000 * step, 0.002, 7)}
        board = Board(2**20, 50.0) if step == 0 else None
        watched.message(1.0 + step / 2, 0.0, report("a", 20 * step, links=link, board=board))
    view = watched.view(3.1)
    assert [node.name for node in view.nodes] == ["source", "a"], "the source first"
    a = view.nodes[1]
    assert (a.state, a.span, a.inputs, a.outputs, a.executed, a.exits) == ("ready", "4-8", 3, 1, 80, {2: 3})
    assert a.executed_per_s == pytest.approx(40.0)
    assert a.board == Board(2**20, 50.0), "kept until the next one"
    assert a.age_s == pytest.approx(0.1)
    (link,) = view.links
    assert (link.sender, link.to, link.tasks, link.credits) == ("a", "b", 40, 7)
    assert (link.tasks_per_s, link.bytes_per_s) == (pytest.approx(20.0), pytest.approx(2000.0))
    assert view.emulated == "jetson-nano"


def test_silence_a_will_and_a_new_start() -> None:
    watched = Watched("d")
    watched.message(0.0, 0.0, status("a"))
    watched.message(0.0, 0.0, report("a", 100))
    assert watched.view(2.9).nodes[0].alive
    assert not watched.view(3.1).nodes[0].alive, "silent"
    watched.message(4.0, 0.0, report("a", 120))
    assert watched.view(4.0).nodes[0].alive, "it was only quiet"
    watched.message(4.1, 0.0, status("a", 4, online=False))
    assert watched.view(4.1).nodes[0].alive, "the will of an earlier start"
    watched.message(4.2, 0.0, status("a", online=False))
    assert watched.view(4.2).nodes[0].state == "gone"
    watched.message(5.0, 0.0, status("a", 6))
    watched.message(5.0, 0.0, report("a", 999, incarnation=5))
    assert watched.view(5.0).nodes[0].executed == 0, "a report of the earlier start says nothing of this one"
    assert watched.view(66.0).nodes == (), "forgotten after a minute"


def test_what_only_the_broker_remembers_is_not_shown_until_it_gives_a_sign() -> None:
    watched = Watched("d")
    watched.message(0.0, 0.0, status("a"), retained=True)
    assert watched.view(0.1).nodes == ()
    watched.message(0.5, 0.0, report("a", 1))
    assert watched.view(0.5).nodes[0].alive


def test_the_report_of_the_source_and_each_happening_once() -> None:
    watched = Watched("d")
    assert "no source" in watched.view(0.0).trouble
    watched.message(10.0, 1000.0, REPORT)
    again = msgspec.structs.replace(REPORT, completed=60, happened=(*REPORT.happened, Happening(3, 0.0, "left", "a")))
    watched.message(11.0, 1001.0, again)
    view = watched.view(11.0)
    assert view.trouble == ""
    assert view.completed_per_s == pytest.approx(20.0)
    assert view.accuracy == pytest.approx(30 / 32)
    assert [(happened.at, happened.kind) for happened in view.happened] == [
        (998.0, "joined"),
        (999.0, "gap"),
        (1001.0, "left"),
    ]
    assert "silent" in watched.view(15.0).trouble
    restarted = msgspec.structs.replace(REPORT, incarnation=12, happened=REPORT.happened[:1])
    watched.message(16.0, 1006.0, restarted)
    assert len(watched.view(16.0).happened) == 4, "a new start counts from one again"


def test_control_and_manifest() -> None:
    watched = Watched("d")
    control = Control(7, 11, "source", 0, "ab" * 16, 0.7)
    watched.message(0.0, 0.0, control)
    artifact = Artifact.open(DEFAULT_MODEL)
    raw = artifact.manifest_bytes
    manifest = Manifest(7, "source", artifact.manifest.plan.digest, zlib.crc32(raw))
    watched.message(0.0, 0.0, manifest, memoryview(raw))
    view = watched.view(0.0)
    assert view.control == control
    assert (view.model, view.layer_count, view.labels[1]) == (artifact.manifest.name, 9, "Trouser")
