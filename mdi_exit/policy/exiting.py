"""When to exit (MDI-Exit, arXiv 2408.05247, Alg. 1)."""

from __future__ import annotations

__all__ = ["early_exits_wanted", "should_exit"]


def should_exit(score: float, threshold: float, *, last: bool) -> bool:
    """True at the last exit, or when ``score`` is strictly above ``threshold`` (both in [0, 1])."""
    return last or score > threshold


def early_exits_wanted(threshold: float) -> bool:
    """False at threshold 1: no score is above it, so heads need not even be run."""
    return threshold < 1.0
