"""The core dies and goes on, again and again, from what it wanted written down: one result an item, one answer a request."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from test_many_clients import Desk

from mdi_exit.events import (
    GiveUp,
    InputEnded,
    KeepItem,
    KeepReply,
    KeepRequest,
    ModelKnown,
    Record,
    RecordingHeld,
    ReplyFailed,
    Restored,
    RestoredItem,
    RestoredRequest,
    SegmentsReady,
    SendReply,
    Tick,
    TransportUp,
)
from mdi_exit.requests import RequestLimits
from mdi_exit.segments import ModelPlan
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.span import LayerSpan
from mdi_exit.wire import Reply
from mdi_exit.worker_config import WorkerConfig

LIMITS = RequestLimits(
    per_client=4,
    client_bytes=250,
    waiting=8,
    waiting_bytes=500,
    preparing=3,
    remembered=900,
    remembered_per_client=900,
)
PLAN = ModelPlan("ab" * 16, 2, (1,), (10,) * 2)
SPAN = LayerSpan(0, 2)


class Lives(Desk):
    """Writes down what the state asks for, as a journal does, and lets it die."""

    def __init__(self, seed: int) -> None:
        self.items: dict[int, KeepItem] = {}
        self.requests: dict[tuple[str, str], KeepRequest] = {}
        self.answers: dict[tuple[str, str], Reply] = {}
        self.unsent: dict[tuple[str, str], SendReply] = {}
        self.results: Counter[int] = Counter()
        super().__init__(seed, LIMITS)
        self.config = SourceConfig(
            run=7, own_input=self.rng.random() < 0.5, max_pending=6, max_queue=4, requests=LIMITS, journalled=True
        )
        self.revive()

    def revive(self) -> None:
        """Begin anew with what was written down."""
        before = self.state.life_totals()
        self.state = SourceState(self.config, WorkerConfig("source", 5, SPAN, window=3), Random(self.rng.random()))
        self.preparing, self.running, self.untaken = [], [], []
        open_requests = dict(self.requests)
        items = []
        for number, kept in self.items.items():
            asked = open_requests.pop((kept.client, kept.request), None) if kept.client else None
            lost = "gone" if self.rng.random() < 0.1 and asked is None else ""
            request = None if asked is None else self.again(asked)
            items.append(
                RestoredItem(number, kept.sample, None, None, 10, self.rng.random(), kept.deadline_s, request, lost)
            )
        replies = tuple(SendReply(reply, False, True) for reply in self.answers.values())
        self.give(
            Restored(
                next_item=before.admitted + 1,
                totals=before,
                items=tuple(items),
                requests=tuple(self.again(asked) for asked in open_requests.values()),
                replies=replies,
                unsent=tuple(self.unsent.values()),
            )
        )
        after = self.state.life_totals()
        assert (after.admitted, after.turned_away, after.tickets >= before.tickets) == (
            before.admitted, before.turned_away, True,
        )  # fmt: skip
        keys = {PLAN.segment(layer, SPAN, early_exits=early): 0.01 for layer in SPAN for early in (True, False)}
        for event in (ModelKnown(PLAN), TransportUp(), SegmentsReady(keys), Tick()):
            self.give(event)

    def again(self, asked: KeepRequest) -> RestoredRequest:
        return RestoredRequest(asked.client, asked.id, object(), 10, asked.plain, 0.001, asked.deadline_s)

    def give(self, event) -> None:
        state, handle = self.state, self.state.handle

        def watched(now, event):
            commands = handle(now, event)
            self.keep(commands)
            return commands

        state.handle = watched  # type: ignore[method-assign]
        try:
            super().give(event)
        finally:
            del state.handle  # type: ignore[attr-defined]
        for key in [key for key in self.unsent if key in self.replies]:
            if self.rng.random() < 0.9:
                del self.unsent[key]

    def keep(self, commands) -> None:
        if not self.state.config.journalled:
            return
        for command in commands:
            match command:
                case KeepItem(item):
                    assert item not in self.items
                    assert not self.results[item]
                    self.items[item] = command
                case KeepRequest(client, identity):
                    assert (client, identity) not in self.answers
                    self.requests[client, identity] = command
                case KeepReply(reply):
                    key = reply.client, reply.id
                    del self.requests[key]
                    self.answers[key] = reply
                    self.unsent[key] = SendReply(reply, False, True)
                case SendReply(reply, _, kept):
                    key = reply.client, reply.id
                    assert not kept or self.answers[key] == reply, "what is sent was written down before"
                case Record(row=row):
                    self.results[row.item] += 1
                    assert self.items.pop(row.item, None) is not None


@given(seed=st.integers(0, 2**32), lengths=st.lists(st.integers(0, 80), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_one_result_and_one_answer_over_all_lives(seed: int, lengths: list[int]) -> None:
    lives = Lives(seed)
    for length in lengths:
        for _ in range(length):
            lives.step()
            if lives.rng.random() < 0.05:
                lives.give(RecordingHeld(lives.rng.choice(("", "the disk is full"))))
        lives.revive()
    lives.give(RecordingHeld(""))
    lives.give(InputEnded())
    lives.give(GiveUp("the end"))
    lives.give(TransportUp())
    while lives.untaken or lives.state.desk._untaken:
        if lives.untaken:
            lives.give(ReplyFailed(lives.untaken.pop()))
        lives.now += 1.0
        lives.give(Tick())
    assert not lives.items
    assert not lives.requests
    assert set(lives.results.values()) <= {1}
    assert sum(lives.results.values()) == lives.state.admitted == lives.state.completed + lives.state.errors
    assert lives.answers.keys() <= lives.replies.keys() | lives.unsent.keys()


def test_while_nothing_can_be_recorded_nothing_is_admitted() -> None:
    lives = Lives(1)
    lives.give(RecordingHeld("results: could not write r.jsonl: No space left on device"))
    admitted, asked = lives.state.admitted, len(lives.replies)
    for _ in range(200):
        lives.step()
    assert lives.state.admitted - admitted <= 20  # what had been asked for before
    reasons = {reply.reply.reason for key, said in list(lives.replies.items())[asked:] for reply in said}
    assert any("No space left" in reason for reason in reasons)
    assert lives.state.held
