"""Sound as numbers: WAV files, other sample rates."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_CLIP_S", "Clip", "read_wav", "resampled", "to_int16", "wav_bytes"]

MAX_CLIP_S: Final = 600.0
_RATES_HZ: Final = (1_000, 384_000)
_MOST: Final = 32_767
_LONG_FORM: Final = b"\xfe\xff"
_PCM: Final = bytes.fromhex("0100000000001000800000aa00389b71")
_CHUNKS: Final = 64  # looked through for the format, which usually comes first

Samples = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Clip:
    """``samples_T``: int16, one channel. ``rate_hz``: samples a second."""

    samples_T: Samples
    rate_hz: int

    @property
    def seconds(self) -> float:
        return len(self.samples_T) / self.rate_hz


def read_wav(data: bytes | memoryview) -> Clip:
    """A WAV file's sound, its channels mixed to one. PCM of 8, 16, 24 or 32 bits. Raises ``ValueError``."""
    try:
        with wave.open(io.BytesIO(_plain(data))) as file:
            channels, width, rate_hz, frames = file.getparams()[:4]
            if not _RATES_HZ[0] <= rate_hz <= _RATES_HZ[1] or not 0 < frames <= MAX_CLIP_S * rate_hz:
                raise ValueError(f"sound: expected up to {MAX_CLIP_S:g} s, got {frames:,} samples at {rate_hz:,} Hz")
            raw = file.readframes(frames)
    except (wave.Error, EOFError, OSError, RuntimeError) as error:
        raise ValueError(
            f"sound: expected a WAV file of PCM, got {str(error)[:100] or 'one that ends early'}"
        ) from None
    if channels < 1 or not 1 <= width <= 4:
        raise ValueError(f"sound: expected PCM of 8 to 32 bits, got {channels} channels of {8 * width} bits")
    values = _pcm(raw[: len(raw) // (channels * width) * channels * width], width).reshape(-1, channels)
    if not len(values):
        raise ValueError("sound: expected samples, got none")
    return Clip(values.mean(axis=1).round().astype(np.int16) if channels > 1 else values[:, 0], rate_hz)


def _plain(data: bytes | memoryview) -> bytes | memoryview:
    """With the short form's tag where the header has the long form (WAVE_FORMAT_EXTENSIBLE) and the sound is PCM, as in many
    files of 24 bits: Python's ``wave`` knows that form from 3.12 on.
    """
    at = 12
    for _ in range(_CHUNKS):
        body, size = at + 8, int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"fmt ":
            if data[body : body + 2] == _LONG_FORM and data[body + 24 : body + 40] == _PCM:
                return b"".join((data[:body], b"\x01\x00", data[body + 2 :]))
            break
        at = body + size + size % 2
    return data


def _pcm(raw: bytes, width: int) -> Samples:
    """The upper 16 bits of each value; values of 8 bits are unsigned in this format."""
    if width == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.int16) - 128) << 8
    octets = np.frombuffer(raw, np.uint8).reshape(-1, width)
    return np.ascontiguousarray(octets[:, -2:]).view("<i2")[:, 0].astype(np.int16)


def wav_bytes(clip: Clip) -> bytes:
    """A WAV file of 16 bits."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(clip.rate_hz)
        file.writeframes(clip.samples_T.astype("<i2").tobytes())
    return buffer.getvalue()


def resampled(clip: Clip, rate_hz: int) -> Clip:
    """The same sound at another rate, without what that rate cannot hold: by its spectrum, as if the clip went round."""
    if clip.rate_hz == rate_hz:
        return clip
    count = max(round(len(clip.samples_T) * rate_hz / clip.rate_hz), 1)
    spectrum = np.fft.rfft(clip.samples_T.astype(np.float64))
    kept = np.zeros(count // 2 + 1, np.complex128)
    some = min(len(spectrum), len(kept))
    kept[:some] = spectrum[:some]
    values = np.fft.irfft(kept, count) * (count / len(clip.samples_T))
    return Clip(to_int16(values), rate_hz)


def to_int16(values: NDArray[np.float64]) -> Samples:
    """The nearest there are."""
    return values.round().clip(-_MOST - 1, _MOST).astype(np.int16)
