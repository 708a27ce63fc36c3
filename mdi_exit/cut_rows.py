"""What each codec does at each cut of an artifact, and what sending the input as a picture file would do: rows of figures.

Bytes are of the payload, mean over the samples; milliseconds of one sample on one thread of this machine, median; accuracy
of each exit behind the cut, when every sample has crossed it so.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean, median
from typing import Any, Final, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdi_exit.data import Dataset
from mdi_exit.data.pixels import Pixels, fitted, inputs_of
from mdi_exit.engine.onnx import OnnxEngine
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.model.variant import with_codec
from mdi_exit.outcomes import outcomes
from mdi_exit.segments import SegmentKey
from mdi_exit.tensors import CODECS, decode_tensor, encode_tensor, encoded_size, without_compression

__all__ = ["PICTURES", "Row", "accuracies_of", "cut_rows", "input_rows"]

_BATCH: Final = 256
_LOSSLESS: Final = "float32"

Array = NDArray[np.float32]
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """``cut``: the layer that the tensor enters. ``ratio``: of the bytes of what enters it, as float32, to these.

    ``accuracies``: by exit, None for those before the cut. ``bottleneck``: the tensor is the code of one.
    """

    kind: Literal["cut", "input"]
    cut: int
    codec: str
    shape: tuple[int, ...]
    bottleneck: bool
    bytes: float
    ratio: float
    encode_ms: float
    decode_ms: float
    accuracies: tuple[float | None, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def accuracies_of(artifact: Artifact, dataset: Dataset) -> tuple[float, ...]:
    """Share of right labels at each exit, with the artifact's own codecs at all cuts that have one."""
    made = outcomes(artifact, dataset)
    return tuple((made.logits_SNK.argmax(2) == made.truth_N).mean(1).tolist())


def cut_rows(
    artifact: Artifact, dataset: Dataset, layers: Sequence[int], codecs: Sequence[str] = CODECS
) -> Iterator[Row]:
    """Each codec at the cut before each of ``layers`` (1 to L-1, rising), all other cuts left alone."""
    manifest = artifact.manifest
    exact = accuracies_of(with_codec(artifact, 1, _LOSSLESS), dataset)
    for layer, features_N in _features(artifact, dataset, layers):
        accuracies = {_LOSSLESS: exact}
        shape = features_N.shape[1:]
        plain_bytes = encoded_size(_LOSSLESS, manifest.layers[layer].in_shape)
        for codec in codecs:
            plain = without_compression(codec)
            if plain not in accuracies:
                accuracies[plain] = accuracies_of(with_codec(artifact, layer, plain), dataset)
            timed = _timed([*features_N], partial(encode_tensor, codec), partial(decode_tensor, codec, shape))
            behind = [
                share if spec.layer >= layer else None
                for share, spec in zip(accuracies[plain], manifest.exits, strict=True)
            ]
            yield Row(
                kind="cut",
                cut=layer,
                codec=codec,
                shape=shape,
                bottleneck=manifest.layers[layer].bottleneck is not None,
                bytes=timed.mean_bytes,
                ratio=plain_bytes / timed.mean_bytes,
                encode_ms=timed.encode_ms,
                decode_ms=timed.decode_ms,
                accuracies=tuple(behind),
            )


def _features(artifact: Artifact, dataset: Dataset, layers: Sequence[int]) -> Iterator[tuple[int, Array]]:
    """What crosses each cut, all samples of it at a time."""
    engine, composer = OnnxEngine(1), Composer(artifact)
    x_N = inputs_of(dataset.images_NHWC, artifact.manifest.input)
    for entry, stop in zip([0, *layers], layers, strict=False):
        key = SegmentKey(entry, stop, head=False)
        engine.load(key, composer.segment(key))
        parts = [engine.run(key, x_N[begin : begin + _BATCH]).features for begin in range(0, len(x_N), _BATCH)]
        x_N = np.concatenate([part for part in parts if part is not None])
        yield stop, x_N


@dataclass(frozen=True, slots=True)
class _Timed(Generic[T]):
    """Mean bytes of all samples, median milliseconds of one, and what was decoded."""

    mean_bytes: float
    encode_ms: float
    decode_ms: float
    decoded: list[T]


def _timed(samples: Sequence[S], encode: Callable[[S], bytes], decode: Callable[[bytes], T]) -> _Timed[T]:
    sizes, encode_s, decode_s, decoded = [], [], [], []
    for sample in samples:
        begin = time.perf_counter()
        raw = encode(sample)
        between = time.perf_counter()
        decoded.append(decode(raw))
        decode_s.append(time.perf_counter() - between)
        encode_s.append(between - begin)
        sizes.append(len(raw))
    return _Timed(fmean(sizes), 1000 * median(encode_s), 1000 * median(decode_s), decoded)


# --- the input as a picture file


def _written(kind: str, options: dict[str, Any], x_HWC: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(x_HWC[..., 0] if x_HWC.shape[2] == 1 else x_HWC).save(file, kind, **options)
    return file.getvalue()


def _read(shape: tuple[int, ...], raw: bytes) -> Pixels:
    """H×W×C of ``shape``."""
    return np.asarray(Image.open(io.BytesIO(raw)).convert("L" if shape[2] == 1 else "RGB")).reshape(shape)


def _of_bytes(shape: tuple[int, ...], raw: bytes) -> Pixels:
    return np.frombuffer(raw, np.uint8).reshape(shape)


PICTURES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "PNG": ("PNG", {"optimize": True}),
    "JPEG 90": ("JPEG", {"quality": 90}),
    "JPEG 75": ("JPEG", {"quality": 75}),
    "JPEG 50": ("JPEG", {"quality": 50}),
    "WebP lossless": ("WEBP", {"lossless": True}),
    "WebP 90": ("WEBP", {"quality": 90}),
    "WebP 75": ("WEBP", {"quality": 75}),
    "WebP 50": ("WEBP", {"quality": 50}),
}


def input_rows(artifact: Artifact, dataset: Dataset) -> Iterator[Row]:
    """The images, fitted to the input, as raw bytes and in each form of ``PICTURES``; the network runs on what is decoded."""
    spec = artifact.manifest.input
    images = [fitted(image_HWC, spec.image_shape) for image_HWC in dataset.images_NHWC]
    shape, plain_bytes = images[0].shape, 4 * images[0].size
    untouched = with_codec(artifact, 1, _LOSSLESS)
    timed = {"raw": _timed(images, np.ndarray.tobytes, partial(_of_bytes, shape))}
    for name, (kind, options) in PICTURES.items():
        timed[name] = _timed(images, partial(_written, kind, options), partial(_read, shape))
    for name, one in timed.items():
        seen = Dataset(dataset.name, np.stack(one.decoded), dataset.labels_N, dataset.classes, dataset.ids_N)
        yield Row(
            kind="input",
            cut=0,
            codec=name,
            shape=spec.shape,
            bottleneck=False,
            bytes=one.mean_bytes,
            ratio=plain_bytes / one.mean_bytes,
            encode_ms=one.encode_ms,
            decode_ms=one.decode_ms,
            accuracies=accuracies_of(untouched, seen),
        )
