"""What the source asks of the solver, and what comes back: plain numbers, since they cross to a thread and back."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Channel", "NodeLoad", "RoutingAnswer", "RoutingChoice", "RoutingProblem"]


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """A node as measured: ``works`` are (entry, stop, seconds a task, of the exit head alone); ``neighbours`` None: all.

    ``bytes_per_s``: of its link in each direction; None: not known, no limit.
    """

    name: str
    works: tuple[tuple[int, int, float, float], ...]
    neighbours: frozenset[str] | None = None
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Channel:
    """A radio channel that all nodes are on: what goes from one to another takes its airtime twice.

    ``message_bytes``: airtime of a task's message beside the tensor, as bytes, its acknowledgement among it;
    ``answer_bytes``: of the result of an item that ends away from the source.
    """

    bytes_per_s: float
    message_bytes: float = 0.0
    answer_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class RoutingChoice:
    """A threshold, the share of items that would come to each exit under it, and what it means for each exit but the last."""

    threshold: float
    reach: tuple[float, ...]
    thresholds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RoutingProblem:
    """``choices``: thresholds to choose from, falling; ``wanted``: items a second to be made room for, None: as many as
    can be, at the first choice. ``lowest``: thresholds of the exits at the floor; a solver that knows outcomes keeps to
    the accuracy that these have or, where no rate is wanted, to that of the first choice.
    """

    source: str
    exits: tuple[int, ...]
    cut_bytes: tuple[int, ...]
    nodes: tuple[NodeLoad, ...]
    choices: tuple[RoutingChoice, ...]
    lowest: tuple[float, ...]
    wanted: float | None = None
    channel: Channel | None = None


@dataclass(frozen=True, slots=True)
class RoutingAnswer:
    """``shares``: (layer, node, which part goes to whom, itself among them); ``rate``: what that can carry at most.

    ``thresholds``: one for each exit but the last; empty: ``threshold`` is the knob for all.
    """

    threshold: float
    rate: float
    shares: tuple[tuple[int, str, dict[str, float]], ...]
    thresholds: tuple[float, ...] = ()
