"""Batches for the loop: inputs, or what a frozen backbone makes of them.

Taps of a frozen backbone are computed once and kept in memory, in float16, when nothing augments the images (an
augmented image is a new one each time) and they take at most ``MOST_CACHED_BYTES``; with a value beyond float16's range
they are kept in float32. Training heads alone is then as cheap as the heads. Logits of the last exit stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mdi_exit.training.phases import Evaluation, Taps, Trainee
from mdi_exit.training.samples import AnySamples, Augmentation, draws

__all__ = ["MOST_CACHED_BYTES", "Feed", "ImageFeed", "TapFeed", "feed_of"]

MOST_CACHED_BYTES: Final = 4 * 2**30
_EVALUATION_BATCH: Final = 500

Autocast = Callable[[], "torch.autocast"]


@dataclass(frozen=True, slots=True)
class ImageFeed:
    """Inputs, augmented anew each time; taps of them when ``frozen``."""

    trainee: Trainee
    samples: AnySamples
    device: torch.device
    autocast: Autocast
    frozen: bool = False

    def batches(
        self, size: int, augmentation: Augmentation, generator: torch.Generator
    ) -> Iterator[tuple[Tensor | Taps, Tensor]]:
        """One epoch."""
        for rows_B in draws(len(self.samples), size, generator):
            x_BCHW = self.samples.inputs(rows_B, self.device, augmentation, generator)
            labels_B = self.samples.labels_N[rows_B].to(self.device)
            if self.frozen:
                with self.autocast():
                    yield self.trainee.taps(x_BCHW), labels_B
            else:
                yield x_BCHW, labels_B

    def evaluation(self) -> Evaluation:
        """Every exit on all samples."""
        self.trainee.eval()
        found = []
        with torch.no_grad(), self.autocast():
            for x_BCHW, _ in self.samples.parts(self.device, _EVALUATION_BATCH):
                found.append(torch.stack([one.float().cpu() for one in self.trainee.network(x_BCHW)]))
        return Evaluation(torch.cat(found, 1), self.samples.labels_N)


@dataclass(frozen=True, slots=True)
class TapFeed:
    """Taps from memory: ``features`` N×… by early exit on the CPU, ``last_NK``; ``last``: as in ``Taps``."""

    trainee: Trainee
    features: tuple[Tensor, ...]
    last_NK: Tensor
    labels_N: Tensor
    device: torch.device
    autocast: Autocast
    last: Tensor | None = None

    def batches(
        self, size: int, augmentation: Augmentation, generator: torch.Generator
    ) -> Iterator[tuple[Tensor | Taps, Tensor]]:
        """One epoch; the augmentation was none when the taps were made."""
        del augmentation
        for rows_B in draws(len(self.labels_N), size, generator):
            yield self._taps(rows_B), self.labels_N[rows_B].to(self.device)

    def evaluation(self) -> Evaluation:
        """Every exit on all samples."""
        self.trainee.eval()
        found = []
        with torch.no_grad(), self.autocast():
            for rows_B in torch.split(torch.arange(len(self.labels_N)), _EVALUATION_BATCH):
                logits = self.trainee.head_logits(self._taps(rows_B))
                found.append(torch.stack([one.float().cpu() for one in logits]))
        return Evaluation(torch.cat(found, 1), self.labels_N)

    def _taps(self, rows_B: Tensor) -> Taps:
        features = tuple(one[rows_B].to(self.device).float() for one in self.features)
        last = None if self.last is None else self.last[rows_B].to(self.device).float()
        return Taps(features, self.last_NK[rows_B].to(self.device), last)


Feed = ImageFeed | TapFeed


def feed_of(
    trainee: Trainee,
    samples: AnySamples,
    device: torch.device,
    autocast: Autocast,
    *,
    frozen: bool,
    augmentation: Augmentation,
) -> Feed:
    """Taps from memory where they may be and fit; images otherwise."""
    images = ImageFeed(trainee, samples, device, autocast, frozen)
    if not frozen or augmentation != "none":
        return images
    parts: list[Taps] = []
    for x_BCHW, _ in samples.parts(device, _EVALUATION_BATCH):
        with autocast():
            made = trainee.taps(x_BCHW)
        last = None if made.last is None else _kept(made.last)
        parts.append(Taps(tuple(_kept(one) for one in made.features), made.last_BK.float().cpu(), last))
        if sum(one.nbytes for one in parts[0].features) * len(samples) / len(x_BCHW) > MOST_CACHED_BYTES:
            return images
    features = tuple(torch.cat(column) for column in zip(*(part.features for part in parts), strict=True))
    last_NK = torch.cat([part.last_BK for part in parts])
    lasts = [part.last for part in parts if part.last is not None]
    last = torch.cat(lasts) if lasts else None
    return TapFeed(trainee, features, last_NK, samples.labels_N, device, autocast, last)


def _kept(x: Tensor) -> Tensor:
    """Float16 on the CPU, unless a value would not fit; in the layout it came in."""
    fits = bool(x.abs().max() < torch.finfo(torch.float16).max)
    return x.to("cpu", torch.float16 if fits else torch.float32)
