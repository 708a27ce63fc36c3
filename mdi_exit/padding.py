"""Samples of unlike lengths in one batch.

The first axis of a sample may vary (tokens of a text, frames of speech). In a batch the shorter ones are followed by
positions of zeros, which by the artifact's rule are absent: graphs find out themselves, so that no mask has to travel. What
comes out is cut back to what is there, so that no padding is ever sent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["present", "stacked", "unpadded"]

Array = NDArray[np.float32]


def stacked(samples: Sequence[Array]) -> Array:
    """N×…: of samples that may differ in the length of their first axis alone. Raises ``ValueError`` for others."""
    longest = max(len(x) for x in samples)
    if all(len(x) == longest for x in samples):
        return samples[0][None] if len(samples) == 1 else np.stack(samples)
    x_N = np.zeros((len(samples), longest, *samples[0].shape[1:]), np.float32)
    for row, x in zip(x_N, samples, strict=True):
        if x.shape[1:] != row.shape[1:]:
            raise ValueError(f"expected samples of shape (any, {row.shape[1:]}), got {x.shape}")
        row[: len(x)] = x
    return x_N


def present(x: Array) -> int:
    """How many positions there are up to the last that is not all 0; at least 1."""
    rows = np.flatnonzero(x.reshape(len(x), -1).any(axis=1))
    return int(rows[-1]) + 1 if rows.size else 1


def unpadded(x: Array) -> Array:
    """``x`` without the absent positions at its end."""
    return x[: present(x)]
