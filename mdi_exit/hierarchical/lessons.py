"""Batches as bytes. Shapes: B samples, C channels, H×W places.

Features and gradients, B×C×…, go through a codec of ``mdi_exit.tensors`` with the channels first, C×B×…, so that int8 has one
scale for each channel over the whole batch. Raw images are uint8, B×H×W×C, as they are. Labels are uint16.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mdi_exit.errors import WireError
from mdi_exit.limits import MAX_ELEMENTS
from mdi_exit.tensors import decode_tensor, encode_tensor, encoded_size

__all__ = ["RAW", "batch_bytes", "packed", "unpacked"]

RAW: Final = "raw"
_LABEL: Final = np.dtype("<u2")

Labels = NDArray[np.int64]


def batch_bytes(codec: str, batch: int, shape: tuple[int, ...]) -> int:
    """Of features of ``shape`` (without batch) with their labels; where compressed at most. Raises ``WireError``."""
    return encoded_size(codec, (shape[0], batch, *shape[1:])) + batch * _LABEL.itemsize


def packed(codec: str, x_B: NDArray[np.float32] | NDArray[np.uint8], labels_B: Labels | None) -> bytes:
    """``x_B``: float32 B×C×…, or for codec ``raw`` uint8 of any shape; ``labels_B`` None: without."""
    labels = b"" if labels_B is None else labels_B.astype(_LABEL).tobytes()
    if codec == RAW:
        return labels + np.ascontiguousarray(x_B, np.uint8).tobytes()
    return labels + encode_tensor(codec, np.ascontiguousarray(x_B.swapaxes(0, 1), np.float32))


def unpacked(
    codec: str, shape: tuple[int, ...], count: int, payload: memoryview
) -> tuple[NDArray[np.float32] | NDArray[np.uint8], Labels]:
    """The tensor, B×… of ``shape`` (batch included), and ``count`` labels.

    Raises ``WireError`` for what does not fit, and for features that are no numbers.
    """
    start = count * _LABEL.itemsize
    if len(payload) < start or count not in (0, shape[0]) or len(shape) < 2:
        raise WireError("payload-size", f"expected labels of a batch {shape}, got {count} in {len(payload)} bytes")
    labels_B = np.frombuffer(payload[:start], _LABEL).astype(np.int64)
    body = payload[start:]
    if codec == RAW:
        size = int(np.prod(shape, dtype=np.int64))
        if size > MAX_ELEMENTS or len(body) != size:
            raise WireError("payload-size", f"expected {size} bytes of raw {shape}, got {len(body)}")
        return np.frombuffer(body, np.uint8).reshape(shape), labels_B
    x_CB = decode_tensor(codec, (shape[1], shape[0], *shape[2:]), body)
    if not np.isfinite(x_CB).all():
        raise WireError("payload", "expected finite numbers, got others")
    return np.ascontiguousarray(x_CB.swapaxes(0, 1)), labels_B
