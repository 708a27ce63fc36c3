"""Multi-exit networks: a list of numbered layers, some of which end in an exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops.misc import Conv2dNormActivation

from mdi_exit.errors import ArtifactError
from mdi_exit.model.heads import convolutional_head

__all__ = ["MobileNetV2Config", "MultiExitNetwork", "mobilenetv2", "rebuilt"]


class MultiExitNetwork(nn.Module):
    """Layers 0…L-1 in a row; ``exits`` maps a layer to the head at its end. The last layer always has one.

    Layers take and give features (N×C×H×W here); heads give logits, N×K; ``branches``, at some exits, how sure the
    features are by themselves, N×1 in [0, 1]. ``channels_last``: whether the torch engine may run it in that memory layout
    (traced layers are tied to the layout that they were traced in).
    """

    channels_last = True

    def __init__(
        self,
        layers: Sequence[nn.Module],
        exits: Mapping[int, nn.Module],
        branches: Mapping[int, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if len(layers) - 1 not in exits:
            raise ValueError(f"expected an exit at layer {len(layers) - 1}, got exits at {sorted(exits)}")
        self.layers = nn.ModuleList(layers)
        self.exits = nn.ModuleDict({str(layer): head for layer, head in sorted(exits.items())})
        self.branches = nn.ModuleDict({str(layer): branch for layer, branch in sorted((branches or {}).items())})

    @property
    def exit_layers(self) -> tuple[int, ...]:
        return tuple(sorted(int(layer) for layer in self.exits))

    def forward(self, x_NCHW: Tensor) -> list[Tensor]:
        """Logits of every exit, first to last."""
        logits = []
        for index, layer in enumerate(self.layers):
            x_NCHW = layer(x_NCHW)
            if str(index) in self.exits:
                logits.append(self.exits[str(index)](x_NCHW))
        return logits

    def segment(self, x_NCHW: Tensor, entry: int, stop: int) -> Tensor:
        """Features after layers ``entry`` to ``stop - 1``."""
        for layer in self.layers[entry:stop]:
            x_NCHW = layer(x_NCHW)
        return x_NCHW


@dataclass(frozen=True, slots=True)
class MobileNetV2Config:
    """``width`` multiplies all channels. ``exits``: layers that end in an exit, the last included."""

    classes: int = 10
    channels_in: int = 1
    width: float = 0.5
    exits: tuple[int, ...] = (1, 3, 5, 6, 8)
    stem_stride: int = 2


# Nine layers of inverted residuals: (expansion, channels, blocks, stride of the first block). MobileNetV2's own blocks,
# with the strides of a small image: two halvings after the stem instead of four.
_LAYERS: tuple[tuple[int, int, int, int], ...] = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 1, 2),
    (6, 32, 2, 1),
    (6, 64, 2, 2),
    (6, 64, 2, 1),
    (6, 96, 3, 1),
    (6, 160, 3, 1),
    (6, 320, 1, 1),
)
_STEM_CHANNELS = 32
_LAST_CHANNELS = 1280


def _scaled(channels: int, width: float) -> int:
    return max(8, int(channels * width + 4) // 8 * 8)


def mobilenetv2(config: MobileNetV2Config) -> MultiExitNetwork:
    """A nine-layer multi-exit MobileNetV2 (arXiv 1801.04381) of torchvision's blocks."""
    channels = _scaled(_STEM_CHANNELS, config.width)
    stem = Conv2dNormActivation(
        config.channels_in, channels, stride=config.stem_stride, activation_layer=nn.ReLU6, norm_layer=nn.BatchNorm2d
    )
    layers: list[nn.Module] = []
    widths: list[int] = []
    for expansion, out, blocks, stride in _LAYERS:
        parts: list[nn.Module] = [stem] if not layers else []
        for block in range(blocks):
            wide = _scaled(out, config.width)
            parts.append(InvertedResidual(channels, wide, stride if block == 0 else 1, expansion))
            channels = wide
        layers.append(nn.Sequential(*parts))
        widths.append(channels)
    last = _scaled(_LAST_CHANNELS, config.width)
    final = nn.Sequential(
        Conv2dNormActivation(channels, last, kernel_size=1, activation_layer=nn.ReLU6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(last, config.classes),
    )
    heads = {
        layer: convolutional_head(widths[layer], config.classes) for layer in config.exits if layer != len(layers) - 1
    }
    return MultiExitNetwork(layers, {**heads, len(layers) - 1: final})


def rebuilt(description: Mapping[str, Any]) -> MultiExitNetwork:
    """The untrained network that an artifact's ``network`` entry describes. Raises ``ArtifactError``."""
    fields = dict(description)
    kind = fields.pop("kind", None)
    if kind != "mobilenetv2":
        raise ArtifactError("model network", "kind mobilenetv2", repr(kind))
    try:
        return mobilenetv2(MobileNetV2Config(**{**fields, "exits": tuple(fields.get("exits", ()))}))
    except (TypeError, ValueError, IndexError, ArithmeticError, RuntimeError) as error:
        raise ArtifactError("model network", "the fields of a MobileNetV2", str(error).splitlines()[0][:200]) from None
