"""Codecs: a float32 tensor (one sample, no batch) to raw bytes and back.

========  =====================  ==========================================================================
codec     bytes for C×H×W        error
========  =====================  ==========================================================================
float32   4·C·H·W                none, bit for bit
float16   2·C·H·W                relative 2⁻¹¹ (absolute 2⁻²⁵ below 2⁻¹⁴); values beyond ±65504 are clipped
int8      C·H·W + 4·C            per channel, at most half of its step: max|x| of the channel / 254
========  =====================  ==========================================================================

int8 is symmetric: one little-endian float32 scale per channel (the first axis) comes first, then the values. A NaN is sent
as 0, an infinity as the largest finite value, in float16 and int8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mdi_exit.errors import WireError

__all__ = ["CODECS", "MAX_ELEMENTS", "check_payload", "decode_tensor", "encode_tensor", "encoded_size"]

MAX_ELEMENTS: Final = 2**24
_F16_MAX: Final = 65504.0
_INT8_MAX: Final = 3.4e38
_SCALE_MAX: Final = np.float32(_INT8_MAX / 127)  # 127 steps of it are still finite

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Codec:
    size: Callable[[tuple[int, ...]], int]
    encode: Callable[[Array], bytes]
    decode: Callable[[tuple[int, ...], memoryview], Array]


def _finite(x: Array, largest: float) -> Array:
    return np.nan_to_num(x, nan=0.0, posinf=largest, neginf=-largest)


def _encode_float16(x: Array) -> bytes:
    clipped: NDArray[np.float16] = np.clip(_finite(x, _F16_MAX), -_F16_MAX, _F16_MAX).astype("<f2")
    return clipped.tobytes()


def _encode_int8(x: Array) -> bytes:
    flat_CX = _finite(x, _INT8_MAX).reshape(x.shape[0], -1)
    scale_C = np.minimum(np.abs(flat_CX).max(axis=1) / np.float32(127), _SCALE_MAX).astype("<f4")
    divisor_C = np.where(scale_C > 0, scale_C, np.float32(1))
    quantised_CX = np.clip(np.rint(flat_CX / divisor_C[:, None]), -127, 127).astype(np.int8)
    return bytes(scale_C.tobytes() + quantised_CX.tobytes())


def _decode_int8(shape: tuple[int, ...], payload: memoryview) -> Array:
    channels = shape[0]
    scale_C = np.frombuffer(payload, "<f4", channels)
    quantised_CX = np.frombuffer(payload, np.int8, offset=4 * channels).reshape(channels, -1)
    x: Array = (quantised_CX * scale_C[:, None]).astype(np.float32).reshape(shape)
    return x


CODECS: Final[dict[str, Codec]] = {
    "float32": Codec(
        lambda shape: 4 * prod(shape),
        lambda x: np.ascontiguousarray(x, "<f4").tobytes(),
        lambda shape, payload: np.frombuffer(payload, "<f4").reshape(shape),
    ),
    "float16": Codec(
        lambda shape: 2 * prod(shape),
        _encode_float16,
        lambda shape, payload: np.frombuffer(payload, "<f2").astype(np.float32).reshape(shape),
    ),
    "int8": Codec(lambda shape: prod(shape) + 4 * shape[0], _encode_int8, _decode_int8),
}


@lru_cache(1024)
def encoded_size(codec: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of ``shape``. Raises ``WireError`` for an unknown codec or an impossible shape."""
    known = CODECS.get(codec)
    if known is None:
        raise WireError("codec", f"expected one of {', '.join(CODECS)}, got {codec!r}")
    if not shape or min(shape) < 1 or prod(shape) > MAX_ELEMENTS:
        raise WireError("shape", f"expected 1 to {MAX_ELEMENTS} elements, got {shape}")
    return known.size(shape)


def encode_tensor(codec: str, x: Array) -> bytes:
    """``x``: float32, at least one axis, without batch. Raises ``WireError``."""
    encoded_size(codec, x.shape)
    return CODECS[codec].encode(x)


def check_payload(codec: str, shape: tuple[int, ...], payload: memoryview | bytes) -> None:
    """Raises ``WireError`` unless ``decode_tensor`` can make a tensor of it; much cheaper than trying."""
    size = encoded_size(codec, shape)
    if len(payload) != size:
        raise WireError("payload-size", f"expected {size} bytes of {codec} for shape {shape}, got {len(payload)}")
    if codec == "int8" and not (np.abs(np.frombuffer(payload, "<f4", shape[0])) <= _SCALE_MAX).all():
        raise WireError("payload", f"expected scales up to {_SCALE_MAX:.3g}, got others")


def decode_tensor(codec: str, shape: tuple[int, ...], payload: memoryview | bytes) -> Array:
    """float32 of ``shape``, read-only where the codec allows. Raises ``WireError`` as ``check_payload`` does."""
    check_payload(codec, shape, payload)
    return CODECS[codec].decode(shape, memoryview(payload))
