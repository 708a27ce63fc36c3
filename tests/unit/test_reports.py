"""Load reports that are mostly brief, and what readers make of them."""

from __future__ import annotations

import msgspec
import pytest

from mdi_exit.membership import Members
from mdi_exit.reports import FULL_PERIOD_S, Shortener, completed
from mdi_exit.wire import Board, LinkLoad, Status, Telemetry, encode


def _report(links: int = 2, name: str = "agent-{}", **changes: object) -> Telemetry:
    report = Telemetry(
        run=1764092800123456,
        incarnation=1764092800123456,
        node=name.format(0),
        inputs=12,
        outputs=3,
        backlog_s=0.123,
        backlog_by_layer_s=dict.fromkeys(range(4, 9), 0.1),
        speed_s=dict.fromkeys(range(4, 9), 0.1),
        free_slots=dict.fromkeys(range(4, 9), 16),
        received={name.format(number): 10**6 + number for number in range(links)},
        counters=dict.fromkeys(("executed", "exited", "sent", "received", "refused", "failed"), 10**6),
        exits=dict.fromkeys(range(5), 10**6),
        sent_bytes=10**9,
        cpu_percent=97.3,
        links={name.format(number): LinkLoad(10**6, 10**9, 0.01, 48) for number in range(links)},
        board=Board(10**8, 55.5, 4.5, 1234.5, True, "01234567"),
    )
    return msgspec.structs.replace(report, **changes)


def test_links_and_board_go_out_once_a_second() -> None:
    shortener = Shortener()
    sent = [shortener.shortened(0.5 * step, _report()) for step in range(8)]
    assert [report.board is not None for report in sent] == [True, False] * 4
    assert [len(report.links) for report in sent] == [2, 0] * 4
    assert {report.inputs for report in sent} == {12}


def test_what_is_received_is_told_when_it_is_new_and_in_turn() -> None:
    shortener = Shortener()
    many = {f"agent-{number}": 1 for number in range(20)}
    told = [set(shortener.shortened(float(step), _report(received=many)).received) for step in range(8)]
    assert max(len(names) for names in told) <= 5
    assert sum(len(names) for names in told) == 20
    assert set.union(*told) == set(many)
    again = [
        set(shortener.shortened(9.0 + step, _report(received=dict.fromkeys(many, 2 + step))).received)
        for step in range(8)
    ]
    assert set.union(*again) == set(many), "those that change all the time do not hide the others"


@pytest.mark.parametrize(
    ("links", "name"), [(0, "a{}"), (3, "agent-{}"), (9, "jetson-{}"), (100, "agent-{}"), (3, "jetson-orin-nano-{}")]
)
def test_an_agent_says_less_than_a_kilobyte_a_second(links: int, name: str) -> None:
    """Frames with topic and packet header, everything busy, two reports a second for a minute."""
    shortener, total, seconds = Shortener(), 0, 60
    topic = len(f"mdi/default/telemetry/{name.format(0)}")
    for step in range(2 * seconds):
        received = {name.format(number): 10**6 + step for number in range(links)}
        report = shortener.shortened(0.5 * step, _report(links, name, received=received))
        total += len(encode(report)) + topic + 5
    assert total / seconds < 1000


def test_a_reader_keeps_what_a_brief_report_leaves_out() -> None:
    full = _report()
    brief = msgspec.structs.replace(full, inputs=7, links={}, board=None)
    found = completed(full, brief)
    assert (found.inputs, found.links, found.board) == (7, full.links, full.board)
    other_start = msgspec.structs.replace(brief, incarnation=2)
    assert completed(full, other_start) == other_start
    assert completed(None, brief) == brief
    without = msgspec.structs.replace(full, links={})
    assert completed(full, without) == without, "a full report of no links says that there are none"


def test_members_keep_links_and_board_of_a_node() -> None:
    members = Members("source", 2.5)
    full = _report()
    members.status(0.0, Status(full.node, full.incarnation, True, state="ready"), retained=False)
    members.telemetry(0.0, full)
    members.telemetry(FULL_PERIOD_S / 2, msgspec.structs.replace(full, inputs=0, links={}, board=None, received={}))
    peer = members.get(full.node)
    assert peer is not None
    assert peer.telemetry is not None
    assert (peer.telemetry.inputs, peer.telemetry.links, peer.telemetry.board) == (0, full.links, full.board)
