"""Histograms in plain Python: what the pure core counts and the metrics read at scrape time.

The buckets are fixed, so that the histograms of different nodes and runs add up.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import Final

__all__ = ["CONFIDENCE_BUCKETS", "ITEM_BUCKETS_S", "RUN_BUCKETS_S", "Histogram", "ItemHistograms"]

ITEM_BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
RUN_BUCKETS_S: Final = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
CONFIDENCE_BUCKETS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 1.0)


class Histogram:
    """Counts of values by bucket; ``bounds`` are upper limits, inclusive and ascending; the last bucket has none."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def copy(self) -> Histogram:
        """As it is now, to be read elsewhere."""
        found = Histogram(self.bounds)
        found.counts, found.total = list(self.counts), self.total
        return found

    def cumulative(self) -> list[tuple[str, int]]:
        """(upper limit as text, values up to it), the last one ``+Inf``: as Prometheus has it."""
        names = [*map(str, self.bounds), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True))


class ItemHistograms:
    """Completed items: seconds by part (total, compute, queue, transfer) and confidence by exit."""

    __slots__ = ("confidence", "seconds")

    def __init__(self) -> None:
        self.seconds = {part: Histogram(ITEM_BUCKETS_S) for part in ("total", "compute", "queue", "transfer")}
        self.confidence: dict[int, Histogram] = {}

    def add(self, total_s: float, compute_s: float, queue_s: float, exit_number: int, score: float) -> None:
        """One item. What is neither compute nor queue counts as transfer; clocks that disagree make it no less than 0."""
        parts = (total_s, compute_s, queue_s, max(total_s - compute_s - queue_s, 0.0))
        for histogram, seconds in zip(self.seconds.values(), parts, strict=True):
            histogram.add(seconds)
        found = self.confidence.get(exit_number)
        if found is None:
            found = self.confidence[exit_number] = Histogram(CONFIDENCE_BUCKETS)
        found.add(score)
