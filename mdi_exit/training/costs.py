"""What a sample costs up to each exit, and where exits belong by cost. In multiply-accumulates (MACs) of one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from mdi_exit.errors import UsageError
from mdi_exit.model.export import macs
from mdi_exit.model.network import MultiExitNetwork

__all__ = ["Costs", "costs_of", "places"]


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


def places(layer_macs: Sequence[int], count: int) -> tuple[int, ...]:
    """The layers after which ``count`` exits are spread evenly in cumulative cost, the last one at the end.

    Each goes after the layer whose cumulative cost is nearest to its share (the earlier of equals) and that leaves room
    for the others. Raises ``UsageError`` for more exits than layers.
    """
    total = list(accumulate(layer_macs))
    if not 1 <= count <= len(total):
        raise UsageError("--exits", f"1 to {len(total)} exits, one a layer at most", count)
    found: list[int] = []
    for number in range(1, count):
        wanted = total[-1] * number / count
        first, last = (found[-1] + 1 if found else 0), len(total) - 1 - (count - number)
        found.append(min(range(first, last + 1), key=lambda layer: abs(total[layer] - wanted)))
    return (*found, len(total) - 1)
