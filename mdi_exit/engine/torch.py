"""Segments in eager torch, from a local artifact's weights."""

from __future__ import annotations

import torch
from safetensors.torch import load as load_safetensors

from mdi_exit.engine.base import Array, SegmentOutput
from mdi_exit.errors import ArtifactError, EngineError
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.network import MultiExitNetwork, rebuilt
from mdi_exit.segments import SegmentKey

__all__ = ["TorchEngine", "network_of"]


def network_of(artifact: Artifact) -> MultiExitNetwork:
    """The artifact's network with its weights, in evaluation mode. Raises ``ArtifactError``."""
    manifest = artifact.manifest
    if manifest.weights is None:
        raise ArtifactError(f"model {artifact.folder}", "weights for torch", "none")
    network = rebuilt(manifest.network)
    try:
        network.load_state_dict(load_safetensors(artifact.read(manifest.weights)))
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(f"model {artifact.folder}: weights", "those of its network", str(error)[:200]) from None
    return network.eval()


class TorchEngine:
    """``model``: name or path of a local artifact. Graphs given to ``load`` are not needed."""

    def __init__(self, model: str, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network_of(Artifact.open(model)).to(self._device)

    @property
    def description(self) -> str:
        return f"torch {self._device.type}"

    def load(self, key: SegmentKey, graph: bytes) -> None:
        if key.stop > len(self._network.layers):
            raise EngineError(f"{key.file}: expected at most {len(self._network.layers)} layers, got {key.stop}")

    def run(self, key: SegmentKey, x: Array) -> SegmentOutput:
        with torch.inference_mode():
            try:
                features = self._network.segment(torch.from_numpy(x.copy()).to(self._device), key.entry, key.stop)
                logits = self._network.exits[str(key.stop - 1)](features) if key.head else None
            except RuntimeError as error:
                raise EngineError(f"{key.file}: {str(error).splitlines()[0][:300]}") from None
        ends = key.stop == len(self._network.layers)
        return SegmentOutput(None if ends else features.cpu().numpy(), None if logits is None else logits.cpu().numpy())
