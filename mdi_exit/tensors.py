"""Codecs: a float32 tensor (one sample, no batch) to raw bytes and back.

========  =====================  ==========================================================================
codec     bytes for C×H×W        error
========  =====================  ==========================================================================
float32   4·C·H·W                none, bit for bit
float16   2·C·H·W                relative 2⁻¹¹ (absolute 2⁻²⁵ below 2⁻¹⁴); values beyond ±65504 are clipped
int8      C·H·W + 4·C            per channel, at most half of its step: max|x| of the channel / 254
int4      ⌈C·H·W / 2⌉ + 4·C      per channel, at most half of its step: max|x| of the channel / 14
========  =====================  ==========================================================================

int8 and int4 are symmetric: one little-endian float32 scale per channel (the first axis) comes first, then the values. int4
packs two values a byte, the earlier one in the lower half, each plus 8 (so 1 to 15; a 0 is taken for a 1); the last half
byte of an odd number of values means nothing. A NaN is sent as 0, an infinity as the largest finite value, in float16, int8
and int4.

``NAME+zstd`` is one Zstandard frame (RFC 8878) around the bytes of NAME, its content size stated in the frame's header. It
loses nothing, and takes at most 64 bytes and 1/256 more than NAME when nothing can be gained.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from mdi_exit.errors import WireError
from mdi_exit.limits import MAX_ELEMENTS

__all__ = [
    "CODECS",
    "MAX_ELEMENTS",
    "PLAIN_CODECS",
    "ZSTD",
    "check_payload",
    "decode_tensor",
    "encode_tensor",
    "encoded_size",
    "is_compressed",
    "without_compression",
]

ZSTD: Final = "+zstd"
_F16_MAX: Final = 65504.0
_LARGEST: Final = 3.4e38
_INT8_STEPS: Final = 127
_INT4_STEPS: Final = 7
_ZSTD_LEVEL: Final = 1  # of features, higher levels save hardly more

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Codec:
    """``steps``: on either side of 0, of a codec with scales; 0: it has none."""

    size: Callable[[tuple[int, ...]], int]
    encode: Callable[[Array], bytes]
    decode: Callable[[tuple[int, ...], memoryview], Array]
    steps: int = 0


def _finite(x: Array, largest: float) -> Array:
    return np.nan_to_num(x, nan=0.0, posinf=largest, neginf=-largest)


def _encode_float16(x: Array) -> bytes:
    clipped: NDArray[np.float16] = np.clip(_finite(x, _F16_MAX), -_F16_MAX, _F16_MAX).astype("<f2")
    return clipped.tobytes()


def _most_scale(steps: int) -> np.float32:
    """``steps`` of it are still finite."""
    return np.float32(_LARGEST / steps)


def _quantised(x: Array, steps: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Scale of each channel, C, and the values in steps of it, C×X."""
    flat_CX = _finite(x, _LARGEST).reshape(x.shape[0], -1)
    scale_C = np.minimum(np.abs(flat_CX).max(axis=1) / np.float32(steps), _most_scale(steps)).astype("<f4")
    divisor_C = np.where(scale_C > 0, scale_C, np.float32(1))
    return scale_C, np.clip(np.rint(flat_CX / divisor_C[:, None]), -steps, steps).astype(np.int8)


def _scaled(shape: tuple[int, ...], scales: memoryview, quantised: NDArray[np.int8]) -> Array:
    scale_C = np.frombuffer(scales, "<f4", shape[0])
    x: Array = (quantised.reshape(shape[0], -1) * scale_C[:, None]).astype(np.float32).reshape(shape)
    return x


def _encode_int8(x: Array) -> bytes:
    scale_C, quantised_CX = _quantised(x, _INT8_STEPS)
    return bytes(scale_C.tobytes() + quantised_CX.tobytes())


def _decode_int8(shape: tuple[int, ...], payload: memoryview) -> Array:
    return _scaled(shape, payload, np.frombuffer(payload, np.int8, offset=4 * shape[0]))


def _encode_int4(x: Array) -> bytes:
    scale_C, quantised_CX = _quantised(x, _INT4_STEPS)
    halves = np.zeros((quantised_CX.size + 1) // 2 * 2, np.uint8)
    halves[: quantised_CX.size] = quantised_CX.reshape(-1) + 8
    return bytes(scale_C.tobytes() + (halves[::2] | halves[1::2] << 4).tobytes())


def _decode_int4(shape: tuple[int, ...], payload: memoryview) -> Array:
    packed = np.frombuffer(payload, np.uint8, offset=4 * shape[0])
    halves = np.empty(2 * packed.size, np.int8)
    halves[::2], halves[1::2] = packed & 15, packed >> 4
    return _scaled(shape, payload, np.maximum(halves[: prod(shape)] - np.int8(8), np.int8(-_INT4_STEPS)))


PLAIN_CODECS: Final[dict[str, Codec]] = {
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
    "int8": Codec(lambda shape: prod(shape) + 4 * shape[0], _encode_int8, _decode_int8, _INT8_STEPS),
    "int4": Codec(lambda shape: -(-prod(shape) // 2) + 4 * shape[0], _encode_int4, _decode_int4, _INT4_STEPS),
}
CODECS: Final = (*PLAIN_CODECS, *(name + ZSTD for name in PLAIN_CODECS))


class _Zstd(threading.local):
    """A compressor and a decompressor for each thread: neither may be used by two at a time."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd: Final = _Zstd()


def is_compressed(codec: str) -> bool:
    """Whether its size depends on the values."""
    return codec.endswith(ZSTD)


def without_compression(codec: str) -> str:
    """``int8`` of ``int8+zstd`` and of ``int8``."""
    return codec.removesuffix(ZSTD)


def _plain_size(codec: str, shape: tuple[int, ...]) -> int:
    if codec not in CODECS:
        raise WireError("codec", f"expected one of {', '.join(CODECS)}, got {codec[:20]!r}")
    if not shape or min(shape) < 1 or prod(shape) > MAX_ELEMENTS:
        raise WireError("shape", f"expected 1 to {MAX_ELEMENTS} elements, got {shape}")
    return PLAIN_CODECS[without_compression(codec)].size(shape)


@lru_cache(1024)
def encoded_size(codec: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of ``shape``, where compressed at most. Raises ``WireError``: unknown codec, impossible shape."""
    size = _plain_size(codec, shape)
    return (
        size + (size >> 8) + 64 if is_compressed(codec) else size
    )  # not less than zstd's own bound, ZSTD_compressBound


def encode_tensor(codec: str, x: Array) -> bytes:
    """``x``: float32, at least one axis, without batch. Raises ``WireError``."""
    encoded_size(codec, x.shape)
    raw = PLAIN_CODECS[without_compression(codec)].encode(x)
    return _zstd.compressor.compress(raw) if is_compressed(codec) else raw


def check_payload(codec: str, shape: tuple[int, ...], payload: memoryview | bytes) -> memoryview:
    """The bytes without compression, of which ``decode_tensor`` can make a tensor. Raises ``WireError`` if it could not.

    Much cheaper than to decode. How large a compressed payload gets is known from ``shape``: one that says or tries
    otherwise is refused before memory is spent on it.
    """
    most, size = encoded_size(codec, shape), _plain_size(codec, shape)
    if len(payload) > most or (len(payload) != size and not is_compressed(codec)):
        expected = f"at most {most}" if is_compressed(codec) else f"{size}"
        raise WireError("payload-size", f"expected {expected} bytes of {codec} for shape {shape}, got {len(payload)}")
    raw = memoryview(_decompressed(payload, size) if is_compressed(codec) else payload)
    if steps := PLAIN_CODECS[without_compression(codec)].steps:
        most_scale = _most_scale(steps)
        if not (np.abs(np.frombuffer(raw, "<f4", shape[0])) <= most_scale).all():
            raise WireError("payload", f"expected scales up to {most_scale:.3g}, got others")
    return raw


def _decompressed(payload: memoryview | bytes, size: int) -> bytes:
    try:
        stated = zstandard.frame_content_size(payload)
        if stated != size:
            raise WireError("payload", f"expected a frame of {size} bytes, got one of {stated}")
        raw = _zstd.decompressor.decompress(payload, max_output_size=size, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise WireError("payload", f"expected a Zstandard frame, got none: {error}") from None
    if len(raw) != size:
        raise WireError("payload", f"expected a frame of {size} bytes, got {len(raw)}")
    return raw


def decode_tensor(codec: str, shape: tuple[int, ...], payload: memoryview | bytes) -> Array:
    """float32 of ``shape``, read-only where the codec allows. Raises ``WireError`` as ``check_payload`` does."""
    raw = check_payload(codec, shape, payload)
    return PLAIN_CODECS[without_compression(codec)].decode(shape, raw)
