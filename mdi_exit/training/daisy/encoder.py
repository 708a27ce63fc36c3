"""The encoder learns by predicting units of masked frames (HuBERT); then each layer's branch does, on it as it is (DAISY).

N clips, T frames, M bands, D channels. Both stages mask the same way and see no label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdi_exit.model.speech import SpeechSizes, UnitBranch, present, speech_layers
from mdi_exit.training.checkpoint import read_checkpoint, write_checkpoint
from mdi_exit.training.daisy.units import ABSENT
from mdi_exit.training.samples import draws

__all__ = ["STAGES", "Learner", "Stage", "learn", "masked", "unmasked_accuracies"]

_START_SHARE: Final = 0.10
_SPAN: Final = 6
_WEIGHT_DECAY: Final = 0.01
_MOST_GRADIENT: Final = 1.0
_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class Stage:
    """``rate``: highest learning rate of AdamW in one cycle."""

    name: str
    epochs: int
    rate: float
    batch: int = 64


STAGES: Final = ("encoder", "branches")


class Learner(nn.Module):
    """Layers, a branch for each (that of the last is HuBERT's prediction head), and what stands for a masked frame."""

    def __init__(self, sizes: SpeechSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(speech_layers(sizes))
        self.branches = nn.ModuleList(UnitBranch(sizes.width, sizes.units) for _ in range(sizes.layers))
        self.mask_M = nn.Parameter(0.5 * torch.randn(sizes.bands))

    def hidden(self, x_NTM: Tensor) -> Iterator[Tensor]:
        """After each layer, N×T×D."""
        x = x_NTM
        for layer in self.layers:
            x = layer(x)
            yield x

    def trained(self, stage: str) -> list[nn.Parameter]:
        if stage == "encoder":
            return [*self.layers.parameters(), *self.branches[-1].parameters(), self.mask_M]
        return list(self.branches[:-1].parameters())

    def loss(self, stage: str, x_NTM: Tensor, units_NT: Tensor, generator: torch.Generator) -> Tensor:
        """Cross entropy of the units of masked frames: at the last layer, or summed over the branches of all others."""
        hidden_NT = masked(present(x_NTM), generator)
        wanted_NT = units_NT.masked_fill(~hidden_NT, ABSENT)
        x_NTM = torch.where(hidden_NT.unsqueeze(-1), self.mask_M, x_NTM)
        if stage == "encoder":
            *_, last_NTD = self.hidden(x_NTM)
            return _cross_entropy(self.branches[-1], last_NTD, wanted_NT)
        with torch.no_grad():
            early = list(self.hidden(x_NTM))[:-1]
        losses = [_cross_entropy(branch, x, wanted_NT) for branch, x in zip(self.branches, early, strict=False)]
        return torch.stack(losses).sum()


def masked(there_NT: Tensor, generator: torch.Generator) -> Tensor:
    """N×T bool: spans of six frames, begun at a tenth of the places; at least one frame of each clip."""
    begins_NT = torch.rand(there_NT.shape, generator=generator) < _START_SHARE
    length_N = there_NT.sum(1).long().clamp(min=1)
    one_N = (torch.rand(len(there_NT), generator=generator) * length_N).long()
    begins_NT[torch.arange(len(there_NT)), one_N] = True
    spans_NT = functional.max_pool1d(functional.pad(begins_NT.float(), (_SPAN - 1, 0)).unsqueeze(1), _SPAN, 1)[:, 0]
    return (spans_NT > 0) & there_NT.bool()


def _cross_entropy(branch: nn.Module, hidden_NTD: Tensor, wanted_NT: Tensor) -> Tensor:
    if not isinstance(branch, UnitBranch):
        raise TypeError(f"expected a branch, got {type(branch).__name__}")
    return functional.cross_entropy(branch.logits(hidden_NTD).flatten(0, 1), wanted_NT.flatten(), ignore_index=ABSENT)


def learn(
    learner: Learner,
    stages: list[Stage],
    x_NTM: Tensor,
    units_NT: Tensor,
    *,
    seed: int,
    purpose: dict[str, Any],
    checkpoint: Path | None,
    say: Callable[[str], None],
) -> None:
    """All stages in place, a checkpoint after each epoch; a run that was cut short goes on if its ``purpose`` is the same."""
    generator = torch.Generator().manual_seed(seed)
    saved = read_checkpoint(checkpoint, purpose) if checkpoint is not None else {}
    first = saved["stage"] if saved else 0
    if saved:
        learner.load_state_dict(saved["learner"])
        generator.set_state(saved["order"])
    for number, stage in enumerate(stages):
        if number < first:
            continue
        learner.requires_grad_(False)
        trained = learner.trained(stage.name)
        for parameter in trained:
            parameter.requires_grad_(True)
        optimiser = torch.optim.AdamW(trained, stage.rate, weight_decay=_WEIGHT_DECAY)
        steps = max(stage.epochs * (len(x_NTM) // stage.batch), 1)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, stage.rate, total_steps=steps + 1, pct_start=0.2)
        done = 0
        if saved and number == first:
            done = saved["done"]
            optimiser.load_state_dict(saved["optimiser"])
            scheduler.load_state_dict(saved["scheduler"])
        while done < stage.epochs:
            loss = _epoch(learner, stage, x_NTM, units_NT, optimiser, scheduler, generator)
            done += 1
            say(f"{stage.name}: epoch {done} of {stage.epochs}, loss {loss:.3f}")
            if checkpoint is not None:
                write_checkpoint(checkpoint, {
                    "purpose": purpose, "stage": number, "done": done, "learner": learner.state_dict(),
                    "optimiser": optimiser.state_dict(), "scheduler": scheduler.state_dict(), "order": generator.get_state(),
                })  # fmt: skip
    learner.requires_grad_(False)


def _epoch(
    learner: Learner, stage: Stage, x_NTM: Tensor, units_NT: Tensor, optimiser: torch.optim.Optimizer, scheduler: Any,
    generator: torch.Generator,
) -> float:  # fmt: skip
    learner.train()
    total, count = 0.0, 0
    for rows_B in draws(len(x_NTM), min(stage.batch, len(x_NTM)), generator):
        longest = int(present(x_NTM[rows_B]).sum(1).max())
        loss = learner.loss(stage.name, x_NTM[rows_B, :longest], units_NT[rows_B, :longest], generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learner.trained(stage.name), _MOST_GRADIENT)
        optimiser.step()
        scheduler.step()
        total, count = total + float(loss.detach()), count + 1
    return total / count


def unmasked_accuracies(learner: Learner, x_NTM: Tensor, units_NT: Tensor) -> list[float]:
    """Share of frames whose unit each branch names, nothing being masked: how much of the sound it has understood."""
    learner.eval()
    right, frames = [0] * len(learner.layers), int((units_NT != ABSENT).sum())
    with torch.no_grad():
        for x, units in zip(torch.split(x_NTM, _AT_ONCE), torch.split(units_NT, _AT_ONCE), strict=True):
            for layer, (branch, hidden) in enumerate(zip(learner.branches, learner.hidden(x), strict=True)):
                right[layer] += int((branch.logits(hidden).argmax(-1) == units).sum())  # type: ignore[operator]
    return [count / frames for count in right]
