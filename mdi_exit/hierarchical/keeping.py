"""What a worker leaves behind: its checkpoint, from which it goes on after a stop, and its figures."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from mdi_exit.errors import MdiExitError, UsageError, WireError
from mdi_exit.hierarchical.config import HierarchicalSettings
from mdi_exit.training.checkpoint import read_checkpoint, write_checkpoint, write_text

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
            "steps": settings.steps, "epochs": settings.epochs, "limit": settings.limit, "input_shape": settings.input_shape,
            "augment": settings.augment, "edges": settings.edges, **more,
        }  # fmt: skip
        try:
            settings.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MdiExitError(f"{settings.work}: {error.strerror or error}") from None

    def read(self) -> dict[str, Any]:
        """What an earlier run with the same settings has saved; empty: nothing."""
        return read_checkpoint(self.checkpoint_file, self.purpose)

    @contextlib.contextmanager
    def taken_up(self) -> Iterator[None]:
        """Around the use of what ``read`` gave. Raises ``UsageError`` if it is of other code, and does not fit."""
        try:
            yield
        except (AttributeError, KeyError, TypeError, ValueError, WireError) as error:
            reason = f"one without {error}" if isinstance(error, KeyError) else str(error)[:200]
            wanted = "one of this version (remove it to start anew)"
            raise UsageError(f"checkpoint {self.checkpoint_file}", wanted, reason) from None

    def is_time(self) -> bool:
        return time.monotonic() >= self._next_at

    def write(self, state: dict[str, Any]) -> None:
        write_checkpoint(self.checkpoint_file, {"purpose": self.purpose, **state})
        self._next_at = time.monotonic() + self._every_s

    def write_figures(self, figures: dict[str, Any]) -> None:
        write_text("figures", self.figures_file, json.dumps(figures, indent=1) + "\n")
