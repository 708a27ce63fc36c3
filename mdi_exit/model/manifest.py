"""``model.json``: what an artifact says of itself. Reading it needs no torch and no onnx."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from mdi_exit.errors import ArtifactError
from mdi_exit.segments import ModelPlan

__all__ = ["FORMAT_VERSION", "ExitSpec", "GraphFile", "InputSpec", "LayerSpec", "Manifest", "parse_manifest"]

FORMAT_VERSION: Final = 1

Shape = tuple[Annotated[int, Meta(ge=1, le=2**24)], ...]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,80}$")]


class GraphFile(Struct, frozen=True, kw_only=True):
    """One file of the artifact: its name, size and SHA-256."""

    file: FileName
    bytes: Annotated[int, Meta(ge=1, le=2**31)]
    sha256: Sha256


class LayerSpec(Struct, frozen=True, kw_only=True):
    """A layer: shapes without batch, multiply-accumulates of one sample, parameters."""

    graph: GraphFile
    in_shape: Shape
    out_shape: Shape
    macs: Annotated[int, Meta(ge=0)]
    params: Annotated[int, Meta(ge=0)]


class ExitSpec(Struct, frozen=True, kw_only=True):
    """The exit at the end of ``layer``; ``threshold``: calibrated (None: the deployment's); ``accuracy``: on test data."""

    layer: Annotated[int, Meta(ge=0)]
    graph: GraphFile
    macs: Annotated[int, Meta(ge=0)]
    params: Annotated[int, Meta(ge=0)]
    threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    accuracy: Annotated[float, Meta(ge=0, le=1)] | None = None


class InputSpec(Struct, frozen=True, kw_only=True):
    """What enters layer 0: float32 ``shape`` (C, H, W), made of pixels as (value/255 - mean) / std, per channel."""

    kind: Literal["image"]
    shape: tuple[Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)]]
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Meta(gt=0)], ...]


class Manifest(Struct, frozen=True, kw_only=True):
    """``digest`` is the SHA-256 of the manifest without it, hence of all files. ``network`` rebuilds it in torch."""

    format: int
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,80}$")]
    input: InputSpec
    labels: tuple[str, ...]
    layers: Annotated[tuple[LayerSpec, ...], Meta(min_length=1, max_length=4096)]
    exits: Annotated[tuple[ExitSpec, ...], Meta(min_length=1)]
    network: dict[str, Any] = {}
    weights: GraphFile | None = None
    training: dict[str, Any] = {}
    digest: str = ""

    @property
    def plan(self) -> ModelPlan:
        """What the core needs to know. The short digest is the one on the wire."""
        return ModelPlan(
            digest=self.digest[:32],
            layer_count=len(self.layers),
            exit_layers=tuple(spec.layer for spec in self.exits),
            feature_bytes=tuple(4 * _size(spec.in_shape) for spec in self.layers),
        )

    def in_shape(self, layer: int) -> tuple[int, ...]:
        """Shape, without batch, of what enters ``layer``."""
        return self.layers[layer].in_shape

    def computed_digest(self) -> str:
        bare = msgspec.structs.replace(self, digest="")
        return hashlib.sha256(msgspec.json.encode(bare, order="deterministic")).hexdigest()


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size


def parse_manifest(raw: bytes | memoryview, where: str) -> Manifest:
    """The manifest in ``raw``, checked in itself. Raises ``ArtifactError``."""
    try:
        version = msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).get("format")
        if version is None or bytes(version) != str(FORMAT_VERSION).encode():
            got = bytes(version).decode()[:20] if version is not None else "none"
            raise ArtifactError(f"{where}: format", f"version {FORMAT_VERSION}", got)
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(where, "a model manifest", str(error)) from None
    _check(manifest, where)
    return manifest


def _check(manifest: Manifest, where: str) -> None:
    if manifest.digest != (computed := manifest.computed_digest()):
        raise ArtifactError(f"{where}: digest", computed, manifest.digest or "none")
    exits = [spec.layer for spec in manifest.exits]
    if exits != sorted(set(exits)) or exits[-1] != len(manifest.layers) - 1:
        raise ArtifactError(f"{where}: exits", f"rising layers that end at {len(manifest.layers) - 1}", exits)
    shape: tuple[int, ...] = manifest.input.shape
    for index, layer in enumerate(manifest.layers):
        if layer.in_shape != shape:
            raise ArtifactError(f"{where}: shape entering layer {index}", str(shape), layer.in_shape)
        shape = layer.out_shape
    if not len(manifest.input.mean) == len(manifest.input.std) == manifest.input.shape[0]:
        raise ArtifactError(f"{where}: input mean and std", f"{manifest.input.shape[0]} values each", "others")
