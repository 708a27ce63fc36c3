"""What a model looks like to the core, and which segments a set of spans makes possible.

A **segment** is what a node runs in one go: from the layer at which a task enters, through its
span, up to and including the first exit, or to the span's end where no exit comes before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mdi_exit.span import LayerSpan

__all__ = ["ModelPlan", "SegmentKey", "needed_segments", "possible_segments", "runs_in", "segment_stop"]


class SegmentKey(NamedTuple):
    """Layers ``entry`` to ``stop - 1``, with or without the exit head at the end of the last of them."""

    entry: int
    stop: int
    head: bool

    @property
    def file(self) -> str:
        """The name under which the composed graph travels: ``segment-4-5-head``."""
        return f"segment-{self.entry}-{self.stop - 1}-{'head' if self.head else 'body'}"


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """The little that decisions need to know of a model.

    ``exit_layers``: layers that end in an exit, rising; the last layer is always one.
    ``feature_bytes``: for each layer, bytes of the tensor that enters it: in float32 as a manifest says it, in the codec in
    force once a node or a simulation uses it.
    ``exit_thresholds``: calibrated, one for each exit (None, or none at all: the knob's own value), in force when the knob
    stands at ``calibrated_at``. ``inclusive``: a score equal to the threshold is enough (JEI-DNN's gates).
    ``stateful``: what an exit says depends on those before it, which must then all be run while any can be taken.
    ``layer_macs`` and ``layer_bytes``, for the planner: multiply-accumulates of an item in each layer, exit head included,
    and bytes that holding the layer takes; none at all: all alike. ``head_macs``: of each exit's head alone.
    """

    digest: str
    layer_count: int
    exit_layers: tuple[int, ...]
    feature_bytes: tuple[int, ...]
    exit_thresholds: tuple[float | None, ...] = ()
    calibrated_at: float | None = None
    inclusive: bool = False
    layer_macs: tuple[int, ...] = ()
    layer_bytes: tuple[int, ...] = ()
    stateful: bool = False
    head_macs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.layer_count < 1 or len(self.feature_bytes) != self.layer_count:
            raise ValueError(f"expected feature_bytes for {self.layer_count} layers, got {len(self.feature_bytes)}")
        if tuple(sorted(set(self.exit_layers))) != self.exit_layers or self.exit_layers[-1:] != (self.layer_count - 1,):
            raise ValueError(f"expected rising exit layers that end at {self.layer_count - 1}, got {self.exit_layers}")
        if any(len(costs) not in (0, self.layer_count) for costs in (self.layer_macs, self.layer_bytes)):
            raise ValueError(f"expected costs of {self.layer_count} layers, got others")
        if self.exit_thresholds and len(self.exit_thresholds) != len(self.exit_layers):
            raise ValueError(f"expected {len(self.exit_layers)} exit thresholds, got {len(self.exit_thresholds)}")

    def exit_index(self, layer: int) -> int:
        """The exit number (0…K-1) at the end of ``layer``."""
        return self.exit_layers.index(layer)

    def threshold_at(self, exit_number: int, knob: float) -> float:
        """The threshold of an exit when the one knob T of all exits stands at ``knob``, both in [0, 1].

        A calibrated exit's goes in a straight line from 0 at T = 0 to its own at ``calibrated_at`` and on to 1 at T = 1.
        """
        own = self.exit_thresholds[exit_number] if self.exit_thresholds else None
        at = self.calibrated_at
        if own is None or at is None:
            return knob
        if knob >= at:
            return own + (1.0 - own) * (knob - at) / (1.0 - at) if at < 1.0 else 1.0
        return own * knob / at

    def head_part(self, entry: int, stop: int) -> float:
        """The part of the work of layers ``entry`` to ``stop - 1`` that is the head at their end; 0 if it is not known."""
        if not self.head_macs or not self.layer_macs or stop - 1 not in self.exit_layers:
            return 0.0
        return self.head_macs[self.exit_index(stop - 1)] / max(sum(self.layer_macs[entry:stop]), 1)

    def segment(self, entry: int, span: LayerSpan, *, early_exits: bool) -> SegmentKey:
        """The segment that a node of ``span`` runs for a task that enters at ``entry``.

        Without ``early_exits`` only the last layer keeps its head: the baseline must not pay for heads.
        """
        stop = segment_stop(entry, span, self.exit_layers)
        ends_network = stop == self.layer_count
        return SegmentKey(entry, stop, head=ends_network or (early_exits and stop - 1 in self.exit_layers))


def runs_in(plan: ModelPlan, key: SegmentKey, spans: Iterable[LayerSpan]) -> bool:
    """Whether a node of one of these spans can be asked to run the segment."""
    return any(
        key.entry in span and key == plan.segment(key.entry, span, early_exits=early)
        for span in spans
        if span.stop <= plan.layer_count
        for early in (True, False)
    )


def segment_stop(entry: int, span: LayerSpan, exit_layers: Iterable[int]) -> int:
    """One past the last layer of the segment that starts at ``entry``; ``exit_layers`` rise.

    Raises ``ValueError`` outside the span.
    """
    if entry not in span:
        raise ValueError(f"expected an entry in {span}, got {entry}")
    for layer in exit_layers:
        if layer >= entry:
            return min(span.stop, layer + 1)
    return span.stop


def needed_segments(plan: ModelPlan, span: LayerSpan, all_spans: Iterable[LayerSpan]) -> frozenset[SegmentKey]:
    """Segments that a node of ``span`` may be asked to run while the spans in force are ``all_spans``.

    A task enters at layer 0, after an exit, or where some span ends (its own excepted: a task leaves there).
    """
    entries = {0, *(layer + 1 for layer in plan.exit_layers), *(other.stop for other in all_spans)}
    return frozenset(
        plan.segment(entry, span, early_exits=early) for entry in entries if entry in span for early in (True, False)
    )


def possible_segments(plan: ModelPlan) -> frozenset[SegmentKey]:
    """Every segment that any node of any span can be asked to run."""
    return frozenset(
        plan.segment(entry, LayerSpan(entry, stop), early_exits=early)
        for entry in range(plan.layer_count)
        for stop in range(entry + 1, plan.layer_count + 1)
        for early in (True, False)
    )
