"""Nodes join, leave and slow down while the source places the layers: no item is lost or doubled, and nodes rest."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from random import Random

import pytest

from mdi_exit.events import Command, InputEnded, InputOffered
from mdi_exit.membership import Members
from mdi_exit.placement import Decision, PlacementRules
from mdi_exit.planning import Planning
from mdi_exit.segments import ModelPlan, SegmentKey
from mdi_exit.simulation.network import SimulatedNetwork, SimulatedNode
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan, missing_layers
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

LAYERS, ITEMS, UNTIL_S = 6, 150, 60.0
PLAN = ModelPlan("ab" * 16, LAYERS, (1, 3, 5), (4000, 2000, 2000, 1000, 1000, 500), layer_bytes=(1,) * LAYERS)
RULES = PlacementRules(rest_s=15.0, effort=40)


class Watched(Planning):
    """Keeps what was decided: when, who moved, and whether that was a repair."""

    decided: list[tuple[float, str, bool]]

    def made(self, now: float, decision: Decision, members: Members) -> list[Command]:
        before, told = self.epoch, super().made(now, decision, members)
        if self.epoch != before:
            self.decided = [*getattr(self, "decided", []), *((now, name, decision.forced) for name in decision.moved)]
        return told


@dataclass
class Deployment:
    """A source without layers, a node or two that nobody moves, and nodes of the planner, in virtual time."""

    rng: Random
    network: SimulatedNetwork = field(init=False)
    source: SourceState = field(init=False)
    planning: Watched = field(init=False)
    slow: dict[str, float] = field(default_factory=lambda: defaultdict(lambda: 1.0))
    starts: int = 0

    def __post_init__(self) -> None:
        rng, left = self.rng, iter(range(ITEMS))

        def draw() -> InputOffered | InputEnded:
            number = next(left, None)
            return InputEnded() if number is None else InputOffered(str(number), None, 4000)

        scores = {(item, exit_): rng.random() for item in range(ITEMS + 1) for exit_ in range(3)}
        self.network = SimulatedNetwork(
            PLAN, lambda item, exit_: (item % 10, scores[item, exit_]), Random(rng.random()), draw=draw, validate=True
        )
        config = SourceConfig(run=7, rate_per_s=4.0, threshold=0.7, placement=RULES)
        self.source = SourceState(config, WorkerConfig("source", 1, None, "source"), Random(1))
        self.source.planning = self.planning = Watched("source", RULES)
        self.network.add(SimulatedNode(self.source, lambda key, batch: 1.0))

    def join(self, name: str, memory: int, span: LayerSpan | None = None) -> None:
        self.starts += 1
        config = WorkerConfig(name, 100 + self.starts, span, auto=span is None, memory_bytes=memory)

        def seconds(key: SegmentKey, batch: int) -> float:
            return 0.01 * (key.stop - key.entry) * batch * self.slow[name]

        self.network.add(SimulatedNode(WorkerState(config, Random(self.starts)), seconds))

    def trouble(self, at: float) -> None:
        """One thing happens."""
        up = [name for name, node in self.network.nodes.items() if node.up and name != "source"]
        down = [name for name, node in self.network.nodes.items() if not node.up]
        self.network.run(at)
        match self.rng.choice(("join", "join", "leave", "slow", "rejoin")):
            case "join" if len(up) < 6:
                self.join(f"n{self.starts}", self.rng.choice((2, 3, 4, 6)))
            case "leave" if len(up) > 2:
                self.network.kill(self.rng.choice(up))
            case "slow" if up:
                self.slow[self.rng.choice(up)] = self.rng.choice((0.5, 1.0, 4.0))
            case "rejoin" if down and len(up) < 6:
                self.join(self.rng.choice(down), self.rng.choice((3, 4, 6)))
            case _:
                pass


def run(seed: int) -> Deployment:
    rng = Random(seed)
    made = Deployment(rng)
    if rng.random() < 0.3:
        made.join("fixed", 0, LayerSpan(*sorted(rng.sample(range(LAYERS + 1), 2))))
    for _ in range(rng.randint(2, 4)):
        made.join(f"n{made.starts}", rng.choice((2, 3, 4, 6)))
    at = 0.0
    for _ in range(rng.randint(3, 10)):
        at += rng.uniform(0.5, 8.0)
        made.trouble(at)
    made.join("last-1", 3)  # whoever is left, all layers fit now
    made.join("last-2", 3)
    made.network.run(at + 300.0, while_=lambda: not made.source.done)
    made.network.run(made.network.now + 20.0)  # for what is still coming
    return made


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [range(start, start + 20) for start in range(0, 200, 20)], ids=str)
def test_items_are_conserved_and_nodes_rest_between_moves(seeds: range) -> None:
    moved = 0
    for seed in seeds:
        made = run(seed)
        source = made.source
        assert source.done, f"seed {seed}: {len(source.pending)} items are pending"
        assert source.admitted == source.completed + source.errors
        samples = Counter(record.sample for record in made.network.records)
        assert set(samples.values()) <= {1}, f"seed {seed}"
        assert len(samples) == source.admitted
        assert all(
            record.row.label == record.row.item % 10 for record in made.network.records if record.row.error is None
        )
        assert source.errors == 0, f"seed {seed}: {[r.row.error for r in made.network.records if r.row.error][:3]}"
        held = [span for node in made.network.nodes.values() if node.up for span in node.worker.holding.served]
        assert not missing_layers(LAYERS, held)
        last: dict[str, float] = {}
        for now, name, forced in getattr(made.planning, "decided", []):
            assert forced or now - last.get(name, -1e9) >= RULES.rest_s, f"seed {seed}: {made.planning.decided}"
            last[name] = now
        moved += made.planning.moves
    assert moved > 0


def test_moves_alone_repeat_nothing() -> None:
    """Nobody dies: no attempt is refused or made again, whoever moves while items are under way."""
    moved = 0
    for seed in range(8):
        made = Deployment(Random(seed))
        for _ in range(4):
            made.join(f"n{made.starts}", 3 + seed % 2)
        made.network.run(8.0)
        made.slow["n0"] = 8.0  # the next segments that it runs teach the source
        made.network.run(20.0)
        made.join("late", 4)
        made.network.run(40.0)
        made.slow["n1"] = 6.0
        made.network.run(400.0, while_=lambda made=made: not made.source.done)  # type: ignore[misc]
        assert made.source.done
        assert (made.source.retried, made.source.errors, made.source.duplicates) == (0, 0, 0)
        assert sum(node.worker.totals.refused for node in made.network.nodes.values()) == 0
        moved += made.planning.moves
    assert moved > 3
