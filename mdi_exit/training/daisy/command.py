"""``mdi-exit train-speech``: from a folder of spoken words to two artifacts on one encoder with one set of branches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mdi_exit.config import resolve
from mdi_exit.data import Dataset, Splits, splits
from mdi_exit.data.sound import Clip
from mdi_exit.errors import UsageError
from mdi_exit.modality.audio import AudioInput, log_mel
from mdi_exit.model.artifact import Artifact, check_output, rewritten
from mdi_exit.model.export import export_artifact
from mdi_exit.model.manifest import AudioSpec, Calibration, InputSpec
from mdi_exit.model.speech import SpeechSizes, UnitBranch, present, speech_description, speech_network
from mdi_exit.outcomes import outcomes
from mdi_exit.training.daisy.config import SpeechSettings
from mdi_exit.training.daisy.encoder import Learner, Stage, learn, unmasked_accuracies
from mdi_exit.training.daisy.heads import learn_heads, pooled, threshold_within
from mdi_exit.training.daisy.units import units_of
from mdi_exit.training.samples import prepared_samples

__all__ = ["TASKS", "main", "train_speech"]

TASKS: Final = {"keyword": "wav", "voice": "voices"}
_BANDS: Final = 40
_RATE: Final = 2e-3
_BRANCH_RATE: Final = 1e-2
_INNER: Final = 4


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
    torch.manual_seed(settings.seed)
    parts = {task: splits(f"{kind}:{settings.data}", seed=settings.seed) for task, kind in TASKS.items()}
    train = parts["keyword"].train
    spec = audio_spec(train, settings.seconds)
    x_NTM = prepared_samples(train, AudioInput(spec), spec).x_N
    sizes = SpeechSizes(
        layers=settings.layers, width=settings.width, inner=_INNER * settings.width, bands=_BANDS, frames=spec.shape[0],
        units=settings.units,
    )  # fmt: skip
    units_NT = units_of(x_NTM, settings.units, settings.seed)
    learner = Learner(sizes)
    console.print(f"{len(train):,} clips, {int(present(x_NTM).sum()):,} frames, {settings.units} units; "
                  f"{sum(one.numel() for one in learner.layers.parameters()):,} parameters")  # fmt: skip
    checkpoint = settings.out.absolute().with_name(f"{settings.out.name}.checkpoint.pt")
    purpose = {**{key: str(value) for key, value in asdict(settings).items()}, "sha256": parts["keyword"].record.sha256}
    stages = [
        Stage("encoder", settings.epochs, _RATE), Stage("branches", settings.branch_epochs, _BRANCH_RATE)
    ]  # fmt: skip
    learn(
        learner, stages, x_NTM, units_NT, seed=settings.seed, purpose=purpose, checkpoint=checkpoint, say=console.print
    )
    understood = unmasked_accuracies(learner, x_NTM, units_NT)
    console.print("units named right by layer: " + " ".join(f"{100 * one:.1f}" for one in understood) + " %")
    length = round(float(present(x_NTM).sum(1).mean()))
    pooled_L = pooled(learner, x_NTM)
    made = {
        task: _artifact(settings, task, parts[task], learner, sizes, spec, pooled_L, length, understood)
        for task in TASKS
    }
    checkpoint.unlink(missing_ok=True)
    _show(console, made)
    return made


def audio_spec(train: Dataset, seconds: float) -> InputSpec:
    """Mean and deviation of each band over the training clips, four digits. Raises ``UsageError``."""
    audio = AudioSpec()
    most = int(seconds * audio.rate_hz - audio.window) // audio.hop + 1
    clips = [item for item in train.items if isinstance(item, Clip)]
    if most < 2 or not clips:
        raise UsageError("--seconds", "two frames at least, of clips of sound", f"{seconds:g} s of {len(clips)} clips")
    frames_FM = np.concatenate([log_mel(clip, audio, most, _BANDS) for clip in clips])
    mean, std = (tuple(round(float(value), 4) for value in values) for values in (frames_FM.mean(0), frames_FM.std(0)))
    deviations = tuple(max(value, 1e-2) for value in std)
    return InputSpec(kind="audio", shape=(most, _BANDS), mean=mean, std=deviations, audio=audio)


def _artifact(
    settings: SpeechSettings, task: str, parts: Splits, learner: Learner, sizes: SpeechSizes, spec: InputSpec,
    pooled_L: Sequence[Tensor], length: int, understood: Sequence[float],
) -> Artifact:  # fmt: skip
    """Heads of the task, exported with layers and branches as they are; the task's threshold from its calibration samples."""
    branches = [branch for branch in learner.branches if isinstance(branch, UnitBranch)]
    network = speech_network(sizes, len(parts.train.classes), list(learner.layers), branches)
    heads = [network.exits[str(layer)] for layer in network.exit_layers]
    learn_heads(heads, pooled_L, torch.from_numpy(np.array(parts.train.labels_N)), settings.seed)
    training: dict[str, Any] = {
        "model": "speech", "strategy": "daisy", "dataset": parts.record.spec, "samples": len(parts.train),
        "units_right_by_layer": [round(one, 4) for one in understood], "torch": str(torch.__version__),
        "config": {key: str(value) for key, value in asdict(settings).items()},
    }  # fmt: skip
    artifact = export_artifact(
        network, settings.out.absolute() / task, name=f"daisy-{task}", input_spec=spec, labels=parts.train.classes,
        rebuild=speech_description(sizes, len(parts.train.classes)), training=training, timed=True, data=parts.record,
        names=[f"encoder.layer.{layer}" for layer in range(sizes.layers)], length=length,
        calibration=Calibration(measure="frame-entropy", threshold=1.0),
    )  # fmt: skip
    return _calibrated(artifact, parts, settings.max_accuracy_loss)


def _calibrated(artifact: Artifact, parts: Splits, loss: float) -> Artifact:
    """With the task's one threshold, and the accuracies of all exits on the test samples."""
    threshold = threshold_within(outcomes(artifact, parts.calibration, batch=32).trace("frame-entropy"), loss)
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
    table = Table(title="accuracy on the test samples by layer, clean")
    table.add_column("task")
    layers = len(next(iter(made.values())).manifest.layers)
    for column in (*(f"layer {layer}" for layer in range(layers)), "threshold"):
        table.add_column(column, justify="right")
    for task, artifact in made.items():
        shares = [f"{spec.accuracy or 0:.1%}" for spec in artifact.manifest.exits]
        table.add_row(task, *shares, f"{artifact.manifest.calibration.threshold:.4f}")
    console.print(table)
