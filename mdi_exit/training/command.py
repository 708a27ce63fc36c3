"""``mdi-exit train``: from a data set and a model to an artifact."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mdi_exit.config import resolve
from mdi_exit.data import splits
from mdi_exit.data.speech import SPEECH_SETS
from mdi_exit.data.splits import Splits
from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import Artifact, check_output
from mdi_exit.model.export import export_artifact
from mdi_exit.model.manifest import Calibration, InputSpec, Measure
from mdi_exit.training.config import TrainSettings
from mdi_exit.training.curve import curve_of, thresholds_for, trace_of
from mdi_exit.training.feed import ImageFeed
from mdi_exit.training.loop import FitSettings, Step, fit
from mdi_exit.training.phases import Evaluation
from mdi_exit.training.plan import Plan, planned
from mdi_exit.training.record import EpochRow, TensorBoard, write_csv
from mdi_exit.training.samples import AnySamples, held_out, input_spec, prepared_samples, samples_of
from mdi_exit.training.strategies.jei import AlternatingPhase
from mdi_exit.training.texts import TextPlan, text_plan

__all__ = ["PICTURE_FILE", "RECORD_FILE", "main", "train"]

RECORD_FILE = "training.csv"
PICTURE_FILE = "accuracy-vs-cost.png"
GATE_THRESHOLD = 0.5
_MOST_VALIDATION = 5000
_FEW_GATE_BATCHES = 1000


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    settings = resolve(
        TrainSettings, argv, os.environ, prog="mdi-exit train", section="train",
        description="Trains the exits of a model, and the model, and exports an artifact.",
        epilog="A run that was cut short goes on when it is started again with the same settings.",
    ).settings  # fmt: skip
    train(settings, Console())
    return 0


@dataclass(frozen=True, slots=True)
class _Data:
    """``parts``: as they are; the others as the network takes them. ``length``: see ``export_artifact``."""

    parts: Splits
    spec: InputSpec
    length: int | None
    train: AnySamples
    validation: AnySamples
    test: AnySamples


def train(settings: TrainSettings, console: Console) -> Artifact:
    """Train, measure every exit on the whole test set, export. Raises ``UsageError``."""
    out = settings.out.absolute()
    check_output(out)  # now, and not after an hour of training
    if settings.data.partition(":")[0] in SPEECH_SETS:
        raise UsageError("--data", "images or texts (sound: mdi-exit train-speech)", repr(settings.data))
    board = TensorBoard(_beside(out, "tensorboard")) if settings.tensorboard else None
    if settings.start is not None and settings.model is None and settings.input_shape is None:
        before = Artifact.open(settings.start).manifest.input
        settings = replace(settings, input_shape=before.image_shape) if before.kind == "image" else settings
    parts = splits(settings.data, seed=settings.seed, data_dir=settings.data_dir, shape=settings.input_shape)
    if not len(parts.train):
        raise UsageError("--data", "one with samples for training", repr(settings.data))
    texts = text_plan(settings, parts) if parts.train.kind == "text" else None
    spec = texts.spec if texts is not None else input_spec(parts.train, settings.input_shape)
    if settings.start is not None:
        spec = _as_it_was(spec, Artifact.open(settings.start).manifest.input)
    plan = planned(settings, spec, len(parts.train.classes), texts.length if texts is not None else None)
    data = _data(settings, parts, spec, plan.model.network.channels_last, texts)
    parameters = sum(parameter.numel() for parameter in plan.trainee.parameters())
    console.print(f"{plan.record['model']}: {parameters:,} parameters, exits at layers {plan.costs.exit_layers}")
    _say_if_gates_learn_little(plan, len(data.train), console)
    checkpoint, record = _beside(out, "checkpoint.pt"), _beside(out, "training.csv")
    rows = _fitted(settings, plan, data, console, checkpoint, record, board)
    artifact = _exported(settings, plan, data, rows, out, console)
    record.replace(out / RECORD_FILE)
    checkpoint.unlink(missing_ok=True)
    return artifact


def _as_it_was(spec: InputSpec, before: InputSpec) -> InputSpec:
    """Layers that have learned with one normalisation are given the same again."""
    if len(before.mean) != spec.shape[0]:
        return spec
    return msgspec.structs.replace(spec, mean=before.mean, std=before.std)


def _say_if_gates_learn_little(plan: Plan, images: int, console: Console) -> None:
    for phase in plan.phases:
        if isinstance(phase, AlternatingPhase):
            batches = phase.recipe.epochs * max(images // phase.recipe.batch_size, 1)
            if (learning := phase.gate_batches(batches)) < _FEW_GATE_BATCHES:
                console.print(
                    f"gates learn in {learning:,} batches only: more --epochs, or more images, make better ones"
                )


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.name}.{ending}")


def _data(
    settings: TrainSettings, parts: Splits, spec: InputSpec, channels_last: bool, texts: TextPlan | None
) -> _Data:
    """Validation samples are drawn out of those for training: calibration samples are seen by nobody here."""
    count = settings.validation or max(min(len(parts.train) // 10, _MOST_VALIDATION), 1)
    if count >= len(parts.train):
        raise UsageError("--validation", f"fewer than the {len(parts.train)} samples for training", count)
    kept, validation = held_out(parts.train, count, settings.seed)
    if settings.limit is not None:
        kept = kept.subset(np.arange(min(settings.limit, len(kept))))
    wanted = kept, validation, parts.test
    if texts is not None:
        return _Data(parts, spec, texts.length, *(prepared_samples(part, texts.modality, spec) for part in wanted))
    return _Data(parts, spec, None, *(samples_of(part, spec, channels_last=channels_last) for part in wanted))


def _fitted(
    settings: TrainSettings,
    plan: Plan,
    data: _Data,
    console: Console,
    checkpoint: Path,
    record: Path,
    board: TensorBoard | None,
) -> list[EpochRow]:
    """Train with a bar on a terminal; a line after each epoch in any case."""
    rows: list[EpochRow] = []
    total = sum(phase.recipe.epochs for phase in plan.phases)

    def epoch_done(row: EpochRow) -> None:
        rows.append(row)
        shares = " ".join(f"{100 * share:.1f}" for share in row.accuracies)
        console.print(f"epoch {row.epoch} of {total}, {row.phase}: validation accuracy by exit {shares} %")
        if board is not None:
            board.add(row)

    def saved(all_rows: Sequence[EpochRow]) -> None:
        write_csv(record, all_rows)

    with _bar(console) as progress:
        found = fit(
            plan.trainee, plan.phases, data.train, data.validation, _fit_settings(settings), checkpoint=checkpoint,
            purpose=plan.record, progress=progress, epoch_done=epoch_done, rows_done=saved,
        )  # fmt: skip
    if board is not None:
        board.close()
    return found


def _fit_settings(settings: TrainSettings) -> FitSettings:
    return FitSettings(
        seed=settings.seed,
        threads=settings.threads,
        augmentation=settings.augment,  # type: ignore[arg-type] # one of the choices
        precision=settings.precision,  # type: ignore[arg-type]
    )


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[Step], None]]:
    columns = (
        TextColumn("{task.fields[phase]}, epoch {task.fields[epoch]}, loss {task.fields[loss]:.3f}"),
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("train", total=None, phase="", epoch=1, loss=0.0)

        def step(done: Step) -> None:
            finished = done.done * done.steps + done.step
            bar.update(task, completed=finished, total=done.total * done.steps, phase=done.phase,
                       epoch=done.done + 1, loss=done.loss)  # fmt: skip

        yield step


def _exported(
    settings: TrainSettings, plan: Plan, data: _Data, rows: list[EpochRow], out: Path, console: Console
) -> Artifact:
    """The artifact with its record and picture, and the table of its exits."""
    trainee = plan.trainee.cpu()
    device = torch.device("cpu")
    off = torch.autocast("cpu", enabled=False)
    evaluation = ImageFeed(trainee, data.test, device, lambda: off).evaluation()
    accuracies = evaluation.accuracies
    gated = len(trainee.gates) > 0
    network = plan.model.network
    artifact = export_artifact(
        network,
        out,
        name=_name(settings, plan),
        input_spec=data.spec,
        labels=data.parts.train.classes,
        rebuild=plan.model.description,
        files=plan.model.files,
        names=plan.model.layer_names,
        timed=True,
        gates=list(trainee.gates),
        calibration=Calibration(measure="gate", threshold=GATE_THRESHOLD) if gated else None,
        data=data.parts.record,
        training=_record(settings, plan, data, rows, accuracies),
        accuracies=accuracies,
        length=data.length,
    )
    _draw(settings, plan, evaluation, out / PICTURE_FILE, console, gated=gated)
    _show(console, artifact, len(data.test))
    return artifact


def _name(settings: TrainSettings, plan: Plan) -> str:
    """Of what a name of an artifact may have."""
    words = f"{settings.data.partition(':')[0]}-{Path(plan.record['model']).stem}"
    name = "".join(char if char.isascii() and (char.isalnum() or char in "_.-") else "-" for char in words)
    return (name if settings.strategy == "joint" else f"{name}-{settings.strategy}")[:80]


def _record(
    settings: TrainSettings, plan: Plan, data: _Data, rows: Sequence[EpochRow], accuracies: Sequence[float]
) -> dict[str, Any]:
    return {
        **plan.record,
        "dataset": settings.data,
        "images": len(data.train),
        "validation_images": len(data.validation),
        "test_images": len(data.test),
        "config": {"batch_size": settings.batch_size, "learning_rate": settings.learning_rate, "seed": settings.seed,
                   "augment": settings.augment, "precision": settings.precision, "threads": settings.threads},
        "phases": [f"{phase.name}: {sum(row.phase == phase.name for row in rows)} epochs" for phase in plan.phases],
        "seconds": round(sum(row.seconds for row in rows), 1),
        "losses": [round(row.loss, 5) for row in rows],
        "accuracy_by_exit": list(accuracies),
        "torch": str(torch.__version__),
    }  # fmt: skip


def _draw(
    settings: TrainSettings, plan: Plan, evaluation: Evaluation, out: Path, console: Console, *, gated: bool
) -> None:
    """Nothing but a line where matplotlib is not installed: the artifact is what was asked for."""
    from mdi_exit.training.picture import Line, draw

    measures: list[tuple[Measure, str]] = [("max-probability", "one threshold on the largest probability")]
    measures = [("gate", "one threshold on the gates"), *measures] if gated else measures
    lines: list[Line] = []
    for measure, name in measures:
        trace = trace_of(plan.trainee, evaluation, plan.costs, measure)
        curve = curve_of(trace, thresholds_for(trace))
        exits = list(zip(plan.costs.to_exits, evaluation.accuracies, strict=True)) if not lines else []
        lines.append(
            Line(name=name, macs_T=curve.macs_T, accuracies_T=curve.accuracies_T, exits=exits, dashed=bool(lines))
        )
    try:
        draw(lines, out, f"Accuracy against cost: {_name(settings, plan)}",
             f"{len(evaluation.labels_N):,} test samples, strategy {settings.strategy}")  # fmt: skip
    except UsageError as error:
        console.print(f"no picture: {error}")


def _show(console: Console, artifact: Artifact, test_images: int) -> None:
    """What an item costs up to each exit, and what it gets for it."""
    manifest = artifact.manifest
    table = Table(title=f"{artifact.folder} on {test_images:,} test samples")
    for column in ("exit", "layer", "MACs to here", "share", "accuracy"):
        table.add_column(column, justify="right")
    whole = sum(layer.macs for layer in manifest.layers) + sum(spec.macs for spec in manifest.exits)
    for number, spec in enumerate(manifest.exits):
        macs = sum(layer.macs for layer in manifest.layers[: spec.layer + 1])
        macs += sum(earlier.macs for earlier in manifest.exits[: number + 1])
        accuracy = f"{100 * spec.accuracy:.2f} %" if spec.accuracy is not None else "-"
        table.add_row(str(number), str(spec.layer), f"{macs:,}", f"{macs / whole:.0%}", accuracy)
    console.print(table)
