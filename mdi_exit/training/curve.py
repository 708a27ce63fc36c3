"""Accuracy against cost as one threshold for all early exits is moved. T thresholds, N samples, S exits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mdi_exit.model.manifest import Measure
from mdi_exit.outcomes import Outcomes
from mdi_exit.trace import Trace
from mdi_exit.training.costs import Costs
from mdi_exit.training.phases import Evaluation, Trainee

__all__ = ["Curve", "Point", "at_cost", "curve_of", "thresholds_for", "trace_of"]

Doubles = NDArray[np.float64]
_THRESHOLDS = 400


@dataclass(frozen=True, slots=True)
class Curve:
    """At each threshold, rising: mean MACs of a sample (rising too), and the share of right labels."""

    thresholds_T: Doubles
    macs_T: Doubles
    accuracies_T: Doubles


@dataclass(frozen=True, slots=True)
class Point:
    """Where a cost was asked for: the threshold that keeps it on one set, and what it gave on another."""

    threshold: float
    accuracy: float
    mean_macs: float


def trace_of(trainee: Trainee, evaluation: Evaluation, costs: Costs, measure: Measure) -> Trace:
    """Confidences at each exit, judged as agents judge them. ``trainee``: for its gates; on the CPU."""
    logits_SNK = evaluation.logits_LNK.numpy()
    gates_SN = np.full(logits_SNK.shape[:2], np.nan, np.float32)
    with torch.no_grad():
        for number, gate in enumerate(trainee.gates):
            gates_SN[number] = gate(evaluation.logits_LNK[number])[:, 0].numpy()
    made = Outcomes(
        logits_SNK=logits_SNK,
        gates_SN=gates_SN,
        truth_N=evaluation.labels_N.numpy().astype(np.int32),
        temperatures_S=np.ones(len(logits_SNK)),
        layer_macs_L=np.array(costs.layers, np.int64),
        layer_bytes_L=np.zeros(len(costs.layers), np.int64),
        head_macs_S=np.array(costs.heads, np.int64),
        exit_layers_S=np.array(costs.exit_layers, np.int64),
        about={},
    )
    return made.trace(measure)


def thresholds_for(trace: Trace) -> Doubles:
    """From 0 to 1, as dense as the scores of early exits are; 0.5 among them."""
    early_NE = trace.scores_NS[:, :-1].astype(np.float64)
    quantiles = np.quantile(early_NE, np.linspace(0, 1, _THRESHOLDS)) if early_NE.size else np.zeros(0)
    found: Doubles = np.unique(np.concatenate(([0.0, 0.5, 1.0], quantiles.clip(0, 1))))
    return found


def curve_of(trace: Trace, thresholds_T: Doubles) -> Curve:
    """The same threshold at every early exit."""
    scores = [trace.score(threshold) for threshold in thresholds_T]
    macs, accuracies = ([getattr(score, name) for score in scores] for name in ("mean_macs", "accuracy"))
    return Curve(thresholds_T, np.array(macs), np.array(accuracies))


def at_cost(chosen: Curve, scored: Curve, cost: float) -> Point | None:
    """The threshold at which ``chosen`` costs ``cost``, in a straight line between the two around it, and what the same
    mixture of these two gives on ``scored`` (both over the same thresholds). None: it never costs that.
    """
    macs_T = chosen.macs_T
    if not macs_T[0] <= cost <= macs_T[-1]:
        return None
    above = max(int(np.searchsorted(macs_T, cost)), 1)
    low, high = macs_T[above - 1], macs_T[above]
    weight = (cost - low) / (high - low) if high > low else 1.0

    def between(values_T: Doubles) -> float:
        return float((1 - weight) * values_T[above - 1] + weight * values_T[above])

    return Point(between(chosen.thresholds_T), between(scored.accuracies_T), between(scored.macs_T))
