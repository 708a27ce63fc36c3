"""Noise on sound, at a stated ratio: white, pink (equal power in each octave), or the babble of other clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mdi_exit.data.sets import Dataset
from mdi_exit.data.sound import Clip, resampled, to_int16

__all__ = ["NOISES", "Noise", "noise_like", "noisy", "with_noise"]

Noise = Literal["white", "pink", "babble"]
NOISES: Final[tuple[Noise, ...]] = get_args(Noise)
_TALKERS: Final = 5
_FULL: Final = 32_767


def noisy(clip: Clip, snr_db: float, noise_T: NDArray[np.float64]) -> Clip:
    """With the noise, the clip's mean power being ``snr_db`` above the noise's; all softer if it would clip."""
    samples_T = clip.samples_T.astype(np.float64)
    power, of_noise = float(np.mean(samples_T**2)), max(float(np.mean(noise_T**2)), 1e-12)
    mixed_T = samples_T + noise_T * np.sqrt(power / of_noise / 10 ** (snr_db / 10))
    return Clip(to_int16(mixed_T * min(1.0, _FULL / max(float(np.abs(mixed_T).max()), 1.0))), clip.rate_hz)


def noise_like(
    kind: Noise, count: int, rate_hz: int, others: Sequence[Clip], rng: np.random.Generator
) -> NDArray[np.float64]:
    """``count`` samples of any power. ``others``: of which five, drawn by ``rng``, talk at once in ``babble``."""
    if kind == "babble":
        return _babble([others[row] for row in rng.integers(len(others), size=_TALKERS)], count, rate_hz, rng)
    white_T = rng.standard_normal(count)
    if kind == "white":
        return white_T
    spectrum = np.fft.rfft(white_T)
    made_T: NDArray[np.float64] = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), count)
    return made_T


def _babble(clips: Sequence[Clip], count: int, rate_hz: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Each as loud as the others, over and over, begun anywhere."""
    made_T = np.zeros(count)
    for clip in clips:
        voice_T = resampled(clip, rate_hz).samples_T.astype(np.float64)
        begun_T = np.roll(voice_T, int(rng.integers(len(voice_T))))
        made_T += np.resize(begun_T, count) / max(float(np.sqrt(np.mean(voice_T**2))), 1.0)
    return made_T


def with_noise(
    dataset: Dataset, snrs_db: tuple[float, float], seed: tuple[int, ...], clean_share: float = 0.0
) -> Dataset:
    """Each clip with a noise of any kind, at a ratio from the first to the second, drawn by ``seed`` and the clip's place.

    Clips of the same data set babble. ``clean_share``: of clips that stay as they are.
    """
    clips = [item for item in dataset.items if isinstance(item, Clip)]
    made = tuple(_drawn(clip, clips, snrs_db, np.random.default_rng((*seed, place)), clean_share)
                 for place, clip in enumerate(clips))  # fmt: skip
    return Dataset(dataset.name, made, dataset.labels_N, dataset.classes, dataset.ids_N)


def _drawn(
    clip: Clip, clips: Sequence[Clip], snrs_db: tuple[float, float], rng: np.random.Generator, clean_share: float
) -> Clip:
    if rng.random() < clean_share:
        return clip
    kind, snr_db = NOISES[rng.integers(len(NOISES))], rng.uniform(*snrs_db)
    return noisy(clip, snr_db, noise_like(kind, len(clip.samples_T), clip.rate_hz, clips, rng))
