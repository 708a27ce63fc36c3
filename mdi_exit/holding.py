"""Which layers a node serves, and how it goes from one span to the next without a moment at which nobody serves a layer.

An agent of ``--layers auto`` is given a span by the source. It goes on serving the old one while the new one's segments
come; when they are there it announces the new span and **leaves** the old one, that is, serves it until other nodes have
its layers in their own spans; then what still waits for such a layer is forwarded. A node counts only on what others
*hold*, never on what they leave, so that of two nodes that leave the same layer one stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mdi_exit.segments import ModelPlan, SegmentKey, needed_segments
from mdi_exit.span import LayerSpan

__all__ = ["Holding"]


@dataclass(slots=True)
class Holding:
    """``span``: held and announced; ``coming``: being fetched; ``leaving``: of earlier plans, still served.

    ``left``: layers once served and no longer: tasks that come late are forwarded. ``moves``: spans taken up since the
    start, the first not counted.
    """

    span: LayerSpan | None
    auto: bool = False
    coming: LayerSpan | None = None
    leaving: tuple[LayerSpan, ...] = ()
    left: frozenset[int] = frozenset()
    moves: int = 0
    layers: frozenset[int] = field(init=False, default=frozenset())
    """All layers that are served."""

    def __post_init__(self) -> None:
        self._count()

    @property
    def served(self) -> tuple[LayerSpan, ...]:
        """The spans whose tasks are taken, the held one first."""
        return (self.span, *self.leaving) if self.span is not None else ()

    @property
    def wanted(self) -> tuple[LayerSpan, ...]:
        """The spans whose segments are to be here."""
        return (*self.served, self.coming) if self.coming is not None else self.served

    def _count(self) -> None:
        self.layers = frozenset(layer for span in self.served for layer in span)

    def assign(self, span: LayerSpan) -> bool:
        """The source wants this span here; True if other segments than before are wanted for it."""
        coming = None if span == self.span else span
        if coming == self.coming:
            return False
        self.coming = coming
        return True

    def ready(self, plan: ModelPlan, others: Iterable[LayerSpan], loaded: Iterable[SegmentKey]) -> bool:
        """Whether all is here that a task may ask of the coming span, with ``others`` in force or to come."""
        if self.coming is None or self.coming.stop > plan.layer_count:
            return False
        return needed_segments(plan, self.coming, [*others, *self.served]) <= set(loaded)

    def take_up(self) -> None:
        """From now on the coming span is the one that is held."""
        if self.coming is None:
            return
        before, self.span, self.coming = self.span, self.coming, None
        if before is not None:
            self.moves += 1
            self.leaving = tuple(span for span in (before, *self.leaving) if span != self.span)
        self._count()

    def abandoned(self) -> frozenset[int]:
        """Layers that are served only for spans that are being left."""
        return self.layers - frozenset(self.span or ())

    def leave(self) -> frozenset[int]:
        """Serve the held span alone; returns the layers that go."""
        gone = self.abandoned()
        self.left |= gone
        self.leaving = ()
        self._count()
        self.left -= self.layers
        return gone
