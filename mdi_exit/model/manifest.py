"""``model.json``: what an artifact says of itself. Reading it needs no torch and no onnx."""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from mdi_exit.errors import ArtifactError, UsageError
from mdi_exit.limits import (
    MAX_AXES,
    MAX_COUNT,
    MAX_ELEMENTS,
    MAX_GRAPH_BYTES,
    MAX_LABELS,
    MAX_LAYERS,
    MAX_MANIFEST_BYTES,
)
from mdi_exit.segments import ModelPlan
from mdi_exit.tensors import CODECS

__all__ = [
    "FORMAT_VERSION",
    "TOKENIZER_FILE",
    "AudioSpec",
    "Bottleneck",
    "Calibration",
    "DataRecord",
    "ExitSpec",
    "GraphFile",
    "InputSpec",
    "LayerSpec",
    "Manifest",
    "Measure",
    "Promise",
    "TextSpec",
    "parse_manifest",
]

FORMAT_VERSION: Final = 2
TOKENIZER_FILE: Final = "tokenizer.json"

Dim = Annotated[int, Meta(ge=1, le=MAX_ELEMENTS)]
Shape = Annotated[tuple[Dim, ...], Meta(min_length=1, max_length=MAX_AXES)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,79}\Z")]
Measure = Literal["max-probability", "margin", "entropy", "patience", "gate", "frame-entropy"]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]

# Defaults are left out of the file, so that a field added later changes no older artifact's digest.


class GraphFile(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file of the artifact: its name, size and SHA-256."""

    file: FileName
    bytes: Annotated[int, Meta(ge=1, le=MAX_GRAPH_BYTES)]
    sha256: Sha256


class Bottleneck(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A learned autoencoder on a cut: ``encoder`` ends the segment before it, ``decoder`` begins the one after it.

    It is part of the model: every item passes it, also one that stays on its node, so that results do not depend on the
    path. ``shape``: of the code, which is what crosses the cut. ``encoder_macs`` of ``macs`` are the encoder's.
    """

    encoder: GraphFile
    decoder: GraphFile
    shape: Shape
    macs: Count
    params: Count
    encoder_macs: Count = 0


class LayerSpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A layer: shapes without batch, multiply-accumulates of one sample, parameters.

    ``codec`` and ``bottleneck``: of the tensor that enters it; codec None: the deployment's. ``seconds``: of one sample on
    the machine that made the artifact, one thread of ONNX Runtime.

    ``in_length``, ``out_length``: where the first axis of what enters or leaves may have any length up to that of the shape
    (tokens of a text, frames of speech), the length at which costs are stated; None: the shape is fixed. A position whose
    values are all 0 is absent: it is what samples of a batch are padded with, and no layer or head gives it a say.
    """

    graph: GraphFile
    in_shape: Shape
    out_shape: Shape
    macs: Count
    params: Count
    name: Annotated[str, Meta(max_length=120)] = ""
    seconds: Annotated[float, Meta(ge=0)] | None = None
    codec: Annotated[str, Meta(max_length=20)] | None = None
    bottleneck: Bottleneck | None = None
    in_length: Annotated[int, Meta(ge=1)] | None = None
    out_length: Annotated[int, Meta(ge=1)] | None = None


class ExitSpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The exit at the end of ``layer``; ``accuracy``: on test data.

    ``temperature``: by which logits are divided before the softmax. ``threshold``: calibrated, see ``Calibration``.
    ``gate``: a graph from logits, N×K, to the gate's value in [0, 1], N×1 (JEI-DNN). ``branch``: instead of it, a graph from
    the features that the head gets to how sure they are by themselves, in [0, 1], N×1 (DAISY); its costs are in the head's.
    """

    layer: Count
    graph: GraphFile
    macs: Count
    params: Count
    threshold: Share | None = None
    accuracy: Share | None = None
    temperature: Annotated[float, Meta(gt=0)] = 1.0
    gate: GraphFile | None = None
    branch: GraphFile | None = None


class TextSpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``tokenizer``: of the artifact's ``files``, as the library ``tokenizers`` writes it. A text becomes the numbers of
    its tokens, each plus 1, so that 0 means no token; what is longer than the input's shape is cut off there.
    """

    tokenizer: FileName


class AudioSpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Log-mel frames: of windows of ``window`` samples (Hann), ``hop`` apart, at ``rate_hz``, the power in triangular bands
    evenly spread on the mel scale from ``lowest_hz`` to ``highest_hz``. See ``mdi_exit.modality.audio``.
    """

    rate_hz: Annotated[int, Meta(ge=1_000, le=384_000)] = 16_000
    window: Annotated[int, Meta(ge=16, le=2**16)] = 400
    hop: Annotated[int, Meta(ge=1, le=2**16)] = 320
    lowest_hz: Annotated[float, Meta(ge=0)] = 60.0
    highest_hz: Annotated[float, Meta(gt=0)] = 7_600.0


class InputSpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What enters layer 0, always float32, and how it is made of what people have; declared, so that nobody runs code.

    * image: ``shape`` is C, H, W; of pixels, fitted to it, as (value/255 - ``mean``) / ``std``, per channel.
    * text: ``shape`` is the most tokens; of a text, see ``TextSpec``.
    * audio: ``shape`` is the most frames, bands; of sound, see ``AudioSpec``, as (value - ``mean``) / ``std``, per band.
    * tensor: of any shape; of nothing: whoever asks sends what enters layer 0.
    """

    kind: Literal["image", "text", "audio", "tensor"]
    shape: Shape
    mean: tuple[float, ...] = ()
    std: tuple[Annotated[float, Meta(gt=0)], ...] = ()
    text: TextSpec | None = None
    audio: AudioSpec | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W. Raises ``UsageError`` for a model that does not take images."""
        if self.kind != "image":
            raise UsageError("model", "one that takes images", f"one that takes {self.kind}")
        channels, height, width = self.shape
        return channels, height, width


class DataRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which samples trained, calibrated and tested the artifact: ``spec`` and ``seed`` give the same split again.

    ``sha256``: of the samples and the split, so that other data under the same name is noticed.
    """

    spec: Annotated[str, Meta(max_length=4096)]
    seed: Annotated[int, Meta(ge=-MAX_COUNT, le=MAX_COUNT)]
    train: Count
    calibration: Count
    test: Count
    sha256: Sha256


class Promise(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """With probability ``confidence`` over the draw of ``samples``, early exits at or above the calibrated thresholds turn
    for at most ``max_accuracy_loss`` of all items a right answer of the last exit into a wrong one.

    ``observed_loss``: on the samples. ``codec``: of the cuts without one of their own, with which that was measured.
    """

    max_accuracy_loss: Share
    confidence: Share
    samples: Count
    observed_loss: Share
    codec: Annotated[str, Meta(max_length=20)] = "float32"

    def __str__(self) -> str:
        return (
            f"at most {100 * self.max_accuracy_loss:g} % of items wrong by leaving early, with confidence "
            f"{100 * self.confidence:g} % ({self.samples:,} samples, features as {self.codec})"
        )


class Calibration(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What confidence is, and where it was found to be enough.

    ``threshold``: the T at which each exit's own ``threshold`` is in force (one knob moves them all; see
    ``ModelPlan.threshold_at``). ``promise`` None: chosen for ``target_macs`` a sample, with no promise.
    """

    measure: Measure = "max-probability"
    threshold: Share | None = None
    promise: Promise | None = None
    target_macs: Annotated[float, Meta(ge=0)] | None = None
    mean_macs: Annotated[float, Meta(ge=0)] | None = None
    data: DataRecord | None = None


class Manifest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``digest`` is the SHA-256 of the manifest without it, hence of all files. ``network`` rebuilds it in torch.

    ``files``: what ``network`` refers to, beside the weights.
    """

    format: int
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,80}\Z")]
    input: InputSpec
    labels: Annotated[tuple[Annotated[str, Meta(max_length=200)], ...], Meta(max_length=MAX_LABELS)]
    layers: Annotated[tuple[LayerSpec, ...], Meta(min_length=1, max_length=MAX_LAYERS)]
    exits: Annotated[tuple[ExitSpec, ...], Meta(min_length=1, max_length=MAX_LAYERS)]
    calibration: Calibration = Calibration()
    data: DataRecord | None = None
    network: dict[str, Any] = {}
    weights: GraphFile | None = None
    files: Annotated[tuple[GraphFile, ...], Meta(max_length=MAX_LAYERS)] = ()
    training: dict[str, Any] = {}
    digest: Annotated[str, Meta(max_length=64)] = ""

    @property
    def plan(self) -> ModelPlan:
        """What the core needs to know. The short digest is the one on the wire."""
        heads = {spec.layer: (spec.macs, spec.graph.bytes) for spec in self.exits}
        return ModelPlan(
            digest=self.digest[:32],
            layer_count=len(self.layers),
            exit_layers=tuple(spec.layer for spec in self.exits),
            feature_bytes=tuple(4 * math.prod(self.stated_shape(layer)) for layer in range(len(self.layers))),
            exit_thresholds=tuple(spec.threshold for spec in self.exits),
            calibrated_at=self.calibration.threshold,
            inclusive=self.calibration.measure in ("gate", "frame-entropy"),
            stateful=self.calibration.measure in ("gate", "patience"),
            head_macs=tuple(spec.macs for spec in self.exits),
            layer_macs=tuple(layer.macs + heads.get(index, (0, 0))[0] for index, layer in enumerate(self.layers)),
            layer_bytes=tuple(  # twice: a segment is held with its head and without
                2 * (layer.graph.bytes + heads.get(index, (0, 0))[1]) for index, layer in enumerate(self.layers)
            ),
        )

    def in_shape(self, layer: int) -> tuple[int, ...]:
        """Shape, without batch, of what crosses the cut before ``layer``."""
        spec = self.layers[layer]
        return spec.in_shape if spec.bottleneck is None else spec.bottleneck.shape

    def length(self, cut: int) -> int | None:
        """The stated length of the first axis of what crosses the cut before layer ``cut``; None: it cannot vary."""
        return self.layers[cut].in_length if cut < len(self.layers) else self.layers[-1].out_length

    def stated_shape(self, layer: int) -> tuple[int, ...]:
        """``in_shape``, at the length at which costs are stated where it can vary."""
        length, shape = self.length(layer), self.in_shape(layer)
        return shape if length is None else (length, *shape[1:])

    def fits(self, layer: int, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of ``shape``, without batch, may cross the cut before ``layer``."""
        most = self.in_shape(layer)
        if self.length(layer) is None:
            return shape == most
        return len(shape) == len(most) and 1 <= shape[0] <= most[0] and shape[1:] == most[1:]

    def computed_digest(self) -> str:
        bare = msgspec.structs.replace(self, digest="")
        return hashlib.sha256(msgspec.json.encode(bare, order="deterministic")).hexdigest()


class _Opening(Struct):
    """What is looked at first; everything else is passed over, unread."""

    format: msgspec.Raw = msgspec.Raw()


def parse_manifest(raw: bytes | memoryview, where: str) -> Manifest:
    """The manifest in ``raw``, checked in itself. Raises ``ArtifactError``."""
    if len(raw) > MAX_MANIFEST_BYTES:
        raise ArtifactError(where, f"a model manifest of at most {MAX_MANIFEST_BYTES:,} bytes", f"{len(raw):,}")
    try:
        version = bytes(msgspec.json.decode(raw, type=_Opening).format)
        if version != str(FORMAT_VERSION).encode():
            got = version[:20].decode(errors="replace") or "none"
            raise ArtifactError(f"{where}: format", f"version {FORMAT_VERSION}", got)
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(where, "a model manifest", str(error)[:400]) from None
    _check(manifest, where)
    return manifest


def _check(manifest: Manifest, where: str) -> None:
    if manifest.digest != (computed := manifest.computed_digest()):
        raise ArtifactError(f"{where}: digest", computed, manifest.digest or "none")
    exits = [spec.layer for spec in manifest.exits]
    if exits != sorted(set(exits)) or exits[-1] != len(manifest.layers) - 1:
        raise ArtifactError(f"{where}: exits", f"rising layers that end at {len(manifest.layers) - 1}", _few(exits))
    _check_input(manifest, where)
    _check_shapes(manifest, where)
    if manifest.layers[0].bottleneck is not None:
        raise ArtifactError(f"{where}: bottleneck", "one on a cut between two layers", "one before layer 0")
    if (thresholds := {spec.threshold is None for spec in manifest.exits[:-1]}) - {
        manifest.calibration.threshold is None
    }:
        raise ArtifactError(f"{where}: thresholds", "one for each early exit and one for the knob, or none", thresholds)
    if manifest.calibration.measure == "gate" and any(spec.gate is None for spec in manifest.exits[:-1]):
        raise ArtifactError(f"{where}: gates", "one for each early exit", "none for some")
    if manifest.calibration.measure == "frame-entropy" and any(spec.branch is None for spec in manifest.exits[:-1]):
        raise ArtifactError(f"{where}: branches", "one for each early exit", "none for some")
    if any(spec.gate is not None and spec.branch is not None for spec in manifest.exits):
        raise ArtifactError(f"{where}: exits", "a gate or a branch", "both")


def _check_input(manifest: Manifest, where: str) -> None:
    spec = manifest.input
    if spec.kind == "image":
        if len(spec.shape) != 3:
            raise ArtifactError(f"{where}: input shape of images", "C, H, W", spec.shape)
        if not len(spec.mean) == len(spec.std) == spec.shape[0]:
            raise ArtifactError(f"{where}: input mean and std", f"{spec.shape[0]} values each", "others")
    if spec.kind == "audio":
        _check_audio(spec, where)
    if spec.kind == "text":
        if len(spec.shape) != 1:
            raise ArtifactError(f"{where}: input shape of texts", "the most tokens", spec.shape)
        if spec.text is None or spec.text.tokenizer not in {extra.file for extra in manifest.files}:
            raise ArtifactError(f"{where}: tokenizer", "one of the artifact's files", spec.text)


def _check_audio(spec: InputSpec, where: str) -> None:
    audio = spec.audio
    if len(spec.shape) != 2 or audio is None:
        raise ArtifactError(f"{where}: input of sound", "most frames, bands, and how they are made", spec.shape)
    if not len(spec.mean) == len(spec.std) == spec.shape[1]:
        raise ArtifactError(f"{where}: input mean and std", f"{spec.shape[1]} values each", "others")
    if not audio.hop <= audio.window or not audio.lowest_hz < audio.highest_hz <= audio.rate_hz / 2:
        raise ArtifactError(f"{where}: input of sound", "hop within window, bands within half the rate", audio)


def _check_shapes(manifest: Manifest, where: str) -> None:
    """Each layer takes what the one before it gives, and no tensor is too large to be sent."""
    shape: tuple[int, ...] = manifest.input.shape
    length = manifest.layers[0].in_length
    for index, layer in enumerate(manifest.layers):
        if layer.in_shape != shape:
            raise ArtifactError(f"{where}: shape entering layer {index}", str(shape), layer.in_shape)
        if layer.in_length != length or (length is not None and length > shape[0]):
            expected = "the one that leaves the layer before, no more than the shape's"
            raise ArtifactError(f"{where}: length entering layer {index}", expected, layer.in_length)
        if length is not None and layer.bottleneck is not None:
            raise ArtifactError(f"{where}: bottleneck before layer {index}", "a shape that is fixed", f"any {shape}")
        if layer.codec is not None and layer.codec not in CODECS:
            raise ArtifactError(
                f"{where}: codec of what enters layer {index}", f"one of {', '.join(CODECS)}", layer.codec
            )
        shape, length = layer.out_shape, layer.out_length
    if length is not None and length > shape[0]:
        raise ArtifactError(f"{where}: length leaving the last layer", f"at most {shape[0]}", length)
    crossing = (*(spec.in_shape for spec in manifest.layers), shape)
    codes = [spec.bottleneck.shape for spec in manifest.layers if spec.bottleneck is not None]
    if (largest := max(map(math.prod, (*crossing, *codes)))) > MAX_ELEMENTS:
        raise ArtifactError(f"{where}: shapes", f"at most {MAX_ELEMENTS:,} values in each tensor", f"{largest:,}")


def _few(numbers: list[int]) -> str:
    """A list as far as it fits into a line."""
    return f"{numbers[:10]}" if len(numbers) <= 10 else f"{len(numbers)} others"
