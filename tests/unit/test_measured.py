"""What a node learns of its own speed, and how soon it learns that the device has become another."""

from __future__ import annotations

import pytest

from mdi_exit.measured import SegmentSeconds
from mdi_exit.segments import SegmentKey

KEY, OTHER = SegmentKey(0, 2, True), SegmentKey(2, 4, True)


def known() -> SegmentSeconds:
    seconds = SegmentSeconds()
    seconds.ready({KEY: 0.1, OTHER: 0.2})
    seconds.add(KEY, 2, 0.15)
    return seconds


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_a_device_that_changes_its_speed_has_all_its_averages_moved_at_once(factor: float) -> None:
    seconds = known()
    for _ in range(4):
        seconds.add(KEY, 1, 0.1 * factor)
    assert seconds.per_task(KEY, 2, 9.0) == pytest.approx(0.075 * factor, rel=0.5)
    assert seconds.per_task(OTHER, 1, 9.0) == pytest.approx(0.2 * factor, rel=0.5), "though it did not run"


def test_one_slow_run_in_three_is_no_step() -> None:
    seconds = known()
    for _ in range(20):
        seconds.add(KEY, 1, 0.4)
        seconds.add(KEY, 1, 0.1)
        seconds.add(KEY, 1, 0.1)
    assert seconds.per_task(OTHER, 1, 9.0) == 0.2


def test_changes_count_up_with_all_that_is_learnt() -> None:
    seconds = known()
    before = seconds.changes
    seconds.add(KEY, 1, 0.1)
    seconds.add(SegmentKey(4, 6, True), 1, 0.1)  # of no segment that is here
    assert seconds.changes == before + 1
    seconds.retain(lambda key: key == KEY)
    seconds.clear()
    assert seconds.changes == before + 3
    assert seconds.per_task(KEY, 1, 9.0) == 9.0
