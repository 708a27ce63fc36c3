"""What a node is told at start, and what it counts from then on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mdi_exit.histogram import RUN_BUCKETS_S, Histogram
from mdi_exit.policy.batching import MAX_BATCH
from mdi_exit.policy.damping import Damping
from mdi_exit.policy.mix import BINS, bin_of
from mdi_exit.span import LayerSpan

__all__ = ["Totals", "WorkerConfig"]


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a node is told at start; every time constant is ours.

    ``window``: slots for each (sender, entry layer). Of the node's own products each layer has ``slots``, so that one
    full batch can be made while another waits.
    ``neighbours``: to whom it may send (None: to all). ``output_limit``: T_O of Alg. 1.
    ``gather_s``: how long tasks of a later layer let those of earlier ones go first, to be run in a larger batch.
    ``dead_after_s``: the longest silence of a node that is not taken for its death; ``damping``: of those that come and go.
    ``unmeasured_s``: Γ until something is measured. ``auto``: the source chooses the span, which is ``span`` to begin with;
    ``memory_bytes``: what the model's layers may take here, 0: no limit.
    """

    name: str
    incarnation: int
    span: LayerSpan | None
    role: str = "agent"
    neighbours: frozenset[str] | None = None
    window: int = 16
    slots: int = 2 * MAX_BATCH
    output_limit: int = 4
    offloading: str = "paper"
    telemetry_period_s: float = 0.5
    dead_after_s: float = 2.5
    damping: Damping = Damping()
    ack_delay_s: float = 0.02
    gather_s: float = 0.1
    moved_delay_s: float = 0.1
    probe_period_s: float = 2.0
    unmeasured_s: float = 0.01
    engine: str = ""
    emulated: str = ""
    version: str = ""
    auto: bool = False
    memory_bytes: int = 0


@dataclass(slots=True)
class Totals:
    """What has happened since the start. ``exits`` is by exit number, ``sent`` by neighbour, ``run_s`` by entry layer.

    ``unsent``: tasks that the transport did not take, by neighbour; they are not in ``sent``.
    ``untold``: results and hand-overs that were dropped because too many waited to be told to the source.
    ``hurried``: of ``exited``, those that took the best exit so far because of their deadline. ``scores``: by exit number,
    how many scores fell into each bin of ``policy.mix``.
    """

    received: int = 0
    injected: int = 0
    executed: int = 0
    exited: int = 0
    refused: int = 0
    failed: int = 0
    duplicates: int = 0
    dropped: int = 0
    hurried: int = 0
    untold: int = 0
    exits: Counter[int] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    unsent: Counter[str] = field(default_factory=Counter)
    compute_s: float = 0.0
    run_s: dict[int, Histogram] = field(default_factory=dict)
    scores: dict[int, list[int]] = field(default_factory=dict)

    def scored(self, exit_number: int, score: float) -> None:
        """An exit has judged a task."""
        bins = self.scores.get(exit_number)
        if bins is None:
            bins = self.scores[exit_number] = [0] * BINS
        bins[bin_of(score)] += 1

    def scores_told(self) -> dict[int, tuple[int, ...]]:
        """What telemetry carries of ``scores``."""
        return {exit_number: tuple(bins) for exit_number, bins in self.scores.items()}

    def ran(self, entry: int, count: int, seconds: float) -> None:
        """One run of the segment that starts at layer ``entry``, of ``count`` tasks."""
        self.executed += count
        self.compute_s += seconds
        if entry not in self.run_s:
            self.run_s[entry] = Histogram(RUN_BUCKETS_S)
        self.run_s[entry].add(seconds)

    def counters(self) -> dict[str, int]:
        """What telemetry carries of it."""
        return {
            "executed": self.executed,
            "exited": self.exited,
            "sent": sum(self.sent.values()),
            "received": self.received,
            "refused": self.refused,
            "failed": self.failed,
        }
