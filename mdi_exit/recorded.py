"""What traces and outcomes have in common: samples with their right classes, what layers and heads cost, and a file.

A file is an ``.npz`` of plain arrays: those of ``TYPES``, whose names end in a letter for each axis, and ``about``, JSON. An
axis of the same letter has the same length in all arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from mdi_exit.arrays import axes_of, read_record, write_record

__all__ = ["SHARED_TYPES", "Recorded"]

SHARED_TYPES: Final[Mapping[str, Any]] = {
    "truth_N": np.int32,
    "layer_macs_L": np.int64,
    "layer_bytes_L": np.int64,
    "head_macs_S": np.int64,
    "exit_layers_S": np.int64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """S exits, N samples, L layers; what is in the arrays: see ``mdi_exit.trace``.

    ``about``: model, digest, data, codec. ``KIND``: in the file's form; ``TYPES``: of the arrays; ``WORDS``: names of the
    fields that are text.
    """

    KIND: ClassVar[str]
    TYPES: ClassVar[Mapping[str, Any]]
    WORDS: ClassVar[tuple[str, ...]] = ()

    truth_N: NDArray[np.int32]
    layer_macs_L: NDArray[np.int64]
    layer_bytes_L: NDArray[np.int64]
    head_macs_S: NDArray[np.int64]
    exit_layers_S: NDArray[np.int64]
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.truth_N)

    @property
    def exits(self) -> int:
        return len(self.exit_layers_S)

    def subset(self, indices: NDArray[np.intp]) -> Self:
        """The samples at ``indices``, of which some may be there twice."""
        of_samples = [name for name in self.TYPES if "N" in axes_of(name)]
        picked: dict[str, Any] = {
            name: np.take(getattr(self, name), indices, axes_of(name).index("N")) for name in of_samples
        }
        return dataclasses.replace(self, **picked)

    @classmethod
    def _form(cls) -> str:
        return f"mdi-exit {cls.KIND} 1"

    def save(self, path: Path) -> None:
        """Raises ``MdiExitError``."""
        words = {name: getattr(self, name) for name in self.WORDS}
        arrays = {name: getattr(self, name) for name in self.TYPES}
        write_record(path, {"form": self._form(), **words, **self.about}, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ``UsageError``."""
        about, arrays = read_record(path, cls.KIND, cls._form(), cls.TYPES)
        fields: dict[str, Any] = {name: str(about.pop(name, "")) for name in cls.WORDS}
        fields |= {name: arrays[name].astype(kind) for name, kind in cls.TYPES.items()}
        del about["form"]
        made = cls(about=about, **fields)
        made.check(path)
        return made

    def check(self, path: Path) -> None:
        """Raises ``UsageError`` for numbers that cannot be, which came from ``path``."""
