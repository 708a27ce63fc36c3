"""A span of layers: inclusive where a person sees it (``4-8``), half-open inside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mdi_exit.errors import UsageError

__all__ = ["LayerSpan", "missing_layers"]

_SPAN = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")


@dataclass(frozen=True, slots=True, order=True)
class LayerSpan:
    """Layers ``first`` to ``stop - 1``. ``LayerSpan(4, 9)`` is written ``4-8`` and has five layers."""

    first: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.stop:
            raise UsageError("layer span", "FIRST-LAST with 0 <= FIRST <= LAST", f"{self.first}-{self.stop - 1}")

    @classmethod
    def parse(cls, text: str) -> LayerSpan:
        """Read ``4-8`` or ``4``. Raises ``UsageError``."""
        match = _SPAN.fullmatch(text.strip())
        if not match:
            raise UsageError("layer span", "FIRST-LAST such as 4-8, or one layer such as 4", repr(text[:80]))
        first, last = int(match[1]), int(match[2] or match[1])
        return cls(first, last + 1)

    @property
    def last(self) -> int:
        return self.stop - 1

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def __contains__(self, layer: int) -> bool:
        return self.first <= layer < self.stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.stop))

    def __len__(self) -> int:
        return self.stop - self.first


def missing_layers(layer_count: int, spans: Iterable[LayerSpan]) -> list[int]:
    """Layers of 0…layer_count-1 that lie in none of ``spans``, in order."""
    held = {layer for span in spans for layer in span}
    return [layer for layer in range(layer_count) if layer not in held]
