"""A trace: what every exit says of every sample of a data set, and what getting there costs.

It stands in for model and images wherever only decisions matter: thresholds are chosen on it, and the simulator takes the
confidences of its items from it. ``mdi-exit profile`` writes one as ``.npz`` (plain arrays, nothing pickled):

==============  ===========  =====================================================================================
array           shape        what it holds
==============  ===========  =====================================================================================
scores_NS       float64 N×S  confidence at each exit, in [0, 1], by the measure; one file has one measure
labels_NS       int32 N×S    class at each exit
truth_N         int32 N      right class
layer_macs_L    int64 L      multiply-accumulates of each layer, for one sample (with the autoencoder of the cut before it)
layer_bytes_L   int64 L      bytes of the float32 tensor that enters each layer
head_macs_S     int64 S      multiply-accumulates of each exit's head
exit_layers_S   int64 S      layer at whose end each exit is, rising
about           text         JSON: form, measure, model, digest, data, codec
==============  ===========  =====================================================================================

Patience and gates are reckoned as if every sample passed all exits, which is what it does until it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mdi_exit.errors import UsageError
from mdi_exit.recorded import SHARED_TYPES, Recorded

__all__ = ["Score", "Trace"]


@dataclass(frozen=True, slots=True)
class Score:
    """What thresholds give on a trace. ``loss``: share of samples that are wrong early and right at the last exit.

    ``mean_macs``: of a sample, early heads included. ``exits``: samples by exit.
    """

    accuracy: float
    mean_macs: float
    exits: tuple[int, ...]
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace(Recorded):
    """See the module. ``measure``: of confidence."""

    KIND: ClassVar = "trace"
    TYPES: ClassVar = {"scores_NS": np.float64, "labels_NS": np.int32, **SHARED_TYPES}
    WORDS: ClassVar = ("measure",)

    measure: str
    scores_NS: NDArray[np.float64]
    labels_NS: NDArray[np.int32]

    @property
    def inclusive(self) -> bool:
        """Whether a score equal to the threshold is enough."""
        return self.measure in ("gate", "frame-entropy")

    @property
    def macs_S(self) -> NDArray[np.int64]:
        """What a sample that leaves at each exit has cost: layers to there, heads on the way."""
        return np.cumsum(self.layer_macs_L)[self.exit_layers_S] + np.cumsum(self.head_macs_S)

    @property
    def plain_macs(self) -> int:
        """All layers and the last head only: no early exits."""
        return int(self.layer_macs_L.sum() + self.head_macs_S[-1])

    @property
    def right_NS(self) -> NDArray[np.bool_]:
        right_NS: NDArray[np.bool_] = self.labels_NS == self.truth_N[:, None]
        return right_NS

    @property
    def harm_NS(self) -> NDArray[np.bool_]:
        """Where leaving turns a right answer of the last exit into a wrong one."""
        right_NS = self.right_NS
        harm_NS: NDArray[np.bool_] = right_NS[:, -1:] & ~right_NS
        return harm_NS

    def exits_at(self, thresholds: ArrayLike) -> NDArray[np.intp]:
        """The exit that each sample takes, N: the rule of ``policy.exiting``.

        ``thresholds``: one for all early exits, or one for each of them (S-1 of them, or S with the last unused).
        """
        t_E = np.broadcast_to(np.asarray(thresholds, np.float64).reshape(-1)[: self.exits - 1], (self.exits - 1,))
        early_NE = self.scores_NS[:, :-1]
        sure_NE = early_NE > t_E
        if self.inclusive:
            sure_NE |= (early_NE == t_E) & (t_E < 1.0)
        sure_NS = np.concatenate([sure_NE, np.ones((len(self), 1), np.bool_)], axis=1)
        exit_N: NDArray[np.intp] = np.argmax(sure_NS, axis=1)
        return exit_N

    def score(self, thresholds: ArrayLike) -> Score:
        """What ``thresholds`` (as in ``exits_at``) give."""
        exit_N = self.exits_at(thresholds)
        rows_N = np.arange(len(self))
        return Score(
            accuracy=float(self.right_NS[rows_N, exit_N].mean()),
            mean_macs=float(self.macs_S[exit_N].mean()),
            exits=tuple(np.bincount(exit_N, minlength=self.exits).tolist()),
            loss=float(self.harm_NS[rows_N, exit_N].mean()),
        )

    def check(self, path: Path) -> None:
        """Raises ``UsageError``."""
        ends, layers = self.exit_layers_S.tolist(), len(self.layer_macs_L)
        if ends != sorted(set(ends)) or ends[-1:] != [layers - 1] or not len(self):
            raise UsageError(f"trace {path}", f"samples, and rising exits that end at layer {layers - 1}", ends)
        if not ((self.scores_NS >= 0) & (self.scores_NS <= 1)).all():
            raise UsageError(f"trace {path}: scores_NS", "0 to 1", "others")
