"""Images: pixels, fitted and normalised as the artifact declares."""

from __future__ import annotations

import io
import warnings
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdi_exit.data.pixels import Pixels, inputs_of, pixels_of, preprocess
from mdi_exit.data.sets import Items
from mdi_exit.data.sound import Clip
from mdi_exit.errors import UsageError
from mdi_exit.limits import MAX_SENT_PIXELS
from mdi_exit.modality.base import Array, Raw
from mdi_exit.model.manifest import InputSpec

__all__ = ["ImageInput", "decode_image"]

_LARGEST_VALUE: Final = 1000.0
_SENT_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


# Of a broken file the decoder warns, a line for each entry of the file: whoever sends them would fill the log.
warnings.filterwarnings("ignore", category=Warning, module=r"PIL\.")


class ImageInput:
    """See ``Modality``."""

    kind: ClassVar = "image"

    def __init__(self, spec: InputSpec) -> None:
        self._spec = spec

    def read(self, data: bytes | memoryview) -> Raw:
        return decode_image(data)

    def prepared(self, raw: Raw) -> Array:
        if isinstance(raw, str | Clip):
            raise UsageError("item", "an image, as the model takes", "a text" if isinstance(raw, str) else "sound")
        pixels: NDArray[Any] = raw
        return preprocess(pixels, self._spec)

    def ready(self, x: Array) -> Array:
        if x.shape != self._spec.shape:
            raise ValueError(f"array: expected float32 of shape {self._spec.shape}, got {x.shape}")
        if not (np.abs(x) <= _LARGEST_VALUE).all():  # also of NaN
            raise ValueError("array: expected values as (pixel/255 - mean) / std gives them, got others")
        return np.ascontiguousarray(x, np.float32)

    def batch(self, items: Items) -> Array:
        if isinstance(items, tuple):
            raise UsageError("items", "images, as the model takes", "texts or sound")
        return inputs_of(items, self._spec)


def decode_image(data: bytes | memoryview, *, largest: int = MAX_SENT_PIXELS) -> Pixels:
    """The pixels of an image file that somebody sent: of a few formats only, and not more than ``largest`` of them.

    Raises ``ValueError`` for anything else, whatever the decoder makes of it.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_SENT_FORMATS) as image:
            return pixels_of(image, largest)
    except Exception as error:  # noqa: BLE001 - decoders of broken files raise anything, even SyntaxError
        said = str(error).splitlines()[0] if str(error) and "BytesIO" not in str(error) else "something else"
        raise ValueError(f"image: expected a file of {', '.join(_SENT_FORMATS)}, got {said[:200]}") from None
