"""Speech encoders like HuBERT (arXiv 2106.07447), small, with DAISY's branches (arXiv 2406.05464), cut after each layer.

N clips, T frames (any number up to ``frames``), M mel bands, D channels, U units, K classes. What enters layer 0 is x_NTM, as
``mdi_exit.modality.audio`` makes it; between layers travels hidden_NTD; a frame that is all 0 is absent. HuBERT reads the
waveform through seven convolutions; here log-mel frames stand in their place, which a small board can afford.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from torch import Tensor, nn
from torch.nn import functional

from mdi_exit.model.network import MultiExitNetwork
from mdi_exit.model.transformer import EncoderLayer, Sizes, TokenHead

__all__ = [
    "SpeechSizes",
    "UnitBranch",
    "present",
    "rebuilt_speech",
    "speech_description",
    "speech_layers",
    "speech_network",
]


class SpeechSizes(Struct, frozen=True, kw_only=True):
    """``units``: of k-means. ``near``: frames that the place of a frame is told by. In an artifact's ``network``."""

    layers: Annotated[int, Meta(ge=1, le=1024)] = 6
    width: Annotated[int, Meta(ge=1, le=2**16)] = 64
    heads: Annotated[int, Meta(ge=1, le=1024)] = 4
    inner: Annotated[int, Meta(ge=1, le=2**18)] = 256
    bands: Annotated[int, Meta(ge=1, le=1024)] = 40
    frames: Annotated[int, Meta(ge=1, le=2**16)] = 50
    units: Annotated[int, Meta(ge=2, le=2**16)] = 64
    near: Annotated[int, Meta(ge=1, le=255)] = 5

    def __post_init__(self) -> None:
        if self.width % self.heads or self.near % 2 == 0:
            raise ValueError(
                f"expected a width that {self.heads} heads share, and near odd, got {self.width}, {self.near}"
            )


def present(x_NTD: Tensor) -> Tensor:
    """N×T: 1.0 where a frame holds anything but 0."""
    return (x_NTD.abs().amax(-1) > 0).to(x_NTD.dtype)


class Front(nn.Module):
    """x_NTM to hidden_NTD: each frame by itself, and by a convolution over its neighbours where it stands; normalised."""

    def __init__(self, sizes: SpeechSizes) -> None:
        super().__init__()
        self.linear = nn.Linear(sizes.bands, sizes.width)
        self.around = nn.Conv1d(sizes.width, sizes.width, sizes.near, padding=sizes.near // 2, groups=sizes.width)
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, x_NTM: Tensor) -> Tensor:
        there_NT1 = present(x_NTM).unsqueeze(-1)
        frame_NTD = self.linear(x_NTM) * there_NT1
        place_NTD = functional.gelu(self.around(frame_NTD.transpose(1, 2)).transpose(1, 2))
        hidden_NTD: Tensor = self.norm(frame_NTD + place_NTD) * there_NT1
        return hidden_NTD


class UnitBranch(nn.Module):
    """hidden_NTD to how sure the features are of their units, N×1: 1 - H̄ / ln U, H̄ the mean entropy of the frames that are
    there (DAISY, section 2)."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, units)
        self.most = math.log(units)

    def logits(self, hidden_NTD: Tensor) -> Tensor:
        """Of the units, N×T×U."""
        logits_NTU: Tensor = self.linear(hidden_NTD)
        return logits_NTU

    def forward(self, hidden_NTD: Tensor) -> Tensor:
        there_NT = present(hidden_NTD)
        log_p_NTU = functional.log_softmax(self.logits(hidden_NTD), -1)
        entropy_NT = -(log_p_NTU.exp() * log_p_NTU).sum(-1)
        mean_N1 = (entropy_NT * there_NT).sum(1, keepdim=True) / there_NT.sum(1, keepdim=True).clamp(min=1)
        return (1 - mean_N1 / self.most).clamp(0, 1)


def speech_layers(sizes: SpeechSizes) -> list[nn.Module]:
    """Untrained; the front belongs to the first."""
    alike = Sizes(layers=sizes.layers, width=sizes.width, heads=sizes.heads, inner=sizes.inner, words=1, positions=1)
    layers: list[nn.Module] = [EncoderLayer(alike) for _ in range(sizes.layers)]
    return [nn.Sequential(Front(sizes), layers[0]), *layers[1:]]


def speech_network(
    sizes: SpeechSizes, classes: int, layers: list[nn.Module] | None = None, branches: list[UnitBranch] | None = None
) -> MultiExitNetwork:
    """Layers, a head after each, and a branch after each but the last; those that are not given, untrained."""
    made = layers or speech_layers(sizes)
    early = branches or [UnitBranch(sizes.width, sizes.units) for _ in range(sizes.layers - 1)]
    heads = {layer: TokenHead(sizes.width, classes) for layer in range(sizes.layers)}
    network = MultiExitNetwork(made, heads, dict(enumerate(early[: sizes.layers - 1]))).eval()
    network.channels_last = False
    return network


def speech_description(sizes: SpeechSizes, classes: int) -> dict[str, Any]:
    """The manifest's ``network``."""
    exits = list(range(sizes.layers))
    return {"kind": "speech", "sizes": msgspec.to_builtins(sizes), "classes": classes, "exits": exits}


def rebuilt_speech(description: Mapping[str, Any], files: Mapping[str, bytes]) -> MultiExitNetwork:
    """Untrained, of the same sizes. Raises what ``mdi_exit.model.build.rebuilt`` makes an ``ArtifactError`` of."""
    del files
    return speech_network(msgspec.convert(description["sizes"], SpeechSizes), description["classes"])
