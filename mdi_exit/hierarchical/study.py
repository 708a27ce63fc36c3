"""What the workers learn from, and what comes out: samples, network, and at the end the artifact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch

from mdi_exit.data import splits
from mdi_exit.data.splits import Splits
from mdi_exit.errors import UsageError, WireError
from mdi_exit.hierarchical.config import HierarchicalSettings
from mdi_exit.hierarchical.lessons import batch_bytes
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.build import Built, built
from mdi_exit.model.export import export_artifact
from mdi_exit.model.manifest import InputSpec
from mdi_exit.training.feed import ImageFeed
from mdi_exit.training.phases import Trainee
from mdi_exit.training.samples import Samples, samples_of
from mdi_exit.transport.base import MAX_PACKET_BYTES

__all__ = ["Study"]

# Of every data set, so that no statistic of anybody's images has to leave an edge.
_MEAN: Final = 0.5
_STD: Final = 0.25
_ROOM_BYTES: Final = 64 * 1024
_APART: Final = 0x9E3779B1  # torch takes 32 bits of a seed: multiples of this one are far from each other there


class Study:
    """One model on one data set, as all workers of a run see it. Raises ``UsageError`` for what does not fit."""

    def __init__(self, settings: HierarchicalSettings) -> None:
        self.settings = settings
        torch.set_num_threads(settings.threads)  # a thread that has worked before keeps the number it had
        self.parts: Splits = splits(
            settings.data, seed=settings.seed, data_dir=settings.data_dir, shape=settings.input_shape
        )
        if self.parts.test.kind != "image":
            raise UsageError("--data", "images", f"{self.parts.test.kind} samples")
        _, height, width, channels = self.parts.test.images_NHWC.shape
        shape = settings.input_shape or (channels, height, width)
        self.spec = InputSpec(kind="image", shape=shape, mean=(_MEAN,) * shape[0], std=(_STD,) * shape[0])
        self.layer_count = len(self.network(None).network.layers)
        if settings.cut is not None and settings.cut >= self.layer_count - 1:
            raise UsageError("--cut", f"a layer from 0 to {self.layer_count - 2}", settings.cut)

    @property
    def terms(self) -> int:
        """A digest, 63 bits, of all that edges and cloud have to agree on; the seed is also that of the test samples."""
        told = self.settings
        agreed = (
            told.scheme, told.model, told.width, self.spec.shape, self.parts.test.classes, told.seed, told.edges,
            told.batch_size, told.learning_rate,
        )  # fmt: skip
        return int.from_bytes(hashlib.sha256(json.dumps(agreed).encode()).digest()[:8]) >> 1

    def network(self, cut: int | None) -> Built:
        """Untrained, the same for the same seed; an exit after ``cut`` (None: after each layer) and at the end."""
        count = getattr(self, "layer_count", None)
        exits = (cut,) if cut is not None else range(count) if count is not None else None
        return built(
            self.settings.model, input_shape=self.spec.shape, classes=len(self.parts.test.classes), exits=exits,
            seed=self.settings.seed, width=self.settings.width,
        )  # fmt: skip

    def own_samples(self) -> Samples:
        """This edge's: every n-th of the training samples in an order drawn by the seed."""
        number, count = self.settings.shard
        train = self.parts.train
        order_N = np.random.default_rng((self.settings.seed, 2)).permutation(len(train))
        own = np.sort(order_N[: self.settings.limit][number - 1 :: count])
        if len(own) < self.settings.batch_size:
            raise UsageError("--batch-size", f"at most the {len(own)} samples of this edge", self.settings.batch_size)
        return samples_of(train.subset(own), self.spec)

    def chance(self, step: int, number: int) -> torch.Generator:
        """What the augmentation of a step is drawn by, at the edge of that ``number``, from 0, or for it."""
        return torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step + number * _APART)

    def steps(self, samples: int) -> tuple[int, int]:
        """Of one epoch, and in all, for an edge of so many samples."""
        an_epoch = samples // self.settings.batch_size
        return an_epoch, self.settings.steps or self.settings.epochs * an_epoch

    def feature_shapes(self) -> list[tuple[int, ...]]:
        """Of what leaves each layer, without batch."""
        shapes, x_NCHW = [], torch.zeros(1, *self.spec.shape)
        with torch.no_grad():
            for layer in self.network(None).network.layers:
                x_NCHW = layer(x_NCHW)
                shapes.append(tuple(x_NCHW.shape[1:]))
        return shapes

    def batch_bytes(self) -> list[int]:
        """Of a batch with its labels, by the layer that it leaves."""
        size = self.settings.batch_size
        return [batch_bytes(self.settings.codec, size, shape) for shape in self.feature_shapes()]

    def fits(self, cut: int) -> None:
        """Raises ``UsageError`` if a batch of the cut is no message that brokers take."""
        size, most = self.batch_bytes()[cut], MAX_PACKET_BYTES - _ROOM_BYTES
        if size > most:
            raise UsageError("--batch-size", f"batches of at most {most:,} bytes after layer {cut}", f"{size:,} bytes")

    def finished(self, cut: int, states: Mapping[str, Any], training: dict[str, Any]) -> Artifact:
        """The artifact of the trained ``states`` (of all parts together), its exits measured on the test samples.

        Raises ``WireError`` if they are not all of the network.
        """
        made = self.network(cut)
        try:
            made.network.load_state_dict(dict(states))
        except RuntimeError as error:
            raise WireError("weights", f"expected those of the whole network: {str(error).splitlines()[-1]}") from None
        accuracies = self.accuracies(made)
        return export_artifact(
            made.network, self.settings.out.absolute(), name=self._name(), input_spec=self.spec,
            labels=self.parts.test.classes, rebuild=made.description, files=made.files, names=made.layer_names, timed=True,
            data=self.parts.record, training={**training, "accuracy_by_exit": list(accuracies)}, accuracies=accuracies,
        )  # fmt: skip

    def accuracies(self, made: Built) -> tuple[float, ...]:
        """By exit, on all test samples."""
        device, off = torch.device("cpu"), torch.autocast("cpu", enabled=False)
        feed = ImageFeed(Trainee(made.network), samples_of(self.parts.test, self.spec), device, lambda: off)
        return feed.evaluation().accuracies

    def _name(self) -> str:
        words = (
            f"{self.settings.data.partition(':')[0]}-{self.settings.model.rpartition(':')[2]}-{self.settings.scheme}"
        )
        return "".join(char if char.isascii() and (char.isalnum() or char in "_.-") else "-" for char in words)[:80]
