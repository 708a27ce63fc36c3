from __future__ import annotations

from mdi_exit.links import DelayModel, Inbound
from mdi_exit.membership import Change, Members
from mdi_exit.span import LayerSpan
from mdi_exit.wire import Status, Telemetry


def status(incarnation: int = 1, *, online: bool = True, node: str = "a", state: str = "ready", **fields) -> Status:
    values = {"span": (2, 4), "entries": (2, 3), "window": 4} | fields
    return Status(node, incarnation, online, "agent", state, **values)


def telemetry(incarnation: int = 1, **fields) -> Telemetry:
    return Telemetry(7, incarnation, "a", fields.pop("inputs", 0), 0, fields.pop("backlog_s", 0.0), **fields)


def test_a_node_joins_is_updated_and_leaves() -> None:
    members = Members("me", 2.5)
    assert members.status(0.0, status(state="loading segments"), retained=False) is Change.JOINED
    assert not members.peers["a"].ready
    assert members.status(0.1, status(), retained=False) is Change.UPDATED
    assert members.peers["a"].takes(2)
    assert not members.peers["a"].takes(4)
    assert members.status(0.2, status(online=False), retained=False) is Change.LEFT
    assert members.status(0.3, status(online=False), retained=False) is not Change.LEFT, "it is told once"
    assert not members.peers["a"].ready


def test_a_will_of_another_start_changes_nothing() -> None:
    members = Members("me", 2.5)
    members.status(0.0, status(2), retained=False)
    assert members.status(0.1, status(1, online=False), retained=False) is Change.NONE
    assert members.peers["a"].ready
    assert members.status(0.1, status(9, online=False, node="unknown"), retained=True) is Change.NONE
    assert members.get("unknown") is None


def test_a_new_start_begins_with_fresh_credits_and_a_fresh_receiving_side() -> None:
    members = Members("me", 2.5)
    members.status(0.0, status(1), retained=False)
    members.peers["a"].out.sent(0.0, 2, 1, 100)
    first = members.inbound("a", 1)
    assert first is not None
    first.receive(0.0, 5)
    assert members.status(1.0, status(2), retained=False) is Change.JOINED
    assert members.peers["a"].out.room(2) == 4
    assert members.inbound("a", 1) is None, "a message of a start that is over"
    second = members.inbound("a", 2)
    assert second is not None
    assert second.seq == 0
    assert members.inbound("a", 2) is second


def test_a_remembered_status_counts_only_after_a_sign_of_life_of_the_same_start() -> None:
    members = Members("me", 2.5)
    assert members.status(0.0, status(1), retained=True) is Change.NONE
    assert not members.peers["a"].ready
    assert members.heard(0.1, "a", 2) is Change.NONE
    assert not members.peers["a"].ready
    assert members.heard(0.2, "a", 1) is Change.JOINED
    assert members.peers["a"].ready
    assert members.heard(0.3, "a", 1) is Change.NONE


def test_a_node_that_said_goodbye_is_not_revived_by_a_straggler() -> None:
    members = Members("me", 2.5)
    members.status(0.0, status(1), retained=False)
    members.status(0.1, status(1, online=False), retained=False)
    assert members.telemetry(0.2, telemetry(1)) is Change.NONE
    assert members.heard(0.2, "a", 1) is Change.NONE
    assert not members.peers["a"].alive


def test_load_reports_of_another_start_are_dropped() -> None:
    members = Members("me", 2.5)
    members.status(0.0, status(2), retained=False)
    members.telemetry(0.1, telemetry(1, inputs=9, backlog_s=9.0))
    assert members.peers["a"].telemetry is None
    members.telemetry(0.1, telemetry(2, inputs=3, backlog_s=1.5))
    assert members.peers["a"].out.load(0.1, {}, 0.1) == (3.0, 1.5)


def test_silence_is_told_once_and_a_sign_of_life_brings_a_node_back() -> None:
    members = Members("me", 2.5)
    members.status(0.0, status(), retained=False)
    assert members.silent(2.5) == []
    assert [peer.name for peer in members.silent(2.6)] == ["a"]
    assert members.silent(2.7) == []
    assert not members.peers["a"].ready
    assert members.heard(3.0, "a", 1) is Change.JOINED
    assert members.peers["a"].ready


def test_a_node_that_is_back_is_measured_anew() -> None:
    members = Members("me", 2.5)
    members.status(0.0, status(), retained=False)
    members.peers["a"].out.delay.add(100, 0.4)
    members.silent(2.6)
    members.heard(3.0, "a", 1)
    delay = members.peers["a"].out.delay
    assert delay.delay_s(100) == DelayModel().delay_s(100), "else it would get no work, and stay slow for ever"


def test_the_silence_of_a_node_that_is_not_listened_to_means_nothing() -> None:
    members = Members("me", 2.5, hears=frozenset({"a"}))
    for node in ("a", "far"):
        members.status(0.0, status(node=node), retained=False)
    assert [peer.name for peer in members.silent(2.6)] == ["a"]
    assert members.dead == {"a"}
    assert members.peers["far"].alive


def test_spans_in_force_and_spans_announced() -> None:
    members = Members("me", 2.5)
    members.status(0.0, status(), retained=False)
    members.status(0.0, status(node="b", state="loading segments", span=(4, 9)), retained=False)
    members.status(0.0, status(node="c", span=None), retained=False)
    members.status(0.0, status(node="d", span=(4, 4)), retained=False)
    assert members.spans() == [LayerSpan(2, 4)]
    assert members.announced_spans() == [LayerSpan(2, 4), LayerSpan(4, 9)]
    assert not members.peers["c"].ready
    assert not members.peers["d"].ready


def test_spans_that_are_announced_no_more_take_no_room() -> None:
    members = Members("me", 2.5)
    for first in range(200):
        members.status(0.0, status(span=(first, 300), leaving=((first, 400),)), retained=False)
    assert members.spans() == [LayerSpan(199, 300), LayerSpan(199, 400)]
    assert len(members._spans) == 2


def test_a_link_to_a_node_of_which_the_broker_remembered_another_start_goes_on() -> None:
    members = Members("me", 2.5)
    members.status(0.0, status(2), retained=False)
    theirs = Inbound(1)
    for item in range(30):
        theirs.receive(0.0, members.peers["a"].out.sent(0.0, 4, item, 100))
    theirs.released[4] = 30
    members.status(1.0, status(2, online=False), retained=False)
    members.status(2.0, status(1), retained=True)  # of a broker that came back
    members.status(3.0, status(2), retained=False)  # it was never away
    link = members.peers["a"].out
    for item in range(30, 60):
        if theirs.receive(3.0, link.sent(3.0, 4, item, 100)):
            theirs.released[4] += 1
        link.acknowledged(3.0, theirs.ack(3.0, 2, 0, 0.0))
        assert link.room(4) == link.window
    assert theirs.released[4] == 59
