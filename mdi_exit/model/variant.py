"""An artifact made of another: the same layers, with other codecs and learned bottlenecks at its cuts. Needs no torch."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import MANIFEST_FILE, Artifact
from mdi_exit.model.manifest import Bottleneck, Calibration, ExitSpec, GraphFile, LayerSpec, Manifest

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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / MANIFEST_FILE).exists():
            raise UsageError("output folder", "an empty folder or an artifact to replace", str(folder))
        if folder.resolve() != artifact.folder.resolve():
            for graph in artifact.files():
                shutil.copyfile(artifact.folder / graph.file, folder / graph.file)
        raw = msgspec.json.encode(_varied(artifact.manifest, folder, variant), order="deterministic")
        fresh = folder / f"{MANIFEST_FILE}.new"
        fresh.write_bytes(msgspec.json.format(raw, indent=1))
        fresh.replace(folder / MANIFEST_FILE)
    except OSError as error:
        raise UsageError("output folder", "one that can be written to", f"{folder}: {error.strerror}") from None
    return Artifact.open(folder)


def with_codec(artifact: Artifact, layer: int, codec: str) -> Artifact:
    """The artifact, not written anywhere, with this codec on the tensor that enters ``layer`` and float32 at other cuts."""
    layers = tuple(
        msgspec.structs.replace(spec, codec=codec if index == layer else None)
        for index, spec in enumerate(artifact.manifest.layers)
    )
    manifest = _sealed(msgspec.structs.replace(artifact.manifest, layers=layers))
    return Artifact(artifact.folder, manifest, msgspec.json.encode(manifest))


def _sealed(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, digest=manifest.computed_digest())


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
    return _sealed(
        msgspec.structs.replace(manifest, layers=tuple(layers), exits=exits, calibration=calibration, training=training)
    )


def _unmeasured(spec: ExitSpec) -> ExitSpec:
    return msgspec.structs.replace(spec, accuracy=None)


def _varied_layer(index: int, spec: LayerSpec, folder: Path, codec: str | None, halves: Halves | None) -> LayerSpec:
    if halves is not None:
        bottleneck = Bottleneck(
            encoder=_written(folder, f"encoder-{index}.onnx", halves.encoder),
            decoder=_written(folder, f"decoder-{index}.onnx", halves.decoder),
            shape=halves.shape,
            macs=halves.macs,
            encoder_macs=halves.encoder_macs,
            params=halves.params,
        )
        spec = msgspec.structs.replace(spec, bottleneck=bottleneck)
    return spec if codec is None else msgspec.structs.replace(spec, codec=codec)


def _written(folder: Path, name: str, raw: bytes) -> GraphFile:
    (folder / name).write_bytes(raw)
    return GraphFile(file=name, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
