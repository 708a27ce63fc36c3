"""How sure the exits have been of late, hence how many items would come how far at any threshold.

Each node counts the scores that its exits give in bins that are finer near 1, where thresholds lie. Of those who come to
an exit at present the share below a threshold is known, also for thresholds that are not in force; that those who would
come at another threshold are alike is an assumption. What is right is not known at run time: the mean score of those who
leave stands for their accuracy, which holds as far as scores are calibrated.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["BINS", "ExitMix", "bin_of"]

_EDGES: Final = (
    0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999,
)  # fmt: skip
_BOUNDS: Final = (0.0, *_EDGES, 1.0)
BINS: Final = len(_EDGES) + 1
_ENOUGH: Final = 20.0


def bin_of(score: float) -> int:
    """The bin of a score in [0, 1]; each holds its upper edge."""
    return bisect_left(_EDGES, score)


class ExitMix:
    """Counts of scores by exit, older ones fading."""

    def __init__(self, exits: int) -> None:
        self.counts = [[0.0] * BINS for _ in range(exits)]
        self._told: dict[tuple[str, int], Mapping[int, Sequence[int]]] = {}

    def told(self, node: str, start: int, scores: Mapping[int, Sequence[int]]) -> None:
        """A node's counts since its ``start``, of which the last were told before."""
        before = self._told.get((node, start), {})
        for number, bins in scores.items():
            if number < len(self.counts) and len(bins) == BINS:
                known = before.get(number, (0,) * BINS)
                row = self.counts[number]
                for at, (new, old) in enumerate(zip(bins, known, strict=True)):
                    row[at] += max(new - old, 0)
        self._told[node, start] = {**before, **scores}

    def fade(self, kept: float) -> None:
        """Let all counts weigh ``kept`` of what they did."""
        self.counts = [[count * kept for count in row] for row in self.counts]

    @property
    def known(self) -> bool:
        """Whether the first exit has judged enough to go by."""
        return sum(self.counts[0]) >= _ENOUGH

    def reach(self, thresholds: Sequence[float]) -> tuple[float, ...]:
        """The share of items that comes to each exit; the first is 1. ``thresholds``: of all exits but the last."""
        shares = [1.0]
        for number, threshold in enumerate(thresholds):
            shares.append(shares[-1] * self._below(number, threshold))
        return tuple(shares)

    def sureness(self, thresholds: Sequence[float]) -> float:
        """The mean score of an item where it leaves."""
        reach = self.reach(thresholds)
        left = 0.0
        for number, share in enumerate(reach):
            last = number == len(reach) - 1
            threshold = 0.0 if last else thresholds[number]
            leaving = share - (0.0 if last else reach[number + 1])
            left += leaving * self._mean_above(number, threshold)
        return left

    def _row(self, number: int) -> list[float]:
        """An exit that few have come to is taken to be like all together."""
        row = self.counts[number]
        if sum(row) >= _ENOUGH:
            return row
        return [sum(column) for column in zip(*self.counts, strict=True)]

    def _below(self, number: int, threshold: float) -> float:
        row = self._row(number)
        total = sum(row)
        if total <= 0 or threshold >= 1.0:
            return 1.0
        return sum(count * _part_below(at, threshold) for at, count in enumerate(row)) / total

    def _mean_above(self, number: int, threshold: float) -> float:
        weight = total = 0.0
        for at, count in enumerate(self._row(number)):
            above = count * (1 - _part_below(at, threshold))
            weight += above
            total += above * (max(_BOUNDS[at], threshold) + _BOUNDS[at + 1]) / 2
        return total / weight if weight > 0 else 1.0


def _part_below(at: int, threshold: float) -> float:
    low, high = _BOUNDS[at], _BOUNDS[at + 1]
    return min(max((threshold - low) / (high - low), 0.0), 1.0)
