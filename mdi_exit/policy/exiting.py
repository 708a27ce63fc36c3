"""When to exit (MDI-Exit, arXiv 2408.05247, Alg. 1)."""

from __future__ import annotations

__all__ = ["early_exits_wanted", "should_exit"]


def should_exit(score: float, threshold: float, *, last: bool, inclusive: bool = False) -> bool:
    """True at the last exit, or when ``score`` is strictly above ``threshold`` (both in [0, 1]).

    ``inclusive``: equal is enough, as for JEI-DNN's gates (arXiv 2310.09163); at threshold 1 nothing exits early even so.
    """
    return last or score > threshold or (inclusive and score == threshold < 1.0)


def early_exits_wanted(threshold: float) -> bool:
    """False at threshold 1: no score is above it, so heads need not even be run."""
    return threshold < 1.0
