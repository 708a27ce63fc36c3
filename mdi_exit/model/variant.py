"""An artifact made of another: the same layers, with other codecs and learned bottlenecks at its cuts. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import Artifact, graph_file, made_output, placed, with_digest
from mdi_exit.model.manifest import Bottleneck, Calibration, ExitSpec, LayerSpec, Manifest

__all__ = ["Halves", "Variant", "with_codec", "write_variant"]


@dataclass(frozen=True, slots=True)
class Halves:
    """An exported autoencoder: both graphs, and what ``Bottleneck`` says of them."""

    encoder: bytes
    decoder: bytes
    shape: tuple[int, ...]
    macs: int
    encoder_macs: int
    params: int


@dataclass(frozen=True, slots=True)
class Variant:
    """What is to be different, by the layer that the tensor enters. ``training``: is added to the manifest's record."""

    codecs: Mapping[int, str] = field(default_factory=dict)
    bottlenecks: Mapping[int, Halves] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


def write_variant(artifact: Artifact, folder: Path, variant: Variant) -> Artifact:
    """Write ``folder``, which may be the artifact's own, and open it again, checked.

    What was measured of the old one, and what was promised, is left out: accuracies and the promise of a calibration. Raises
    ``UsageError`` for a folder that holds something else, ``ArtifactError``.
    """
    made_output(folder)
    try:
        manifest = _varied(artifact.manifest, folder, variant)
    except OSError as error:
        raise UsageError("output folder", "one that can be written to", f"{folder}: {error.strerror}") from None
    return placed(artifact, manifest, folder)


def with_codec(artifact: Artifact, layer: int, codec: str) -> Artifact:
    """The artifact, not written anywhere, with this codec on the tensor that enters ``layer`` and float32 at other cuts."""
    layers = tuple(
        msgspec.structs.replace(spec, codec=codec if index == layer else None)
        for index, spec in enumerate(artifact.manifest.layers)
    )
    manifest = with_digest(msgspec.structs.replace(artifact.manifest, layers=layers))
    return Artifact(artifact.folder, manifest, msgspec.json.encode(manifest))


def _varied(manifest: Manifest, folder: Path, variant: Variant) -> Manifest:
    layers = [
        _varied_layer(index, spec, folder, variant.codecs.get(index), variant.bottlenecks.get(index))
        for index, spec in enumerate(manifest.layers)
    ]
    exits = manifest.exits
    calibration: Calibration = manifest.calibration
    if tuple(layers) != manifest.layers:
        calibration = msgspec.structs.replace(calibration, promise=None)
        exits = tuple(_unmeasured(spec) for spec in exits)
    training = {**manifest.training, **variant.training}
    return msgspec.structs.replace(
        manifest, layers=tuple(layers), exits=exits, calibration=calibration, training=training
    )


def _unmeasured(spec: ExitSpec) -> ExitSpec:
    return msgspec.structs.replace(spec, accuracy=None)


def _varied_layer(index: int, spec: LayerSpec, folder: Path, codec: str | None, halves: Halves | None) -> LayerSpec:
    if halves is not None:
        bottleneck = Bottleneck(
            encoder=graph_file(folder, f"encoder-{index}.onnx", halves.encoder),
            decoder=graph_file(folder, f"decoder-{index}.onnx", halves.decoder),
            shape=halves.shape,
            macs=halves.macs,
            encoder_macs=halves.encoder_macs,
            params=halves.params,
        )
        spec = msgspec.structs.replace(spec, bottleneck=bottleneck)
    return spec if codec is None else msgspec.structs.replace(spec, codec=codec)
