"""What training writes down as it goes: one row an epoch, as CSV, and for TensorBoard where that is installed."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mdi_exit.errors import UsageError
from mdi_exit.training.checkpoint import write_text

__all__ = ["EpochRow", "TensorBoard", "write_csv"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRow:
    """``epoch``: from 1, over all phases; ``learning_rate``: at its start; ``loss``: mean of what was minimised.

    ``losses``: mean by exit; ``accuracies``: by exit on the validation samples, in [0, 1]; ``seconds``: with validation.
    """

    epoch: int
    phase: str
    learning_rate: float
    loss: float
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    seconds: float

    def to_plain(self) -> dict[str, Any]:
        """Of lists, numbers and text only."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def of_plain(cls, row: dict[str, Any]) -> EpochRow:
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        return cls(**fields)


def write_csv(path: Path, rows: Sequence[EpochRow]) -> None:
    """All rows anew, in one step: an epoch that was made twice because of a kill is there once. Raises ``MdiExitError``."""
    exits = range(len(rows[0].losses) if rows else 0)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    by_exit = [*(f"loss_exit_{number}" for number in exits), *(f"accuracy_exit_{number}" for number in exits)]
    writer.writerow(["epoch", "phase", "learning_rate", "loss", *by_exit, "seconds"])
    for row in rows:
        losses = ["" if loss != loss else f"{loss:.5f}" for loss in row.losses]
        accuracies = [f"{accuracy:.4f}" for accuracy in row.accuracies]
        head = [row.epoch, row.phase, f"{row.learning_rate:.6g}", f"{row.loss:.5f}"]
        writer.writerow([*head, *losses, *accuracies, f"{row.seconds:.2f}"])
    write_text("log", path, text.getvalue())


class TensorBoard:
    """Event files in ``folder`` for TensorBoard. Raises ``UsageError`` where it is not installed."""

    def __init__(self, folder: Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise UsageError("--tensorboard", "the package tensorboard (pip install tensorboard)", "none")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def add(self, row: EpochRow) -> None:
        """One epoch's values."""
        self._writer.add_scalar("learning_rate", row.learning_rate, row.epoch)
        self._writer.add_scalar("loss", row.loss, row.epoch)
        for name, values in (("loss", row.losses), ("accuracy", row.accuracies)):
            for number, value in enumerate(values):
                if value == value:
                    self._writer.add_scalar(f"{name}/exit_{number}", value, row.epoch)

    def close(self) -> None:
        self._writer.close()
