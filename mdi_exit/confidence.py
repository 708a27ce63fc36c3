"""How sure an exit is: one score in [0, 1] for each sample, greater is surer, whatever the measure.

===============  =========================================================================================
measure          score
===============  =========================================================================================
max-probability  the largest softmax probability p₁
margin           p₁ - p₂
entropy          1 - H(p) / ln K
patience         consecutive exits, this one included, that agree on the class, as a share of all exits
                 (PABEE, arXiv 2006.04152)
gate             JEI-DNN's h (arXiv 2310.09163): from this exit's gate g and those of the exits before it,
                 P = max(0, min(g, 1 - Σg)), h = clip(P / Π(1 - h), 0, 1); 1 where the product is 0
frame-entropy    DAISY's (arXiv 2406.05464): 1 - H̄ / ln U, where H̄ is the mean entropy over the frames that are there of
                 what the exit's branch predicts of each frame's unit, of U. The graph reckons it; classes have no say
===============  =========================================================================================

The softmax is of the logits divided by the exit's temperature. Patience and gate remember something from exit to exit: it
travels with the task as its exit state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from mdi_exit.model.manifest import Measure

__all__ = ["MEASURES", "Judgement", "State", "judge", "probabilities"]

MEASURES: Final[tuple[Measure, ...]] = get_args(Measure)

Array = NDArray[np.float32]
State = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """For each sample: class, score in [0, 1], and what the exits to come need to know."""

    labels: list[int]
    scores: list[float]
    states: list[State]


def probabilities(logits_NK: Array, temperature: float = 1.0) -> Array:
    """Softmax of ``logits_NK / temperature``; a row with a NaN is all NaN."""
    scaled_NK = logits_NK / np.float32(temperature)
    powers_NK = np.exp(scaled_NK - scaled_NK.max(axis=1, keepdims=True))
    p_NK: Array = powers_NK / powers_NK.sum(axis=1, keepdims=True)
    return p_NK


def judge(
    measure: Measure,
    logits_NK: Array,
    *,
    states: Sequence[State],
    exits: int,
    temperature: float = 1.0,
    gate_N1: Array | None = None,
) -> Judgement:
    """What one exit says of N samples. ``states``: of each sample, from the exits before; ``exits``: of the network.

    ``gate_N1``: what the exit's gate, or its branch, gives. A row with a NaN gets score 0, so that it never exits early.
    Raises ``ValueError`` for a measure that needs a gate or branch where there is none.
    """
    labels = logits_NK.argmax(axis=1).tolist()
    if measure == "patience":
        return _patience(labels, states, exits)
    if measure in ("gate", "frame-entropy"):
        if gate_N1 is None:
            raise ValueError(f"expected a {'gate' if measure == 'gate' else 'branch'} at every exit, got none")
        if measure == "frame-entropy":
            return Judgement(labels, _scores(gate_N1.reshape(-1)), list(states))
        return _gate(labels, gate_N1, states)
    return Judgement(labels, _scores(_SCORES[measure](probabilities(logits_NK, temperature))), list(states))


def _scores(scores_N: Array) -> list[float]:
    clipped: list[float] = np.nan_to_num(scores_N, nan=0.0).clip(0.0, 1.0).tolist()
    return clipped


def _margin(p_NK: Array) -> Array:
    if p_NK.shape[1] < 2:
        return np.ones(len(p_NK), np.float32)
    top_N2 = np.partition(p_NK, -2, axis=1)[:, -2:]
    margin_N: Array = top_N2[:, 1] - top_N2[:, 0]
    return margin_N


def _entropy(p_NK: Array) -> Array:
    terms_NK = p_NK * np.log(np.maximum(p_NK, np.float32(1e-30)))
    score_N: Array = 1.0 + terms_NK.sum(axis=1) / np.log(max(p_NK.shape[1], 2))
    return score_N


_SCORES: Final = {"max-probability": lambda p_NK: p_NK.max(axis=1), "margin": _margin, "entropy": _entropy}


def _patience(labels: list[int], states: Sequence[State], exits: int) -> Judgement:
    """State: the class so far and how many exits in a row have said so."""
    new = [
        (float(label), state[1] + 1.0) if len(state) == 2 and int(state[0]) == label else (float(label), 1.0)
        for label, state in zip(labels, states, strict=True)
    ]
    return Judgement(labels, [min(count / exits, 1.0) for _, count in new], [*new])


def _gate(labels: list[int], gate_N1: Array, states: Sequence[State]) -> Judgement:
    """State: the sum of the gates so far, and the product of 1 - h."""
    scores: list[float] = []
    new: list[State] = []
    for g, state in zip(gate_N1.reshape(-1).tolist(), states, strict=True):
        total, product = state if len(state) == 2 else (0.0, 1.0)
        g = min(max(g, 0.0), 1.0) if g == g else 0.0  # a NaN never exits early, nor travels on
        weight = max(0.0, min(g, 1.0 - total))
        h = min(max(weight / product, 0.0), 1.0) if product > 0 else 1.0
        scores.append(h)
        new.append((total + g, product * (1.0 - h)))
    return Judgement(labels, scores, new)
