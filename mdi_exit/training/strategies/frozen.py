"""A backbone first, alone; then heads on it while it stays as it is: parameters and batch-norm statistics.

Heads do not touch each other: each has its own cross entropy, and the sum is minimised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdi_exit.training.phases import Losses, Phase, Taps, inputs_of, taps_of

__all__ = ["BackbonePhase", "HeadsPhase", "LastHeadPhase"]


class BackbonePhase(Phase):
    """Layers and the last exit, as a network without early exits is trained."""

    name: ClassVar = "backbone"

    def trained(self) -> Sequence[nn.Module]:
        return self.trainee.backbone

    def loss(self, step: int, batch: Tensor | Taps, labels_B: Tensor) -> Losses:
        del step
        network = self.trainee.network
        features = network.segment(inputs_of(batch), 0, len(network.layers))
        logits_BK = network.exits[str(network.exit_layers[-1])](features)
        loss = functional.cross_entropy(logits_BK, labels_B)
        early = loss.detach().new_full((len(network.exit_layers) - 1,), torch.nan)
        return Losses(loss, torch.cat((early, loss.detach()[None])))


class LastHeadPhase(Phase):
    """The last exit on layers that came with their weights: what makes a classifier of an encoder."""

    name: ClassVar = "last head"
    frozen: ClassVar = True

    def trained(self) -> Sequence[nn.Module]:
        return [self.trainee.last_head]

    def loss(self, step: int, batch: Tensor | Taps, labels_B: Tensor) -> Losses:
        del step
        taps = taps_of(batch)
        if taps.last is None:
            raise ValueError("expected features at the last exit, got its logits")
        loss = functional.cross_entropy(self.trainee.last_head(taps.last), labels_B)
        early = loss.detach().new_full((len(self.trainee.heads),), torch.nan)
        return Losses(loss, torch.cat((early, loss.detach()[None])))


class HeadsPhase(Phase):
    """The early exits' heads on a frozen backbone."""

    name: ClassVar = "heads"
    frozen: ClassVar = True

    def trained(self) -> Sequence[nn.Module]:
        return self.trainee.heads

    def loss(self, step: int, batch: Tensor | Taps, labels_B: Tensor) -> Losses:
        del step
        logits = self.trainee.head_logits(taps_of(batch))
        by_exit_L = torch.stack([functional.cross_entropy(one_BK, labels_B) for one_BK in logits])
        return Losses(by_exit_L[:-1].sum(), by_exit_L)
