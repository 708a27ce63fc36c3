"""Sound: log-mel frames, as the artifact declares them; reckoned here and nowhere else.

A clip, cut off where the input's shape ends, is brought to the declared rate, freed of its mean and made of unit power (a
whisper near the microphone and a shout far from it are the same to the model; below a thousandth of full scale it is left
as silence). Then, for each window: Hann, power spectrum, triangular bands evenly spread on the mel scale
(2595·log₁₀(1 + f/700)), natural logarithm, mean and deviation of each band.
"""

from __future__ import annotations

import math
from functools import cache
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from mdi_exit.data.sets import Items
from mdi_exit.data.sound import Clip, read_wav, resampled
from mdi_exit.errors import UsageError
from mdi_exit.modality.base import Array, Raw
from mdi_exit.model.manifest import AudioSpec, InputSpec
from mdi_exit.padding import stacked

__all__ = ["AudioInput", "log_mel"]

_FLOOR: Final = 1e-3  # of power: digital silence is then no further away than a quiet room is
_SILENCE: Final = 1e-3
_LARGEST_VALUE: Final = 1000.0
_NOT_ABSENT: Final = np.float32(1e-4)


class AudioInput:
    """See ``Modality``."""

    kind: ClassVar = "audio"

    def __init__(self, spec: InputSpec) -> None:
        if spec.audio is None:
            raise UsageError("model input", "a declaration of its log-mel frames", "none")
        self._spec, self._audio = spec, spec.audio
        self._mean_M, self._std_M = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)

    def read(self, data: bytes | memoryview) -> Raw:
        return read_wav(data)

    def prepared(self, raw: Raw) -> Array:
        if not isinstance(raw, Clip):
            raise UsageError("item", "sound, as the model takes", "something else")
        x_TM = (log_mel(raw, self._audio, *self._spec.shape) - self._mean_M) / self._std_M
        x_TM[~x_TM.any(axis=1), 0] = _NOT_ABSENT  # a frame of zeros would count as padding
        return np.ascontiguousarray(x_TM, np.float32)

    def ready(self, x: Array) -> Array:
        most, bands = self._spec.shape
        if x.ndim != 2 or not 1 <= len(x) <= most or x.shape[1] != bands:
            raise ValueError(f"array: expected 1 to {most} frames of {bands} bands, got shape {x.shape}")
        if not (np.abs(x) <= _LARGEST_VALUE).all():  # also of NaN
            raise ValueError("array: expected log-mel frames, normalised, got other values")
        return np.ascontiguousarray(x, np.float32)

    def batch(self, items: Items) -> Array:
        clips = [item for item in items if isinstance(item, Clip)] if isinstance(items, tuple) else []
        if not clips or len(clips) < len(items):
            raise UsageError("items", "sound, as the model takes", "images or texts")
        return stacked([self.prepared(clip) for clip in clips])


def log_mel(clip: Clip, spec: AudioSpec, most: int, bands: int) -> Array:
    """T×M float32, T of 1 to ``most``: see the module; mean and deviation not applied yet."""
    wanted = (most - 1) * spec.hop + spec.window
    begin = Clip(
        clip.samples_T[: -(-wanted * clip.rate_hz // spec.rate_hz)], clip.rate_hz
    )  # what is cut off costs nothing
    values = resampled(begin, spec.rate_hz).samples_T[:wanted] / np.float64(32_768)
    values = values - values.mean()
    values /= max(float(np.sqrt(np.mean(values**2))), _SILENCE)
    if len(values) < spec.window:
        values = np.pad(values, (0, spec.window - len(values)))
    windows_TW = np.lib.stride_tricks.sliding_window_view(values, spec.window)[:: spec.hop]
    spectrum_TF = np.fft.rfft(windows_TW * np.hanning(spec.window), _size(spec.window), axis=1)
    power_TM = (np.abs(spectrum_TF) ** 2 / spec.window) @ _bands(spec, bands)
    logs_TM: Array = np.log(np.maximum(power_TM, _FLOOR)).astype(np.float32)
    return logs_TM


def _size(window: int) -> int:
    """Of the transform: the next power of two."""
    return 1 << (window - 1).bit_length()


@cache
def _bands(spec: AudioSpec, bands: int) -> NDArray[np.float64]:
    """F×M: how much each frequency counts in each band."""
    first, last = (2595 * math.log10(1 + hz / 700) for hz in (spec.lowest_hz, spec.highest_hz))
    corners = 700 * (10 ** (np.linspace(first, last, bands + 2) / 2595) - 1)
    f_F1 = np.fft.rfftfreq(_size(spec.window), 1 / spec.rate_hz)[:, None]
    low, mid, high = corners[:-2], corners[1:-1], corners[2:]
    shares_FM: NDArray[np.float64] = np.minimum((f_F1 - low) / (mid - low), (high - f_F1) / (high - mid)).clip(0)
    return shares_FM
