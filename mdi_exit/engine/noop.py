"""An engine that does nothing: what is left is the system itself (for ``mdi-exit benchmark hop``)."""

from __future__ import annotations

import numpy as np

from mdi_exit.engine.base import Array, SegmentOutput
from mdi_exit.segments import SegmentKey

__all__ = ["NoopEngine"]


class NoopEngine:
    """Features are the input; logits say class 0."""

    description = "noop"

    def load(self, key: SegmentKey, graph: bytes) -> None:
        """Nothing to load."""

    def unload(self, key: SegmentKey) -> None:
        """Nothing to unload."""

    def run(self, key: SegmentKey, x: Array) -> SegmentOutput:
        return SegmentOutput(x, np.tile(np.array([1.0, 0.0], np.float32), (len(x), 1)) if key.head else None)
