"""``mdi-exit train``: from a data set to an artifact."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mdi_exit.data import DATASETS, Dataset, load
from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.export import checked_folder, export_artifact
from mdi_exit.model.manifest import InputSpec
from mdi_exit.model.network import MobileNetV2Config, MultiExitNetwork, mobilenetv2
from mdi_exit.training.joint import Progress as Step
from mdi_exit.training.joint import TrainConfig, exit_accuracies, normalised, train_joint

__all__ = ["add_arguments", "run"]

MODELS = ("mobilenetv2",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``mdi-exit train``."""
    defaults = TrainConfig()
    parser.add_argument("--dataset", default="fashion-mnist", metavar="NAME", help=f"{', '.join(DATASETS)}")
    parser.add_argument("--model", default="mobilenetv2", metavar="NAME", help=f"{', '.join(MODELS)}")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the artifact")
    parser.add_argument("--epochs", type=int, default=defaults.epochs, metavar="N", help="default %(default)s")
    parser.add_argument("--width", type=float, default=0.5, metavar="W", help="of all channels; default %(default)s")
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--learning-rate", type=float, default=defaults.learning_rate, metavar="R", help="peak; default %(default)s"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, metavar="N", help="default %(default)s")
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N training images")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where data sets are looked for and stored")
    parser.add_argument("--threads", type=int, default=defaults.threads, metavar="N", help="default %(default)s")


def run(args: argparse.Namespace) -> int:
    """Train, measure every exit on the whole test set, export. Raises ``UsageError``."""
    if args.model not in MODELS:
        raise UsageError("--model", f"one of {', '.join(MODELS)}", repr(args.model))
    for flag in ("epochs", "width", "batch_size", "learning_rate", "threads", "limit"):
        value = getattr(args, flag)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{flag.replace('_', '-')}", "a number above 0", value)
    if not 0 <= args.seed < 2**63:
        raise UsageError("--seed", "a number from 0 to 2⁶³ - 1", args.seed)
    args.out = args.out.absolute()
    checked_folder(args.out)  # now, and not after an hour of training
    train_set, test_set = load(args.dataset, "train", args.data_dir), load(args.dataset, "test", args.data_dir)
    config = TrainConfig(
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
        limit=args.limit,
        threads=args.threads,
    )
    _train(args, config, train_set, test_set)
    return 0


def _input_spec(train_set: Dataset) -> InputSpec:
    """Mean and standard deviation of the training images, four digits."""
    scaled_NHWC = train_set.images_NHWC / np.float32(255)
    mean = tuple(round(float(value), 4) for value in scaled_NHWC.mean(axis=(0, 1, 2), dtype=np.float64))
    std = tuple(round(float(value), 4) for value in scaled_NHWC.std(axis=(0, 1, 2), dtype=np.float64))
    _, height, width, channels = train_set.images_NHWC.shape
    return InputSpec(kind="image", shape=(channels, height, width), mean=mean, std=std)


def _train(args: argparse.Namespace, config: TrainConfig, train_set: Dataset, test_set: Dataset) -> None:
    console = Console()
    spec = _input_spec(train_set)
    torch.manual_seed(config.seed)
    shape = MobileNetV2Config(classes=len(train_set.classes), channels_in=spec.shape[0], width=args.width)
    network = mobilenetv2(shape)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    console.print(f"{args.model} ×{args.width:g}: {parameters:,} parameters, exits at layers {network.exit_layers}")
    images_NCHW = normalised(train_set.images_NHWC, spec.mean, spec.std)
    test_NCHW = normalised(test_set.images_NHWC, spec.mean, spec.std)
    checkpoint = args.out.with_name(args.out.name + ".checkpoint.pt")
    begin = time.monotonic()
    losses, epochs_timed = _with_progress(
        console, network, images_NCHW, train_set, test_set, test_NCHW, config, checkpoint
    )
    seconds = time.monotonic() - begin
    accuracies = exit_accuracies(network, test_set, test_NCHW)
    artifact = export_artifact(
        network,
        args.out,
        name=f"{args.dataset}-{args.model}",
        input_spec=spec,
        labels=train_set.classes,
        rebuild={"kind": args.model, **asdict(shape), "exits": list(shape.exits)},
        training={
            "dataset": args.dataset,
            "images": min(config.limit or len(train_set), len(train_set)),
            "test_images": len(test_set),
            "config": _plain(config),
            "seconds": round(seconds, 1),
            "epochs_timed": epochs_timed,  # fewer than all when the run went on from a checkpoint
            "losses": [round(loss, 5) for loss in losses],
            "accuracy_by_exit": list(accuracies),
            "torch": str(torch.__version__),
        },
        accuracies=accuracies,
    )
    checkpoint.unlink(missing_ok=True)
    _show(console, artifact, len(test_set))


def _plain(config: TrainConfig) -> dict[str, Any]:
    return {key: value for key, value in asdict(config).items() if value is not None}


def _with_progress(
    console: Console,
    network: MultiExitNetwork,
    images_NCHW: torch.Tensor,
    train_set: Dataset,
    test_set: Dataset,
    test_NCHW: torch.Tensor,
    config: TrainConfig,
    checkpoint: Path,
) -> tuple[list[float], int]:
    """Train with a bar on a terminal; a line after each epoch in any case. Returns losses and how many epochs it took."""
    epochs_timed = 0
    labels_N = torch.from_numpy(train_set.labels_N)
    columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("train", total=None, epoch=1)

        def step(done: Step) -> None:
            finished = done.epoch * done.steps + done.step
            bar.update(task, completed=finished, total=config.epochs * done.steps, epoch=done.epoch + 1)

        def epoch_done(epoch: int) -> None:
            nonlocal epochs_timed
            epochs_timed += 1
            text = " ".join(f"{100 * share:.1f}" for share in exit_accuracies(network, test_set, test_NCHW))
            console.print(f"epoch {epoch + 1} of {config.epochs}: test accuracy by exit {text} %")

        losses = train_joint(
            network, images_NCHW, labels_N, config, checkpoint=checkpoint, progress=step, epoch_done=epoch_done
        )
    return losses, epochs_timed


def _show(console: Console, artifact: Artifact, test_images: int) -> None:
    """What an item costs up to each exit, and what it gets for it."""
    manifest = artifact.manifest
    table = Table(title=f"{artifact.folder} on {test_images:,} test images")
    for column in ("exit", "layer", "MACs to here", "share", "accuracy"):
        table.add_column(column, justify="right")
    whole = sum(layer.macs for layer in manifest.layers) + sum(spec.macs for spec in manifest.exits)
    for number, spec in enumerate(manifest.exits):
        macs = sum(layer.macs for layer in manifest.layers[: spec.layer + 1])
        macs += sum(earlier.macs for earlier in manifest.exits[: number + 1])
        accuracy = f"{100 * spec.accuracy:.2f} %" if spec.accuracy is not None else "-"
        table.add_row(str(number), str(spec.layer), f"{macs:,}", f"{macs / whole:.0%}", accuracy)
    console.print(table)
