"""How long a transport waits at most before it asks its broker again."""

from __future__ import annotations

import pytest

from mdi_exit.transport.backoff import Backoff


def bounds(backoff: Backoff, until: float, begin: float = 0.0) -> list[tuple[float, float]]:
    """(seconds since ``begin``, the bound then) of attempts that fail at once and always wait as long as they may."""
    now, found = begin, []
    while now - begin < until:
        most_s = backoff.failed(now)
        found.append((now - begin, most_s))
        now += most_s
    return found


def test_the_bound_is_doubled_up_to_a_second_while_an_outage_is_short() -> None:
    found = [most_s for _, most_s in bounds(Backoff(), until=10.0)]
    assert found[:5] == [0.1, 0.2, 0.4, 0.8, 1.0]
    assert max(found) == 1.0


def test_a_long_outage_is_asked_after_a_tenth_of_it_and_at_least_every_five_seconds() -> None:
    found = bounds(Backoff(), until=300.0)
    assert all(most_s <= max(1.0, 0.1 * at) for at, most_s in found)
    assert max(most_s for at, most_s in found if at < 30.0) > 2.0
    assert {most_s for at, most_s in found if at > 60.0} == {5.0}


def test_after_a_connection_that_lasted_all_begins_anew() -> None:
    backoff = Backoff()
    first = bounds(backoff, until=100.0, begin=1000.0)
    backoff.ended()
    again = bounds(backoff, until=100.0, begin=5000.0)
    assert [most_s for _, most_s in again] == pytest.approx([most_s for _, most_s in first])


def test_other_brokers_of_a_list_are_tried_without_delay_and_without_a_longer_bound() -> None:
    backoff = Backoff()
    assert [backoff.failed(0.1 * turn, is_last=False) for turn in range(20)] == [0.1] * 20
    assert [backoff.failed(2.0), backoff.failed(2.1)] == [0.1, 0.2]
