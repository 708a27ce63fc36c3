"""What the loop trains: a network with its gates, in phases that each say what a step's loss is.

Shapes: B samples of a batch, N of a set, K classes, L exits; features are B×….
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional

from mdi_exit.model.gate import Gate
from mdi_exit.model.network import MultiExitNetwork
from mdi_exit.model.transformer import TokenHead
from mdi_exit.training.recipe import Recipe

__all__ = ["Evaluation", "Losses", "Phase", "Taps", "Trainee", "evaluating", "inputs_of", "taps_of"]


@dataclass(frozen=True, slots=True)
class Taps:
    """What frozen layers make of a batch: ``features`` at each early exit, ``last_BK`` the logits of the last one.

    ``last``: features at the last exit, where that has yet to learn; then ``last_BK`` means nothing.
    """

    features: tuple[Tensor, ...]
    last_BK: Tensor
    last: Tensor | None = None


def inputs_of(batch: Tensor | Taps) -> Tensor:
    """What a phase gets that is not frozen. Raises ``TypeError`` for anything else."""
    if isinstance(batch, Taps):
        raise TypeError("expected inputs, got taps")
    return batch


def taps_of(batch: Tensor | Taps) -> Taps:
    """What a frozen phase gets. Raises ``TypeError`` for anything else."""
    if not isinstance(batch, Taps):
        raise TypeError(f"expected taps, got {type(batch).__name__}")
    return batch


@dataclass(frozen=True, slots=True)
class Losses:
    """``total``: what is minimised; ``by_exit_L``: for the log, not a number where an exit had none."""

    total: Tensor
    by_exit_L: Tensor


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Logits of every exit in evaluation mode, L×N×K float32, and the labels, on the CPU."""

    logits_LNK: Tensor
    labels_N: Tensor

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Share of right labels at each exit, in [0, 1]."""
        return tuple((self.logits_LNK.argmax(2) == self.labels_N).double().mean(1).tolist())

    @property
    def losses_LN(self) -> Tensor:
        """Cross entropy of each exit and sample."""
        return torch.stack([functional.cross_entropy(one, self.labels_N, reduction="none") for one in self.logits_LNK])


class Trainee(nn.Module):
    """A network and a gate for each early exit (none for strategies without gates).

    ``pretrained``: the layers have learned already, and the last exit has not.
    """

    def __init__(self, network: MultiExitNetwork, *, gated: bool = False, pretrained: bool = False) -> None:
        super().__init__()
        self.network, self.pretrained = network, pretrained
        early = len(network.exit_layers) - 1
        self.gates = nn.ModuleList(Gate() for _ in range(early if gated else 0))

    @property
    def heads(self) -> list[nn.Module]:
        """Those of the early exits."""
        return [self.network.exits[str(layer)] for layer in self.network.exit_layers[:-1]]

    @property
    def last_head(self) -> nn.Module:
        return self.network.exits[str(self.network.exit_layers[-1])]

    @property
    def backbone(self) -> list[nn.Module]:
        """Layers and last exit: what there is without early exits."""
        return [self.network.layers, self.last_head]

    def taps(self, x_BCHW: Tensor) -> Taps:
        """The backbone as it stands: evaluation mode, no gradient, nothing of it changed."""
        *early, last = self.network.exit_layers
        features = []
        with torch.no_grad(), evaluating(*self.backbone):
            x = x_BCHW
            for index, layer in enumerate(self.network.layers):
                x = layer(x)
                if index in early:
                    features.append(_pooled(self.network.exits[str(index)], x))
            head = self.network.exits[str(last)]
            return Taps(tuple(features), head(x), _pooled(head, x) if self.pretrained else None)

    def head_logits(self, taps: Taps) -> list[Tensor]:
        """Logits of every exit, the last one's as they are where it has learned already."""
        last_BK = taps.last_BK if taps.last is None else self.last_head(taps.last)
        return [*(head(x) for head, x in zip(self.heads, taps.features, strict=True)), last_BK]


def _pooled(head: nn.Module, x: Tensor) -> Tensor:
    """What a head makes of features before any weight has a say, where that is less to keep."""
    return head.pooled(x) if isinstance(head, TokenHead) else x


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """In evaluation mode, and back to what each part was in."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    yield
    for part, mode in modes:
        part.training = mode


class Phase(ABC):
    """A stretch of training with one optimiser. ``frozen``: the backbone stays as it is, and steps get ``Taps``."""

    name: ClassVar[str]
    frozen: ClassVar[bool] = False

    def __init__(self, trainee: Trainee, recipe: Recipe) -> None:
        self.trainee, self.recipe = trainee, recipe

    @abstractmethod
    def trained(self) -> Sequence[nn.Module]:
        """Modules that change: their parameters, and their statistics in training mode."""

    @abstractmethod
    def loss(self, step: int, batch: Tensor | Taps, labels_B: Tensor) -> Losses:
        """Of one batch, inputs or (when frozen) taps. ``step``: since the phase began."""

    def begin(self, evaluate: Callable[[], Evaluation]) -> None:
        """Before the first step of the phase, and not when it is gone on with."""
        del evaluate

    def epoch_done(self, validation: Evaluation) -> bool:
        """After each epoch; True: enough."""
        del validation
        return False

    def end(self) -> None:  # noqa: B027 - most phases have nothing to tidy up
        """After the last epoch."""

    def state(self) -> dict[str, Any]:
        """What a later run needs to go on with the phase, beside the trainee and the optimiser."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The opposite of ``state``."""
        del state

    def parameters(self) -> list[Parameter]:
        return [parameter for module in self.trained() for parameter in module.parameters()]

    def set_modes(self) -> None:
        """Training mode and gradients for what changes, neither for anything else."""
        self.trainee.eval().requires_grad_(False)
        for module in self.trained():
            module.train().requires_grad_(True)
