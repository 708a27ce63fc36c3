"""What the source does about threshold, admission and routes beyond the paper's steps: three policies, by name.

``drift-plus-penalty``: from the items under way (``policy.drift``). ``latency``: from the last answers' 99th percentile
(``policy.latency``). ``optimiser``: the bound's programme is solved again every few seconds on what the nodes report, beside
everything else; the answer comes back as an event, sets the threshold where a rate is given, and tells every node where
its tasks go. What the exits say at other thresholds all of them learn from the nodes' counts of scores (``policy.mix``).
"""

from __future__ import annotations

import math
from random import Random
from typing import Final

from mdi_exit.events import Notice, RoutesSolved, SolveRoutes
from mdi_exit.item_keeping import ItemKeeping
from mdi_exit.policy.batching import MAX_BATCH
from mdi_exit.policy.drift import Choice, best_choice, most_under_way
from mdi_exit.policy.latency import LatencyControl
from mdi_exit.policy.mix import ExitMix
from mdi_exit.routes import NodeLoad, RoutingChoice, RoutingProblem
from mdi_exit.segments import ModelPlan, segment_stop
from mdi_exit.source_config import SourceConfig
from mdi_exit.span import LayerSpan
from mdi_exit.wire import ResultRow, Share
from mdi_exit.worker_config import WorkerConfig

__all__ = ["GUIDED", "Guidance"]

GUIDED: Final = frozenset({"drift-plus-penalty", "latency", "optimiser"})
_KEPT: Final = 0.95
_CHOICES: Final = 40
_LOOK_S: Final = 0.98
_MARGIN: Final = 0.03
_DRAIN: Final = 0.1
_MOST_SHARES: Final = 1000


class Guidance(ItemKeeping):
    """Between the items and the steps of Alg. 3 and 4: what is decided with a view on all nodes."""

    def __init__(self, config: SourceConfig, worker: WorkerConfig, rng: Random) -> None:
        super().__init__(config, worker, rng)
        self.mix: ExitMix | None = None
        self.latency = LatencyControl(config.target_p99_s or math.inf)
        self.shares: tuple[Share, ...] = ()
        self.thresholds: tuple[float, ...] = ()
        self._solving = False
        self._solve_at = 0.0
        self._solved_for: frozenset[str] = frozenset()
        self._told_unsolved = ""
        if config.adapt == "latency":
            self._turns.most = self.latency.under_way(config.max_pending)

    def _guide(self, now: float) -> float:
        """One period of the policy in force; the threshold that it wants."""
        plan = self.plan
        if plan is None:
            return self.threshold
        mix = self._census(plan)
        match self.adapt:
            case "latency":
                return self._by_latency(now, plan)
            case "drift-plus-penalty":
                return self._by_drift(plan, mix)
            case _:
                self._ask(now, plan, mix)
                return self.threshold

    def _census(self, plan: ModelPlan) -> ExitMix:
        if self.mix is None or len(self.mix.counts) != len(plan.exit_layers):
            self.mix = ExitMix(len(plan.exit_layers))
        mix = self.mix
        mix.fade(_KEPT)
        for peer in self.worker.members:
            if peer.telemetry is not None:
                mix.told(peer.name, peer.status.incarnation, peer.telemetry.scores)
        mix.told(self.worker.name, self.worker.config.incarnation, self.worker.totals.scores_told())
        return mix

    def _thresholds(self, plan: ModelPlan, knob: float) -> list[float]:
        return [plan.threshold_at(number, knob) for number in range(len(plan.exit_layers) - 1)]

    def _knobs(self) -> list[float]:
        """Thresholds to choose from, falling, finer near 1."""
        parts = (step / (_CHOICES - 1) for step in range(_CHOICES))
        return [1.0 - (1.0 - self.floor) * part**1.5 for part in parts]

    # --- latency

    def _record(self, now: float, item: int, row: ResultRow) -> None:
        if self.adapt == "latency":
            self.latency.answered(now, now - self.pending[item].admitted_at)
        super()._record(now, item, row)

    def _by_latency(self, now: float, plan: ModelPlan) -> float:
        crowded = len(self.pending) > 0.7 * self._turns.most
        threshold = self.latency.next_threshold(
            now, self.threshold, self.floor, turned_away=self.refused, crowded=crowded
        )
        self._turns.most = self.latency.under_way(self.config.max_pending, self._expected_per_s(plan))
        return threshold

    def _expected_per_s(self, plan: ModelPlan) -> float:
        """Items a second if all went through all layers, each alone, by what the nodes have measured at their start."""
        whole_s = sum(self._block_seconds(plan))
        return sum(bool(node.works) for node in self._loads(plan)) / whole_s if whole_s > 0 else 0.0

    # --- drift plus penalty

    def _by_drift(self, plan: ModelPlan, mix: ExitMix) -> float:
        if not mix.known:
            return min(self.threshold, _LOOK_S) if len(plan.exit_layers) > 1 else self.threshold
        costs = self._block_seconds(plan)
        whole = sum(costs) or 1.0
        choices = []
        for knob in self._knobs():
            thresholds = self._thresholds(plan, knob)
            work = sum(share * cost for share, cost in zip(mix.reach(thresholds), costs, strict=True)) / whole
            choices.append(Choice(knob, mix.sureness(thresholds), work))
        drift, backlog = self.config.drift, float(len(self.pending) + self.queue)
        chosen = best_choice(backlog, choices, drift.v)
        self._turns.most = min(most_under_way(chosen, drift.v_rate), self.config.max_pending)
        return chosen.threshold

    def _block_seconds(self, plan: ModelPlan) -> list[float]:
        """Mean seconds of the layers up to each exit, over the nodes that run them."""
        by_layer: dict[int, list[float]] = {}
        for node in self._loads(plan):
            for entry, stop, seconds, head_s in node.works:
                for layer in range(entry, stop):
                    by_layer.setdefault(layer, []).append((seconds + head_s) / (stop - entry))
        starts = (0, *(layer + 1 for layer in plan.exit_layers[:-1]))
        return [
            sum(sum(found) / len(found) for layer in range(first, last + 1) if (found := by_layer.get(layer, [])))
            for first, last in zip(starts, plan.exit_layers, strict=True)
        ]

    # --- optimiser

    def _ask(self, now: float, plan: ModelPlan, mix: ExitMix) -> None:
        """Have the routes worked out: every few seconds, and at once when nodes have come or gone."""
        nodes = self._loads(plan)
        there = frozenset(node.name for node in nodes)
        if self._solving or (now < self._solve_at and there == self._solved_for):
            return
        self._solve_at, self._solved_for, self._solving = now + self.config.solve_period_s, there, True
        self._out.append(SolveRoutes(RoutingProblem(
            source=self.worker.name,
            exits=plan.exit_layers,
            cut_bytes=plan.feature_bytes,
            nodes=nodes,
            choices=self._choices(plan, mix),
            lowest=tuple(self._thresholds(plan, self.floor)),
            wanted=self._wanted(),
            channel=self.config.channel,
        )))  # fmt: skip

    def _wanted(self) -> float | None:
        """The rate to make room for: a little more than is offered, and more the more waits."""
        if not self._paced or self.adapt != "optimiser" or self.rate_per_s is None:
            return None
        waiting = min(self._queue / self.config.bands.high, 2.0)
        return (1 + _MARGIN + _DRAIN * waiting) / self.interval_s

    def _choices(self, plan: ModelPlan, mix: ExitMix) -> tuple[RoutingChoice, ...]:
        if self._wanted() is None or not mix.known:
            knobs = [self.threshold if mix.known or self._wanted() is None else min(self.threshold, _LOOK_S)]
        else:
            knobs = self._knobs()
        thresholds = [self._thresholds(plan, knob) for knob in knobs]
        return tuple(
            RoutingChoice(knob, mix.reach(of_exits), tuple(of_exits))
            for knob, of_exits in zip(knobs, thresholds, strict=True)
        )

    def _loads(self, plan: ModelPlan) -> tuple[NodeLoad, ...]:
        worker = self.worker
        own = worker.config
        speeds = {layer: worker.seconds(layer, MAX_BATCH) for layer in worker.entries}
        there = [peer for peer in worker.members if peer.ready and peer.telemetry is not None]
        pairs = {(own.name, name): rate for name, rate in worker.links().items()}
        for peer in there:
            links = peer.telemetry.links if peer.telemetry else {}
            pairs |= {(peer.name, name): link.bytes_per_s for name, link in links.items()}
        capacity = _capacities(pairs)
        found = [NodeLoad(own.name, self._works(plan, own.span, speeds), own.neighbours, capacity.get(own.name))]
        for peer in there:
            neighbours = peer.status.neighbours
            found.append(NodeLoad(
                peer.name,
                self._works(plan, peer.span, peer.telemetry.speed_s if peer.telemetry else {}),
                None if neighbours is None else frozenset(neighbours),
                capacity.get(peer.name),
            ))  # fmt: skip
        return tuple(found)

    def _works(
        self, plan: ModelPlan, span: LayerSpan | None, speed_s: dict[int, float]
    ) -> tuple[tuple[int, int, float, float], ...]:
        """(entry, stop, seconds, those of the head) of the segments that a node has measured as they are run now."""
        if span is None or span.stop > plan.layer_count:
            return ()
        found = []
        for entry, measured_s in sorted(speed_s.items()):
            if entry in span:
                stop = segment_stop(entry, span, plan.exit_layers)
                part = 0.0 if stop == plan.layer_count else plan.head_part(entry, stop)
                head_run = stop - 1 in plan.exit_layers and (
                    self.worker.threshold_of(plan.exit_index(stop - 1)) < 1.0 or plan.stateful
                )
                body_s = measured_s * (1 - part) if head_run else measured_s
                found.append((entry, stop, body_s, body_s * part / (1 - part)))
        return tuple(found)

    def _routes_solved(self, now: float, event: RoutesSolved) -> None:
        """Take up the answer; the nodes fall back to the paper's rule when none comes any more."""
        self._solving = False
        answer = event.answer
        if answer is None:
            if event.reason != self._told_unsolved:
                self._out.append(Notice("optimiser", f"no routes: {event.reason}"))
            self._told_unsolved = event.reason
            return
        self._told_unsolved = ""
        if self.adapt != "optimiser":
            return
        shares = tuple(Share(layer, node, to) for layer, node, to in answer.shares)
        self.shares = shares if len(shares) <= _MOST_SHARES else ()
        self.thresholds = answer.thresholds
        self._set_threshold_and_tell(now, max(answer.threshold, self.floor) if self._wanted() else self.threshold)

    def _set_threshold_and_tell(self, now: float, threshold: float) -> None:
        """Publish both with one message."""
        raise NotImplementedError


def _capacities(pairs: dict[tuple[str, str], float]) -> dict[str, float]:
    """Bytes a second of each node's link, from those between two nodes (0: not known): up the one, down the other.

    Of the pair that is fastest for a node both links are taken to be alike, unless the other's is known to be faster;
    then the rest of the time is this node's.
    """
    best: dict[str, tuple[float, str]] = {}
    for (sender, receiver), rate in pairs.items():
        for node, other in ((sender, receiver), (receiver, sender)):
            if rate > 0 and (node not in best or 1.0 / rate < best[node][0]):
                best[node] = 1.0 / rate, other
    alike = {node: 2.0 / seconds for node, (seconds, _) in best.items()}
    found = {}
    for node, (seconds, other) in best.items():
        rest = seconds - 1.0 / alike[other]
        found[node] = 1.0 / rest if alike[other] > alike[node] and rest > 0 else alike[node]
    return found
