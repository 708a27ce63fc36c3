"""How many items come how far, and how many are right, at any thresholds: from recorded outcomes.

Shape suffixes: N samples, K exits (the last always exits), E = K - 1 exits that can be passed, G settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["SETTINGS", "ExitTable", "Setting", "fixed_table"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SETTINGS: Final = 40_000
_MOST_LEVELS: Final = 1_500
_POLISH_ROUNDS: Final = 6


@dataclass(frozen=True, slots=True)
class Setting:
    """One threshold for each exit but the last, all in force together.

    ``reach``: share of the items that come to each exit, the first being 1; ``accuracy``: share of them that get the right
    label; ``heads``: whether each exit's head is run at all, which at threshold 1 it is not.
    """

    thresholds: tuple[float, ...]
    reach: tuple[float, ...]
    accuracy: float
    heads: tuple[bool, ...]


def fixed_table(reach: Sequence[float], accuracy: float) -> ExitTable:
    """A table with one setting only: that so many items come to each exit, however that comes about."""
    setting = Setting((math.nan,) * (len(reach) - 1), tuple(reach), accuracy, (True,) * len(reach))
    return ExitTable((setting,))


class ExitTable:
    """All settings of thresholds on a grid, each with the shares of items that it lets come to each exit.

    The grid's levels are quantiles of each exit's scores, with 0 and 1; ``finer`` then finds the best thresholds among
    all recorded scores near one of them.
    """

    def __init__(self, settings: Sequence[Setting]) -> None:
        """A table of these settings only."""
        self.exits = len(settings[0].reach)
        self.reach_KG: Floats = np.array([setting.reach for setting in settings]).T.copy()
        self.accuracy_G: Floats = np.array([setting.accuracy for setting in settings])
        self.heads_KG: Bools = np.array([setting.heads for setting in settings]).T.copy()
        self._settings = tuple(settings)
        self._levels: list[Floats] = []
        self._least = 0.0
        self._scores_NK: Floats | None = None
        self._right_NK: Bools | None = None

    @classmethod
    def of_outcomes(
        cls, scores_NK: npt.ArrayLike, right_NK: npt.ArrayLike, *, settings: int = SETTINGS, least: float = 0.0
    ) -> ExitTable:
        """``scores_NK`` in [0, 1]: each exit's confidence in each sample; ``right_NK``: whether its label is the true one.

        An exit is taken when the score is above the threshold. ``settings``: about how many to tabulate; ``least``: the
        lowest threshold allowed.
        """
        scores, right = np.asarray(scores_NK, np.float64), np.asarray(right_NK, np.bool_)
        if scores.ndim != 2 or scores.shape != right.shape or not len(scores):
            raise ValueError(f"expected scores and rightness of shape N×K, got {scores.shape} and {right.shape}")
        table = cls.__new__(cls)
        table._settings, table._least = (), least
        table.exits = scores.shape[1]
        table._scores_NK, table._right_NK = scores, right
        early = table.exits - 1
        count = min(max(int(settings ** (1 / early)), 3), _MOST_LEVELS) if early else 1
        table._levels = [_levels(scores[:, k], count, least) for k in range(early)]
        table._tabulate(scores, right)
        return table

    def _tabulate(self, scores_NK: Floats, right_NK: Bools) -> None:
        """Joint counts of the levels that each sample's scores pass, summed up along every axis."""
        samples, early = len(scores_NK), self.exits - 1
        shape = tuple(len(levels) for levels in self._levels)
        passed = [np.searchsorted(levels, scores_NK[:, k], side="left") for k, levels in enumerate(self._levels)]
        reach, right = [np.ones(shape)], np.zeros(shape)
        for k in range(self.exits):
            cells = tuple(size + 1 for size in shape[: min(k + 1, early)])
            index = np.ravel_multi_index(passed[: len(cells)], cells) if cells else np.zeros(samples, np.int64)
            size = math.prod(cells)
            goes = _stay(np.bincount(index, minlength=size).reshape(cells), len(cells))
            hit = np.bincount(index, weights=right_NK[:, k].astype(np.float64), minlength=size).reshape(cells)
            if k < early:
                reach.append(_spread(goes / samples, shape))
                right += _spread(_taken(hit), shape)
            else:
                right += _spread(_stay(hit, early), shape)
        self.reach_KG = np.stack([share.ravel() for share in reach])
        self.accuracy_G = right.ravel() / samples
        grids = np.meshgrid(*self._levels, indexing="ij")
        on = [(grid < 1.0).ravel() for grid in grids]
        self.heads_KG = np.stack([*on, np.ones(self.accuracy_G.size, np.bool_)])

    def __len__(self) -> int:
        return len(self.accuracy_G)

    def setting(self, number: int) -> Setting:
        """The setting with this number in the table."""
        if self._settings:
            return self._settings[number]
        at = np.unravel_index(number, [len(levels) for levels in self._levels]) if self._levels else ()
        return Setting(
            tuple(float(levels[i]) for levels, i in zip(self._levels, at, strict=True)),
            tuple(float(share) for share in self.reach_KG[:, number]),
            float(self.accuracy_G[number]),
            tuple(bool(on) for on in self.heads_KG[:, number]),
        )

    def at(self, thresholds: Sequence[float]) -> Setting:
        """The setting with these thresholds, counted exactly on the recorded outcomes."""
        if self._scores_NK is None or self._right_NK is None:
            raise ValueError("expected a table of recorded outcomes")
        left = np.ones(len(self._scores_NK), np.bool_)
        reach, right = [1.0], 0
        for k, threshold in enumerate(thresholds):
            taken = left & (self._scores_NK[:, k] > threshold)
            right += int(np.count_nonzero(taken & self._right_NK[:, k]))
            left &= ~taken
            reach.append(float(left.mean()))
        right += int(np.count_nonzero(left & self._right_NK[:, -1]))
        heads = (*(threshold < 1.0 for threshold in thresholds), True)
        return Setting(tuple(thresholds), tuple(reach), right / len(left), heads)

    def finer(self, setting: Setting, worth: float, cost_K: Sequence[float]) -> Setting:
        """Coordinate ascent from ``setting`` on the mean of worth·right - cost of the exit taken, over all scores.

        ``cost_K``: what an item costs that leaves at each exit. A threshold of 1 stays, since it saves the head.
        """
        scores, right = self._scores_NK, self._right_NK
        if scores is None or right is None or not setting.thresholds:
            return setting
        gain_NK: Floats = worth * right.astype(np.float64) - np.asarray(cost_K, np.float64)
        thresholds = list(setting.thresholds)
        for _ in range(_POLISH_ROUNDS):
            before = list(thresholds)
            for k, threshold in enumerate(thresholds):
                if threshold < 1.0:
                    thresholds[k] = max(_best_threshold(scores, gain_NK, thresholds, k), self._least)
            if thresholds == before:
                break
        return self.at(thresholds)


def _levels(scores_N: Floats, count: int, least: float) -> Floats:
    quantiles = np.quantile(scores_N, np.linspace(0.0, 1.0, count), method="lower") if count > 2 else np.array([])
    return np.unique(np.clip(np.concatenate([[least], quantiles, [1.0]]), least, 1.0))


def _stay(counts: npt.NDArray[Any], axes: int) -> Floats:
    """Of cells by levels passed: how many pass none above the threshold, for each threshold along the first axes."""
    for axis in range(axes):
        counts = np.cumsum(counts, axis=axis)
        counts = np.take(counts, range(counts.shape[axis] - 1), axis=axis)
    return np.asarray(counts, np.float64)


def _taken(counts: npt.NDArray[Any]) -> Floats:
    """How many stay along all axes but the last, and leave there."""
    earlier = _stay(counts, counts.ndim - 1)
    all_of = earlier.sum(axis=-1, keepdims=True)
    stayed = np.cumsum(earlier, axis=-1)
    return np.asarray(all_of - stayed[..., :-1], np.float64)


def _spread(values: Floats, shape: tuple[int, ...]) -> Floats:
    """Values by the first thresholds, for all thresholds."""
    values = values.reshape(values.shape + (1,) * (len(shape) - values.ndim))
    return np.broadcast_to(values, shape)


def _best_threshold(scores_NK: Floats, gain_NK: Floats, thresholds: Sequence[float], exit_number: int) -> float:
    """The recorded score that is the best threshold of one exit, the others' being as they are."""
    comes = np.all(scores_NK[:, :exit_number] <= np.asarray(thresholds[:exit_number]), axis=1)
    scores, gains = scores_NK[comes], gain_NK[comes]
    onward = gains[:, -1].copy()
    for k in range(len(thresholds) - 1, exit_number, -1):
        onward = np.where(scores[:, k] > thresholds[k], gains[:, k], onward)
    order = np.argsort(scores[:, exit_number], kind="stable")
    score = scores[order, exit_number]
    stay = np.concatenate([[0.0], np.cumsum(onward[order])])
    leave = np.concatenate([[0.0], np.cumsum(gains[order, exit_number])])
    total = stay + leave[-1] - leave  # the first i stay, the others leave
    last_of_equals = np.concatenate([[True], score[1:] != score[:-1], [True]]) if len(score) else np.array([True])
    best = int(np.argmax(np.where(last_of_equals, total, -np.inf)))
    return float(score[best - 1]) if best else 0.0
