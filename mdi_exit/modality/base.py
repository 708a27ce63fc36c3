"""The one protocol of modalities."""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from mdi_exit.data.sets import Items
from mdi_exit.data.sound import Clip

__all__ = ["Modality", "Raw"]

Array = NDArray[np.float32]
Raw = NDArray[np.uint8] | str | Clip | Array
"""One item before it is prepared: pixels (uint8, H×W, H×W×1 or H×W×3), a text, sound, or values that are ready."""


class Modality(Protocol):
    """How items of one kind become what enters layer 0. ``kind``: as in ``InputSpec``."""

    kind: ClassVar[str]

    def read(self, data: bytes | memoryview) -> Raw:
        """An item from bytes that somebody sent: a file of its kind. Raises ``ValueError``, ``MdiExitError``."""

    def prepared(self, raw: Raw) -> Array:
        """float32, without batch. Raises ``ValueError``, ``MdiExitError``."""

    def ready(self, x: Array) -> Array:
        """Values that somebody else prepared, checked as far as can be. Raises ``ValueError``."""

    def batch(self, items: Items) -> Array:
        """``prepared`` of each, N×…, the shorter ones padded."""
