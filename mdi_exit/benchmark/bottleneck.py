"""``mdi-exit benchmark bottleneck``: a learned bottleneck at the first cut of ResNet-50 for 32×32 images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from mdi_exit.data import inputs_of, splits
from mdi_exit.model.backbones import layers_of, small_resnet
from mdi_exit.model.heads import head_for
from mdi_exit.model.manifest import InputSpec
from mdi_exit.model.network import MultiExitNetwork
from mdi_exit.training.joint import TrainConfig

CLASSES: Final = 10
DEPTH: Final = 50
FIRST_EXITS: Final = (2, 6, 12)  # at the ends of the first three stages; the last layer has one anyway
CUT: Final = 3
# Fashion-MNIST's mean and standard deviation, the same for the three channels that its grey is copied to.
SPEC: Final = InputSpec(kind="image", shape=(3, 32, 32), mean=(0.286,) * 3, std=(0.353,) * 3)


@dataclass(frozen=True, slots=True)
class Images:
    """``x_NCHW``: what enters the network; ``labels_N``: int64."""

    x_NCHW: Tensor
    labels_N: Tensor


def resnet50(width: float) -> tuple[MultiExitNetwork, tuple[str, ...]]:
    """An untrained ResNet-50 with the stem of its CIFAR form and four exits, and the names of its layers."""
    torch.manual_seed(0)
    layers, classifier = layers_of(small_resnet(DEPTH, width=width, classes=CLASSES))
    x_NCHW, exits = torch.zeros(2, *SPEC.shape), dict[int, nn.Module]()
    with torch.no_grad():
        for index, layer in enumerate(layers.values()):
            x_NCHW = layer(x_NCHW)
            if index in FIRST_EXITS:
                exits[index] = head_for(tuple(x_NCHW.shape[1:]), CLASSES)
    return MultiExitNetwork(list(layers.values()), {**exits, len(layers) - 1: classifier}), tuple(layers)


def fashion_images(train: int, data_dir: Path | None) -> tuple[Images, Images]:
    """The first ``train`` training images and all test images, resized to 32×32, grey in all three channels."""
    made = splits("fashion-mnist", seed=0, data_dir=data_dir)
    some = made.train.subset(np.arange(min(train, len(made.train))))
    return tuple(  # type: ignore[return-value]
        Images(torch.from_numpy(inputs_of(part.images_NHWC, SPEC)), torch.from_numpy(part.labels_N))
        for part in (some, made.test)
    )


def train_config(epochs: int) -> TrainConfig:
    return TrainConfig(epochs=epochs, batch_size=128, learning_rate=0.05, weight_decay=5e-4, threads=1)
