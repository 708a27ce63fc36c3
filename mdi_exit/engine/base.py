"""The one small interface of engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mdi_exit.segments import SegmentKey

__all__ = ["Engine", "SegmentOutput", "labels_and_scores"]

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SegmentOutput:
    """``features``: N×…, None when the network ends; ``logits_NK``: None when the segment has no head."""

    features: Array | None
    logits_NK: Array | None


class Engine(Protocol):
    """Loads and runs segments; called from one thread at a time."""

    @property
    def description(self) -> str:
        """Name and device, for people: ``onnxruntime CPU``."""

    def load(self, key: SegmentKey, graph: bytes) -> None:
        """Make a segment runnable. Raises ``EngineError``."""

    def run(self, key: SegmentKey, x: Array) -> SegmentOutput:
        """Run a loaded segment on float32 N×…. Raises ``EngineError``."""


def labels_and_scores(logits_NK: Array) -> tuple[list[int], list[float]]:
    """Class of the largest softmax probability and that probability, in [0, 1], for each row.

    A row with a NaN gets score 0, so that it never exits early.
    """
    largest_N1 = logits_NK.max(axis=1, keepdims=True)
    sum_N = np.exp(logits_NK - largest_N1).sum(axis=1)  # the largest one's own part of it is 1
    scores = [1.0 / total if total >= 1.0 else 0.0 for total in sum_N.tolist()]
    return logits_NK.argmax(axis=1).tolist(), scores
