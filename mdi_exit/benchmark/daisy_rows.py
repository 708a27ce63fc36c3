"""What speech gives by rule, depth and noise: the rows of one seed and task. N clips, S exits, L layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mdi_exit.model.manifest import Measure
from mdi_exit.outcomes import Outcomes
from mdi_exit.trace import Trace
from mdi_exit.training.curve import thresholds_for
from mdi_exit.training.daisy.heads import threshold_within

__all__ = ["CLEAN", "FIXED", "MEAN", "RANKED", "RULES", "Row", "depth_within", "depths_to", "first_at", "ranked", "rows_of",
           "told_apart"]  # fmt: skip

Row = dict[str, Any]
Doubles = NDArray[np.float64]
Traces = dict[str, Trace]

CLEAN: Final = "clean"
MEAN: Final = "mean"
RULES: Final[dict[str, Measure]] = {"daisy": "frame-entropy", "confidence": "max-probability"}
RANKED: Final = "daisy, ranked"
"""DAISY with a threshold of its own for each exit, one knob for all of them: a score's rank among calibration clips there."""
FIXED: Final = "fixed"
_STEP: Final = 0.25


def rows_of(about: Row, calibration: Outcomes, tested: Mapping[float | None, Outcomes], loss: float) -> Iterator[Row]:
    """For each ratio, and for all together: what each rule gives at the threshold that calibration chose (``point``) and at
    any (``curve``), each depth by itself (``fixed``), and what scores know (``sureness``, ``telling``).

    ``about``: seed and task. ``loss``: of accuracy on the calibration clips, at most.
    """
    known = calibration.trace(RULES["daisy"])
    thresholds = {rule: threshold_within(calibration.trace(measure), loss) for rule, measure in RULES.items()}
    by_snr: dict[float | str, Traces] = {
        CLEAN if snr_db is None else snr_db: {rule: made.trace(measure) for rule, measure in RULES.items()}
        for snr_db, made in tested.items()
    }
    by_snr[MEAN] = {rule: _together([traces[rule] for traces in by_snr.values()]) for rule in RULES}
    for snr, traces in by_snr.items():
        yield from _of_ratio({**about, "snr_db": snr, "clips": len(traces["daisy"])}, traces, known, thresholds, loss)


def _of_ratio(about: Row, traces: Traces, known: Trace, thresholds: Mapping[str, float], loss: float) -> Iterator[Row]:
    first = traces["daisy"]
    shares_S, layers_S = first.right_NS.mean(0), (first.exit_layers_S + 1).astype(np.float64)
    for rule, threshold in thresholds.items():
        yield {"name": "point", **about, "rule": rule, "threshold": threshold, **_point(traces[rule], threshold)}
    curves = {rule: _curve(trace) for rule, trace in {**traces, RANKED: ranked(first, known)}.items()}
    grid = depths_to(len(first.layer_macs_L))
    for rule, (layers, accuracies) in {**curves, FIXED: (layers_S, shares_S)}.items():
        least = first_at(layers, accuracies, float(shares_S[-1]) - loss)
        at = np.interp(grid, layers, accuracies)
        yield {
            "name": "curve",
            **about,
            "rule": rule,
            "accuracy": at.round(5).tolist(),
            "layers to equal": round(least, 4),
        }
    depth = depth_within(known, loss)
    yield {"name": "fixed", **about, "accuracy": shares_S.round(5).tolist(), "chosen": int(layers_S[depth])}
    yield {"name": "sureness", **about, "by layer": first.scores_NS[:, :-1].mean(0).round(5).tolist()}
    for rule, trace in traces.items():
        yield {"name": "telling", **about, "rule": rule, **_telling(trace)}


def depths_to(layers: int) -> list[float]:
    """The mean layers at which curves are read."""
    return np.arange(1.0, layers + _STEP / 2, _STEP).tolist()


def _together(traces: Sequence[Trace]) -> Trace:
    scores_NS, labels_NS = (
        np.concatenate([getattr(one, name) for one in traces]) for name in ("scores_NS", "labels_NS")
    )
    truth_N = np.concatenate([one.truth_N for one in traces])
    return replace(traces[0], scores_NS=scores_NS, labels_NS=labels_NS, truth_N=truth_N)


def ranked(trace: Trace, known: Trace) -> Trace:
    """With each score's rank, 0 to 1, among those that ``known`` has at the exit: so no exit's are higher than another's."""
    scores_NS = trace.scores_NS.copy()
    for exit_number in range(trace.exits - 1):
        there = np.sort(known.scores_NS[:, exit_number])
        scores_NS[:, exit_number] = np.searchsorted(there, scores_NS[:, exit_number], side="right") / len(there)
    return replace(trace, scores_NS=scores_NS)


def depth_within(trace: Trace, loss: float) -> int:
    """The first exit at which at most ``loss`` of these samples' accuracy is given up against the last."""
    shares_S = trace.right_NS.mean(0)
    return int(np.argmax(shares_S >= shares_S[-1] - loss))


def _mean_layers(trace: Trace, threshold: float) -> float:
    return float((trace.exit_layers_S[trace.exits_at(threshold)] + 1).mean())


def _point(trace: Trace, threshold: float) -> Row:
    score = trace.score(threshold)
    return {
        "layers": round(_mean_layers(trace, threshold), 4), "accuracy": round(score.accuracy, 5),
        "macs": round(score.mean_macs / trace.plain_macs, 5), "exits": list(score.exits),
    }  # fmt: skip


def _curve(trace: Trace) -> tuple[Doubles, Doubles]:
    """Mean layers, rising, and accuracy, by threshold."""
    found = [(_mean_layers(trace, t), trace.score(t).accuracy) for t in thresholds_for(trace).tolist()]
    layers, accuracies = np.array(found).T
    return layers, accuracies


def first_at(layers: Doubles, accuracies: Doubles, wanted: float) -> float:
    """The fewest mean layers with which the curve, straight between its points, reaches an accuracy that its end has."""
    at = int(np.argmax(accuracies >= wanted))
    if at == 0:
        return float(layers[0])
    below, above = accuracies[at - 1], accuracies[at]
    return float(layers[at - 1] + (layers[at] - layers[at - 1]) * (wanted - below) / (above - below))


def _telling(trace: Trace) -> Row:
    """At each early exit, how well the score tells apart who is right there, and who loses nothing by leaving there."""
    right_NE, spared_NE = trace.right_NS[:, :-1], ~trace.harm_NS[:, :-1]
    return {
        name: [_rounded(told_apart(s_N, yes_N)) for s_N, yes_N in zip(trace.scores_NS.T[:-1], yes_NE.T, strict=True)]
        for name, yes_NE in (("right", right_NE), ("spared", spared_NE))
    }


def told_apart(scores_N: Doubles, yes_N: NDArray[np.bool_]) -> float | None:
    """The chance that one of ``yes_N`` has a higher score than one of the others, ties counting half: the area under the
    ROC curve. 0.5 is to know nothing; None if all are alike.
    """
    yes, no = int(yes_N.sum()), int((~yes_N).sum())
    if not yes or not no:
        return None
    _, place_N, count = np.unique(scores_N, return_inverse=True, return_counts=True)
    rank_N = (np.cumsum(count) - (count - 1) / 2)[place_N]
    return float((rank_N[yes_N].sum() - yes * (yes + 1) / 2) / (yes * no))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
