"""Segments in eager torch, from a local artifact's weights."""

from __future__ import annotations

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from mdi_exit.engine.base import Array, SegmentOutput
from mdi_exit.errors import ArtifactError, EngineError, UsageError
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.build import rebuilt
from mdi_exit.model.network import MultiExitNetwork
from mdi_exit.segments import SegmentKey

__all__ = ["TorchEngine", "network_of"]


def network_of(artifact: Artifact) -> MultiExitNetwork:
    """The artifact's network with its weights, in evaluation mode. Raises ``ArtifactError``."""
    manifest = artifact.manifest
    if manifest.weights is None:
        raise ArtifactError(f"model {artifact.folder}", "weights for torch", "none")
    network = rebuilt(manifest.network, {extra.file: artifact.read(extra) for extra in manifest.files})
    try:
        network.load_state_dict(load_safetensors(artifact.read(manifest.weights)))
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"model {artifact.folder}: weights", "those of its network", str(error).splitlines()[0][:200]
        ) from None
    return network.eval().to(memory_format=torch.channels_last if network.channels_last else torch.contiguous_format)


class TorchEngine:
    """``model``: name or path of a local artifact. Graphs given to ``load`` are not needed."""

    def __init__(self, model: str, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        artifact = Artifact.open(model)
        if any(layer.bottleneck for layer in artifact.manifest.layers):
            raise UsageError("engine torch", "a model without learned bottlenecks", f"{model}, which has some")
        if any(spec.gate for spec in artifact.manifest.exits):
            raise UsageError("engine torch", "a model without gates", f"{model}, which has some")
        self._manifest = artifact.manifest
        self._network = network_of(artifact).to(self._device)
        self._loaded: set[SegmentKey] = set()

    @property
    def description(self) -> str:
        return f"torch {self._device.type}"

    def load(self, key: SegmentKey, graph: bytes) -> None:
        count = len(self._network.layers)
        if not 0 <= key.entry < key.stop <= count:
            raise EngineError(f"{key.file}: expected layers of 0 to {count - 1}, got {key.entry} to {key.stop - 1}")
        if key.head and key.stop - 1 not in self._network.exit_layers:
            raise EngineError(f"{key.file}: expected an exit of {self._network.exit_layers}, got {key.stop - 1}")
        self._loaded.add(key)

    def unload(self, key: SegmentKey) -> None:
        self._loaded.discard(key)

    def _tensor(self, x: Array) -> torch.Tensor:
        """``x`` on the device, in the one memory layout in which all segments run: sums keep their order, bit for bit."""
        x_N = torch.from_numpy(x.copy()).to(self._device)
        if x_N.ndim != 4 or not self._network.channels_last:
            return x_N
        return x_N.contiguous(memory_format=torch.channels_last)

    def run(self, key: SegmentKey, x: Array) -> SegmentOutput:
        if key not in self._loaded:
            raise EngineError(f"{key.file}: expected a loaded segment, got none")
        if x.dtype != np.float32 or not self._manifest.fits(key.entry, x.shape[1:]) or len(x) < 1:
            shape = self._manifest.in_shape(key.entry)
            raise EngineError(f"{key.file}: expected float32 (N, {shape}), got {x.dtype} {x.shape}")
        with torch.inference_mode():
            try:
                features = self._network.segment(self._tensor(x), key.entry, key.stop)
                logits = self._network.exits[str(key.stop - 1)](features) if key.head else None
                sure = self._sureness(key, features)
            except RuntimeError as error:
                raise EngineError(f"{key.file}: {str(error).splitlines()[0][:300]}") from None
        ends = key.stop == len(self._network.layers)
        return SegmentOutput(
            None if ends else features.cpu().numpy(), None if logits is None else logits.cpu().numpy(), sure
        )

    def _sureness(self, key: SegmentKey, features: torch.Tensor) -> Array | None:
        """What the branch of the segment's exit gives, if it has one."""
        layer = str(key.stop - 1)
        if not key.head or layer not in self._network.branches:
            return None
        sure_N1: Array = self._network.branches[layer](features).cpu().numpy()
        return sure_N1
