"""Joint training of all exits: the weighted sum of their cross entropies, one optimiser."""

from __future__ import annotations

import hashlib
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mdi_exit.data import Dataset
from mdi_exit.errors import UsageError
from mdi_exit.model.network import MultiExitNetwork

__all__ = ["Progress", "TrainConfig", "exit_accuracies", "normalised", "train_joint"]

EVALUATION_BATCH = 500


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """``exit_weights``: None gives each early exit 0.5 and the last one 1. ``limit``: training images (None: all)."""

    epochs: int = 12
    batch_size: int = 128
    learning_rate: float = 0.08
    momentum: float = 0.9
    weight_decay: float = 2e-4
    seed: int = 0
    limit: int | None = None
    threads: int = 2
    exit_weights: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """After each step: how far, the mean loss of the epoch so far, seconds since the start."""

    epoch: int
    step: int
    steps: int
    loss: float
    elapsed_s: float


def normalised(images_NHWC: NDArray[np.uint8], mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """float32 N×C×H×W, (x/255 - mean) / std, in PyTorch's channels-last memory layout."""
    x_NHWC = (images_NHWC.astype(np.float32) / 255.0 - np.array(mean, np.float32)) / np.array(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(x_NHWC)).permute(0, 3, 1, 2)


def _augmented(x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images; shift each batch by up to two pixels, edges filled with its darkest value."""
    flip = torch.rand(len(x_NCHW), generator=generator) < 0.5
    x_NCHW = torch.where(flip[:, None, None, None], x_NCHW.flip(3), x_NCHW)
    dy, dx = (int(v) for v in torch.randint(0, 5, (2,), generator=generator))
    padded = functional.pad(x_NCHW, (2, 2, 2, 2), value=float(x_NCHW.min()))
    return padded[:, :, dy : dy + x_NCHW.shape[2], dx : dx + x_NCHW.shape[3]]


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(count, generator=generator)
    for start in range(0, count - size + 1, size):
        yield order[start : start + size]


def train_joint(
    network: MultiExitNetwork,
    images_NCHW: Tensor,
    labels_N: Tensor,
    config: TrainConfig,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    epoch_done: Callable[[int], None] | None = None,
) -> list[float]:
    """Train in place; returns the mean loss of each epoch.

    ``images_NCHW`` float32, ``labels_N`` int64. With ``checkpoint`` the state is saved there after each epoch and a run that
    finds one of the same configuration, network and data goes on from it. Raises ``UsageError`` for a file that is none.
    """
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    generator = torch.Generator().manual_seed(config.seed)
    count = min(config.limit or len(labels_N), len(labels_N))
    steps = max(count // config.batch_size, 1)
    weights = config.exit_weights or (0.5,) * (len(network.exit_layers) - 1) + (1.0,)
    network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        network.parameters(),
        config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=config.epochs * steps + 1, pct_start=0.15
    )
    losses: list[float] = []
    start = time.monotonic()
    purpose = {"config": _plain(config), "network": _shapes(network), "data": _fingerprint(images_NCHW, labels_N)}
    saved = _read(checkpoint) if checkpoint is not None and checkpoint.exists() else {}
    if saved.get("purpose") == purpose:
        network.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        generator.set_state(saved["generator"])
        torch.set_rng_state(saved["dropout"])
        losses = list(saved["losses"])
    for epoch in range(len(losses), config.epochs):
        network.train()
        total = 0.0
        for step, chosen in enumerate(_batches(count, min(config.batch_size, count), generator)):
            x_NCHW, y_N = _augmented(images_NCHW[chosen], generator), labels_N[chosen]
            parts = [
                weight * functional.cross_entropy(logits_NK, y_N)
                for weight, logits_NK in zip(weights, network(x_NCHW), strict=True)
            ]
            loss = torch.stack(parts).sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
            if progress is not None:
                progress(Progress(epoch, step + 1, steps, total / (step + 1), time.monotonic() - start))
        losses.append(total / steps)
        if checkpoint is not None:
            state = {
                "purpose": purpose,
                "network": network.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "generator": generator.get_state(),
                "dropout": torch.get_rng_state(),  # dropout draws from torch's own generator
                "losses": losses,
            }
            partial = checkpoint.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(checkpoint)
        if epoch_done is not None:
            epoch_done(epoch)
    return losses


def _plain(config: TrainConfig) -> dict[str, object]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}


def _shapes(network: MultiExitNetwork) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in network.state_dict().items()}


def _fingerprint(images_NCHW: Tensor, labels_N: Tensor) -> str:
    """Tells data sets apart without a look at every pixel."""
    digest = hashlib.sha256(repr(tuple(images_NCHW.shape)).encode())
    digest.update(labels_N.numpy().tobytes())
    return digest.hexdigest()


def _read(checkpoint: Path) -> dict[str, Any]:
    try:
        saved = torch.load(checkpoint, weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(
            f"checkpoint {checkpoint}", "one of an earlier run (remove it to start anew)", reason
        ) from None
    return saved if isinstance(saved, dict) else {}


def exit_accuracies(network: MultiExitNetwork, dataset: Dataset, images_NCHW: Tensor) -> tuple[float, ...]:
    """Share of right labels at each exit, in [0, 1], in evaluation mode."""
    labels_N = torch.from_numpy(dataset.labels_N)
    right = torch.zeros(len(network.exit_layers), dtype=torch.int64)
    network.eval()
    with torch.inference_mode():
        for begin in range(0, len(labels_N), EVALUATION_BATCH):
            part = slice(begin, begin + EVALUATION_BATCH)
            for index, logits_NK in enumerate(network(images_NCHW[part])):
                right[index] += (logits_NK.argmax(1) == labels_N[part]).sum()
    return tuple(int(r) / len(labels_N) for r in right)
