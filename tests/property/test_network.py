"""The same states that run live, in virtual time: whatever happens, each admitted item gets exactly one result."""

from __future__ import annotations

from collections import Counter
from itertools import count
from random import Random

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mdi_exit.events import InputEnded, InputOffered
from mdi_exit.segments import ModelPlan, SegmentKey
from mdi_exit.simulation import SimulatedNetwork, SimulatedNode
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

PLAN = ModelPlan("ab" * 16, 9, (1, 3, 5, 6, 8), (3136, 6272, 12544, 3136, 3136, 2048, 2048, 3072, 5120))
LAYER_S = (0.001, 0.01, 0.004, 0.004, 0.004, 0.005, 0.011, 0.035, 0.02)


def seconds(slowness: float):
    def of(key: SegmentKey, batch: int) -> float:
        return batch * slowness * sum(LAYER_S[key.entry : key.stop])

    return of


def exits(item: int, exit_number: int) -> tuple[int, float]:
    hardness = Random(item).random()
    return item % 10, min(1.0, max(0.0, 1.0 - hardness * (1 - 0.2 * exit_number)))


# A failing case is a whole run: shrinking it would take minutes.
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)


class Bench:
    """A network with a source that offers ``items`` samples (None: without end)."""

    def __init__(
        self, *, span: str | None, items: int | None, seed: int = 0, window: int = 16, validate: bool = True, **config
    ) -> None:
        self.rng = Random(seed)
        self.net = SimulatedNetwork(PLAN, exits, self.rng, validate=validate)
        self.numbers = count()
        self.items = items
        self.net.draw = self.draw
        self.incarnations = count(100)
        self.window = window
        worker = WorkerConfig(
            "source",
            1,
            LayerSpan.parse(span) if span else None,
            window=window,
            neighbours=config.pop("neighbours", None),
        )
        self.source = SourceState(SourceConfig(run=7, **config), worker, self.rng)
        self.net.add(SimulatedNode(self.source, seconds(1.0)))

    def draw(self) -> InputOffered | InputEnded:
        number = next(self.numbers)
        if self.items is not None and number >= self.items:
            return InputEnded()
        return InputOffered(str(number), None, 3136)

    def agent(self, name: str, span: str, slowness: float = 1.0, neighbours=None) -> None:
        config = WorkerConfig(
            name,
            next(self.incarnations),
            LayerSpan.parse(span),
            window=self.window,
            slots=self.window,
            neighbours=neighbours,
        )
        self.net.add(SimulatedNode(WorkerState(config, self.rng), seconds(slowness)))

    def finish(self, until: float) -> None:
        self.net.run(until, while_=lambda: not self.source.done)
        assert self.source.done, (
            f"at {self.net.now:.1f} s: {len(self.source.pending)} pending of {self.source.admitted}, missing "
            f"{self.source.missing}, queues {[(n, x.worker.inputs, x.worker.outputs) for n, x in self.net.nodes.items()]}"
        )
        recorded = Counter(record.sample for record in self.net.records)
        assert set(recorded.values()) <= {1}
        assert len(recorded) == self.source.admitted == self.source.completed + self.source.errors


@given(seed=st.integers(0, 10_000), window=st.sampled_from([1, 2]))
@settings(max_examples=8, deadline=None, phases=NO_SHRINKING)
def test_interleaved_spans_on_a_ring_do_not_deadlock(seed: int, window: int) -> None:
    bench = Bench(span="0-1", items=60, seed=seed, window=window, threshold=1.0, neighbours=frozenset({"a"}))
    # Each node sends only to the next; b and c hold later layers before earlier ones come round again.
    bench.agent("a", "2-3", neighbours=frozenset({"b"}))
    bench.agent("b", "4-4", neighbours=frozenset({"c"}))
    bench.agent("c", "5-8", neighbours=frozenset({"source"}))
    bench.agent("d", "2-8", neighbours=frozenset({"source"}))
    bench.finish(300.0)
    assert bench.source.errors == 0


@given(seed=st.integers(0, 10_000), window=st.sampled_from([1, 2, 4]))
@settings(max_examples=8, deadline=None, phases=NO_SHRINKING)
def test_overlapping_spans_round_a_ring_do_not_deadlock(seed: int, window: int) -> None:
    bench = Bench(span="0-8", items=80, seed=seed, window=window, threshold=0.95, neighbours=frozenset({"a"}))
    bench.agent("a", "0-8", 0.5, neighbours=frozenset({"b"}))
    bench.agent("b", "0-8", 2.0, neighbours=frozenset({"source"}))
    bench.finish(300.0)
    assert bench.source.errors == 0
    assert bench.source.retried <= 0.1 * 80 + 20


SPANS = st.sampled_from(["0-8", "0-3", "2-6", "4-8", "4-6", "7-8", "3-3", "1-8"])


@given(
    seed=st.integers(0, 10_000),
    spans=st.lists(SPANS, min_size=1, max_size=4),
    source=st.sampled_from([None, "0-8", "0-3", "4-8"]),
    loss=st.sampled_from([0.0, 0.02, 0.2]),
    faults=st.lists(st.tuples(st.floats(0.5, 6.0), st.integers(0, 3), st.booleans()), max_size=4),
)
@settings(max_examples=10, deadline=None, phases=NO_SHRINKING, suppress_health_check=[HealthCheck.too_slow])
def test_each_admitted_item_gets_exactly_one_result(seed, spans, source, loss, faults) -> None:
    bench = Bench(span=source, items=60, seed=seed, threshold=0.9, max_attempts=50)
    bench.agent("whole", "0-8")  # so that there is always a way, whatever else dies
    names = [f"a{i}" for i in range(len(spans))]
    for name, span in zip(names, spans, strict=True):
        bench.agent(name, span, slowness=0.5 + bench.rng.random() * 2)
    bench.net.loss = loss
    for at, which, returns in sorted(faults):
        bench.net.run(at, while_=lambda: not bench.source.done)
        if bench.source.done:
            break
        name = names[which % len(names)]
        bench.net.kill(name)
        if returns:
            bench.agent(name, spans[which % len(names)])
    bench.net.loss = min(loss, 0.02)
    bench.finish(2000.0)
    assert bench.source.errors == 0


def test_an_attempt_of_a_dead_holder_is_made_again_at_once() -> None:
    bench = Bench(span=None, items=10, threshold=1.0)
    bench.agent("slow", "0-8", slowness=50.0)
    bench.net.run(1.0)
    assert {entry.holder for entry in bench.source.pending.values()} == {"slow"}
    bench.agent("quick", "0-8", slowness=0.1)
    bench.net.run(1.5)
    bench.net.kill("slow")
    bench.finish(bench.net.now + 2.0)
    assert bench.source.errors == 0
    assert all(record.row.path[-1] == "quick" for record in bench.net.records)


def test_a_gap_is_told_once_within_two_seconds_and_the_run_goes_on_when_it_is_closed() -> None:
    bench = Bench(span="0-3", items=200, threshold=0.99)
    bench.agent("a", "4-8")
    bench.net.run(1.0)
    bench.net.kill("a")
    died = bench.net.now
    bench.net.run(died + 2.0)
    gaps = [(when, n.text) for when, n in bench.net.notices if n.kind == "gap" and when > died]
    assert len(gaps) == 1
    assert "layers 4-8" in gaps[0][1]
    assert "items wait" in gaps[0][1]
    bench.net.run(died + 10.0)
    assert len([n for when, n in bench.net.notices if n.kind == "gap" and when > died]) == 1
    assert bench.source.pending
    bench.agent("a", "4-8")
    bench.finish(died + 60.0)
    assert bench.source.errors == 0


def test_a_silent_node_is_noticed_and_its_items_go_elsewhere() -> None:
    bench = Bench(span=None, items=40, threshold=1.0)
    bench.agent("frozen", "0-8")
    bench.agent("fine", "0-8")
    bench.net.run(0.6)
    bench.net.nodes["frozen"].up = False  # no last will
    bench.net.run(0.6 + 3.5)
    assert any(n.kind == "silent" and "frozen" in n.text for _, n in bench.net.notices)
    bench.finish(60.0)
    assert bench.source.errors == 0
