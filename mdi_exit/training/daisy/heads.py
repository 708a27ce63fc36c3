"""Light heads of one downstream task on the frozen encoder, and the threshold at which they are worth leaving early for.

N clips, L layers, D channels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdi_exit.model.transformer import TokenHead
from mdi_exit.trace import Trace
from mdi_exit.training.curve import thresholds_for
from mdi_exit.training.daisy.encoder import Learner

__all__ = ["learn_heads", "pooled", "threshold_within"]

_STEPS: Final = 400
_RATE: Final = 0.03
_AT_ONCE: Final = 256


def pooled(learner: Learner, hearings: Iterable[Tensor]) -> list[Tensor]:
    """N×D after each layer, of one x_NTM after the other: what a head makes of features before any weight has a say."""
    learner.eval()
    parts: list[list[Tensor]] = [[] for _ in learner.layers]
    with torch.no_grad():
        for x_NTM in hearings:
            for x in torch.split(x_NTM, _AT_ONCE):
                for part, hidden_NTD in zip(parts, learner.hidden(x), strict=True):
                    part.append(TokenHead(hidden_NTD.shape[2], 1).pooled(hidden_NTD))
    return [torch.cat(part) for part in parts]


def learn_heads(heads: Sequence[nn.Module], pooled_L: Sequence[Tensor], labels_N: Tensor, seed: int) -> None:
    """In place: cross entropy, AdamW on all samples at once, half a cosine down."""
    torch.manual_seed(seed)
    parameters = [parameter for head in heads for parameter in head.requires_grad_(True).parameters()]
    optimiser = torch.optim.AdamW(parameters, _RATE, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    for _ in range(_STEPS):
        losses = [functional.cross_entropy(head(x), labels_N) for head, x in zip(heads, pooled_L, strict=True)]
        optimiser.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        scheduler.step()
    for head in heads:
        head.requires_grad_(False).eval()


def threshold_within(trace: Trace, loss: float) -> float:
    """The lowest threshold at which at most ``loss`` of these samples' accuracy is given up against never leaving early."""
    wanted = trace.score(1.0).accuracy - loss
    scored = [(float(t), trace.score(t)) for t in thresholds_for(trace)]
    return min(
        (threshold for threshold, score in scored if score.accuracy >= wanted),
        key=lambda threshold: (trace.score(threshold).mean_macs, threshold),
    )
