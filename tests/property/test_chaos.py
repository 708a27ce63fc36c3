"""Whatever happens to the nodes and to the wire: each admitted item ends in exactly one record."""

from __future__ import annotations

from collections import Counter
from itertools import count
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mdi_exit.events import (
    Command,
    Event,
    InputEnded,
    InputOffered,
    OrderReceived,
    Record,
    SegmentDone,
    SegmentFailed,
    SendAck,
    SendControl,
    SendFailed,
    SendProbe,
    SendResults,
    SendStatus,
    SendTask,
    SendTelemetry,
    SetAdmission,
    StatusReceived,
    TaskReceived,
    Tick,
    TransportDown,
    TransportUp,
)
from mdi_exit.orders import order_of
from mdi_exit.segments import ModelPlan, SegmentKey
from mdi_exit.simulation import SimulatedNetwork, SimulatedNode
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.wire import Status
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

PLAN = ModelPlan("ab" * 16, 6, (1, 3, 5), (3000, 6000, 12000, 3000, 2000, 1000))
SPANS = ("0-5", "0-3", "2-5", "4-5", "1-2", "3-3", "2-3")
OWN_EVENTS = (Tick, SegmentDone, SegmentFailed, SendFailed, InputOffered, InputEnded, TransportUp, TransportDown)
SENDS = (SendTask, SendResults, SendAck, SendProbe, SendStatus, SendTelemetry, SendControl)


def exits(item: int, exit_number: int) -> tuple[int, float]:
    return item % 10, min(1.0, 0.4 * (exit_number + 1) * Random(item).random() + 0.2)


def seconds(slowness: float):
    def of(key: SegmentKey, batch: int) -> float:
        return slowness * (0.004 + 0.003 * batch * (key.stop - key.entry))

    return of


class Chaos(SimulatedNetwork):
    """The simulated network, with messages that come twice, transports that refuse and return, and engines that fail."""

    def __init__(self, seed: int, *, source_span: str | None, window: int, items: int) -> None:
        rng = Random(seed)
        super().__init__(PLAN, exits, rng, validate=True)
        self.twice = self.failing = 0.0
        self.refusing: set[str] = set()
        self.down: set[str] = set()
        self.window = window
        self.recorded: Counter[str] = Counter()
        self._incarnations = count(100)
        self._orders = count(1)
        self._samples = iter([InputOffered(str(number), None, 3000) for number in range(items)])
        self.draw = lambda: next(self._samples, InputEnded())
        config = SourceConfig(run=7, threshold=0.7, max_attempts=40, max_pending=40)
        span = LayerSpan.parse(source_span) if source_span else None
        self.source = SourceState(config, WorkerConfig("source", 1, span, window=window), rng)
        self.add(SimulatedNode(self.source, seconds(1.0)))

    def start(self, name: str, span: str, neighbours: frozenset[str] | None = None) -> None:
        self.down.discard(name)
        self.refusing.discard(name)
        config = WorkerConfig(
            name,
            next(self._incarnations),
            LayerSpan.parse(span),
            window=self.window,
            slots=self.window,
            neighbours=neighbours,
        )
        self.add(SimulatedNode(WorkerState(config, self.rng), seconds(0.5 + self.rng.random())))

    def lose_connection(self, name: str) -> None:
        """Nothing is taken any more; a moment later the node is told, and the others get its last will."""
        if not self.nodes[name].up or name in self.refusing:
            return
        self.refusing.add(name)
        self.at(self.now + 0.05, name, TransportDown(), self.nodes[name])
        status = self._statuses[name]
        self._statuses[name] = will = Status(name, status.incarnation, online=False)
        self._broadcast(name, StatusReceived(will))

    def reconnect(self, name: str) -> None:
        if not self.nodes[name].up or name not in self.refusing:
            return
        self.refusing.discard(name)
        self.down.discard(name)
        self.at(self.now + 0.06, name, TransportUp(), self.nodes[name])

    def order(self, words: str) -> None:
        """Every node that is there hears it."""
        order = order_of("desk", next(self._orders), words.split())
        for name in self.nodes:
            self.at(self.now + 0.001, name, OrderReceived(order))

    def _give(self, name: str, event: Event) -> None:
        if name in self.refusing and not isinstance(event, OWN_EVENTS):
            return
        super()._give(name, event)
        worker = self.nodes[name].worker
        for sender in self.nodes:
            for layer in range(PLAN.layer_count):
                assert worker.store.held_for(sender, layer) <= 2 * self.window
        if name == "source":
            assert not self.recorded.keys() & {entry.sample for entry in self.source.pending.values()}

    def _do(self, name: str, node: SimulatedNode, command: Command) -> None:
        if name in self.refusing and isinstance(command, SENDS):
            if isinstance(command, SendTask | SendResults):
                self.at(self.now + 0.001, name, SendFailed(command), node)
            return
        if isinstance(command, Record):
            self.recorded[command.sample] += 1
            assert self.recorded[command.sample] == 1, f"{command.sample} is recorded twice"
        super()._do(name, node, command)

    def at(self, when: float, name: str, event: Event, start: SimulatedNode | None = None) -> None:
        if isinstance(event, SegmentDone) and self.rng.random() < self.failing:
            event = SegmentFailed(event.batch, "the engine failed")
        super().at(when, name, event, start)
        if isinstance(event, TaskReceived) and self.rng.random() < self.twice:
            super().at(when + 0.01 * self.rng.random(), name, event, start)

    def calm(self, agents: dict[str, str]) -> None:
        """All faults end, and everybody is there."""
        self.loss = self.twice = self.failing = 0.0
        self.reconnect("source")
        for name, span in agents.items():
            if self.nodes[name].up:
                self.reconnect(name)
            else:
                self.start(name, span)
        self.run(self.now + 0.1)
        for words in ("resume", "adapt none", "rate max", *(f"undrain {name}" for name in agents)):
            self.order(words)

    def finish(self, within_s: float = 400.0) -> None:
        self.run(self.now + within_s, while_=lambda: not self.source.done)
        source = self.source
        assert source.done, (
            f"at {self.now:.1f} s {len(source.pending)} of {source.admitted} pending, missing {source.missing}, "
            f"{ {name: (n.worker.inputs, n.worker.outputs) for name, n in self.nodes.items()} }"
        )
        assert len(self.recorded) == source.admitted == source.completed + source.errors
        assert source.offered == source.admitted + source.refused


ACTIONS = st.lists(
    st.tuples(
        st.floats(0.01, 1.5),
        st.sampled_from(
            ["kill", "start", "lose", "reconnect", "source lost", "source back", "noise", "will", "threshold", "order"]
        ),
        st.integers(0, 3),
        st.floats(0.0, 0.3),
    ),
    max_size=12,
)


@given(
    seed=st.integers(0, 2**20),
    spans=st.lists(st.sampled_from(SPANS), min_size=1, max_size=3),
    source_span=st.sampled_from([None, "0-5", "0-3", "4-5"]),
    window=st.sampled_from([1, 2, 8]),
    actions=ACTIONS,
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_each_admitted_item_is_recorded_once_through_any_faults(seed, spans, source_span, window, actions) -> None:
    net = Chaos(seed, source_span=source_span, window=window, items=40)
    agents = {"whole": "0-5"} | {f"n{number}": span for number, span in enumerate(spans)}
    for name, span in agents.items():
        net.start(name, span)
    for pause, action, which, share in actions:
        net.run(net.now + pause)
        name = list(agents)[which % len(agents)]
        match action:
            case "kill" if net.nodes[name].up:
                net.kill(name)
            case "start" if not net.nodes[name].up:
                net.start(name, agents[name])
            case "lose":
                net.lose_connection(name)
            case "reconnect":
                net.reconnect(name)
            case "source lost":
                net.lose_connection("source")
            case "source back":
                net.reconnect("source")
            case "noise":
                net.loss, net.twice, net.failing = share, 2 * share, share / 2
            case "will":
                net.at(net.now, "source", StatusReceived(Status(name, 3, online=False)))
            case "order":
                orders = (
                    "pause",
                    "resume",
                    "threshold 0.6 force",
                    "rate 40/s",
                    "adapt rate",
                    "policy offloading never",
                )
                net.order((*orders, f"drain {name}", f"undrain {name}", f"drain {name}")[round(share * 30) % 9])
            case "threshold":
                net.at(net.now, "source", SetAdmission(threshold=0.4 + 2 * share))
    net.calm(agents)
    net.finish()
    for node in net.nodes.values():
        node.state.validate()


@given(
    seed=st.integers(0, 2**20),
    window=st.sampled_from([1, 2]),
    spans=st.lists(st.sampled_from(["0-5", "0-1", "2-3", "4-5", "1-4", "3-3", "0-2"]), min_size=2, max_size=5),
    threshold=st.sampled_from([0.6, 1.0]),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_spans_round_a_ring_never_block(seed, window, spans, threshold) -> None:
    """Each node sends only to its neighbours on a ring, every slot is taken, and no message is lost: all items must end.

    A task of a layer that nobody near holds can only wait, so the neighbour of every node holds all layers.
    """
    net = Chaos(seed, source_span="0-1", window=window, items=60)
    names = [f"n{number}" for number in range(len(spans))]
    ring = ["source", *names]
    net.source.threshold = threshold
    net.source.worker.config = WorkerConfig(
        "source", 1, LayerSpan(0, 2), role="source", window=window, neighbours=frozenset({names[0], "whole"})
    )
    net.start("whole", "0-5", neighbours=frozenset({names[0]}))
    for number, (name, span) in enumerate(zip(names, spans, strict=True), start=1):
        net.start(name, span, neighbours=frozenset({ring[(number + 1) % len(ring)], "whole"}))
    net.finish(60.0)
    assert net.source.errors == 0
    assert net.source.retried == 0, "nothing was lost and nothing should look lost"
