"""Exit heads: small classifiers that fit the tensor at the end of a layer. K is the number of classes."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops.misc import Conv2dNormActivation

__all__ = ["MeanOver", "convolutional_head", "head_for"]


class MeanOver(nn.Module):
    """The mean over some axes, which vanish."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x_N: Tensor) -> Tensor:
        return x_N.mean(self.axes)

    def extra_repr(self) -> str:
        return f"axes={self.axes}"


def head_for(shape: tuple[int, ...], classes: int) -> nn.Module:
    """An untrained head from features of ``shape`` (without batch) to logits, N×K.

    C×H×W: pointwise convolution to twice the channels, norm, ReLU6, mean, linear. H×W×C, which is what three axes mean
    when the first two are equal and the third is another (Swin's features): norm, mean over places, linear. T×D tokens:
    the same over tokens. Anything else: one vector, norm, linear. Raises ``ValueError`` for no axes or no classes.
    """
    if not shape or min(shape) < 1 or classes < 1:
        raise ValueError(f"expected axes and classes of at least 1, got {shape} and {classes}")
    match shape:
        case (height, width, channels) if height == width != channels:
            return nn.Sequential(nn.LayerNorm(channels), MeanOver(1, 2), nn.Linear(channels, classes))
        case (channels, _, _):
            return convolutional_head(channels, classes)
        case (_, channels):
            return nn.Sequential(nn.LayerNorm(channels), MeanOver(1), nn.Linear(channels, classes))
        case _:
            size = 1
            for axis in shape:
                size *= axis
            return nn.Sequential(nn.Flatten(), nn.LayerNorm(size), nn.Linear(size, classes))


def convolutional_head(channels: int, classes: int) -> nn.Module:
    """A small exit on C×H×W features: pointwise convolution, mean, linear."""
    inner = 2 * channels
    return nn.Sequential(
        Conv2dNormActivation(channels, inner, kernel_size=1, activation_layer=nn.ReLU6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inner, classes),
    )
