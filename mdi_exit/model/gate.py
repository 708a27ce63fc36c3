"""JEI-DNN's gate (Regol et al., arXiv 2310.09163): how ready an exit is to let a sample go, from its logits alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Gate", "statistics"]


def statistics(logits_NK: Tensor) -> Tensor:
    """N×4: p_max, entropy in nats, margin p₁ - p₂, entropy of p²/Σp² (the softmax of twice the logits). K is at least 2."""
    log_p_NK = functional.log_softmax(logits_NK, 1)
    top_N2 = log_p_NK.exp().topk(2, 1).values
    squared_NK = functional.log_softmax(2 * logits_NK, 1)
    return torch.stack(
        (top_N2[:, 0], _entropy(log_p_NK), top_N2[:, 0] - top_N2[:, 1], _entropy(squared_NK)), 1
    )  # fmt: skip


def _entropy(log_p_NK: Tensor) -> Tensor:
    return -(log_p_NK.exp() * log_p_NK).sum(1)


class Gate(nn.Module):
    """Logits, N×K, to the gate's value g in (0, 1), N×1. No gradient reaches the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def logit(self, logits_NK: Tensor) -> Tensor:
        """What the sigmoid makes g of, N×1."""
        logit_N1: Tensor = self.linear(statistics(logits_NK.detach()))
        return logit_N1

    def forward(self, logits_NK: Tensor) -> Tensor:
        return torch.sigmoid(self.logit(logits_NK))
