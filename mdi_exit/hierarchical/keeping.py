"""What a worker leaves behind: its checkpoint, from which it goes on after a stop, and its figures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from mdi_exit.errors import MdiExitError
from mdi_exit.hierarchical.config import HierarchicalSettings
from mdi_exit.training.checkpoint import read_checkpoint, write_checkpoint

__all__ = ["Keeping"]


class Keeping:
    """Files of the worker ``name``: ``NAME.checkpoint`` and ``NAME.json``. Raises ``MdiExitError`` where none can be."""

    def __init__(self, settings: HierarchicalSettings, name: str, **more: Any) -> None:
        self.checkpoint_file = settings.work / f"{name}.checkpoint"
        self.figures_file = settings.work / f"{name}.json"
        self._every_s, self._next_at = settings.checkpoint_every, time.monotonic() + settings.checkpoint_every
        self.purpose = {
            "scheme": settings.scheme, "model": settings.model, "width": settings.width, "data": settings.data,
            "batch_size": settings.batch_size, "learning_rate": settings.learning_rate, "seed": settings.seed,
            "steps": settings.steps, "epochs": settings.epochs, "limit": settings.limit, **more,
        }  # fmt: skip
        try:
            settings.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MdiExitError(f"{settings.work}: {error.strerror or error}") from None

    def read(self) -> dict[str, Any]:
        """What an earlier run with the same settings has saved; empty: nothing."""
        return read_checkpoint(self.checkpoint_file, self.purpose)

    def is_time(self) -> bool:
        return time.monotonic() >= self._next_at

    def write(self, state: dict[str, Any]) -> None:
        write_checkpoint(self.checkpoint_file, {"purpose": self.purpose, **state})
        self._next_at = time.monotonic() + self._every_s

    def write_figures(self, figures: dict[str, Any]) -> None:
        _write(self.figures_file, json.dumps(figures, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        raise MdiExitError(f"{path}: {error.strerror or error}") from None
