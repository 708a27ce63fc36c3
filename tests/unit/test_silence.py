"""How long a silence is borne, by the rhythm of the reports."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit.policy.damping import Damping, Flaps
from mdi_exit.policy.silence import Patience, Rhythm

PATIENCE = Patience()


def heard(gaps: list[float]) -> Rhythm:
    rhythm, now = Rhythm(), 0.0
    rhythm.reported(now, PATIENCE)
    for gap in gaps:
        now += gap
        rhythm.reported(now, PATIENCE)
    return rhythm


def test_an_even_rhythm_is_missed_after_four_reports_and_an_uneven_one_later() -> None:
    assert Rhythm().limit_s(PATIENCE) == 2.5, "nothing is known yet"
    assert heard([0.5] * 20).limit_s(PATIENCE) == 2.0
    assert heard([0.2, 0.9] * 20).limit_s(PATIENCE) == 2.5
    assert heard([0.5] * 20 + [10.0]).limit_s(PATIENCE) == pytest.approx(3 * (0.5 + 4.5 / 8)), "a death teaches little"
    assert heard([0.5] * 20 + [10.0] + [0.5] * 300).limit_s(PATIENCE) == pytest.approx(2.0, abs=0.01)


def test_one_that_reports_every_two_seconds_is_not_dead_between_its_reports() -> None:
    assert heard([2.0] * 20).limit_s(PATIENCE) == pytest.approx(6.0)


@given(st.lists(st.floats(0.0, 100.0), max_size=60))
def test_the_limit_is_never_below_the_least_and_above_the_most_only_for_slow_reports(gaps: list[float]) -> None:
    rhythm = heard(gaps)
    limit_s = rhythm.limit_s(PATIENCE)
    assert limit_s >= PATIENCE.least_s
    assert limit_s <= max(PATIENCE.most_s, PATIENCE.reports * (rhythm.mean_s or 0.0))
    assert limit_s <= 2 * PATIENCE.reports * PATIENCE.most_s


def test_a_busy_machine_raises_hardly_any_false_alarm() -> None:
    """Reports come up to 1.8 s late now and then, for an hour."""
    rng, rhythm, now, alarms, late = Random(1), Rhythm(), 0.0, 0, 0
    for _ in range(7200):
        gap = 0.5 + (rng.uniform(0.5, 1.8) if rng.random() < 0.05 else rng.uniform(0.0, 0.2))
        alarms += gap > rhythm.limit_s(PATIENCE)
        late += gap > PATIENCE.least_s
        now += gap
        rhythm.reported(now, PATIENCE)
    assert late > 50
    assert alarms <= 2


@given(st.lists(st.tuples(st.floats(0.0, 300.0), st.sampled_from("db")), max_size=60))
def test_holds_are_bounded_and_all_is_forgotten(steps: list[tuple[float, str]]) -> None:
    flaps, now = Flaps(), 0.0
    for wait_s, what in steps:
        now += wait_s
        flaps.release(now)
        flaps.died(now, "a") if what == "d" else flaps.back(now, "a")
        assert 0.0 <= flaps.hold_left_s(now, "a") <= Damping().most_hold_s
        assert flaps.penalty(now, "a") <= Damping().most_penalty
    assert flaps.penalty(now + 900.0, "a") == 0.0
    assert flaps.release(now + 61.0) in ([], ["a"])
    assert flaps.held == {}
