"""Networks for small images (28 to 64 pixels a side), of torchvision's own blocks.

Each is a sequence of named layers, the last of which, ``classifier``, turns features into logits: ``layers_of`` takes it
apart. ``width`` multiplies all channels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops.misc import Conv2dNormActivation

__all__ = ["BACKBONES", "layers_of", "small_resnet", "small_vgg"]

_RESNETS: Final[dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}
_VGGS: Final = {11: "A", 13: "B", 16: "D", 19: "E"}


def small_resnet(
    depth: int = 18, *, width: float = 1.0, classes: int = 10, channels_in: int = 3, stem_stride: int = 1
) -> nn.Sequential:
    """ResNet (arXiv 1512.03385) with the stem of its CIFAR form: one 3×3 convolution, no pooling.

    One layer is one residual block, ``layer1.0`` to ``layer4.…`` with ``-`` for the dot; the stem is in the first.
    Raises ``ValueError`` for a depth other than 18, 34 and 50.
    """
    if depth not in _RESNETS:
        raise ValueError(f"expected a depth of {', '.join(map(str, _RESNETS))}, got {depth}")
    block, counts = _RESNETS[depth]
    channels = _scaled(64, width)
    stem = Conv2dNormActivation(channels_in, channels, stride=stem_stride)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for stage, count in enumerate(counts):
        planes = _scaled(64 * 2**stage, width)
        for number in range(count):
            stride = 2 if stage and not number else 1
            made = _residual(block, channels, planes, stride)
            layers[f"layer{stage + 1}-{number}"] = made if layers else nn.Sequential(stem, made)
            channels = planes * block.expansion
    layers["classifier"] = _classifier(channels, classes)
    network = nn.Sequential(layers)
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return network


def _residual(block: type[BasicBlock | Bottleneck], channels: int, planes: int, stride: int) -> nn.Module:
    out = planes * block.expansion
    shortcut = nn.Sequential(conv1x1(channels, out, stride), nn.BatchNorm2d(out))
    made: nn.Module = block(channels, planes, stride, shortcut if stride != 1 or channels != out else None)
    return made


def small_vgg(depth: int = 16, *, width: float = 1.0, classes: int = 10, channels_in: int = 3) -> nn.Sequential:
    """VGG (arXiv 1409.1556) with batch normalisation, four poolings, and a mean and one linear layer at its end.

    One layer is one convolution with its norm, ReLU and pooling. Raises ``ValueError`` for a depth other than 11 to 19.
    """
    if depth not in _VGGS:
        raise ValueError(f"expected a depth of {', '.join(map(str, _VGGS))}, got {depth}")
    plan = [entry if isinstance(entry, str) else _scaled(entry, width) for entry in cfgs[_VGGS[depth]][:-1]]
    groups: list[list[nn.Module]] = []
    for part in make_layers(plan, batch_norm=True):
        if isinstance(part, nn.Conv2d):
            groups.append([])
        groups[-1].append(part)
    numbers = [entry for entry in plan if not isinstance(entry, str)]
    groups[0][0] = nn.Conv2d(channels_in, numbers[0], 3, padding=1)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        (f"conv{number}", nn.Sequential(*group)) for number, group in enumerate(groups)
    )
    layers["classifier"] = _classifier(numbers[-1], classes)
    return nn.Sequential(layers)


def _classifier(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def _scaled(channels: int, width: float) -> int:
    if not width > 0:
        raise ValueError(f"expected a width above 0, got {width}")
    return max(8, round(channels * width / 8) * 8)


def layers_of(backbone: nn.Sequential) -> tuple[dict[str, nn.Module], nn.Module]:
    """The named layers of a network of this module, and the classifier at its end."""
    *layers, (_, classifier) = backbone.named_children()
    return dict(layers), classifier


BACKBONES: Final[dict[str, Callable[..., nn.Sequential]]] = {
    **{f"small_resnet{depth}": partial(small_resnet, depth) for depth in _RESNETS},
    **{f"small_vgg{depth}": partial(small_vgg, depth) for depth in _VGGS},
}
