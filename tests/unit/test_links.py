from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi_exit.links import DelayModel, Inbound, Outbound
from mdi_exit.wire import Ack

STEPS = st.lists(
    st.tuples(st.sampled_from(["send", "deliver", "lose", "leave", "ack", "lost ack", "probe"]), st.integers(0, 2)),
    max_size=120,
)


@given(window=st.integers(1, 4), steps=STEPS)
@settings(max_examples=200)
def test_a_lossy_link_respects_its_window_and_gets_every_credit_back(window: int, steps: list[tuple[str, int]]) -> None:
    """A channel in order, in which features and acknowledgements may vanish: what is there never exceeds the window."""
    out, into = Outbound(9, window), Inbound(1)
    channel: deque[tuple[str, int, int]] = deque()
    there: Counter[int] = Counter()
    now = 0.0

    def deliver() -> None:
        kind, number, layer = channel.popleft()
        if kind == "probe":
            into.probe = number
        else:
            assert into.receive(now, number)
            there[layer] += 1

    def leave(layer: int) -> None:
        there[layer] -= 1
        into.released[layer] += 1

    for step, layer in steps:
        now += 0.01
        match step:
            case "send" if out.room(layer) > 0:
                channel.append(("task", out.sent(now, layer, 1, 100), layer))
            case "deliver" if channel:
                deliver()
            case "lose" if channel:
                channel.popleft()
            case "leave" if there[layer]:
                leave(layer)
            case "ack":
                out.acknowledged(now, into.ack(now, 9, 0, 0.0))
            case "lost ack":
                into.ack(now, 9, 0, 0.0)
            case "probe":
                channel.append(("probe", out.probe(now), 0))
        on_the_way = Counter(entry[2] for entry in channel if entry[0] == "task")
        for some in range(3):
            assert there[some] + on_the_way[some] <= out.used[some] <= window
    while channel:
        deliver()
    for some in range(3):
        while there[some]:
            leave(some)
    into.probe = out.probe(now)
    out.acknowledged(now, into.ack(now, 9, 0, 0.0))
    assert [out.room(some) for some in range(3)] == [window] * 3
    assert not out.unacknowledged


def test_an_answer_to_an_older_probe_loses_nothing() -> None:
    link = Outbound(9, 4)
    link.sent(0.0, 4, 1, 100)
    first = link.probe(0.1)
    link.sent(0.2, 4, 2, 100)
    link.probe(0.3)
    link.acknowledged(0.4, Ack(9, 1, 0, 0.0, probe=first))
    assert (link.lost, link.room(4)) == (0, 2)


def test_what_was_sent_after_the_probe_is_not_lost() -> None:
    link = Outbound(9, 4)
    link.sent(0.0, 4, 1, 100)
    number = link.probe(0.1)
    link.sent(0.2, 4, 2, 100)
    link.acknowledged(0.4, Ack(9, 1, 0, 0.0, probe=number))
    assert (link.lost, link.room(4)) == (1, 3)


def test_a_refusal_of_an_earlier_start_gives_no_credit_back() -> None:
    link = Outbound(9, 4)
    link.sent(0.0, 4, 1, 100)
    link.unsent(1, 99)
    assert link.room(4) == 3


def test_releases_that_go_back_in_time_do_nothing() -> None:
    link = Outbound(9, 4)
    for item in range(3):
        link.sent(0.0, 4, item, 100)
    link.acknowledged(0.1, Ack(9, 1, 3, 0.0, {4: 2}))
    link.acknowledged(0.2, Ack(9, 1, 3, 0.0, {4: 1}))
    assert link.room(4) == 3
    link.acknowledged(0.3, Ack(9, 1, 3, 0.0, {4: 99, 7: 50}))
    assert (link.room(4), link.room(7)) == (4, 4), "a liar gets no more than the window"


def test_hold_time_is_no_part_of_the_delay() -> None:
    link = Outbound(9, 4)
    link.sent(1.0, 4, 1, 1000)
    link.acknowledged(1.5, Ack(9, 1, 1, 0.48))
    assert link.delay.delay_s(1000) == pytest.approx(0.01)


def test_a_duplicate_is_seen_and_a_late_message_is_taken_once() -> None:
    link = Inbound(1)
    assert [link.receive(0.0, seq) for seq in (1, 3, 3, 2, 2, 1)] == [True, True, False, True, False, False]
    assert not link.missing


def test_a_huge_jump_is_remembered_only_in_part() -> None:
    link = Inbound(1)
    assert link.receive(0.0, 2**32)
    assert len(link.missing) <= 256


def test_one_who_writes_in_the_name_of_another_does_not_stop_the_link() -> None:
    sender, receiver = Outbound(9, 2), Inbound(1)
    assert receiver.receive(0.0, 1_000_000), "forged"
    assert not receiver.receive(0.0, 2**62), "a number that leaves no room for others is none"
    for item in range(40):
        seq = sender.sent(0.1, 4, item, 100)
        if receiver.receive(0.1, seq):
            receiver.released[4] += 1
        sender.acknowledged(0.2, receiver.ack(0.2, 9, 0, 0.0))
        assert sender.room(4) == 2, "no credit is gone for good"
    assert receiver.released[4] == 39, "the one that was on its way is lost, and tried again by the source"
    assert not sender.unacknowledged
    assert sender.on_way_bytes == 0


def test_an_acknowledgement_clears_the_debt_and_repeats_the_totals() -> None:
    link = Inbound(4)
    link.receive(1.0, 1)
    link.owe(1.0, 0.005)
    link.owe(1.2, 0.005)
    assert (link.due_at, link.unreported) == (1.005, 2)
    link.released[3] += 1
    link.probe = 8
    first, second = link.ack(1.25, 9, 2, 0.5), link.ack(1.3, 9, 2, 0.5)
    assert (first.probe, second.probe) == (8, None)
    assert first.released == second.released == {3: 1}
    assert first.hold_s == pytest.approx(0.25)
    assert (link.due_at, link.unreported) == (None, 0)


@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(-1, 60)), max_size=50), st.integers(0, 10**8))
def test_the_expected_delay_is_never_negative_whatever_was_measured(
    samples: list[tuple[int, float]], size: int
) -> None:
    model = DelayModel()
    for sample in samples:
        model.add(*sample)
    assert model.delay_s(size) >= 0.0
    assert model.round_trip_s >= 0.0
    assert model.delay_s(2 * size) >= model.delay_s(size)


def test_a_report_need_not_repeat_what_was_seen_and_cannot_have_seen_what_was_not_sent() -> None:
    link = Outbound(1, 16)
    for item in range(4):
        link.sent(0.0, 4, item, 100)
    link.reported(0.1, 3, 0.3, 3)
    link.reported(0.2, 3, 0.3, 0)
    assert link.load(0.2, {}, 0.01)[0] == 4.0, "three reported, one on the way"
    link.reported(0.3, 3, 0.3, 1000)
    assert link.load(0.3, {}, 0.01)[0] == 4.0, "a number of an earlier start says nothing"


def test_no_more_than_two_large_tasks_fill_a_slow_link() -> None:
    """A tenth of a second of the link is on its way at most, two tasks at least; small tasks go by the window alone."""
    out, into = Outbound(9, 16), Inbound(1)
    assert out.is_open(2)
    for _ in range(2):
        assert out.is_open(2)
        out.sent(0.0, 2, 1, 1_000_000)
    assert not out.is_open(2), "a megabyte is on its way, and how fast the link is, is not known"
    for seq, at in ((1, 0.5), (2, 1.0)):
        into.receive(at, seq)
        out.acknowledged(at, into.ack(at, 9, 0, 0.0))
    assert out.on_way_bytes == 0
    for _ in range(15):
        assert out.is_open(1)
        out.sent(1.0, 1, 1, 1_000)
    assert out.on_way_bytes == 15_000


def test_what_was_lost_or_given_back_is_on_its_way_no_more() -> None:
    out, into = Outbound(9, 16), Inbound(1)
    numbers = [out.sent(0.0, 2, item, 300_000) for item in range(4)]
    out.unsent(numbers[3], 3)
    assert out.on_way_bytes == 900_000
    into.receive(0.1, numbers[1])  # the first was lost
    out.acknowledged(0.2, into.ack(0.2, 9, 0, 0.0))
    assert (out.on_way_bytes, out.lost) == (300_000, 1)
    into.probe = out.probe(0.3)
    out.acknowledged(0.4, into.ack(0.4, 9, 0, 0.0))
    assert (out.on_way_bytes, out.lost) == (0, 2)


def test_a_fast_link_takes_a_tenth_of_a_second_at_once() -> None:
    out, into = Outbound(9, 64), Inbound(1)
    for size in (100_000, 1_000, 100_000, 1_000):  # 10 MB a second, there and back
        seq = out.sent(0.0, 2, 1, size)
        into.receive(size / 1e7, seq)
        out.acknowledged(size / 1e7, into.ack(size / 1e7, 9, 0, 0.0))
    assert out.delay.bytes_per_s == pytest.approx(1e7, rel=1e-3)
    sent = 0
    while out.is_open(2):
        out.sent(0.0, 2, 1, 100_000)
        sent += 1
    assert sent in (10, 11)


def test_a_far_link_is_filled_for_two_round_trips_of_when_it_was_empty() -> None:
    out, into = Outbound(9, 64), Inbound(1)
    for size, waited_s in ((100_000, 0.0), (1_000, 0.0), (100_000, 0.0), (1_000, 0.0), (1_000, 0.01)):
        seq, at = out.sent(0.0, 2, 1, size), 0.2 + size / 1e6 + waited_s  # 1 MB a second, 0.2 s there and back
        into.receive(at, seq)
        out.acknowledged(at, into.ack(at, 9, 0, 0.0))
    assert out.delay.least_s == pytest.approx(0.201)
    sent = 0
    while out.is_open(2):
        out.sent(0.0, 2, 1, 20_000)
        sent += 1
    assert sent * 20_000 == pytest.approx(0.402 * out.delay.bytes_per_s, abs=20_000)
