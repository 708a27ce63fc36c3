"""What a sample costs up to each exit, in multiply-accumulates (MACs)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch

from mdi_exit.model.export import macs
from mdi_exit.model.network import MultiExitNetwork

__all__ = ["Costs", "costs_of"]


@dataclass(frozen=True, slots=True)
class Costs:
    """``layers``: of each; ``exit_layers`` and ``heads``: where exits are and what their heads cost.

    Gates are left out: four statistics of K logits and four products.
    """

    layers: tuple[int, ...]
    exit_layers: tuple[int, ...]
    heads: tuple[int, ...]

    @property
    def to_exits(self) -> tuple[int, ...]:
        """Of a sample that leaves at each exit: the layers so far, and all the heads that it was shown to."""
        layers = tuple(accumulate(self.layers))
        return tuple(
            layers[layer] + heads for layer, heads in zip(self.exit_layers, accumulate(self.heads), strict=True)
        )

    @property
    def shares(self) -> tuple[float, ...]:
        """The same as shares of the whole, the last being 1."""
        *_, whole = self.to_exits
        return tuple(cost / whole for cost in self.to_exits)


def costs_of(network: MultiExitNetwork, shape: tuple[int, ...]) -> Costs:
    """Counted on zeros of ``shape`` (without batch), in evaluation mode."""
    network.eval()
    layers, heads = [], []
    x_N = torch.zeros(1, *shape)
    for number, layer in enumerate(network.layers):
        layers.append(macs(layer, x_N))
        with torch.no_grad():
            x_N = layer(x_N)
        if number in network.exit_layers:
            heads.append(macs(network.exits[str(number)], x_N))
    return Costs(tuple(layers), network.exit_layers, tuple(heads))
