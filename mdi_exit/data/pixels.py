"""What an image becomes before it enters layer 0, the same for training, calibration and the running source."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mdi_exit.errors import UsageError
from mdi_exit.model.manifest import InputSpec

__all__ = ["Pixels", "fitted", "inputs_of", "pixels_of", "preprocess"]

Pixels = NDArray[np.uint8]
Features = NDArray[np.float32]


def preprocess(pixels: Pixels, spec: InputSpec) -> Features:
    """What enters layer 0: float32 C×H×W, (value/255 - mean) / std.

    Colour and grey are converted where the model wants the other; another size is resized (bilinear, antialiased), the
    whole picture being kept whatever its proportions. Raises ``UsageError`` for pixels that are no image.
    """
    x_HWC = fitted(pixels, spec.image_shape)
    return np.ascontiguousarray(_normalised(x_HWC, spec).transpose(2, 0, 1))


def inputs_of(images_NHWC: Pixels, spec: InputSpec) -> Features:
    """``preprocess`` of each image: float32 N×C×H×W, bit for bit what it gives one by one."""
    channels, height, width = spec.image_shape
    if images_NHWC.shape[1:] != (height, width, channels):
        rows = [fitted(x_HWC, spec.image_shape) for x_HWC in images_NHWC]
        images_NHWC = np.stack(rows) if rows else np.empty((0, height, width, channels), np.uint8)
    return np.ascontiguousarray(_normalised(images_NHWC, spec).transpose(0, 3, 1, 2))


def fitted(pixels: Pixels, shape: tuple[int, ...]) -> Pixels:
    """H×W×C of ``shape`` (C, H, W). Raises ``UsageError`` for pixels that are no image."""
    channels, height, width = shape
    x_HWC = pixels[..., None] if pixels.ndim == 2 else pixels
    if x_HWC.ndim != 3 or x_HWC.shape[2] not in (1, 3) or x_HWC.dtype != np.uint8 or not x_HWC.size:
        raise UsageError("image", "uint8 pixels, H×W, H×W×1 or H×W×3", f"{pixels.dtype} of shape {pixels.shape}")
    if x_HWC.shape == (height, width, channels):
        return x_HWC
    image = Image.fromarray(x_HWC[..., 0] if x_HWC.shape[2] == 1 else np.ascontiguousarray(x_HWC))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(height, width, channels)


def _normalised(x_C: Pixels, spec: InputSpec) -> Features:
    """Channels last, any axes before them."""
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    scaled: Features = ((x_C.astype(np.float32) / np.float32(255)) - mean) / std
    return scaled


def pixels_of(image: Image.Image, largest: int) -> Pixels:
    """H×W of a grey image, H×W×3 of any other: turned upright, the first frame, transparent parts on white.

    Raises ``ValueError`` for one of more than ``largest`` pixels, before they are read.
    """
    if image.width * image.height > largest:
        raise ValueError(f"{image.width}x{image.height} pixels, more than {largest:,}")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits a pixel
        return (np.asarray(upright).clip(0, 65535) >> 8).astype(np.uint8)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(upright.convert("L" if upright.mode in {"1", "L"} else "RGB"), np.uint8)
