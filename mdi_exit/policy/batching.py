"""How many waiting tasks of one segment to run at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["MAX_BATCH", "choose_batch", "seconds_per_task"]

MAX_BATCH: Final = 32
_GAIN: Final = 0.99


def choose_batch(waiting: int, seconds_by_batch: Mapping[int, float], *, explore: bool = True) -> int:
    """A power of two ≤ ``waiting``, of the least measured seconds per task.

    ``seconds_by_batch`` maps a batch size to its measured seconds. A larger batch must gain at least 1 % to be preferred.
    With ``explore`` the first size not yet measured is tried, as long as the sizes below it were still gaining.
    """
    best = size = 1
    if waiting <= 1:  # most often
        return best
    most = min(waiting, MAX_BATCH)
    while size <= most:
        seconds = seconds_by_batch.get(size)
        if seconds is None:
            return size if explore else best
        if size > 1:
            if seconds / size > _GAIN * seconds_by_batch[best] / best:
                break
            best = size
        size *= 2
    return best


def seconds_per_task(waiting: int, seconds_by_batch: Mapping[int, float], fallback_s: float) -> float:
    """Γ for planning: expected seconds a task when ``waiting`` tasks of the segment are there."""
    size = 1 if waiting <= 1 else choose_batch(waiting, seconds_by_batch, explore=False)
    seconds = seconds_by_batch.get(size)
    return fallback_s if seconds is None else seconds / size
