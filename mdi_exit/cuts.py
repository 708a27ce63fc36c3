"""In which codec the features of each cut travel, and how many bytes that is.

The cut before a layer has the codec that the model's manifest gives it, else the deployment's: the source's ``--codec``,
which agents learn from its control message.
"""

from __future__ import annotations

import logging
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mdi_exit.model.manifest import Manifest
from mdi_exit.tensors import CODECS, encode_tensor, encoded_size, is_compressed

__all__ = ["DEFAULT_CODEC", "CutCodecs"]

DEFAULT_CODEC: Final = "float32"

log = logging.getLogger(__name__)


class CutCodecs:
    """What one node knows of it. ``deployment``: the codec of cuts for which the manifest has none."""

    def __init__(self, deployment: str = DEFAULT_CODEC) -> None:
        self.deployment = deployment
        self._by_layer: tuple[str | None, ...] = ()
        self._last_bytes: dict[tuple[str, tuple[int, ...]], int] = {}

    def use(self, manifest: Manifest) -> None:
        """From now on this is the model in force."""
        self._by_layer = tuple(layer.codec for layer in manifest.layers)
        self._last_bytes.clear()

    def deploy(self, codec: str) -> None:
        """What the source says. Empty: an older source, which knows only one; one that this node does not know: likewise."""
        known = codec if codec in CODECS else DEFAULT_CODEC
        if codec and codec != known and known != self.deployment:
            log.warning("the source wants codec %s, unknown here: sending %s", codec, known)
        self.deployment = known

    def codec(self, layer: int) -> str:
        """Of the tensor that enters ``layer``."""
        own = self._by_layer[layer] if layer < len(self._by_layer) else None
        return own or self.deployment

    def sizes_bytes(self, manifest: Manifest) -> tuple[int, ...]:
        """What the tensor that enters each layer takes on the wire, bottlenecks counted; where compressed, at most."""
        layers = range(len(manifest.layers))
        return tuple(encoded_size(self.codec(layer), manifest.in_shape(layer)) for layer in layers)

    def size_bytes(self, layer: int, shape: tuple[int, ...]) -> int:
        """What a tensor of ``shape`` that enters ``layer`` takes on the wire; where compressed, what the last one took."""
        codec = self.codec(layer)
        last = self._last_bytes.get((codec, shape)) if is_compressed(codec) else None
        return encoded_size(codec, shape) if last is None else last

    def encode(self, layer: int, x: NDArray[np.float32]) -> tuple[bytes, str]:
        """``x``, float32 without batch, that enters ``layer``: its bytes and their codec. Raises ``WireError``."""
        codec = self.codec(layer)
        raw = encode_tensor(codec, x)
        if is_compressed(codec):
            self._last_bytes[codec, x.shape] = len(raw)
        return raw, codec
