"""``mdi-exit train-speech``: from a folder of spoken words to two artifacts on one encoder with one set of branches."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mdi_exit.config import resolve
from mdi_exit.data import Splits, splits
from mdi_exit.data.speech import from_wavs
from mdi_exit.model.artifact import Artifact, check_output, rewritten
from mdi_exit.model.export import export_artifact
from mdi_exit.model.manifest import Calibration, InputSpec
from mdi_exit.model.speech import SpeechSizes, UnitBranch, present, speech_description, speech_network
from mdi_exit.outcomes import outcomes
from mdi_exit.training.daisy.config import SpeechSettings
from mdi_exit.training.daisy.encoder import Learner, Stage, features_after, learn, units_right
from mdi_exit.training.daisy.heads import learn_heads, pooled, threshold_within
from mdi_exit.training.daisy.hearing import Hearing, calibration_clips
from mdi_exit.training.daisy.units import units_of, with_slope

__all__ = ["TASKS", "main", "train_speech"]

TASKS: Final = {"keyword": "wav", "voice": "voices"}
_RATE: Final = 2e-3
_BRANCH_RATE: Final = 1e-2
_INNER: Final = 4
_HEAD_HEARINGS: Final = 3  # beside the clean one


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    settings = resolve(
        SpeechSettings, argv, os.environ, prog="mdi-exit train-speech", section="train_speech",
        description="Trains a small HuBERT-like encoder with DAISY's branches, and heads for keyword and voice.",
        epilog="A run that was cut short goes on when it is started again with the same settings.",
    ).settings  # fmt: skip
    train_speech(settings, Console())
    return 0


def train_speech(settings: SpeechSettings, console: Console) -> dict[str, Artifact]:
    """The artifacts by task. Raises ``UsageError``."""
    for task in TASKS:
        check_output(settings.out.absolute() / task)
    torch.set_num_threads(settings.threads)
    parts = _parts(settings)
    hearing = Hearing.of(parts["keyword"].train, settings.seconds, settings.seed)
    x_NTM = hearing.clean()
    there_NT = present(x_NTM).bool()
    frames, bands = hearing.spec.shape
    sizes = SpeechSizes(
        layers=settings.layers, width=settings.width, inner=_INNER * settings.width, bands=bands, frames=frames,
        units=settings.units,
    )  # fmt: skip
    console.print(f"{len(x_NTM):,} clips, {int(there_NT.sum()):,} frames, {settings.units} units")
    purpose = {**{key: str(value) for key, value in asdict(settings).items()}, "sha256": parts["keyword"].record.sha256}
    checkpoints = [settings.out.absolute().with_name(f"{settings.out.name}.round{number}.pt") for number in (1, 2)]

    def learned(number: int, stages: list[Stage], units_NT: Tensor) -> Learner:
        torch.manual_seed(settings.seed + number)
        learner = Learner(sizes)
        learn(
            learner, stages, lambda stage, epoch: hearing.again(number, stage, epoch), units_NT, seed=settings.seed,
            purpose=purpose, checkpoint=checkpoints[number], say=lambda line: console.print(f"round {number + 1}, {line}"),
        )  # fmt: skip
        return learner

    units_NT = units_of(with_slope(x_NTM), there_NT, settings.units, settings.seed)
    first = learned(0, [Stage("encoder", settings.first_epochs, _RATE)], units_NT)
    middle_NTD = features_after(first, x_NTM, (settings.layers - 1) // 2)
    units_NT = units_of(middle_NTD, there_NT, settings.units, settings.seed)
    stages = [
        Stage("encoder", settings.epochs, _RATE),
        Stage("branches", settings.branch_epochs, _BRANCH_RATE),
    ]
    learner = learned(1, stages, units_NT)
    understood = {
        "clean": units_right(learner, x_NTM, units_NT),
        "noisy": units_right(learner, hearing.again(2), units_NT),
    }
    for kind, shares in understood.items():
        console.print(f"units named right by layer, {kind}: " + " ".join(f"{100 * one:.1f}" for one in shares) + " %")
    pooled_L = pooled(learner, chain([x_NTM], (hearing.again(3, number) for number in range(_HEAD_HEARINGS))))
    length = round(float(there_NT.sum(1).float().mean()))
    made = {
        task: _artifact(settings, task, parts[task], learner, sizes, hearing.spec, pooled_L, length, understood)
        for task in TASKS
    }
    for checkpoint in checkpoints:
        checkpoint.unlink(missing_ok=True)
    _show(console, made)
    return made


def _parts(settings: SpeechSettings) -> dict[str, Splits]:
    """The same clips by task, in memory once."""
    made, read = {}, None
    for task, kind in TASKS.items():
        read = from_wavs(settings.data, kind, read)
        made[task] = splits(f"{kind}:{settings.data}", seed=settings.seed, read=read)
    return made


def _artifact(
    settings: SpeechSettings, task: str, parts: Splits, learner: Learner, sizes: SpeechSizes, spec: InputSpec,
    pooled_L: Sequence[Tensor], length: int, understood: Mapping[str, Sequence[float]],
) -> Artifact:  # fmt: skip
    """Heads of the task, exported with layers and branches as they are; the task's threshold from its calibration samples."""
    branches = [branch for branch in learner.branches if isinstance(branch, UnitBranch)]
    network = speech_network(sizes, len(parts.train.classes), list(learner.layers), branches)
    heads = [network.exits[str(layer)] for layer in network.exit_layers]
    labels_N = torch.from_numpy(np.array(parts.train.labels_N))
    learn_heads(heads, pooled_L, labels_N.repeat(len(pooled_L[0]) // len(labels_N)), settings.seed)
    training: dict[str, Any] = {
        "model": "speech", "strategy": "daisy", "dataset": parts.record.spec, "samples": len(parts.train),
        "units_right_by_layer": {kind: [round(one, 4) for one in shares] for kind, shares in understood.items()},
        "torch": str(torch.__version__),
        "config": {key: str(value) for key, value in asdict(settings).items()},
    }  # fmt: skip
    artifact = export_artifact(
        network, settings.out.absolute() / task, name=f"daisy-{task}", input_spec=spec, labels=parts.train.classes,
        rebuild=speech_description(sizes, len(parts.train.classes)), training=training, timed=True, data=parts.record,
        names=[f"encoder.layer.{layer}" for layer in range(sizes.layers)], length=length,
        calibration=Calibration(measure="frame-entropy", threshold=1.0),
    )  # fmt: skip
    return _calibrated(artifact, parts, settings)


def _calibrated(artifact: Artifact, parts: Splits, settings: SpeechSettings) -> Artifact:
    """With the task's one threshold, and the accuracies of all exits on the test clips as they are."""
    heard = calibration_clips(parts.calibration, settings.seed)
    threshold = threshold_within(outcomes(artifact, heard, batch=32).trace("frame-entropy"), settings.max_accuracy_loss)
    right_S = outcomes(artifact, parts.test, batch=32).trace("frame-entropy").right_NS.mean(0)
    manifest = artifact.manifest
    exits = [
        msgspec.structs.replace(
            spec, accuracy=float(right), threshold=None if spec is manifest.exits[-1] else threshold
        )
        for spec, right in zip(manifest.exits, right_S, strict=True)
    ]
    calibration = Calibration(measure="frame-entropy", threshold=threshold, data=parts.record)
    changed = msgspec.structs.replace(manifest, exits=tuple(exits), calibration=calibration)
    return rewritten(artifact, changed, artifact.folder)


def _show(console: Console, made: dict[str, Artifact]) -> None:
    table = Table(title="accuracy on clean test clips, leaving after each layer")
    table.add_column("task")
    layers = len(next(iter(made.values())).manifest.layers)
    for column in (*map(str, range(layers)), "threshold"):
        table.add_column(column, justify="right")
    for task, artifact in made.items():
        shares = [f"{spec.accuracy or 0:.1%}" for spec in artifact.manifest.exits]
        table.add_row(task, *shares, f"{artifact.manifest.calibration.threshold:.4f}")
    console.print(table)
