"""The rules of Alg. 1 to 4 on worked examples, and what the paper leaves open as it is settled here."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit.links import DelayModel, Inbound, Outbound
from mdi_exit.policy.batching import choose_batch, seconds_per_task
from mdi_exit.policy.exiting import early_exits_wanted, should_exit
from mdi_exit.policy.offloading import HERE, OFFLOADING, Candidate, Own, forward, paper
from mdi_exit.policy.queueing import keeps_here
from mdi_exit.policy.steps import QueueBands, RateSteps, ThresholdSteps, next_interval_s, next_threshold, smoothed
from mdi_exit.segments import ModelPlan, SegmentKey, needed_segments, segment_stop
from mdi_exit.span import LayerSpan, missing_layers
from mdi_exit.wire import Ack


def test_exit_is_strict_and_the_last_exit_always_exits() -> None:
    assert should_exit(0.9000001, 0.9, last=False)
    assert not should_exit(0.9, 0.9, last=False)
    assert not should_exit(1.0, 1.0, last=False)
    assert should_exit(0.0, 1.0, last=True)
    assert not early_exits_wanted(1.0)
    assert early_exits_wanted(0.999)


def test_for_a_gate_equal_is_enough_but_at_threshold_1_nothing_exits_early() -> None:
    assert should_exit(0.5, 0.5, last=False, inclusive=True)
    assert not should_exit(0.499, 0.5, last=False, inclusive=True)
    assert not should_exit(1.0, 1.0, last=False, inclusive=True)


def test_a_new_task_stays_if_nothing_waits_or_too_much_is_on_offer() -> None:
    assert keeps_here(inputs=0, outputs=0, output_limit=4)
    assert not keeps_here(inputs=1, outputs=4, output_limit=4)
    assert keeps_here(inputs=1, outputs=5, output_limit=4)


class Coins(Random):
    """Throws what it is told, and counts."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value, self.thrown = value, 0

    def random(self) -> float:
        self.thrown += 1
        return self.value

    def sample(self, population, k, *, counts=None):
        return list(population)[:k]


def test_offload_when_waiting_here_takes_longer() -> None:
    coins = Coins(0.999)
    assert paper(Own(3, 2, 1.0), [Candidate("m", 1, 0.5, 0.1)], coins) == "m"
    assert coins.thrown == 0


@pytest.mark.parametrize(("coin", "to"), [(0.49, "m"), (0.51, None)])
def test_else_with_the_probability_of_the_ratio_drawn_once(coin: float, to: str | None) -> None:
    coins = Coins(coin)
    assert paper(Own(3, 2, 0.5), [Candidate("m", 1, 0.75, 0.25)], coins) == to
    assert coins.thrown == 1


def test_offload_only_to_a_shorter_queue_and_a_zero_denominator_sends() -> None:
    assert paper(Own(3, 2, 9.0), [Candidate("m", 2, 0.0, 0.1)], Coins(0.0)) is None
    assert paper(Own(0, 1, 0.0), [Candidate("m", 0, 0.0, 0.0)], Coins(1.0)) == "m"


def test_mandatory_forwarding_goes_to_the_least_delay_plus_backlog() -> None:
    near, far = Candidate("near", 9, 1.0, 0.1), Candidate("far", 0, 0.0, 0.9)
    assert forward([near, far], Random(0)) == "far"
    assert forward([], Random(0)) is None
    many = [Candidate(f"n{i}", 0, float(i), 0.0) for i in range(10)]
    chosen = {forward(many, Random(seed)) for seed in range(60)}
    assert len(chosen) > 3, "with many neighbours two random ones are compared"
    assert "n9" not in chosen


def test_neighbours_that_cost_alike_share_the_work() -> None:
    """Else under light load the one with the least measured delay would get all, and a newcomer never anything."""
    rng = Random(0)
    quick = [Candidate("a", 0, 0.0, 0.0006), Candidate("b", 0, 0.0, 0.0015), Candidate("late", 0, 0.0, 0.0017)]
    chosen = [forward(quick, rng) for _ in range(400)]
    assert chosen.count("a") == pytest.approx(200, abs=50)
    assert "late" not in chosen, "more than a millisecond is a difference"
    slow = [Candidate("a", 0, 0.0, 0.1), Candidate("b", 0, 0.0, 0.109), Candidate("late", 0, 0.0, 0.111)]
    assert {forward(slow, rng) for _ in range(100)} == {"a", "b"}


@given(
    own=st.builds(Own, st.integers(0, 50), st.integers(1, 50), st.floats(0, 100)),
    rows=st.lists(st.tuples(st.floats(0, 50), st.floats(0, 100), st.floats(0, 10)), max_size=6),
    name=st.sampled_from(sorted(OFFLOADING)),
    seed=st.integers(0, 1000),
)
def test_every_offloading_policy_names_a_candidate_or_none_and_is_deterministic(own, rows, name, seed) -> None:
    candidates = [Candidate(f"n{i}", *row) for i, row in enumerate(rows)]
    chosen = OFFLOADING[name](own, candidates, Random(seed))
    assert chosen is None or chosen in {HERE, *(c.name for c in candidates)}
    assert chosen == OFFLOADING[name](own, candidates, Random(seed))


BANDS = QueueBands(low=4, high=12, dead=0.25)


def test_admission_interval_shrinks_largely_then_slightly_holds_and_grows() -> None:
    steps = RateSteps(large=0.5, small=0.9, grow=1.5, shortest_s=0.01, longest_s=2.0)
    assert next_interval_s(1.0, 0, BANDS, steps) == 0.5
    assert next_interval_s(1.0, 6, BANDS, steps) == 0.9
    assert next_interval_s(1.0, 12, BANDS, steps) == 1.0
    assert next_interval_s(1.0, 16, BANDS, steps) == 1.5
    assert next_interval_s(0.015, 0, BANDS, steps) == 0.01
    assert next_interval_s(1.9, 99, BANDS, steps) == 2.0


def test_threshold_rises_largely_then_slightly_holds_and_falls_within_its_bounds() -> None:
    steps = ThresholdSteps(large=0.1, small=0.01, fall=0.2)
    assert next_threshold(0.5, 0, BANDS, steps, 0.3) == pytest.approx(0.6)
    assert next_threshold(0.5, 6, BANDS, steps, 0.3) == pytest.approx(0.51)
    assert next_threshold(0.5, 12, BANDS, steps, 0.3) == 0.5
    assert next_threshold(0.5, 16, BANDS, steps, 0.3) == pytest.approx(0.3)
    assert next_threshold(0.35, 99, BANDS, steps, 0.3) == 0.3
    assert next_threshold(0.95, 0, BANDS, steps, 0.3) == 1.0
    assert smoothed(0.0, 10.0, 0.25) == 2.5


def test_batches_only_when_they_gain() -> None:
    assert choose_batch(1, {}) == 1
    assert choose_batch(8, {1: 1.0}) == 2, "the next size is tried once"
    assert choose_batch(8, {1: 1.0, 2: 1.99}) == 1
    assert choose_batch(8, {1: 1.0, 2: 1.2, 4: 2.0, 8: 3.0}) == 8
    assert choose_batch(5, {1: 1.0, 2: 1.2, 4: 2.0, 8: 3.0}) == 4
    assert seconds_per_task(4, {1: 1.0, 2: 1.2, 4: 2.0}, 9.0) == 0.5
    assert seconds_per_task(4, {}, 9.0) == 9.0


# --- spans and segments

PLAN = ModelPlan("ab" * 16, 9, (1, 3, 5, 6, 8), (1,) * 9)


def test_spans_are_inclusive_for_people_and_half_open_inside() -> None:
    span = LayerSpan.parse("4-8")
    assert (span.first, span.stop, span.last, len(span), str(span)) == (4, 9, 8, 5, "4-8")
    assert 8 in span
    assert 9 not in span
    assert missing_layers(9, [LayerSpan(0, 3), LayerSpan(5, 9)]) == [3, 4]


def test_a_segment_ends_at_the_first_exit_or_at_the_spans_end() -> None:
    assert segment_stop(2, LayerSpan(2, 9), PLAN.exit_layers) == 4
    assert segment_stop(2, LayerSpan(2, 3), PLAN.exit_layers) == 3
    assert PLAN.segment(4, LayerSpan(4, 9), early_exits=True) == SegmentKey(4, 6, True)
    assert PLAN.segment(4, LayerSpan(4, 9), early_exits=False) == SegmentKey(4, 6, False)
    assert PLAN.segment(7, LayerSpan(4, 9), early_exits=False) == SegmentKey(7, 9, True), "the last head stays"
    with pytest.raises(ValueError, match="entry"):
        segment_stop(1, LayerSpan(2, 9), PLAN.exit_layers)


def test_needed_segments_are_those_where_tasks_may_enter() -> None:
    keys = needed_segments(PLAN, LayerSpan(4, 9), [LayerSpan(0, 4), LayerSpan(3, 5)])
    assert {key.entry for key in keys} == {4, 5, 6, 7}
    assert SegmentKey(5, 6, True) in keys
    assert SegmentKey(8, 9, True) not in keys


# --- links


def ack(**fields: object) -> Ack:
    values = {"incarnation": 1, "to_incarnation": 2, "seq": 0, "hold_s": 0.0} | fields
    return Ack(**values)  # type: ignore[arg-type]


def test_credits_are_per_layer_and_come_back_cumulatively() -> None:
    link = Outbound(1, window=2)
    for item in (1, 2):
        link.sent(0.0, 4, item, 100)
    assert link.room(4) == 0
    assert link.room(6) == 2
    link.acknowledged(0.1, ack(seq=2))
    assert link.room(4) == 0, "received is not released"
    link.acknowledged(0.2, ack(seq=2, released={4: 2}))
    link.acknowledged(0.3, ack(seq=2, released={4: 2}))
    assert link.room(4) == 2


def test_a_gap_gives_the_credit_of_what_was_lost_back() -> None:
    link, inbound = Outbound(1, window=4), Inbound(9)
    for item in range(4):
        link.sent(0.0, 4, item, 100)
    for seq in (1, 4):
        assert inbound.receive(1.0, seq)
    assert not inbound.receive(1.0, 4), "seen before"
    link.acknowledged(1.1, inbound.ack(1.1, 1, 0, 0.0))
    assert (link.lost, link.room(4)) == (2, 2)


def test_a_loss_at_the_tail_is_found_by_a_probe() -> None:
    link, inbound = Outbound(1, window=1), Inbound(9)
    link.sent(0.0, 4, 1, 100)
    number = link.probe(0.5)
    inbound.probe = number
    link.acknowledged(0.6, inbound.ack(0.6, 1, 0, 0.0))
    assert (link.lost, link.room(4)) == (1, 1)


def test_a_message_that_was_not_taken_gives_its_credit_back() -> None:
    link = Outbound(1, window=1)
    link.unsent(link.sent(0.0, 4, 1, 100), 1)
    assert link.room(4) == 1


def test_stale_reports_are_run_down_and_corrected_by_what_was_sent_since() -> None:
    link = Outbound(1, window=9)
    link.reported(10.0, inputs=4, backlog_s=2.0, seq=0)
    assert link.load(10.0, {}, 0.1) == (4.0, 2.0)
    assert link.load(11.0, {}, 0.1) == (2.0, 1.0)
    link.sent(11.0, 4, 1, 100)
    assert link.load(11.0, {4: 0.5}, 0.1) == (3.0, 1.5)
    link.reported(11.2, inputs=3, backlog_s=1.5, seq=1)
    assert link.load(11.2, {4: 0.5}, 0.1) == (3.0, 1.5), "reported and unacknowledged is not counted twice"
    assert link.load(99.0, {4: 0.5}, 0.1) == (0.0, 0.0)


@given(st.floats(0.0005, 0.05), st.floats(1e5, 1e8), st.lists(st.integers(0, 500_000), min_size=30, max_size=60))
def test_delay_is_a_line_in_the_size(a: float, bytes_per_s: float, sizes: list[int]) -> None:
    model = DelayModel()
    for size in [*sizes, 0, 500_000]:
        model.add(size, 2 * a + size / bytes_per_s)
    assert model.delay_s(200_000) == pytest.approx(a + 200_000 / bytes_per_s, rel=1e-3, abs=1e-6)


def test_delay_of_one_size_only_is_half_the_round_trip() -> None:
    model = DelayModel()
    for _ in range(10):
        model.add(1000, 0.02)
    assert model.delay_s(1000) == pytest.approx(0.01)
