"""A scenario as a baseline would run it: other spans, other rules, everything else the same."""

from __future__ import annotations

from dataclasses import replace

from mdi_exit.errors import UsageError
from mdi_exit.policy.baselines import BASELINES, spans_of
from mdi_exit.simulation.arrivals import Arrivals, Phase
from mdi_exit.simulation.bound import exit_table
from mdi_exit.simulation.record import trace_of
from mdi_exit.simulation.scenario import Node, Scenario
from mdi_exit.span import LayerSpan

__all__ = ["as_baseline", "cut_seconds"]


def as_baseline(
    scenario: Scenario, name: str, *, threshold: float | None = None, rate_per_s: float | None = None
) -> Scenario:
    """The scenario under the baseline of that name. Raises ``UsageError`` where it cannot be: no memory, no neighbour.

    ``threshold`` (None: the scenario's) stays or, with ``rate_per_s``, is where it begins; that many items a second arrive
    by chance. Where spans are not the scenario's, every node may send to every other, as in a chain each must to the next.
    """
    if name not in BASELINES:
        raise UsageError("baseline", "one of " + ", ".join(BASELINES), name)
    baseline = BASELINES[name]
    plan = scenario.model.plan
    nodes = scenario.nodes
    threshold = (scenario.policy.threshold if threshold is None else threshold) if baseline.early_exits else 1.0
    moves = baseline.early_exits and (rate_per_s is not None or baseline.steers)
    spans = spans_of(
        baseline,
        [node.span for node in nodes],
        plan.layer_count,
        [_layer_s(scenario, node) for node in nodes],
        [cut_seconds(scenario, size) for size in plan.feature_bytes],
        _reach(scenario, threshold),
    )
    held = [_holding(scenario, node, span) for node, span in zip(nodes, spans, strict=True)]
    if baseline.placing != "as given":
        held = [replace(node, neighbours=None) for node in held]
    return replace(
        scenario,
        source=held[0],
        agents=tuple(node for node in held[1:] if node.span is not None),
        policy=replace(
            scenario.policy,
            offloading=baseline.offloading,
            adapt=baseline.adapt if moves else "none",
            threshold=threshold,
            outcomes=baseline.outcomes,
        ),
        arrivals=scenario.arrivals if rate_per_s is None else Arrivals("poisson", (Phase(0.0, rate_per_s),)),
        changes=tuple(
            change for change in scenario.changes if any(n.name == change.node and n.span for n in held)
        ),
    )  # fmt: skip


def _holding(scenario: Scenario, node: Node, span: LayerSpan | None) -> Node:
    needed = sum(scenario.model.layer_bytes[layer] for layer in span) if span else 0
    if node.memory_bytes is not None and needed > node.memory_bytes:
        raise UsageError(f"{node.name} with layers {span}", f"weights of at most {node.memory_bytes} bytes", needed)
    return replace(node, span=span)


def _layer_s(scenario: Scenario, node: Node) -> list[float]:
    seconds = [layer_s + node.speed.overhead_s for layer_s in node.speed.layer_s]
    for number, layer in enumerate(scenario.model.plan.exit_layers):
        seconds[layer] += node.speed.exit_s[number]
    return seconds


def cut_seconds(scenario: Scenario, size_bytes: int) -> float:
    """To send so much over the slowest thing on the way; a shared medium is used twice."""
    links = [node.link for node in scenario.nodes]
    own = [rate for link in links for rate in (link.up_bytes_per_s, link.down_bytes_per_s) if rate]
    shared = [medium.bytes_per_s / 2 for medium in scenario.media.values()]
    rates = [*own, *shared]
    return size_bytes / min(rates) if rates else 0.0


def _reach(scenario: Scenario, threshold: float) -> list[float]:
    """Share of items that comes to each layer, by the recorded outcomes."""
    plan = scenario.model.plan
    exits = len(plan.exit_layers)
    thresholds = [plan.threshold_at(number, threshold) for number in range(exits - 1)]
    by_exit = exit_table(trace_of(scenario), settings=1).at(thresholds).reach
    return [by_exit[sum(last < layer for last in plan.exit_layers)] for layer in range(plan.layer_count)]
