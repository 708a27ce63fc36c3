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


class Timed:
    """A link on which a byte takes ``byte_s`` and an empty message a millisecond each way; it is probed every two seconds."""

    def __init__(self, byte_s: float) -> None:
        self.out, self.into, self.now, self.byte_s = Outbound(9, 16), Inbound(1), 0.0, byte_s
        self.out.measured_from = 0.0

    def carry(self, size: int) -> None:
        seq = self.out.sent(self.now, 4, 1, size)
        self.now += 0.002 + size * self.byte_s
        self.into.receive(self.now, seq)
        self._back()

    def idle(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now + 2.0 <= end:
            self.now += 2.0
            self.into.probe = self.out.probe(self.now - 0.002)
            self._back()
        self.now = end

    def _back(self) -> None:
        self.out.acknowledged(self.now, self.into.ack(self.now, 9, 0, 0.0))

    def delay_s(self, size: int = 2000) -> float:
        return self.out.delay_s(self.now, size)


def test_what_was_slow_is_tried_again_by_one_task_when_it_was_not_used_for_a_while() -> None:
    link = Timed(byte_s=2e-4)
    link.idle(2.0)
    link.carry(2000)
    link.idle(9.0)
    assert link.delay_s() == pytest.approx(0.401, abs=0.01), "probes are fast, but say nothing of bytes"
    link.byte_s = 1e-7
    link.idle(2.0)
    assert link.delay_s() == pytest.approx(0.001), "as the last probe has it"
    link.out.sent(link.now, 4, 1, 2000)
    assert link.delay_s() == pytest.approx(0.401, abs=0.01), "one task tries it, no others"
    link.now += 0.0022
    link.into.receive(link.now, link.out.seq)
    link._back()
    assert link.delay_s() == pytest.approx(0.0012, rel=0.01), "nothing is left of the slow sample"
    assert not link.out.trying


def test_a_first_probe_that_was_slow_is_doubted_like_a_task() -> None:
    """As of a neighbour that was loading its model."""
    link = Timed(byte_s=1e-7)
    link.into.probe = link.out.probe(0.0)
    link.now = 1.5
    link._back()
    link.idle(6.0)
    assert link.delay_s() > 0.1
    link.idle(3.0)
    assert link.delay_s() == pytest.approx(0.001)
    link.carry(2000)
    assert link.delay_s() == pytest.approx(0.0012, rel=0.01)


def test_what_is_slow_in_truth_is_tried_ever_more_seldom() -> None:
    link, waits = Timed(byte_s=2e-4), []
    link.carry(2000)
    for _ in range(8):
        since = link.now
        while link.delay_s() > 0.1:
            link.idle(2.0)
        waits.append(link.now - since)
        link.carry(2000)
        assert link.delay_s() == pytest.approx(0.401, abs=0.01)
    assert waits == pytest.approx([10, 20, 40, 80, 160, 320, 320, 320], abs=2.5)
    link.carry(2000)
    link.idle(12.0)
    assert link.delay_s() < 0.1, "it was used again, without a doubt"


@given(
    st.lists(
        st.tuples(st.floats(0.0, 9.0), st.integers(0, 10**6), st.floats(0.0, 0.9), st.booleans()),
        min_size=1,
        max_size=60,
    )
)
def test_a_link_in_steady_use_is_never_in_doubt(steps: list[tuple[float, int, float, bool]]) -> None:
    """Its delay is that of all samples, and nothing is forgotten, however slow or fast they are."""
    out, into, plain, now = Outbound(9, 4, measured_from=0.0), Inbound(1), DelayModel(), 0.0
    for pause_s, size, round_trip_s, probed in steps:
        now += pause_s
        assert out.delay_s(now, size) == plain.delay_s(size)
        if probed:
            into.probe = out.probe(now)
            out.acknowledged(now + round_trip_s, into.ack(now, 9, 0, 0.0))
            plain.add(0, now + round_trip_s - now)
        seq = out.sent(now, 4, 1, size)
        into.receive(now, seq)
        into.released[4] += 1
        out.acknowledged(now + round_trip_s, into.ack(now, 9, 0, 0.0))
        plain.add(size, now + round_trip_s - now)
        now += round_trip_s
        assert out.delay == plain


@given(st.lists(st.tuples(st.floats(0.0, 30.0), st.booleans()), max_size=80))
def test_doubt_only_lowers_what_is_expected_and_is_over_with_one_task(steps: list[tuple[float, bool]]) -> None:
    link, trials = Timed(byte_s=2e-4), 0
    for pause_s, asked in steps:
        link.idle(pause_s)
        known_s = link.out.delay.delay_s(2000)
        assert 0.0 <= link.delay_s() <= known_s
        if asked and link.delay_s() < known_s:
            trials += 1
            link.out.sent(link.now, 4, 1, 2000)
            assert link.delay_s() == known_s
            link.now += 0.402
            link.into.receive(link.now, link.out.seq)
            link._back()
    assert trials <= 1 + link.now / 10


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
