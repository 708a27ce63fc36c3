"""Requests of many clients in virtual time: fair, each answered once, deadlines kept, memory bounded."""

from __future__ import annotations

from collections import Counter, defaultdict
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_network import NO_SHRINKING, Bench

from mdi_exit.events import (
    GiveUp,
    InputEnded,
    InputOffered,
    ModelKnown,
    Outcome,
    PrepareRequest,
    Record,
    ReplyFailed,
    RequestPrepared,
    RequestReceived,
    RequestUnusable,
    RunSegment,
    SegmentDone,
    SegmentsReady,
    SendReply,
    Tick,
    TransportDown,
    TransportUp,
)
from mdi_exit.requests import RequestLimits
from mdi_exit.segments import ModelPlan
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.worker_config import WorkerConfig

# Threshold 1 on all nine layers: an item takes 0.094 s of work, so that one node does 10.6 items a second.
WORK_S = 0.094


class Clients:
    """Clients of a ``Bench``: what each asked, and the replies to it with their times."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.asked: dict[tuple[str, str], tuple[float, float | None]] = {}
        self.numbers: Counter[str] = Counter()
        self.rng = Random(bench.rng.random())

    def ask(self, when: float, client: str, deadline_s: float | None = None) -> None:
        number = str(self.numbers[client])
        self.numbers[client] += 1
        self.asked[client, number] = when, deadline_s
        self.bench.net.at(when, "source", RequestReceived(client, number, None, 2000, deadline_s))

    def poisson(
        self, client: str, rate_per_s: float, start: float, stop: float, deadline_s: float | None = None
    ) -> None:
        at = start
        while (at := at + self.rng.expovariate(rate_per_s)) < stop:
            self.ask(at, client, deadline_s)

    def regular(
        self, client: str, rate_per_s: float, start: float, stop: float, deadline_s: float | None = None
    ) -> None:
        """At even intervals, from a moment of its own on."""
        at = start + self.rng.random() / rate_per_s
        while at < stop:
            self.ask(at, client, deadline_s)
            at += 1 / rate_per_s

    def answers(self) -> dict[str, Counter[str]]:
        """By client: how many labels and errors of each kind. Each request was answered once, and never too late."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        seen = set()
        for when, command in self.bench.net.replies:
            reply = command.reply
            key = reply.client, reply.id
            assert key not in seen, f"a second reply to {key}"
            seen.add(key)
            asked_at, deadline_s = self.asked[key]
            assert reply.latency_s == pytest.approx(when - asked_at)
            if deadline_s is not None:
                assert when <= asked_at + deadline_s + 1e-5, "no later than the deadline, label or not"
                assert reply.error or when < asked_at + deadline_s
            assert (reply.label is None) == bool(reply.error) == bool(reply.reason)
            found[reply.client][reply.error or "label"] += 1
        assert seen == set(self.asked), "each request has its reply"
        return found


def bench_of(*, agents: int = 2, **config) -> Bench:
    bench = Bench(span=None, items=None, threshold=1.0, validate=False, **config)
    for number in range(agents):
        bench.agent(f"a{number}", "0-8")
    return bench


def within_a_fifth(counts: list[int]) -> bool:
    mean = sum(counts) / len(counts)
    return all(abs(count - mean) <= 0.2 * mean for count in counts)


@pytest.mark.parametrize("deadline_s", [None, 3.0])
def test_fifty_clients_at_twice_the_capacity_are_served_alike(deadline_s: float | None) -> None:
    bench = bench_of(own_input=False)
    clients = Clients(bench)
    capacity, names = 2 / WORK_S, [f"c{number}" for number in range(50)]
    for name in names:
        clients.regular(name, 2 * capacity / 50, 1.0, 61.0, deadline_s)
    bench.net.run(400.0, while_=lambda: len(bench.net.replies) < len(clients.asked))
    answers = clients.answers()
    labels = [answers[name]["label"] for name in names]
    assert within_a_fifth(labels), sorted(labels)
    assert sum(labels) >= 0.9 * 60 * capacity, "the nodes were kept busy with what was worth it"
    assert sum(answers.total() for answers in answers.values()) == len(clients.asked)
    if deadline_s is not None:
        late = sum(answers[name]["deadline"] for name in names)
        assert late == len(clients.asked) - sum(labels)
        assert bench.source.errors <= 0.06 * bench.source.admitted, "little was worked on for nothing"
    bench.source.validate()


def test_clients_in_a_hurry_get_their_share_among_patient_ones() -> None:
    bench = bench_of(own_input=False)
    clients = Clients(bench)
    capacity, names = 2 / WORK_S, [f"c{number}" for number in range(10)]
    for number, name in enumerate(names):
        clients.poisson(name, 2 * capacity / 10, 1.0, 61.0, 4.0 if number % 2 else None)
    bench.net.run(61.0)
    labels = Counter(command.reply.client for _, command in bench.net.replies if not command.reply.error)
    assert within_a_fifth([labels[name] for name in names]), labels


def test_one_greedy_client_takes_nothing_from_modest_ones() -> None:
    bench = bench_of(own_input=False)
    clients = Clients(bench)
    capacity = 2 / WORK_S
    clients.poisson("greedy", 8 * capacity, 1.0, 21.0)
    for number in range(4):
        clients.poisson(f"modest{number}", 0.1 * capacity, 1.0, 21.0)
    bench.net.run(100.0, while_=lambda: len(bench.net.replies) < len(clients.asked))
    answers = clients.answers()
    for number in range(4):
        assert set(answers[f"modest{number}"]) == {"label"}, "below its share, a client is never refused"
    assert answers["greedy"]["label"] >= 0.5 * 20 * capacity, "what others leave is its own"
    assert answers["greedy"]["refused"] > answers["greedy"]["label"]


@pytest.mark.parametrize("own", [{}, {"rate_per_s": 60.0}, {"adapt": "rate"}], ids=["unpaced", "too fast", "rate"])
def test_the_own_input_is_one_party_among_the_clients(own: dict[str, object]) -> None:
    bench = bench_of(**own)
    clients = Clients(bench)
    capacity = 2 / WORK_S
    for name in ("x", "y", "z"):
        clients.poisson(name, capacity, 0.0, 40.0)
    bench.net.run(10.0)
    before = Counter(record.sample.partition("/")[0] if "/" in record.sample else "" for record in bench.net.records)
    bench.net.run(40.0)
    served = Counter(record.sample.partition("/")[0] if "/" in record.sample else "" for record in bench.net.records)
    served.subtract(before)
    assert within_a_fifth([served[name] for name in ("", "x", "y", "z")]), served
    assert served.total() >= 0.9 * 30 * capacity


def test_a_slow_camera_does_not_hold_up_the_clients() -> None:
    bench = bench_of()
    bench.net.draw = Tick  # type: ignore[assignment]  # no sample comes
    clients = Clients(bench)
    clients.poisson("x", 5.0, 1.0, 11.0)
    bench.net.run(15.0)
    assert set(clients.answers()["x"]) == {"label"}


def test_own_arrivals_below_their_share_are_not_refused_for_the_clients_sake() -> None:
    bench = bench_of(rate_per_s=4.0)
    clients = Clients(bench)
    for name in ("x", "y"):
        clients.poisson(name, 40.0, 0.0, 30.0)
    bench.net.run(30.0)
    own = [record for record in bench.net.records if "/" not in record.sample]
    assert len(own) >= 0.9 * 4 * 30
    assert bench.source._own_refused == 0


@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.05]),
    span=st.sampled_from([None, "0-8", "0-3"]),
    own=st.booleans(),
)
@settings(max_examples=10, deadline=None, phases=NO_SHRINKING)
def test_each_request_gets_one_reply_whatever_happens_to_the_nodes(seed, loss, span, own) -> None:
    limits = RequestLimits(per_client=3, waiting=7, waiting_bytes=11_000, preparing=2, remembered=9)
    bench = Bench(span=span, items=20, seed=seed, threshold=0.9, own_input=own, requests=limits, max_attempts=4)
    bench.agent("whole", "0-8")
    bench.agent("late", "4-8")
    bench.net.loss = loss
    clients = Clients(bench)
    rng = clients.rng
    for _ in range(150):
        deadline_s = rng.choice((None, 0.05, 0.5, 3.0))
        clients.ask(rng.random() * 5, rng.choice("abcdef"), deadline_s)
    bench.net.run(2.0)
    bench.net.kill("late")
    bench.net.run(300.0, while_=lambda: len(bench.net.replies) < 150)
    clients.answers()
    bench.source.validate()
    assert not bench.source.pending or own


class Desk:
    """Random events at a source with its own layers; remembers what was asked and what was said."""

    def __init__(self, seed: int, limits: RequestLimits) -> None:
        self.rng = Random(seed)
        plan = ModelPlan("ab" * 16, 2, (1,), (10,) * 2)
        span = LayerSpan(0, 2)
        self.limits = limits
        config = SourceConfig(run=7, own_input=self.rng.random() < 0.5, max_pending=6, max_queue=4, requests=limits)
        self.state = SourceState(config, WorkerConfig("source", 5, span, window=3), self.rng)
        self.now = 0.0
        self.offered = 0
        self.replies: dict[tuple[str, str], list[SendReply]] = defaultdict(list)
        self.asked: set[tuple[str, str]] = set()
        self.deadlines: dict[tuple[str, str], float | None] = {}
        self.untaken: list[SendReply] = []
        self.preparing: list[int] = []
        self.running: list[RunSegment] = []
        self.recorded: Counter[str] = Counter()
        keys = {plan.segment(layer, span, early_exits=early): 0.01 for layer in span for early in (True, False)}
        for event in (ModelKnown(plan), TransportUp(), SegmentsReady(keys), Tick()):
            self.give(event)

    def give(self, event) -> None:
        for command in self.state.handle(self.now, event):
            match command:
                case SendReply(reply):
                    assert self.state.worker.connected
                    limit_s = self.deadlines.get((reply.client, reply.id))
                    assert reply.label is None or limit_s is None or reply.latency_s < limit_s, (
                        "no label when it is late"
                    )
                    if self.rng.random() < 0.1:
                        self.untaken.append(command)
                    else:
                        self.replies[reply.client, reply.id].append(command)
                case PrepareRequest(ticket):
                    self.preparing.append(ticket)
                case RunSegment():
                    self.running.append(command)
                case Record(sample):
                    self.recorded[sample] += 1
        self.state.validate()

    def step(self) -> None:
        rng = self.rng
        self.now += rng.random() * rng.choice((0.0, 0.01, 0.3))
        kind = rng.random()
        if kind < 0.4:
            client, identity = rng.choice("abc"), rng.choice(("", *map(str, range(40))))
            deadline_s = rng.choice((None, None, 0.01, 0.5, 3000.0))
            if identity:
                self.asked.add((client, identity))
                if (
                    self.limits.remembered_per_client >= 1000
                ):  # else a forgotten one is a new request, with its own deadline
                    self.deadlines.setdefault((client, identity), deadline_s)
            self.give(
                RequestReceived(client, identity, object(), rng.choice((10, 100)), deadline_s, rng.random() < 0.5)
            )
        elif kind < 0.55 and self.preparing:
            ticket = self.preparing.pop(rng.randrange(len(self.preparing)))
            bad = rng.random() < 0.2
            self.give(RequestUnusable(ticket, "no image") if bad else RequestPrepared(ticket, None, 10))
        elif kind < 0.7 and self.running:
            run = self.running.pop()
            label = 1 if run.key.head else None
            self.give(SegmentDone(run.batch, 0.01, tuple(Outcome(label, 0.5, None, 10) for _ in run.tasks)))
        elif kind < 0.75 and self.untaken:
            self.give(ReplyFailed(self.untaken.pop()))
        elif kind < 0.78:
            self.give(rng.choice((TransportUp(), TransportDown(), TransportUp())))
        elif kind < 0.83:
            self.offered += 1
            self.give(InputOffered(str(self.offered), None, 10))
        elif kind < 0.84:
            self.give(RequestPrepared(99_999, None, 10))
        else:
            self.give(Tick())


@given(seed=st.integers(0, 2**32), length=st.integers(1, 400))
@settings(max_examples=100, deadline=None)
def test_each_request_is_answered_once_under_any_events(seed: int, length: int) -> None:
    limits = RequestLimits(
        per_client=4, client_bytes=250, waiting=8, waiting_bytes=500, preparing=3, remembered=1000,
        remembered_per_client=1000,
    )  # fmt: skip
    desk = Desk(seed, limits)
    for _ in range(length):
        desk.step()
        assert desk.state.next_wakeup() < desk.now + 10
        assert len(desk.state.desk._deadlines) <= 2 * (8 + 3 + 6) + 64 + 1
    desk.give(InputEnded())
    desk.give(GiveUp("the end"))
    desk.give(TransportUp())
    while desk.untaken or desk.state.desk._untaken:
        if desk.untaken:
            desk.give(ReplyFailed(desk.untaken.pop()))
        desk.now += 1.0
        desk.give(Tick())
    for key, said in desk.replies.items():
        assert len({command.reply for command in said}) == 1, f"{key} got two answers"
    assert desk.asked <= desk.replies.keys()
    assert len(desk.replies) == desk.state.desk.received
    assert set(desk.recorded.values()) <= {1}
    assert desk.state.done or desk.state._turns.draws


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_memory_is_bounded_however_many_ask(seed: int) -> None:
    limits = RequestLimits(
        per_client=2, waiting=10, waiting_bytes=600, preparing=2, remembered=20, remembered_per_client=3, unsent=15
    )
    desk = Desk(seed, limits)
    for number in range(400):
        client = desk.rng.choice((f"c{number}", "same"))
        desk.give(RequestReceived(client, f"{number}", object(), 100, desk.rng.choice((None, 0.1, 3000.0))))
        if desk.rng.random() < 0.3:
            desk.step()
        held = desk.state.desk
        assert held.waiting <= 10
        assert held.waiting_bytes <= 600
        assert len(held._open) <= 10 + 2 + 6
        assert len(held._remembered) <= 20 >= sum(map(len, held._remembered_of.values()))
        assert max(len(held._queues), len(held._bytes)) <= 10
        assert len(held._outgoing) <= 15 >= len(held._untaken)
        assert len(held._deadlines) <= 2 * 18 + 64 + 1
