"""Labelled images as a network takes them: drawn in batches, augmented, fitted to its input, normalised.

Shapes: N samples, H×W pixels, C channels, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mdi_exit.data import Dataset
from mdi_exit.data.pixels import fitted
from mdi_exit.model.manifest import InputSpec

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "Samples",
    "draws",
    "held_out",
    "input_spec",
    "mirrored_and_shifted",
    "samples_of",
]

Augmentation = Literal["mirror-shift", "shift", "none"]
AUGMENTATIONS: tuple[Augmentation, ...] = get_args(Augmentation)
_SHIFT_PIXELS = 2


@dataclass(frozen=True, slots=True)
class Samples:
    """``images_NHWC``: uint8, of any one size; ``labels_N``: int64; ``spec``: what the network takes.

    ``channels_last``: whether inputs have that memory layout.
    """

    images_NHWC: Tensor
    labels_N: Tensor
    spec: InputSpec
    channels_last: bool = True

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def fingerprint(self) -> str:
        """Tells data sets apart without a look at every pixel."""
        digest = hashlib.sha256(repr((tuple(self.images_NHWC.shape), self.spec)).encode())
        digest.update(self.labels_N.numpy().tobytes())
        return digest.hexdigest()

    def x_NCHW(
        self, rows_B: Tensor, device: torch.device, augmentation: Augmentation, generator: torch.Generator
    ) -> Tensor:
        """The inputs of those rows: float32, (value/255 - mean) / std."""
        images_NHWC = self.images_NHWC[rows_B]
        if augmentation != "none":
            images_NHWC = mirrored_and_shifted(images_NHWC, generator, mirror=augmentation == "mirror-shift")
        channels, height, width = self.spec.shape
        if images_NHWC.shape[1:] != (height, width, channels):
            rows = [fitted(image_HWC, self.spec.shape) for image_HWC in images_NHWC.numpy()]
            images_NHWC = torch.from_numpy(np.stack(rows))
        x_NHWC = images_NHWC.to(device).float() / 255
        mean, std = (torch.tensor(values, device=device) for values in (self.spec.mean, self.spec.std))
        x_NCHW = ((x_NHWC - mean) / std).permute(0, 3, 1, 2)
        return x_NCHW if self.channels_last else x_NCHW.contiguous()

    def parts(self, device: torch.device, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All of them in order, unchanged: inputs and labels of at most ``size`` each."""
        for rows_B in torch.split(torch.arange(len(self)), size):
            yield self.x_NCHW(rows_B, device, "none", _NO_CHANCE), self.labels_N[rows_B].to(device)


_NO_CHANCE = torch.Generator()


def samples_of(dataset: Dataset, spec: InputSpec, *, channels_last: bool = True) -> Samples:
    """The data set's samples for a network that takes ``spec``."""
    images_NHWC = np.require(dataset.images_NHWC, requirements="W")  # torch takes no array that is read-only
    labels_N = np.require(dataset.labels_N, requirements="W")
    return Samples(torch.from_numpy(images_NHWC), torch.from_numpy(labels_N), spec, channels_last)


def input_spec(dataset: Dataset, shape: tuple[int, int, int] | None = None) -> InputSpec:
    """Mean and standard deviation of the training images, four digits; ``shape``: C, H, W if not the images' own."""
    _, height, width, channels = dataset.images_NHWC.shape
    values = dataset.images_NHWC.reshape(-1, channels)
    mean = tuple(round(float(value) / 255, 4) for value in values.mean(axis=0, dtype=np.float64))
    std = tuple(max(round(float(value) / 255, 4), 1e-4) for value in values.std(axis=0, dtype=np.float64))
    wanted = shape or (channels, height, width)
    if channels == 1:
        mean, std = mean * wanted[0], std * wanted[0]
    elif wanted[0] == 1:
        mean, std = (round(sum(mean) / channels, 4),), (round(sum(std) / channels, 4),)
    return InputSpec(kind="image", shape=wanted, mean=mean, std=std)


def mirrored_and_shifted(images_NHWC: Tensor, generator: torch.Generator, *, mirror: bool) -> Tensor:
    """Mirror half of the images; shift each batch by up to two pixels, edges filled with black."""
    if mirror:
        flip_N = torch.rand(len(images_NHWC), generator=generator) < 0.5
        images_NHWC = torch.where(flip_N[:, None, None, None], images_NHWC.flip(2), images_NHWC)
    _, height, width, _ = images_NHWC.shape
    dy, dx = (int(value) for value in torch.randint(0, 2 * _SHIFT_PIXELS + 1, (2,), generator=generator))
    padded = functional.pad(images_NHWC, (0, 0, *(_SHIFT_PIXELS,) * 4))
    return padded[:, dy : dy + height, dx : dx + width]


def draws(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of each batch of one epoch: all of ``count`` in random order, ``size`` at a time, a rest left out."""
    order_N = torch.randperm(count, generator=generator)
    for start in range(0, count - size + 1, size):
        yield order_N[start : start + size]


def held_out(dataset: Dataset, count: int, seed: int) -> tuple[Dataset, Dataset]:
    """What is left of ``dataset``, and ``count`` samples drawn from it by ``seed``, each in the data set's order."""
    order_N = np.random.default_rng((seed, 1)).permutation(
        len(dataset)
    )  # not the draw that took the calibration samples
    return dataset.subset(np.sort(order_N[count:])), dataset.subset(np.sort(order_N[:count]))
