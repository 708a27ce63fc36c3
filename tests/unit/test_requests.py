"""The desk of requests: what is queued, refused, remembered, and whose turn it is."""

from __future__ import annotations

import math

import pytest

from mdi_exit.errors import IllegalEventError
from mdi_exit.events import ReplyFailed, RequestReceived
from mdi_exit.requests import OWN, RequestDesk, RequestLimits
from mdi_exit.wire import ResultRow


def received(client: str, identity: str, *, size: int = 10, deadline_s: float | None = None, plain: bool = False):
    return RequestReceived(client, identity, object(), size, deadline_s, plain)


def served(desk: RequestDesk, count: int, *, own: bool = False) -> list[str]:
    """The parties of so many turns."""
    found = []
    for _ in range(count):
        party = desk.next_party(own=own, clients=True)
        assert party is not None
        if party == OWN:
            desk.count_turn(OWN)
        else:
            desk.prepared(desk.prepare(desk.take(party)).ticket)
        found.append(party)
    return found


def said(desk: RequestDesk, now: float = 0.0) -> list[tuple[str, str, str]]:
    return [(c.reply.client, c.reply.id, c.reply.error or "label") for c in desk.outgoing(now)]


def test_clients_and_the_own_input_take_turns() -> None:
    desk = RequestDesk(RequestLimits())
    for number in range(6):
        desk.receive(0.0, received("a", str(number)))
    desk.receive(0.0, received("b", "0"))
    desk.receive(0.0, received("b", "1"))
    turns = served(desk, 9, own=True)
    assert sorted(turns[:3]) == sorted(turns[3:6]) == ["", "a", "b"], "in rounds while all want"
    assert sorted(turns[6:8]) == ["", "a"]
    assert desk.next_party(own=False, clients=False) is None


def test_who_was_away_catches_up_a_few_turns_and_no_more() -> None:
    desk = RequestDesk(RequestLimits(per_client=100, credit=4))
    for number in range(60):
        desk.receive(0.0, received("a", str(number)))
    served(desk, 30)
    for number in range(30):
        desk.receive(0.0, received("b", str(number)))
    turns = served(desk, 20)
    assert 3 <= turns[:6].count("b") - turns[:6].count("a") <= 5
    assert abs(turns[6:].count("b") - turns[6:].count("a")) <= 1


def test_a_full_queue_refuses_at_once_and_says_why() -> None:
    desk = RequestDesk(RequestLimits(per_client=2, client_bytes=100))
    for number in range(3):
        desk.receive(0.0, received("a", str(number)))
    desk.receive(0.0, received("b", "0", size=90))
    desk.receive(0.0, received("b", "1", size=20))
    replies = desk.outgoing(0.0)
    assert [(c.reply.client, c.reply.id, c.reply.error) for c in replies] == [
        ("a", "2", "refused"),
        ("b", "1", "refused"),
    ]
    assert replies[0].reply.reason == "overloaded: 2 requests of a wait already"
    assert replies[1].reply.reason == "overloaded: 90 bytes of b wait already"
    assert not desk.problems(0)


def test_when_all_room_is_taken_whoever_has_most_gives_way() -> None:
    desk = RequestDesk(RequestLimits(per_client=10, waiting=5))
    for number in range(5):
        desk.receive(0.0, received("greedy", str(number)))
    desk.receive(0.0, received("modest", "0"))
    assert said(desk) == [("greedy", "4", "refused")]
    by_size = RequestDesk(RequestLimits(waiting_bytes=100))
    by_size.receive(0.0, received("large", "0", size=90))
    by_size.receive(0.0, received("small", "0", size=20))
    assert said(by_size) == [("large", "0", "refused")]
    assert (by_size.waiting, by_size.waiting_bytes) == (1, 20)


def test_an_id_is_worked_on_once_and_answered_alike() -> None:
    desk = RequestDesk(RequestLimits(remembered_per_client=2))
    for _ in range(3):
        desk.receive(0.0, received("a", "1"))
    assert (desk.received, desk.waiting) == (1, 1)
    request = desk.take("a")
    desk.prepare(request)
    desk.receive(0.1, received("a", "1"))
    assert desk.prepared(request.ticket) is request
    request.item = 7
    desk.receive(0.2, received("a", "1"))
    desk.result(0.5, request, ResultRow(7, 0, ("n",), 1, 3, 0.5))
    (first,) = desk.outgoing(0.5)
    assert (first.reply.label, first.reply.exit, first.reply.path, first.reply.latency_s) == (3, 1, ("n",), 0.5)
    desk.receive(9.0, received("a", "1", plain=True))
    (again,) = desk.outgoing(9.0)
    assert again.reply == first.reply
    assert again.plain, "as it was asked this time"
    for number in ("2", "3"):
        desk.receive(9.0, received("a", number), "leaving")
    desk.receive(9.0, received("a", "1"))
    assert desk.waiting == 1, "it is forgotten: a new request"
    with pytest.raises(IllegalEventError, match="second reply"):
        desk.reply(9.0, request, error="failed", reason="no")


def test_requests_without_an_id_are_numbered() -> None:
    desk = RequestDesk(RequestLimits())
    for client in ("a", "b", "a"):
        desk.receive(0.0, received(client, ""), "leaving")
    assert [identity for _, identity, _ in said(desk)] == ["#1", "#2", "#3"]


def test_deadlines_are_told_once_in_order_and_only_for_what_is_open() -> None:
    desk = RequestDesk(RequestLimits())
    for number, deadline_s in enumerate((3.0, 1.0, None, 2.0)):
        desk.receive(0.0, received("a", str(number), deadline_s=deadline_s))
    assert (desk.next_deadline(), desk.hurry_s) == (1.0, 3.0)
    gone = next(request for request in desk if request.id == "3")
    desk.reply(0.5, gone, error="failed", reason="no")
    assert [request.id for request in desk.expired(5.0)] == ["1", "0"]
    assert desk.next_deadline() == math.inf
    assert not desk.expired(5.0)


def test_a_reply_that_was_not_taken_is_sent_again_a_little_later() -> None:
    desk = RequestDesk(RequestLimits())
    desk.receive(0.0, received("a", "1"), "leaving")
    (reply,) = desk.outgoing(0.0)
    desk.failed(1.0, ReplyFailed(reply))
    assert not desk.outgoing(1.0), "not at once: the transport is full"
    assert desk.next_wakeup(connected=False) == math.inf
    again_at = desk.next_wakeup(connected=True)
    assert desk.outgoing(again_at) == [reply]
    assert not desk.outgoing(again_at + 9)
