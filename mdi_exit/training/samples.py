"""Labelled samples as a network takes them: drawn in batches, augmented, fitted to its input, normalised.

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
from mdi_exit.modality import Modality
from mdi_exit.model.manifest import InputSpec

__all__ = [
    "AUGMENTATIONS",
    "AnySamples",
    "Augmentation",
    "PreparedSamples",
    "Samples",
    "draws",
    "held_out",
    "input_spec",
    "mirrored_and_shifted",
    "prepared_samples",
    "samples_of",
]

Augmentation = Literal["mirror-shift", "shift", "none"]
AUGMENTATIONS: tuple[Augmentation, ...] = get_args(Augmentation)
_SHIFT_PIXELS = 2
_MOST_AT_ONCE = 32  # of texts: attention takes memory with the square of their length


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

    def inputs(
        self, rows_B: Tensor, device: torch.device, augmentation: Augmentation, generator: torch.Generator
    ) -> Tensor:
        """The inputs of those rows: float32, (value/255 - mean) / std."""
        images_NHWC = self.images_NHWC[rows_B]
        if augmentation != "none":
            images_NHWC = mirrored_and_shifted(images_NHWC, generator, mirror=augmentation == "mirror-shift")
        channels, height, width = self.spec.image_shape
        if images_NHWC.shape[1:] != (height, width, channels):
            rows = [fitted(image_HWC, self.spec.image_shape) for image_HWC in images_NHWC.numpy()]
            images_NHWC = torch.from_numpy(np.stack(rows))
        x_NHWC = images_NHWC.to(device).float() / 255
        mean, std = (torch.tensor(values, device=device) for values in (self.spec.mean, self.spec.std))
        x_NCHW = ((x_NHWC - mean) / std).permute(0, 3, 1, 2)
        return x_NCHW if self.channels_last else x_NCHW.contiguous()

    def parts(self, device: torch.device, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All of them in order, unchanged: inputs and labels of at most ``size`` each."""
        for rows_B in torch.split(torch.arange(len(self)), size):
            yield self.inputs(rows_B, device, "none", _NO_CHANCE), self.labels_N[rows_B].to(device)


_NO_CHANCE = torch.Generator()


@dataclass(frozen=True, slots=True)
class PreparedSamples:
    """Anything but images: ``x_N`` is what enters the network, the first axis after N padded; nothing augments it."""

    x_N: Tensor
    labels_N: Tensor
    spec: InputSpec

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def fingerprint(self) -> str:
        """Tells data sets apart."""
        digest = hashlib.sha256(repr((tuple(self.x_N.shape), self.spec)).encode())
        digest.update(self.x_N.numpy().tobytes() + self.labels_N.numpy().tobytes())
        return digest.hexdigest()

    def inputs(
        self, rows_B: Tensor, device: torch.device, augmentation: Augmentation, generator: torch.Generator
    ) -> Tensor:
        """Of those rows, as long as the longest of them."""
        del augmentation, generator
        x_B = self.x_N[rows_B]
        there_T = x_B.flatten(2).any(2).any(0) if x_B.ndim > 2 else x_B.any(0)
        longest = int(there_T.nonzero().max()) + 1 if there_T.any() else 1
        return x_B[:, :longest].to(device)

    def parts(self, device: torch.device, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All of them in order: inputs and labels of at most ``size`` each."""
        for rows_B in torch.split(torch.arange(len(self)), min(size, _MOST_AT_ONCE)):
            yield self.inputs(rows_B, device, "none", _NO_CHANCE), self.labels_N[rows_B].to(device)


AnySamples = Samples | PreparedSamples


def prepared_samples(dataset: Dataset, modality: Modality, spec: InputSpec) -> PreparedSamples:
    """The data set's samples as ``modality`` prepares them."""
    labels_N = np.require(dataset.labels_N, requirements="W")
    return PreparedSamples(torch.from_numpy(modality.batch(dataset.items)), torch.from_numpy(labels_N), spec)


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
