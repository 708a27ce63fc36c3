"""Costs of full-width networks for scenarios: shapes from torchvision's blocks, nothing trained.

python benchmarks/scenarios/models/costs.py     # writes the .toml files beside it
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from mdi_exit.model.build import built
from mdi_exit.model.export import macs

FOLDER = Path(__file__).parent
INPUT = (3, 32, 32)
CLASSES = 10
# The outcomes are a narrow MobileNetV2's. The wide one has its exits at the same layers; the ResNet's stand where as great a
# share of the cost is behind them.
EXITS = {"mobilenetv2": (1, 3, 5, 6)}
SHARES = (0.12, 0.19, 0.27, 0.39)
THINNER = 32
RESNET = "ResNet-50 with the 3x3 stem of small images and heads of mean and one linear map"


def full_width(spec: str) -> tuple[list[nn.Module], dict[int, nn.Module], list[torch.Tensor]]:
    """Layers, heads by layer, and what enters each layer."""
    plain = built(spec, input_shape=INPUT, classes=CLASSES, width=1.0).network
    costs, x = [], torch.zeros(1, *INPUT)
    for layer in plain.layers:
        costs.append(macs(layer, x))
        x = layer(x)
    total = sum(costs)
    so_far = [sum(costs[: index + 1]) / total for index in range(len(costs))]
    exits: list[int] = list(EXITS.get(spec, ()))
    for share in SHARES[len(exits) :]:
        free = [layer for layer in range(len(costs) - 1) if layer not in exits]
        exits.append(min(free, key=lambda layer: abs(so_far[layer] - share)))
    network = built(spec, input_shape=INPUT, classes=CLASSES, width=1.0, exits=sorted(exits)).network
    heads = {int(name): head for name, head in network.exits.items()}
    inputs, x = [], torch.zeros(1, *INPUT)
    for layer in network.layers:
        inputs.append(x)
        x = layer(x)
    inputs.append(x)
    if spec == "small_resnet50":  # the house's head would cost twice a block on so many channels
        heads |= {layer: linear_head(inputs[layer + 1].shape[1]) for layer in exits}
    return list(network.layers), heads, inputs


def linear_head(channels: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)).eval()


def weight_bytes(module: nn.Module) -> int:
    return sum(4 * tensor.numel() for tensor in [*module.parameters(), *module.buffers()])


def table(name: str, note: str, rows: dict[str, Sequence[int]]) -> str:
    lines = [f"# {line}" for line in note.splitlines()]
    lines += ["# Written by costs.py.", f'name = "{name}"']
    return "\n".join(lines + [f"{key} = {list(row)}" for key, row in rows.items()]) + "\n"


def write(spec: str, name: str, title: str, *, bottlenecks: bool = False) -> None:
    with torch.no_grad():
        layers, heads, inputs = full_width(spec)
        layer_macs = [macs(layer, x) for layer, x in zip(layers, inputs, strict=False)]
        exits = sorted(heads)
        exit_macs = [macs(heads[layer], inputs[layer + 1]) for layer in exits]
    feature_bytes = [4 * x[0].numel() for x in inputs[:-1]]
    layer_bytes = [weight_bytes(layer) for layer in layers]
    note = f"{title}, width 1.0, for 3x32x32 images and 10 classes;\n"
    note += "multiply-accumulates of one sample, bytes in float32."
    if bottlenecks:
        note += f"\nAn autoencoder of 1x1 convolutions to 1/{THINNER} of the channels and back on the cut behind each early\n"
        note += "exit; "
        note += "its encoder counts to the layer before, its decoder to the one behind."
        for layer in exits[:-1]:
            channels, height, width = inputs[layer + 1].shape[1:]
            code = channels // THINNER
            half = channels * code * height * width
            layer_macs[layer] += half
            layer_macs[layer + 1] += half
            layer_bytes[layer] += 4 * channels * code
            layer_bytes[layer + 1] += 4 * channels * code
            feature_bytes[layer + 1] = 4 * code * height * width
    rows = {
        "layer_macs": layer_macs,
        "layer_bytes": layer_bytes,
        "feature_bytes": feature_bytes,
        "exit_layers": exits,
        "exit_macs": exit_macs,
        "exit_bytes": [weight_bytes(heads[layer]) for layer in exits],
    }
    (FOLDER / f"{name}.toml").write_text(table(name, note, rows))


if __name__ == "__main__":
    write("mobilenetv2", "mobilenetv2", "MobileNetV2 (the nine layers of mdi_exit.model.network)")
    write("small_resnet50", "resnet50", RESNET)
    write("small_resnet50", "resnet50-bottleneck", RESNET, bottlenecks=True)
