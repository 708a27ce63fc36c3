"""``mdi-exit benchmark bottleneck``: a learned bottleneck at the first cut of ResNet-50 for 32×32 images.

At full width, with random weights, what counts are shapes, bytes and multiply-accumulates: they are those of the exported
graphs as ONNX Runtime runs them. What it costs in accuracy is found at a width that this machine can train, at the same
ratio: half of the channels, half of each side, int4. The images are real, Fashion-MNIST's; their size is not: they
are resized to 32×32, their grey copied to three channels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from mdi_exit.cut_rows import Row, accuracies_of, cut_rows, input_rows
from mdi_exit.data import Dataset, Splits, inputs_of
from mdi_exit.engine.onnx import OnnxEngine
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.backbones import layers_of, small_resnet
from mdi_exit.model.compose import Composer
from mdi_exit.model.export import export_artifact
from mdi_exit.model.heads import head_for
from mdi_exit.model.manifest import InputSpec, Manifest
from mdi_exit.model.network import MultiExitNetwork
from mdi_exit.model.variant import Variant, write_variant
from mdi_exit.segments import SegmentKey
from mdi_exit.tensors import encode_tensor
from mdi_exit.training.bottleneck import Autoencoder, BottleneckConfig, autoencoder, exported, train_bottleneck
from mdi_exit.training.joint import TrainConfig, train_joint

__all__ = ["BottleneckLoad", "full_width_row", "resnet50", "trained_rows"]

CLASSES: Final = 10
DEPTH: Final = 50
EXITS: Final = (2, 6, 12)  # at the ends of the first three stages; the last layer has one anyway
CUT: Final = 3
STRIDE: Final = 2
CHANNEL_SHARE: Final = 2
CODEC: Final = "int4"
# Fashion-MNIST's mean and standard deviation, the same for the three channels that its grey is copied to.
SPEC: Final = InputSpec(kind="image", shape=(3, 32, 32), mean=(0.286,) * 3, std=(0.353,) * 3)
_SAMPLES: Final = 16


@dataclass(frozen=True, slots=True)
class BottleneckLoad:
    """``width``: of the network that is trained; ``images``: of the training set; ``tests``: of the test set, at most.

    ``codec_tests``: of these, the first ones, for the table of codecs.
    """

    width: float = 0.125
    images: int = 16_000
    network_epochs: int = 5
    epochs: int = 6
    tests: int = 10_000
    codec_tests: int = 2_000
    threads: int = 1


def resnet50(width: float) -> tuple[MultiExitNetwork, tuple[str, ...]]:
    """An untrained ResNet-50 with the stem of its CIFAR form and four exits, and the names of its layers."""
    torch.manual_seed(0)
    layers, classifier = layers_of(small_resnet(DEPTH, width=width, classes=CLASSES))
    x_NCHW, exits = torch.zeros(2, *SPEC.shape), dict[int, nn.Module]()
    with torch.no_grad():
        for index, layer in enumerate(layers.values()):
            x_NCHW = layer(x_NCHW)
            if index in EXITS:
                exits[index] = head_for(tuple(x_NCHW.shape[1:]), CLASSES)
    return MultiExitNetwork(list(layers.values()), {**exits, len(layers) - 1: classifier}), tuple(layers)


def _exported(network: MultiExitNetwork, folder: Path, labels: tuple[str, ...]) -> Artifact:
    return export_artifact(
        network, folder, name="resnet50-32x32", input_spec=SPEC, labels=labels, rebuild={}, training={}
    )


def _with_bottleneck(artifact: Artifact, folder: Path, made: Autoencoder) -> Artifact:
    halves = exported(made, artifact.manifest.layers[CUT].in_shape)
    return write_variant(artifact, folder, Variant({CUT: CODEC}, {CUT: halves}))


def full_width_row(say: Callable[[str], None]) -> dict[str, Any]:
    """Shapes and bytes of the first cut at full width, of graphs that ONNX Runtime has run; random weights, random images."""
    network, names = resnet50(1.0)
    say(f"ResNet-50 at full width: {len(names)} layers; exporting")
    with tempfile.TemporaryDirectory(prefix="mdi-exit-bottleneck-") as folder:
        artifact = _exported(network, Path(folder) / "plain", tuple("0123456789"))
        shape = artifact.manifest.layers[CUT].in_shape
        made = autoencoder(shape, shape[0] // CHANNEL_SHARE, STRIDE, positive=True)
        variant = _with_bottleneck(artifact, Path(folder) / "small", made)
        features_N, code_N = _run_to_cut(artifact), _run_to_cut(variant)
    return _costs(variant.manifest, names) | {
        "name": "full width, random weights",
        "width": 1.0,
        "features_shape": list(features_N.shape[1:]),
        "features_bytes": len(encode_tensor("float32", features_N[0])),
        "code_shape": list(code_N.shape[1:]),
        "code_bytes": {codec: len(encode_tensor(codec, code_N[0])) for codec in ("float32", "float16", "int8", "int4")},
    }


def _run_to_cut(artifact: Artifact) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What crosses the cut for a few images, as ONNX Runtime gives it."""
    key, engine = SegmentKey(0, CUT, head=False), OnnxEngine(1)
    engine.load(key, Composer(artifact).segment(key))
    x_NCHW = np.random.default_rng(0).standard_normal((_SAMPLES, *SPEC.shape)).astype(np.float32)
    features = engine.run(key, x_NCHW).features
    if features is None:
        raise ValueError(f"expected features at layer {CUT}, got none")
    return features


def _costs(manifest: Manifest, names: tuple[str, ...]) -> dict[str, Any]:
    code = manifest.layers[CUT].bottleneck
    return {
        "layers": list(names),
        "cut_before": names[CUT],
        "exit_layers": [spec.layer for spec in manifest.exits],
        "macs": sum(layer.macs for layer in manifest.layers),
        "params": sum(layer.params for layer in manifest.layers),
        "bottleneck_macs": code.macs if code else 0,
        "encoder_macs": code.encoder_macs if code else 0,
        "bottleneck_params": code.params if code else 0,
    }


def trained_rows(
    load: BottleneckLoad, parts: Splits, work: Path, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Train the network, then its bottleneck; accuracies before and after, and each codec beside them.

    ``work``: a folder for checkpoints, from which a run that was cut short goes on. Raises ``UsageError``.
    """
    images = parts.train.subset(np.arange(min(load.images, len(parts.train))))
    test = parts.test.subset(np.arange(min(load.tests, len(parts.test))))
    x_NCHW = torch.from_numpy(inputs_of(images.images_NHWC, SPEC))
    network, names, losses = _network(load, x_NCHW, torch.from_numpy(images.labels_N), work, say)
    artifact = _exported(network, work / "plain", images.classes)
    before = accuracies_of(artifact, test)
    say(f"accuracy by exit: {_percent(before)}")
    shape = artifact.manifest.layers[CUT].in_shape
    config = BottleneckConfig(epochs=load.epochs, codec=CODEC, threads=load.threads)
    told = _Told("bottleneck", say)
    result = train_bottleneck(
        network,
        CUT,
        x_NCHW,
        shape[0] // CHANNEL_SHARE,
        STRIDE,
        config,
        checkpoint=work / "bottleneck.pt",
        progress=told,
    )
    variant = _with_bottleneck(artifact, work / "small", result.autoencoder)
    after = accuracies_of(variant, test)
    say(f"accuracy by exit through the bottleneck, {CODEC}: {_percent(after)}")
    yield _costs(variant.manifest, names) | {
        "name": "trained",
        "width": load.width,
        "data": parts.record.spec,
        "images": len(images),
        "test_images": len(test),
        "network_epochs": load.network_epochs,
        "network_losses": [round(loss, 4) for loss in losses],
        "epochs": load.epochs,
        "losses": [round(loss, 5) for loss in result.losses],
        "seconds": round(result.seconds, 1),
        "threads": load.threads,
        "torch": str(torch.__version__),
        "codec": CODEC,
        "accuracies_before": list(before),
        "accuracies_after": list(after),
        "points": [round(100 * (new - old), 3) for old, new in zip(before, after, strict=True)],
    }
    some = test.subset(np.arange(min(load.codec_tests, len(test))))
    for row in _each_codec(artifact, variant, some):
        yield {"name": "codec", "width": load.width, "test_images": len(some), **row.to_json()}


def _each_codec(artifact: Artifact, variant: Artifact, test: Dataset) -> Iterator[Row]:
    yield from input_rows(artifact, test)
    yield from cut_rows(artifact, test, [CUT], ("float32", "float16", "int8", "int4", "int8+zstd", "int4+zstd"))
    yield from cut_rows(variant, test, [CUT], ("float32", "int8", "int4", "int4+zstd"))


def _network(
    load: BottleneckLoad, x_NCHW: Tensor, labels_N: Tensor, work: Path, say: Callable[[str], None]
) -> tuple[MultiExitNetwork, tuple[str, ...], list[float]]:
    network, names = resnet50(load.width)
    config = TrainConfig(
        epochs=load.network_epochs, batch_size=128, learning_rate=0.05, weight_decay=5e-4, threads=load.threads
    )
    told = _Told("network", say)
    losses = train_joint(
        network, x_NCHW, labels_N, config, checkpoint=work / "network.pt",
        progress=lambda step: told(step.epoch, step.step, step.steps, step.loss),
    )  # fmt: skip
    return network, names, losses


class _Told:
    """A line for each epoch done."""

    def __init__(self, what: str, say: Callable[[str], None]) -> None:
        self.what, self.say = what, say

    def __call__(self, epoch: int, step: int, steps: int, loss: float) -> None:
        if step == steps:
            self.say(f"{self.what}, epoch {epoch + 1}: loss {loss:.4f}")


def _percent(shares: tuple[float, ...]) -> str:
    return " ".join(f"{100 * share:.2f}" for share in shares) + " %"
