"""Values that are ready: whoever asks has prepared them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mdi_exit.data.sets import Items
from mdi_exit.data.sound import Clip
from mdi_exit.errors import UsageError
from mdi_exit.modality.base import Array, Raw
from mdi_exit.model.manifest import Manifest

__all__ = ["TensorInput"]


class TensorInput:
    """See ``Modality``."""

    kind: ClassVar = "tensor"

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def read(self, data: bytes | memoryview) -> Raw:
        raise ValueError(f"item: expected float32 values of shape {self._manifest.input.shape}, got a file")

    def prepared(self, raw: Raw) -> Array:
        if isinstance(raw, str | Clip) or raw.dtype != np.float32:
            got = "a text" if isinstance(raw, str) else "sound" if isinstance(raw, Clip) else str(raw.dtype)
            raise ValueError(f"item: expected float32 values of shape {self._manifest.input.shape}, got {got}")
        return self.ready(np.asarray(raw, np.float32))

    def ready(self, x: Array) -> Array:
        if not self._manifest.fits(0, x.shape) or not np.isfinite(x).all():
            expected = f"finite float32 of shape {self._manifest.input.shape}"
            raise ValueError(f"array: expected {expected}, got shape {x.shape}, or others")
        return np.ascontiguousarray(x, np.float32)

    def batch(self, items: Items) -> Array:
        raise UsageError("items", "values that are ready, as the model takes", "a data set")
