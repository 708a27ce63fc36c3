"""Pixels of image files, also of those that somebody sent who may mean no good."""

from __future__ import annotations

import io
import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdi_exit.data.pixels import pixels_of
from mdi_exit.limits import MAX_SENT_PIXELS

__all__ = ["decode_image"]

_SENT_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


# Of a broken file the decoder warns, a line for each entry of the file: whoever sends them would fill the log.
warnings.filterwarnings("ignore", category=Warning, module=r"PIL\.")


def decode_image(data: bytes | memoryview, *, largest: int = MAX_SENT_PIXELS) -> NDArray[np.uint8]:
    """The pixels of an image file that somebody sent: of a few formats only, and not more than ``largest`` of them.

    Raises ``ValueError`` for anything else, whatever the decoder makes of it.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_SENT_FORMATS) as image:
            return pixels_of(image, largest)
    except Exception as error:  # noqa: BLE001 - decoders of broken files raise anything, even SyntaxError
        said = str(error).splitlines()[0] if str(error) and "BytesIO" not in str(error) else "something else"
        raise ValueError(f"image: expected a file of {', '.join(_SENT_FORMATS)}, got {said[:200]}") from None
