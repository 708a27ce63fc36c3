"""What a phase of training is made with: epochs, optimiser, schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import Parameter

__all__ = ["Recipe", "Schedule"]

Schedule = Literal["one-cycle", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """SGD. ``learning_rate``: the highest; ``least_rate``: where a cosine ends."""

    epochs: int = 12
    batch_size: int = 128
    learning_rate: float = 0.08
    least_rate: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 2e-4
    nesterov: bool = True
    schedule: Schedule = "one-cycle"

    def optimiser(self, parameters: list[Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters,
            self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )

    def scheduler(self, optimiser: torch.optim.Optimizer, steps: int) -> Any:
        """Stepped after each of ``steps`` batches: one cycle (Smith, arXiv 1708.07120) or half a cosine down."""
        if self.schedule == "one-cycle":
            return torch.optim.lr_scheduler.OneCycleLR(
                optimiser, self.learning_rate, total_steps=steps + 1, pct_start=0.15
            )
        least = self.least_rate / self.learning_rate
        return torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: least + (1 - least) * (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2
        )
