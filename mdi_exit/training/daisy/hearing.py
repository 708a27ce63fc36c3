"""Clips as they are heard: in learning and calibration, three of four with noise. N clips, T frames, M bands.

Noise is of any kind at any ratio from -5 to 20 dB. Units are those of the clean clip, so that to predict them is to take the
noise away too, as in WavLM (arXiv 2110.13900). Learning, calibration and test never hear the same noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from torch import Tensor

from mdi_exit.data.noise import with_noise
from mdi_exit.data.sets import Dataset
from mdi_exit.data.sound import Clip, resampled
from mdi_exit.errors import UsageError
from mdi_exit.modality.audio import AudioInput, log_mel
from mdi_exit.model.manifest import AudioSpec, InputSpec
from mdi_exit.training.samples import prepared_samples

__all__ = ["Hearing", "calibration_clips", "clips_at"]

_SNRS_DB: Final = (-5.0, 20.0)
_CLEAN_SHARE: Final = 0.25
_CALIBRATION_TIMES: Final = 4
_BANDS: Final = 40
_LEARNING, _CALIBRATION, _TEST = range(3)


@dataclass(frozen=True, slots=True)
class Hearing:
    """The training clips, at the rate that ``spec`` says."""

    clips: Dataset
    spec: InputSpec
    seed: int

    @classmethod
    def of(cls, dataset: Dataset, seconds: float, seed: int) -> Self:
        """For clips of at most ``seconds``; mean and deviation of bands are of what is heard. Raises ``UsageError``."""
        audio = AudioSpec()
        items = tuple(resampled(item, audio.rate_hz) for item in dataset.items if isinstance(item, Clip))
        most = int(seconds * audio.rate_hz - audio.window) // audio.hop + 1
        if most < 2 or not items:
            raise UsageError(
                "--seconds", "two frames at least, of clips of sound", f"{seconds:g} s of {len(items)} clips"
            )
        clips = replace(dataset, items=items)
        heard = _heard(clips, (seed, _LEARNING)).items
        frames_FM = np.concatenate([log_mel(clip, audio, most, _BANDS) for clip in heard if isinstance(clip, Clip)])
        mean, std = (tuple(round(float(one), 4) for one in values) for values in (frames_FM.mean(0), frames_FM.std(0)))
        deviations = tuple(max(value, 1e-2) for value in std)
        return cls(clips, InputSpec(kind="audio", shape=(most, _BANDS), mean=mean, std=deviations, audio=audio), seed)

    def clean(self) -> Tensor:
        """x_NTM of the clips as they are."""
        return prepared_samples(self.clips, AudioInput(self.spec), self.spec).x_N

    def again(self, *numbers: int) -> Tensor:
        """x_NTM with noise by the seed and ``numbers``."""
        heard = _heard(self.clips, (self.seed, _LEARNING, *numbers))
        return prepared_samples(heard, AudioInput(self.spec), self.spec).x_N


def calibration_clips(dataset: Dataset, seed: int) -> Dataset:
    """Each clip four times, as in learning: what thresholds are chosen on, those of every rule."""
    heard = [_heard(dataset, (seed, _CALIBRATION, number)) for number in range(_CALIBRATION_TIMES)]
    items = tuple(item for one in heard for item in one.items if isinstance(item, Clip))
    labels_N, ids_N = (np.tile(values, _CALIBRATION_TIMES) for values in (dataset.labels_N, dataset.ids_N))
    return replace(dataset, items=items, labels_N=labels_N, ids_N=ids_N)


def clips_at(dataset: Dataset, snr_db: float | None, seed: int) -> Dataset:
    """All at one ratio, with the same noise at each; None: as they are."""
    return dataset if snr_db is None else with_noise(dataset, (snr_db, snr_db), (seed, _TEST))


def _heard(dataset: Dataset, seed: tuple[int, ...]) -> Dataset:
    return with_noise(dataset, _SNRS_DB, seed, _CLEAN_SHARE)
