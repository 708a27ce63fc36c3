"""What the planner is told: the model's costs, the nodes, and how much of each a set of spans may use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from mdi_exit.segments import ModelPlan
from mdi_exit.span import LayerSpan

__all__ = ["Device", "Problem", "Spans"]

Spans = Mapping[str, LayerSpan]
"""Which layers each node holds; a node that is not in it holds none."""


@dataclass(frozen=True, slots=True)
class Device:
    """A node as the planner sees it.

    ``layer_s``: seconds that it takes for one item in each layer, exit head included. ``bytes_per_s``: of its link to the
    broker, each way. ``memory_bytes``: what it may hold. ``span``: what it holds now; ``fixed``: and goes on holding.
    ``neighbours``: the only nodes to which it may send tasks; None: all.
    """

    name: str
    layer_s: tuple[float, ...]
    memory_bytes: float = math.inf
    bytes_per_s: float = math.inf
    span: LayerSpan | None = None
    fixed: bool = False
    neighbours: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """``reach``: for each layer, the share of items that enter it, from 1 falling. ``source``: where items come in."""

    plan: ModelPlan
    reach: tuple[float, ...]
    devices: tuple[Device, ...]
    source: str
    by_name: dict[str, Device] = field(init=False, compare=False)
    _held_bytes: list[int] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        count = self.plan.layer_count
        if len(self.reach) != count or any(len(device.layer_s) != count for device in self.devices):
            raise ValueError(f"expected costs of {count} layers for each node, got others")
        object.__setattr__(self, "by_name", {device.name: device for device in self.devices})
        layers = self.plan.layer_bytes or (0,) * count
        object.__setattr__(self, "_held_bytes", [0, *accumulate(layers)])
        if self.source not in self.by_name:
            raise ValueError(f"expected the source {self.source} among the nodes, got {sorted(self.by_name)}")

    @property
    def movable(self) -> tuple[Device, ...]:
        """Nodes whose span the planner may choose."""
        return tuple(device for device in self.devices if not device.fixed)

    @property
    def restricted(self) -> bool:
        """Whether there is a node that may not send to all others."""
        return any(device.neighbours is not None for device in self.devices)

    def may_send(self, sender: str, to: str) -> bool:
        """Whether tasks may go from one node to another; that they stay is always allowed."""
        neighbours = self.by_name[sender].neighbours
        return sender == to or neighbours is None or to in neighbours

    def memory_bytes(self, span: LayerSpan) -> int:
        """What holding ``span`` takes."""
        return self._held_bytes[span.stop] - self._held_bytes[span.first]

    def fits(self, device: Device, span: LayerSpan) -> bool:
        return self.memory_bytes(span) <= device.memory_bytes

    def present(self) -> dict[str, LayerSpan]:
        """What the nodes hold now."""
        return {device.name: device.span for device in self.devices if device.span is not None}

    def spans_of(self, device: Device) -> list[LayerSpan]:
        """Every span that fits its memory."""
        count = self.plan.layer_count
        every = (LayerSpan(first, stop) for first in range(count) for stop in range(first + 1, count + 1))
        return [span for span in every if self.fits(device, span)]

    def covered(self, spans: Iterable[LayerSpan]) -> bool:
        """Whether each layer is held by somebody."""
        held = {layer for span in spans for layer in span}
        return len(held) >= self.plan.layer_count
