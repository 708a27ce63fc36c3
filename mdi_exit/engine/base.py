"""The one small interface of engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mdi_exit.segments import SegmentKey

__all__ = ["Engine", "SegmentOutput"]

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SegmentOutput:
    """``features``: N×…, None when the network ends; ``logits_NK``: None when the segment has no head.

    ``gate_N1``: the gate's value in [0, 1], None when the exit has no gate.
    """

    features: Array | None
    logits_NK: Array | None
    gate_N1: Array | None = None


class Engine(Protocol):
    """Loads and runs segments; called from one thread at a time."""

    @property
    def description(self) -> str:
        """Name and device, for people: ``onnxruntime CPU``."""

    def load(self, key: SegmentKey, graph: bytes) -> None:
        """Make a segment runnable. Raises ``EngineError``."""

    def unload(self, key: SegmentKey) -> None:
        """Let go of a segment; one that is not loaded is no matter."""

    def run(self, key: SegmentKey, x: Array) -> SegmentOutput:
        """Run a loaded segment on float32 N×…. Raises ``EngineError``."""
