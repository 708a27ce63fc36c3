"""The one training loop: any strategy's phases, epoch by epoch, with a checkpoint after each.

On a GPU where there is one, in mixed precision (``torch.autocast``); four-dimensional tensors are channels last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mdi_exit.training.checkpoint import read_checkpoint, write_checkpoint
from mdi_exit.training.feed import Feed, TapFeed, feed_of
from mdi_exit.training.phases import Evaluation, Phase, Trainee
from mdi_exit.training.record import EpochRow
from mdi_exit.training.samples import AnySamples, Augmentation

__all__ = ["PRECISIONS", "FitSettings", "Precision", "Step", "fit"]

Precision = Literal["auto", "float32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """``augmentation``: in phases that train the backbone; ``head_augmentation``: in those that leave it frozen.

    ``precision`` auto: float32 on a CPU; on a GPU bfloat16 where it has that, else float16 with scaled gradients.
    """

    seed: int = 0
    threads: int = 2
    augmentation: Augmentation = "mirror-shift"
    head_augmentation: Augmentation = "none"
    precision: Precision = "auto"


@dataclass(frozen=True, slots=True)
class Step:
    """After each step: ``done`` of ``total`` epochs before this one, ``step`` of ``steps`` in it, its mean loss so far."""

    phase: str
    done: int
    total: int
    step: int
    steps: int
    loss: float


def fit(
    trainee: Trainee,
    phases: Sequence[Phase],
    train: AnySamples,
    validation: AnySamples,
    settings: FitSettings,
    *,
    purpose: dict[str, Any] | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[Step], None] | None = None,
    epoch_done: Callable[[EpochRow], None] | None = None,
    rows_done: Callable[[Sequence[EpochRow]], None] | None = None,
    taps: tuple[TapFeed, TapFeed] | None = None,
) -> list[EpochRow]:
    """Train in place, phase after phase; a row for each epoch, those of an earlier run that was cut short included.

    With ``checkpoint`` the state is saved there after each epoch, and a run that finds one of the same settings, phases,
    network, data and ``purpose`` goes on from it, to end as if it had never been cut short. After each epoch ``epoch_done``
    gets its row and ``rows_done`` all of them. ``taps``: what the frozen backbone makes of both parts, where that is known
    already. Raises ``UsageError`` for a file that is no checkpoint.
    """
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    run = _Run(trainee, phases, train, validation, settings, purpose or {}, checkpoint)
    run.progress, run.epoch_done = progress or run.progress, epoch_done or run.epoch_done
    run.rows_done = rows_done or run.rows_done
    if taps is not None:
        run.feeds[True] = replace(taps[0], trainee=trainee), replace(taps[1], trainee=trainee)
    run.through()
    return run.rows


def _nothing(_: object) -> None:
    pass


class _Run:
    """One call of ``fit``."""

    def __init__(
        self,
        trainee: Trainee,
        phases: Sequence[Phase],
        train: AnySamples,
        validation: AnySamples,
        settings: FitSettings,
        purpose: dict[str, Any],
        checkpoint: Path | None,
    ) -> None:
        self.trainee, self.phases, self.settings, self.checkpoint = trainee, phases, settings, checkpoint
        self.train, self.validation = train, validation
        self.progress: Callable[[Step], None] = _nothing
        self.epoch_done: Callable[[EpochRow], None] = _nothing
        self.rows_done: Callable[[Sequence[EpochRow]], None] = _nothing
        self.rows: list[EpochRow] = []
        self.purpose = {
            **purpose,
            "settings": asdict(settings),
            "phases": [[phase.name, asdict(phase.recipe)] for phase in phases],
            "network": {key: list(value.shape) for key, value in trainee.state_dict().items()},
            "data": [train.fingerprint, validation.fingerprint],
        }
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = _dtype(settings.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.feeds: dict[bool, tuple[Feed, Feed]] = {}
        trainee.to(self.device)
        if trainee.network.channels_last:
            trainee.to(memory_format=torch.channels_last)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def through(self) -> None:
        """All phases; those that an earlier run has left behind are passed over."""
        saved = read_checkpoint(self.checkpoint, self.purpose) if self.checkpoint is not None else {}
        first = 0
        if saved:
            first = self._restore(saved)
        for number in range(first, len(self.phases)):
            phase = self.phases[number]
            optimiser = phase.recipe.optimiser(phase.parameters())
            scheduler = phase.recipe.scheduler(optimiser, phase.recipe.epochs * self._steps(phase))
            done, enough = 0, False
            if saved and number == first:
                done, enough = saved["done"], saved["enough"]
                phase.restore(saved["state"])
                optimiser.load_state_dict(saved["optimiser"])
                scheduler.load_state_dict(saved["scheduler"])
            else:
                phase.begin(self._feeds(phase)[1].evaluation)
            while done < phase.recipe.epochs and not enough:
                evaluation = self._epoch(phase, done, optimiser, scheduler)
                done, enough = done + 1, phase.epoch_done(evaluation)
                self._save(number, done, enough, phase, optimiser, scheduler)
                self.epoch_done(self.rows[-1])
                self.rows_done(self.rows)
            phase.end()
        self.rows_done(self.rows)

    def _feeds(self, phase: Phase) -> tuple[Feed, Feed]:
        """Of training and validation samples. What a frozen backbone makes of them holds until it is trained again."""
        if not phase.frozen:
            self.feeds.pop(True, None)
        if phase.frozen not in self.feeds:
            wanted = self.settings.head_augmentation
            self.feeds[phase.frozen] = (
                feed_of(self.trainee, self.train, self.device, self.autocast, frozen=phase.frozen, augmentation=wanted),
                feed_of(
                    self.trainee, self.validation, self.device, self.autocast, frozen=phase.frozen, augmentation="none"
                ),
            )
        return self.feeds[phase.frozen]

    def _batch_size(self, phase: Phase) -> int:
        return min(phase.recipe.batch_size, len(self.train))

    def _steps(self, phase: Phase) -> int:
        return len(self.train) // self._batch_size(phase)

    def _epoch(self, phase: Phase, done: int, optimiser: torch.optim.Optimizer, scheduler: Any) -> Evaluation:
        begin = time.monotonic()
        train, validation = self._feeds(phase)
        phase.set_modes()
        augmentation = self.settings.head_augmentation if phase.frozen else self.settings.augmentation
        steps, before = self._steps(phase), len(self.rows)
        total_epochs = before + phase.recipe.epochs - done + sum(
            later.recipe.epochs for later in self.phases[self.phases.index(phase) + 1 :]
        )  # fmt: skip
        loss, by_exit_L = 0.0, torch.zeros(len(self.trainee.network.exit_layers))
        rate = optimiser.param_groups[0]["lr"]
        for step, (batch, labels_B) in enumerate(train.batches(self._batch_size(phase), augmentation, self.generator)):
            with self.autocast():
                losses = phase.loss(done * steps + step, batch, labels_B)
            self._step(losses.total, optimiser)
            scheduler.step()
            loss += float(losses.total.detach())
            by_exit_L += losses.by_exit_L.detach().float().cpu()
            self.progress(Step(phase.name, before, total_epochs, step + 1, steps, loss / (step + 1)))
        evaluation = validation.evaluation()
        row = EpochRow(
            epoch=before + 1,
            phase=phase.name,
            learning_rate=rate,
            loss=loss / steps,
            losses=tuple((by_exit_L / steps).tolist()),
            accuracies=evaluation.accuracies,
            seconds=time.monotonic() - begin,
        )
        self.rows.append(row)
        return evaluation

    def _step(self, loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(optimiser)
        self.scaler.update()

    def _save(
        self, number: int, done: int, enough: bool, phase: Phase, optimiser: torch.optim.Optimizer, scheduler: Any
    ) -> None:
        if self.checkpoint is None:
            return
        state = {
            "purpose": self.purpose,
            "phase": number,
            "done": done,
            "enough": enough,
            "state": phase.state(),
            "trainee": self.trainee.state_dict(),
            "optimiser": optimiser.state_dict(),
            "scheduler": scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "order": self.generator.get_state(),
            "chance": torch.get_rng_state(),  # dropout draws from torch's own generator
            "chance_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            "rows": [row.to_plain() for row in self.rows],
        }
        write_checkpoint(self.checkpoint, state)

    def _restore(self, saved: dict[str, Any]) -> int:
        """All but the phase's own; the number of the phase to go on with."""
        self.trainee.load_state_dict(saved["trainee"])
        self.scaler.load_state_dict(saved["scaler"])
        self.generator.set_state(saved["order"])
        torch.set_rng_state(saved["chance"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state_all(saved["chance_cuda"])
        self.rows = [EpochRow.of_plain(row) for row in saved["rows"]]
        return int(saved["phase"])


def _dtype(precision: Precision, device: torch.device) -> torch.dtype:
    if precision == "auto" and device.type == "cpu":
        return torch.float32
    if precision == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    chosen: torch.dtype = getattr(torch, precision)
    return chosen
