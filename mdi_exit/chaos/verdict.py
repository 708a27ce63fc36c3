"""What a run's files say: nothing lost, nothing twice, nothing wrong, and how soon it went on. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

__all__ = ["Verdict", "judged", "rate_between", "recovery_s"]

Progress = Sequence[tuple[float, int]]

_WINDOW_S: Final = 1.0
_BACK: Final = 0.8
_DIP_WITHIN_S: Final = 4.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Counts of items. ``lost``: admitted and without a line of results; ``duplicated``: lines beyond the first of an item;
    ``wrong``: labels that differ from the fault-free ones; ``unknown``: lines of items that were never offered.
    """

    admitted: int
    completed: int
    errors: int
    lost: int
    duplicated: int
    wrong: int
    unknown: int
    reasons: Mapping[str, int]

    @property
    def good(self) -> bool:
        """The promise was kept; errors are results too."""
        return not (self.lost or self.duplicated or self.wrong or self.unknown)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judged(admitted: int, rows: Sequence[Mapping[str, Any]], labels: Mapping[str, int]) -> Verdict:
    """``rows``: the lines of the results file; ``labels``: by item, of a run without faults."""
    times = Counter(str(row["id"]) for row in rows)
    reasons = Counter(str(row["error"]) for row in rows if "error" in row)
    return Verdict(
        admitted=admitted,
        completed=len(rows) - reasons.total(),
        errors=reasons.total(),
        lost=max(admitted - len(times), 0),
        duplicated=len(rows) - len(times),
        wrong=sum("label" in row and row["label"] != labels.get(_image(row["id"]), row["label"]) for row in rows),
        unknown=sum(_image(name) not in labels for name in times) + max(len(times) - admitted, 0),
        reasons=dict(reasons),
    )


def _image(name: str) -> str:
    """An item's image: those of a later round of the same images end in ``#2``, ``#3``, ..."""
    return str(name).partition("#")[0]


def rate_between(progress: Progress, begin_s: float, end_s: float) -> float:
    """Results a second in a stretch of time. ``progress``: (seconds, results so far), in order."""
    return (_count_at(progress, end_s) - _count_at(progress, begin_s)) / (end_s - begin_s) if end_s > begin_s else 0.0


def recovery_s(progress: Progress, usual_per_s: float, since_s: float, until_s: float) -> float | None:
    """Seconds from ``since_s`` until results come again at 80 % of ``usual_per_s``, over one second.

    0 if they never came more slowly within the first seconds; None if that is not seen to end before ``until_s``.
    """
    enough = _BACK * usual_per_s
    starts = [at for at, _ in progress if since_s <= at <= until_s - _WINDOW_S]
    dipped = False
    for start in [since_s, *starts]:
        slow = rate_between(progress, start, start + _WINDOW_S) < enough
        if not dipped and not slow and start - since_s > _DIP_WITHIN_S:
            return 0.0
        if dipped and not slow:
            return start - since_s
        dipped = dipped or slow
    return None if dipped else 0.0


def _count_at(progress: Progress, at_s: float) -> int:
    """Results at a moment: those of the last look before it."""
    low, high = 0, len(progress)
    while low < high:
        middle = (low + high) // 2
        if progress[middle][0] <= at_s:
            low = middle + 1
        else:
            high = middle
    return progress[low - 1][1] if low else 0
