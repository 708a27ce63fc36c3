"""Histograms in plain Python."""

from __future__ import annotations

import pytest

from mdi_exit.histogram import CONFIDENCE_BUCKETS, ITEM_BUCKETS_S, RUN_BUCKETS_S, Histogram, ItemHistograms


def test_a_value_counts_in_each_bucket_that_it_does_not_exceed() -> None:
    histogram = Histogram((1.0, 2.0, 5.0))
    for value in (0.5, 1.0, 1.5, 5.0, 9.0):
        histogram.add(value)
    assert histogram.cumulative() == [("1.0", 2), ("2.0", 3), ("5.0", 4), ("+Inf", 5)]
    assert histogram.count == 5
    assert histogram.total == pytest.approx(17.0)


def test_a_copy_does_not_change_any_more() -> None:
    histogram = Histogram((1.0,))
    histogram.add(0.5)
    copy = histogram.copy()
    histogram.add(0.5)
    assert (copy.count, copy.total, histogram.count) == (1, 0.5, 2)


@pytest.mark.parametrize("buckets", [ITEM_BUCKETS_S, RUN_BUCKETS_S, CONFIDENCE_BUCKETS])
def test_buckets_ascend(buckets: tuple[float, ...]) -> None:
    assert list(buckets) == sorted(set(buckets))
    assert len(buckets) <= 16


def test_an_item_is_taken_apart_into_compute_queue_and_the_rest() -> None:
    items = ItemHistograms()
    items.add(1.0, 0.25, 0.5, 3, 0.97)
    items.add(0.1, 0.2, 0.0, 3, 0.4)
    totals = {part: histogram.total for part, histogram in items.seconds.items()}
    assert totals == pytest.approx({"total": 1.1, "compute": 0.45, "queue": 0.5, "transfer": 0.25})
    assert {histogram.count for histogram in items.seconds.values()} == {2}
    assert list(items.confidence) == [3]
    assert items.confidence[3].total == pytest.approx(1.37)
