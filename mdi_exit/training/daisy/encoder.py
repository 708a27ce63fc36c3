"""The encoder learns by predicting units of masked frames (HuBERT); then each layer's branch does, on it as it is (DAISY).

N clips, T frames, M bands, D channels. The units are those of clean clips, what is heard has noise; no stage sees a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdi_exit.model.speech import SpeechSizes, UnitBranch, present, speech_layers
from mdi_exit.training.checkpoint import read_checkpoint, write_checkpoint
from mdi_exit.training.daisy.units import ABSENT
from mdi_exit.training.samples import draws

__all__ = ["Learner", "Stage", "features_after", "learn", "masked", "units_right"]

_START_SHARE: Final = 0.10
_SPAN: Final = 6
_WEIGHT_DECAY: Final = 0.01
_SEEN_WEIGHT: Final = 0.5  # of a frame that is not masked: to predict its unit is to take the noise away
_MOST_GRADIENT: Final = 1.0
_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class Stage:
    """``rate``: highest learning rate of AdamW in one cycle."""

    name: Literal["encoder", "branches"]
    epochs: int
    rate: float
    batch: int = 64


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
        """Cross entropy of the units: at the last layer, of masked frames above all; or, nothing being masked, summed over
        the branches of all others (DAISY, section 2)."""
        if stage == "encoder":
            hidden_NT = masked(present(x_NTM), generator)
            *_, last_NTD = self.hidden(torch.where(hidden_NT.unsqueeze(-1), self.mask_M, x_NTM))
            weight_NT = torch.where(hidden_NT, 1.0, _SEEN_WEIGHT)
            return _cross_entropy(self.branches[-1], last_NTD, units_NT, weight_NT)
        with torch.no_grad():
            early = list(self.hidden(x_NTM))[:-1]
        weight_NT = torch.ones(units_NT.shape)
        losses = [
            _cross_entropy(branch, x, units_NT, weight_NT) for branch, x in zip(self.branches, early, strict=False)
        ]
        return torch.stack(losses).sum()


def masked(there_NT: Tensor, generator: torch.Generator) -> Tensor:
    """N×T bool: spans of six frames, begun at a tenth of the places; at least one frame of each clip."""
    begins_NT = torch.rand(there_NT.shape, generator=generator) < _START_SHARE
    length_N = there_NT.sum(1).long().clamp(min=1)
    one_N = (torch.rand(len(there_NT), generator=generator) * length_N).long()
    begins_NT[torch.arange(len(there_NT)), one_N] = True
    spans_NT = functional.max_pool1d(functional.pad(begins_NT.float(), (_SPAN - 1, 0)).unsqueeze(1), _SPAN, 1)[:, 0]
    return (spans_NT > 0) & there_NT.bool()


def _cross_entropy(branch: nn.Module, hidden_NTD: Tensor, units_NT: Tensor, weight_NT: Tensor) -> Tensor:
    """Mean of the frames that are there, by weight."""
    if not isinstance(branch, UnitBranch):
        raise TypeError(f"expected a branch, got {type(branch).__name__}")
    each_F = functional.cross_entropy(
        branch.logits(hidden_NTD).flatten(0, 1), units_NT.flatten(), ignore_index=ABSENT, reduction="none"
    )
    weight_F = (weight_NT * (units_NT != ABSENT)).flatten()
    return (each_F * weight_F).sum() / weight_F.sum()


def learn(
    learner: Learner,
    stages: list[Stage],
    heard: Callable[[int, int], Tensor],
    units_NT: Tensor,
    *,
    seed: int,
    purpose: dict[str, Any],
    checkpoint: Path | None,
    say: Callable[[str], None],
) -> None:
    """All stages in place, a checkpoint after each epoch; a run that was cut short goes on if its ``purpose`` is the same.

    ``heard``: x_NTM of a stage's epoch, both by number.
    """
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
        batch = min(stage.batch, len(units_NT))
        steps = stage.epochs * (len(units_NT) // batch)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, stage.rate, total_steps=steps + 1, pct_start=0.2)
        done = 0
        if saved and number == first:
            done = saved["done"]
            optimiser.load_state_dict(saved["optimiser"])
            scheduler.load_state_dict(saved["scheduler"])
        while done < stage.epochs:
            loss = _epoch(learner, stage, heard(number, done), units_NT, optimiser, scheduler, generator)
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


def features_after(learner: Learner, x_NTM: Tensor, layer: int) -> Tensor:
    """N×T×D: what the layer makes of the clips."""
    learner.eval()
    with torch.no_grad():
        return torch.cat([next(islice(learner.hidden(x), layer, None)) for x in torch.split(x_NTM, _AT_ONCE)])


def units_right(learner: Learner, x_NTM: Tensor, units_NT: Tensor) -> list[float]:
    """Share of frames whose unit each layer's branch names, nothing being masked: how much of the sound it has understood."""
    learner.eval()
    right, frames = [0] * len(learner.layers), int((units_NT != ABSENT).sum())
    with torch.no_grad():
        for x, units in zip(torch.split(x_NTM, _AT_ONCE), torch.split(units_NT, _AT_ONCE), strict=True):
            for layer, (branch, hidden) in enumerate(zip(learner.branches, learner.hidden(x), strict=True)):
                right[layer] += int((branch.logits(hidden).argmax(-1) == units).sum())  # type: ignore[operator]
    return [count / frames for count in right]
