"""The bound of a scenario: its nodes, links and outcomes as the plain numbers of ``mdi_exit.optimum``.

What any policy must send is counted: the header of each task's message, and of each item that ends away from the source
a row and a part of the message that takes it there, as if each such message were of the largest batch. Acknowledgements
could all but be left out, as could probes and reports, and are not counted.

Beside the relaxations named there: over a run in which nodes slow down, die or join, or links change, each has its mean
over the run's time as its capacity throughout, as if work could be put off and done before it came. Tasks move where the
system can move them, at the ends of segments, between neighbours, to nodes with the next layer. Placement is the
scenario's; of agents that let the source place their layers, any, whatever the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from mdi_exit.optimum.bound import Bound, frontier, largest_rate
from mdi_exit.optimum.exits import SETTINGS, ExitTable
from mdi_exit.optimum.problem import Group, Medium, Node, Problem, Work
from mdi_exit.policy.batching import MAX_BATCH
from mdi_exit.segments import ModelPlan, needed_segments
from mdi_exit.simulation.network import FEATURES_BYTES, RESULTS_BYTES, ROW_BYTES
from mdi_exit.simulation.scenario import Change, Link, Scenario
from mdi_exit.simulation.scenario import Node as ScenarioNode
from mdi_exit.span import LayerSpan
from mdi_exit.trace import Trace

__all__ = ["ScenarioBound", "exit_table", "problem_of"]


def exit_table(trace: Trace, *, least: float = 0.0, settings: int = SETTINGS) -> ExitTable:
    """The outcomes of a trace; ``least``: the lowest threshold that may be set; ``settings``: about how many there are."""
    known = trace.truth_N >= 0
    return ExitTable.of_outcomes(trace.scores_NS[known], trace.right_NS[known], least=least, settings=settings)


def problem_of(scenario: Scenario, begin_s: float = 0.0, end_s: float | None = None) -> Problem:
    """One cell of the scenario from ``begin_s`` to ``end_s`` (None: to the run's end), with its share of the broker."""
    window = begin_s, scenario.duration_s if end_s is None else end_s
    plan = scenario.model.plan
    return Problem(
        source=scenario.source.name,
        exits=plan.exit_layers,
        cut_bytes=tuple(float(size) for size in plan.feature_bytes),
        nodes=tuple(
            Node(node.name, tuple(_works(scenario, node)), count=_mean_speed(scenario, node, window))
            for node in scenario.nodes
        ),
        groups=_groups(scenario),
        media=tuple(_media(scenario, window)),
    )


class ScenarioBound:
    """The bound of a whole scenario, all its cells; what it finds for one accuracy serves the next question."""

    def __init__(self, scenario: Scenario, exits: ExitTable, begin_s: float = 0.0, end_s: float | None = None) -> None:
        self.cells = scenario.cells
        self.exits = exits
        self.problem = problem_of(scenario, begin_s, end_s)

    def rate(self, accuracy: float = 0.0, offered: float = math.inf) -> float | None:
        """Items a second, all cells together, at this accuracy and no more than are ``offered``."""
        found = largest_rate(self.problem, self.exits, accuracy=accuracy, most=offered / self.cells)
        return None if found is None else found.rate * self.cells

    def efficiency(self, rate: float, accuracy: float, offered: float = math.inf) -> float | None:
        """``rate`` as a share of the bound; None where no setting of thresholds has the accuracy."""
        most = self.rate(accuracy, offered)
        return rate / most if most else None

    def frontier(self, points: int = 12) -> tuple[Bound, ...]:
        """See ``mdi_exit.optimum.bound.frontier``; of one cell."""
        return frontier(self.problem, self.exits, points)


def _works(scenario: Scenario, node: ScenarioNode) -> Iterator[Work]:
    """The segments that the node can be asked for, at the largest batch, at its first speed.

    A node that may be given any span may run each layer by itself.
    """
    plan, exits = scenario.model.plan, scenario.model.plan.exit_layers
    last = plan.layer_count
    single = [LayerSpan(layer, layer + 1) for layer in range(last)]
    spans = [other.span for other in scenario.nodes if other.span is not None]
    if any(other.auto for other in scenario.nodes):
        spans += single
    own = single if node.auto else [node.span] if node.span is not None else []
    for key in sorted({key for span in own for key in needed_segments(plan, span, spans)}):
        if key.head == (key.stop == last):
            seconds = node.speed.seconds(key, MAX_BATCH, exits) / MAX_BATCH
            ends_in_exit = key.stop < last and key.stop - 1 in exits
            yield Work(
                key.entry, key.stop, seconds, node.speed.exit_s[_number(plan, key.stop)] if ends_in_exit else 0.0
            )


def _number(plan: ModelPlan, stop: int) -> int:
    return plan.exit_index(stop - 1)


def _groups(scenario: Scenario) -> tuple[Group, ...]:
    """Nodes with the same neighbours are one group; all of a mesh are."""
    everyone = frozenset(node.name for node in scenario.nodes)
    free = frozenset(node.name for node in scenario.nodes if node.neighbours is None)
    groups = [Group(free, everyone)] if free else []
    by_neighbours: dict[frozenset[str], set[str]] = {}
    for node in scenario.nodes:
        if node.neighbours is not None:
            reach = frozenset(other.name for other in scenario.reachable(node)) | {node.name}
            by_neighbours.setdefault(reach, set()).add(node.name)
    return (*groups, *(Group(frozenset(names), reach) for reach, names in by_neighbours.items()))


def _media(scenario: Scenario, window: tuple[float, float]) -> Iterator[Medium]:
    for node in scenario.nodes:
        here, none = frozenset({node.name}), frozenset[str]()
        for way, of, senders, receivers in (("up", _up, here, none), ("down", _down, none, here)):
            capacity = _mean_capacity(scenario, node, of, window)
            if capacity < math.inf:
                yield Medium(
                    f"{node.name} {way}",
                    senders,
                    receivers,
                    bytes_per_s=capacity,
                    overhead_bytes=FEATURES_BYTES,
                    answer_bytes=_answer_bytes(0.0),
                )
    for medium in scenario.media.values():
        members = frozenset(node.name for node in scenario.nodes if _always_on(scenario, node, medium.name))
        frame_bytes = medium.frame_s * medium.bytes_per_s
        yield Medium(
            medium.name,
            members,
            members,
            bytes_per_s=medium.bytes_per_s,
            overhead_bytes=frame_bytes + FEATURES_BYTES,
            answer_bytes=_answer_bytes(frame_bytes),
        )
    limits = scenario.broker
    if limits.bytes_per_s is not None or limits.messages_per_s is not None:
        yield Medium(
            "broker",
            senders=frozenset(node.name for node in scenario.nodes),
            bytes_per_s=_or_no_limit(limits.bytes_per_s) / scenario.cells,
            messages_per_s=_or_no_limit(limits.messages_per_s) / scenario.cells,
            overhead_bytes=FEATURES_BYTES,
        )


def _answer_bytes(frame_bytes: float) -> float:
    """Of one item's result: all that end in one run of a segment go together."""
    return ROW_BYTES + (RESULTS_BYTES + frame_bytes) / MAX_BATCH


def _up(link: Link) -> float:
    return _or_no_limit(link.up_bytes_per_s)


def _down(link: Link) -> float:
    return _or_no_limit(link.down_bytes_per_s)


def _or_no_limit(limit: float | None) -> float:
    return math.inf if limit is None else limit


def _always_on(scenario: Scenario, node: ScenarioNode, medium: str) -> bool:
    links = [node.link, *(change.link for change in _changes(scenario, node) if change.link is not None)]
    return all(link.medium == medium for link in links)


# --- what changes over the run


def _changes(scenario: Scenario, node: ScenarioNode) -> Iterable[Change]:
    return (change for change in scenario.changes if change.node == node.name)


def _mean_speed(scenario: Scenario, node: ScenarioNode, window: tuple[float, float]) -> float:
    """The node's mean speed as a factor on its first, 0 while it is not there."""
    steps: list[tuple[float, float]] = [(0.0, 0.0 if node.join_at_s > 0 else 1.0)]
    factor, alive = 1.0, node.join_at_s == 0
    moments = [(node.join_at_s, None, True)] if node.join_at_s > 0 else []
    for at_s, speed, lives in sorted([*moments, *((c.at_s, c.speed, c.alive) for c in _changes(scenario, node))],
                                     key=lambda one: one[0]):  # fmt: skip
        factor = factor if speed is None else speed
        alive = alive if lives is None else lives
        steps.append((at_s, factor if alive else 0.0))
    return _mean(steps, window)


def _mean_capacity(
    scenario: Scenario, node: ScenarioNode, of: Callable[[Link], float], window: tuple[float, float]
) -> float:
    changed = [(change.at_s, of(change.link)) for change in _changes(scenario, node) if change.link is not None]
    return _mean([(0.0, of(node.link)), *changed], window)


def _mean(steps: list[tuple[float, float]], window: tuple[float, float]) -> float:
    """The mean over the window of what stays at each value from its moment to the next."""
    begin, end = window
    if end <= begin:
        raise ValueError(f"expected a window that ends after its begin, got {window}")
    total = 0.0
    for (at, value), (until, _) in zip(steps, [*steps[1:], (math.inf, 0.0)], strict=True):
        inside = min(until, end) - max(at, begin)
        total += value * inside if inside > 0 else 0.0
    return total / (end - begin)
