"""Trains the bottlenecks of an artifact (needs the extra ``torch``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from mdi_exit.cuts import DEFAULT_CODEC
from mdi_exit.data import Dataset, inputs_of
from mdi_exit.engine.torch import network_of
from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.variant import Halves
from mdi_exit.training.bottleneck import Autoencoder, BottleneckConfig, exported, train_bottleneck

__all__ = ["train_all"]


def train_all(
    artifact: Artifact,
    images: Dataset,
    wanted: Mapping[int, tuple[int, int]],
    codecs: Mapping[int, str],
    *,
    epochs: int,
    seed: int,
    threads: int,
    console: Console,
) -> tuple[dict[int, Halves], dict[str, Any]]:
    """An autoencoder for each cut of ``wanted`` (layer: channels, stride), the earlier ones in force for the later.

    ``codecs``: in which each code is to travel. Returns the exported halves and a record for the manifest. Raises
    ``UsageError``, ``ArtifactError``.
    """
    manifest = artifact.manifest
    network = network_of(artifact)
    x_NCHW = torch.from_numpy(inputs_of(images.images_NHWC, manifest.input))
    made: dict[int, Autoencoder] = {}
    halves: dict[int, Halves] = {}
    record: dict[str, Any] = {}
    for layer, (channels, stride) in sorted(wanted.items()):
        codec = codecs.get(layer) or manifest.layers[layer].codec or DEFAULT_CODEC
        config = BottleneckConfig(epochs=epochs, codec=codec, seed=seed, threads=threads)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(f"bottleneck before layer {layer}", total=None)

            def step(epoch: int, done: int, steps: int, loss: float) -> None:
                del loss
                bar.update(task, completed=epoch * steps + done, total=epochs * steps)  # noqa: B023 - used in its turn

            try:
                result = train_bottleneck(
                    network, layer, x_NCHW, channels, stride, config, before=made, progress=step
                )  # fmt: skip
            except ValueError as error:
                raise UsageError(f"--bottleneck {layer}", *_told(error)) from None
        made[layer] = result.autoencoder
        halves[layer] = exported(result.autoencoder, manifest.layers[layer].in_shape)
        record[str(layer)] = {
            **asdict(config), "images": len(x_NCHW), "losses": [round(loss, 5) for loss in result.losses],
            "seconds": round(result.seconds, 1),
        }  # fmt: skip
        console.print(
            f"bottleneck before layer {layer}: {halves[layer].params:,} parameters, {halves[layer].macs:,} MACs, loss "
            f"{result.losses[-1]:.4f} after {epochs} epochs of {len(x_NCHW):,} images, {result.seconds:.0f} s"
        )
    return halves, {"bottlenecks": record}


def _told(error: ValueError) -> tuple[str, str]:
    """What was expected and what was got, from a message of that form."""
    expected, _, got = str(error).removeprefix("expected ").rpartition(", got ")
    return expected, got
