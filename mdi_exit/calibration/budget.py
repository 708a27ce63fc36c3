"""The best accuracy for a mean cost: a threshold for each exit, by coordinate ascent on outcomes.

For a price of compute, each exit's threshold in turn is set to the one of best accuracy - price × cost while the others
stand, until none moves; the price is then halved or doubled towards the budget (Lagrange). Every step is a look-up in the
trace. The answer is a good one, not proved to be the best: the problem is not convex.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mdi_exit.errors import UsageError
from mdi_exit.trace import Trace

__all__ = ["best_under_budget", "cheapest_within_loss"]

_CANDIDATES: Final = 32
_PRICES: Final = 18
_SWEEPS: Final = 6


class _Search:
    """``worth_NS``: what leaving at each exit gives for each sample, in accuracy."""

    def __init__(self, trace: Trace, worth_NS: NDArray[np.float64]) -> None:
        self.trace = trace
        self.worth_NS = worth_NS
        self.share_S = trace.macs_S / trace.plain_macs
        self._rows_N = np.arange(len(trace))
        quantiles = np.linspace(0.0, 1.0, _CANDIDATES)
        self.candidates = [
            np.unique([0.0, 1.0, *np.quantile(trace.scores_NS[:, e], quantiles).clip(0.0, 1.0)])
            for e in range(trace.exits - 1)
        ]

    def value(self, t_E: NDArray[np.float64]) -> tuple[float, float]:
        """Mean worth and mean cost (as a share of the network without exits)."""
        exit_N = self.trace.exits_at(t_E)
        return float(self.worth_NS[self._rows_N, exit_N].mean()), float(self.share_S[exit_N].mean())

    def ascended(self, price: float, t_E: NDArray[np.float64]) -> NDArray[np.float64]:
        t_E = t_E.copy()

        def gain() -> float:
            worth, cost = self.value(t_E)
            return worth - price * cost

        best = gain()
        for _ in range(_SWEEPS):
            moved = False
            for exit_number, candidates in enumerate(self.candidates):
                kept = t_E[exit_number]
                for candidate in candidates:
                    t_E[exit_number] = candidate
                    if (now := gain()) > best + 1e-12:
                        best, kept, moved = now, candidate, True
                t_E[exit_number] = kept
            if not moved:
                break
        return t_E


def best_under_budget(trace: Trace, budget_macs: float) -> tuple[float, ...]:
    """A threshold for each early exit: the best accuracy found with at most ``budget_macs`` a sample on average.

    Raises ``UsageError`` for a budget that even leaving at the first exit exceeds.
    """
    least = int(trace.macs_S[0])
    if trace.exits < 2 or budget_macs < least:
        raise UsageError("target cost", f"at least {least:,} MACs, the first exit's", f"{budget_macs:,.0f}")
    search = _Search(trace, trace.right_NS.astype(np.float64))
    budget = budget_macs / trace.plain_macs
    best: tuple[float, float, NDArray[np.float64]] | None = None
    low, high = 0.0, 1.0
    price, t_E = 1e-3, np.full(trace.exits - 1, 0.9)
    for _ in range(_PRICES):
        t_E = search.ascended(price, t_E)
        worth, cost = search.value(t_E)
        if cost <= budget:
            high = price
            if best is None or (worth, -cost) > best[:2]:
                best = (worth, -cost, t_E.copy())
        else:
            low = price
        price = (low + high) / 2 if low else high / 4
    found_E = best[2] if best is not None else np.zeros(trace.exits - 1)  # everything out at the first exit
    return tuple(round(float(t), 9) for t in found_E)


def cheapest_within_loss(trace: Trace, max_loss: float) -> tuple[float, ...]:
    """A threshold for each early exit: the least cost found with a loss on these samples of at most ``max_loss``.

    No promise: it gives risk control a direction, from samples that the promise is not tested on.
    """
    search = _Search(trace, -trace.harm_NS.astype(np.float64))
    best_cost, best_E = np.inf, np.ones(trace.exits - 1)
    low, high = 0.0, 4.0
    price, t_E = 0.05, np.full(trace.exits - 1, 0.95)
    for _ in range(_PRICES):
        t_E = search.ascended(price, t_E)
        worth, cost = search.value(t_E)
        if -worth <= max_loss:
            low = price
            if cost < best_cost:
                best_cost, best_E = cost, t_E.copy()
        else:
            high = price
        price = (low + high) / 2
    return tuple(round(float(t), 9) for t in best_E)
