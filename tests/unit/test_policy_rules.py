"""Properties of the rules of Alg. 1 to 4; worked examples are in test_rules."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit.policy.batching import MAX_BATCH, choose_batch, seconds_per_task
from mdi_exit.policy.exiting import early_exits_wanted, should_exit
from mdi_exit.policy.offloading import Candidate, Own, paper
from mdi_exit.policy.steps import QueueBands, RateSteps, ThresholdSteps, next_interval_s, next_threshold, smoothed

SCORES = st.floats(0, 1)
QUEUES = st.floats(0, 1e4)
BANDS = st.tuples(st.floats(0, 100), st.floats(0.1, 100), st.floats(0, 0.99)).map(
    lambda t: QueueBands(t[0], sum(t[:2]), t[2])
)


@given(SCORES, SCORES)
def test_whoever_exits_early_is_strictly_above(score: float, threshold: float) -> None:
    assert should_exit(score, threshold, last=True)
    assert should_exit(score, threshold, last=False) == (score > threshold)
    if should_exit(score, threshold, last=False):
        assert early_exits_wanted(threshold), "no exit without a head"


@pytest.mark.parametrize(("own_s", "cost_s"), [(0.5, 1.0), (0.2, 1.0), (0.9, 1.0), (0.0, 1.0)])
def test_the_coin_has_the_probability_of_the_ratio(own_s: float, cost_s: float) -> None:
    rng = Random(0)
    near = [Candidate("m", 0, cost_s / 2, cost_s / 2)]
    sent = sum(paper(Own(3, 2, own_s), near, rng) == "m" for _ in range(4000))
    assert sent / 4000 == pytest.approx(own_s / cost_s, abs=0.03)


@given(own_s=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_a_neighbour_that_is_sooner_done_always_gets_it(own_s: float, seed: int) -> None:
    assert paper(Own(3, 2, own_s), [Candidate("m", 1, own_s / 3, own_s / 3)], Random(seed)) == "m"


@given(rows=st.lists(st.floats(0, 9), min_size=1, max_size=6), outputs=st.integers(0, 9), seed=st.integers(0, 99))
def test_nobody_with_as_long_a_queue_gets_an_offer(rows: list[float], outputs: int, seed: int) -> None:
    chosen = paper(
        Own(3, outputs, 99.0), [Candidate(str(i), row, 0.0, 0.1) for i, row in enumerate(rows)], Random(seed)
    )
    assert chosen is None or rows[int(chosen)] < outputs
    assert (chosen is None) == (min(rows) >= outputs)


def test_candidates_are_visited_in_random_order() -> None:
    pair = [Candidate("a", 0, 0.0, 0.1), Candidate("b", 0, 0.0, 0.1)]
    rng = Random(0)
    chosen = [paper(Own(3, 2, 9.0), pair, rng) for _ in range(400)]
    assert 140 < chosen.count("a") < 260


@given(interval=st.floats(1e-4, 10), low=QUEUES, high=QUEUES, bands=BANDS)
def test_a_longer_queue_never_gives_a_shorter_interval(interval, low, high, bands) -> None:
    steps = RateSteps()
    shorter, longer = sorted((low, high))
    first, second = next_interval_s(interval, shorter, bands, steps), next_interval_s(interval, longer, bands, steps)
    assert steps.shortest_s <= first <= second <= steps.longest_s


@given(threshold=SCORES, low=QUEUES, high=QUEUES, bands=BANDS, floor=st.floats(0, 1))
def test_a_longer_queue_never_gives_a_higher_threshold(threshold, low, high, bands, floor) -> None:
    shorter, longer = sorted((low, high))
    first = next_threshold(threshold, shorter, bands, ThresholdSteps(), floor)
    second = next_threshold(threshold, longer, bands, ThresholdSteps(), floor)
    assert floor <= second <= first <= 1.0


@given(bands=BANDS, queue=QUEUES)
def test_a_step_is_up_down_or_none(bands: QueueBands, queue: float) -> None:
    assert not (bands.steps_up(queue) and bands.steps_down(queue))
    assert not bands.steps_up(bands.high * (1 + bands.dead))
    assert not bands.steps_down(bands.high * (1 - bands.dead))


@pytest.mark.parametrize(("low", "high", "dead"), [(4, 4, 0), (5, 4, 0), (-1, 4, 0), (1, 4, 1), (1, 4, -0.1)])
def test_bands_that_contradict_themselves_are_not_made(low: float, high: float, dead: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        QueueBands(low, high, dead)


@given(previous=QUEUES, queue=QUEUES, weight=st.floats(0.01, 1))
def test_the_smoothed_queue_lies_between(previous: float, queue: float, weight: float) -> None:
    low, high = sorted((previous, queue))
    assert low - 1e-6 <= smoothed(previous, queue, weight) <= high + 1e-6


@given(
    waiting=st.integers(0, 200), measured=st.dictionaries(st.sampled_from([1, 2, 4, 8, 16, 32]), st.floats(1e-6, 10))
)
def test_a_batch_is_a_power_of_two_of_what_waits(waiting: int, measured: dict[int, float]) -> None:
    size = choose_batch(waiting, measured)
    assert size & (size - 1) == 0
    assert 1 <= size <= max(1, min(waiting, MAX_BATCH))
    assert seconds_per_task(waiting, measured, 0.01) > 0


@given(measured=st.dictionaries(st.sampled_from([1, 2, 4, 8, 16, 32]), st.floats(1e-6, 10), min_size=6))
def test_with_all_sizes_measured_a_batch_is_no_slower_for_each_task_than_one(measured: dict[int, float]) -> None:
    size = choose_batch(64, measured)
    assert measured[size] / size <= measured[1]
