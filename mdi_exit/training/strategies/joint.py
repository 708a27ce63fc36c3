"""Joint training of all exits: the weighted sum of their cross entropies (BranchyNet, arXiv 1709.01686)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdi_exit.errors import UsageError
from mdi_exit.training.phases import Losses, Phase, Taps, Trainee, inputs_of
from mdi_exit.training.recipe import Recipe

__all__ = ["EXIT_WEIGHTS", "JointPhase", "exit_weights", "weighted"]

EXIT_WEIGHTS = ("half", "uniform", "linear")


def exit_weights(text: str, exits: int) -> tuple[float, ...]:
    """Weights of ``exits`` losses: ``half`` (0.5 for each early exit, 1 for the last), ``uniform`` (1 each), ``linear``
    (1/L, 2/L, … 1), or as many numbers with commas between. Raises ``UsageError``.
    """
    match text:
        case "half":
            return (0.5,) * (exits - 1) + (1.0,)
        case "uniform":
            return (1.0,) * exits
        case "linear":
            return tuple((number + 1) / exits for number in range(exits))
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = ()
    if len(weights) != exits or not all(0 <= weight < math.inf for weight in weights) or not sum(weights) > 0:
        raise UsageError("--exit-weights", f"{', '.join(EXIT_WEIGHTS)} or {exits} numbers of at least 0", repr(text))
    return weights


def weighted(weights_L: Sequence[float], losses: Sequence[Tensor]) -> Losses:
    """Their weighted sum."""
    by_exit_L = torch.stack(list(losses))
    return Losses((by_exit_L.new_tensor(weights_L) * by_exit_L).sum(), by_exit_L)


class JointPhase(Phase):
    """Everything is trained at once."""

    name: ClassVar = "joint"

    def __init__(self, trainee: Trainee, recipe: Recipe, weights_L: Sequence[float]) -> None:
        super().__init__(trainee, recipe)
        self.weights_L = tuple(weights_L)

    def trained(self) -> Sequence[nn.Module]:
        return [self.trainee.network]

    def loss(self, step: int, batch: Tensor | Taps, labels_B: Tensor) -> Losses:
        del step
        logits = self.trainee.network(inputs_of(batch))
        return weighted(self.weights_L, [functional.cross_entropy(one, labels_B) for one in logits])
