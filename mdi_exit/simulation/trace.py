"""Recorded outcomes: what every exit said of every sample of a real data set, so that simulated accuracy is real.

The file is an ``.npz`` with ``scores`` (S×K, float32, in [0, 1]), ``labels`` (S×K, int) and ``truth`` (S, int), S samples
and K exits, as ``mdi-exit profile`` writes it.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi_exit.errors import UsageError

__all__ = ["Trace", "read_trace", "write_trace"]


@dataclass(frozen=True, eq=False)
class Trace:
    """``scores_SK``: confidence in [0, 1]; ``labels_SK``: class said; ``truth_S``: the right one, -1 where unknown."""

    scores_SK: NDArray[np.float32]
    labels_SK: NDArray[np.int64]
    truth_S: NDArray[np.int64]

    @property
    def samples(self) -> int:
        return len(self.truth_S)

    @property
    def exits(self) -> int:
        return int(self.scores_SK.shape[1])

    @cached_property
    def rows(self) -> tuple[tuple[tuple[int, float], ...], ...]:
        """(class, score) by sample and exit, as plain numbers."""
        return tuple(
            tuple(zip(labels, scores, strict=True))
            for labels, scores in zip(self.labels_SK.tolist(), self.scores_SK.tolist(), strict=True)
        )

    @cached_property
    def truth(self) -> tuple[int, ...]:
        return tuple(self.truth_S.tolist())


def read_trace(path: Path, exits: int) -> Trace:
    """A trace of a model with ``exits`` exits. Raises ``UsageError``."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in ("scores", "labels", "truth")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"trace {path}", "an .npz with scores, labels and truth", error) from None
    return _checked(found, path, exits)


def _checked(found: dict[str, NDArray[Any]], path: Path, exits: int) -> Trace:
    scores, labels, truth = found["scores"], found["labels"], found["truth"]
    if scores.ndim != 2 or scores.shape != labels.shape or truth.shape != scores.shape[:1] or not len(truth):
        got = f"{scores.shape}, {labels.shape} and {truth.shape}"
        raise UsageError(f"trace {path}: shapes", "scores S×K, labels S×K, truth S", got)
    if scores.shape[1] != exits:
        raise UsageError(f"trace {path}: exits", f"{exits}, as the model has", scores.shape[1])
    if not (np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1):
        raise UsageError(f"trace {path}: scores", "numbers from 0 to 1", f"{scores.min()} to {scores.max()}")
    return Trace(scores.astype(np.float32), labels.astype(np.int64), truth.astype(np.int64))


def write_trace(path: Path, trace: Trace) -> None:
    np.savez_compressed(path, scores=trace.scores_SK, labels=trace.labels_SK, truth=trace.truth_S)
