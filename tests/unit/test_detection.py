"""Death by silence, and what it costs: in virtual time, exact."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from test_network import Bench

from mdi_exit.membership import Change, Members
from mdi_exit.wire import Status, Telemetry


def bench(**config) -> Bench:
    """A source of layers 0-3 and two agents for the rest, under way for 10 s; retries by timer are a minute off."""
    made = Bench(span="0-3", items=None, min_retry_s=60.0, rate_per_s=15.0, threshold=1.0, **config)
    for name in ("a", "b"):
        made.agent(name, "4-8")
    made.net.run(10.0)
    return made


def told(bench: Bench, kind: str, about: str = "") -> list[float]:
    """When notices of this kind were given."""
    return [at for at, notice in bench.net.notices if notice.kind == kind and notice.text.startswith(about)]


def ends_well(bench: Bench) -> None:
    """Every item that was admitted has one result, a label."""
    source = bench.source
    bench.items = 0
    bench.finish(bench.net.now + 120.0)
    assert source.admitted == source.completed == len(bench.net.records)
    assert max(Counter(record.sample for record in bench.net.records).values()) == 1


def alive_at(bench: Bench, name: str) -> list[bool]:
    """What the others think of it."""
    return [node.worker.members.peers[name].alive for key, node in bench.net.nodes.items() if key != name]


@pytest.mark.parametrize("how", ["freeze", "cut"])
def test_a_frozen_or_cut_off_agent_is_noticed_within_3_s_by_all_and_its_items_go_to_another(how: str) -> None:
    made = bench()
    source = made.source
    held = 0
    while not held:  # until it has something to lose
        made.net.run(made.net.now + 0.01)
        held = sum(entry.holder == "a" for entry in source.pending.values())
    gone_at = made.net.now
    getattr(made.net, how)("a")
    made.net.run(gone_at + 1.4)
    assert alive_at(made, "a") == [True, True]
    assert source.retried == 0
    made.net.run(gone_at + 3.0)
    assert alive_at(made, "a") == [False, False], "at the source and at the other agent"
    assert told(made, "silent", "a")
    assert not told(made, "left", "a"), "no will was needed"
    assert source.retried >= held, "at once, and by silence: the timer is a minute off"
    assert not [entry for entry in source.pending.values() if entry.holder == "a"]

    made.net.run(gone_at + 10.0)
    made.net.thaw("a") if how == "freeze" else made.net.rejoin("a")
    back_at = made.net.now
    made.net.run(back_at + 0.6)
    assert alive_at(made, "a") == [True, True], "without a restart"
    delay = source.worker.members.peers["a"].out.delay
    assert delay.round_trip_s < 0.1, "the time away is no delay of the link"
    seen = len(made.net.records)
    made.net.run(back_at + 10.0)
    assert any("a" in record.row.path for record in made.net.records[seen:]), "it gets work again"
    ends_well(made)


def test_results_of_attempts_that_were_given_to_others_count_once() -> None:
    made = bench()
    source = made.source
    while not any(entry.holder == "a" for entry in source.pending.values()):
        made.net.run(made.net.now + 0.01)
    made.net.freeze("a")
    made.net.run(made.net.now + 10.0)
    made.net.thaw("a")
    made.net.run(made.net.now + 5.0)
    assert source.duplicates >= 1, "its answers come late, and are recognised"
    ends_well(made)


def test_a_will_that_comes_later_is_no_second_death() -> None:
    made = bench()
    made.net.freeze("a")
    made.net.run(made.net.now + 7.5)
    made.net.publish_will("a")
    made.net.run(made.net.now + 0.5)
    flaps = made.source.worker.members.flaps
    assert 0.9 < flaps.penalty(made.net.now, "a") <= 1.0
    made.net.frozen.pop("a")
    made.net.rejoin("a")
    made.net.run(made.net.now + 0.5)
    assert alive_at(made, "a") == [True, True]
    ends_well(made)


def test_a_node_that_computes_for_long_still_reports_and_is_not_taken_for_dead() -> None:
    made = Bench(span="0-3", items=6, min_retry_s=120.0, threshold=1.0)
    made.agent("slow", "4-8", slowness=80.0)  # 6 s for each item
    made.finish(300.0)
    assert made.source.completed == 6
    assert not told(made, "silent")
    assert made.source.retried == 0


@pytest.mark.parametrize("how", ["freeze", "cut"])
def test_a_source_that_was_stopped_or_cut_off_does_not_take_the_others_for_dead(how: str) -> None:
    made = bench()
    getattr(made.net, how)("source")
    made.net.run(made.net.now + 10.0)
    if how == "freeze":
        made.net.frozen["source"].clear()  # nor what came meanwhile, if it got lost
        made.net.thaw("source")
    else:
        made.net.rejoin("source")
    seen = len(made.net.notices)
    made.net.run(made.net.now + 5.0)
    assert not [
        notice for _, notice in made.net.notices[seen:] if notice.kind == "silent" and "source" not in notice.text
    ]
    assert made.source.worker.members.dead == set()


def test_items_wait_for_the_only_node_that_can_run_them() -> None:
    """Trying again what nobody else can run would only make it be run twice."""
    made = Bench(span="0-3", items=None, min_retry_s=60.0, rate_per_s=5.0, threshold=1.0)
    made.agent("a", "4-8", slowness=2.0)
    made.net.run(10.0)
    while not any(entry.holder == "a" for entry in made.source.pending.values()):
        made.net.run(made.net.now + 0.01)
    made.net.freeze("a")
    made.net.run(made.net.now + 8.0)
    assert made.source.missing == (4, 5, 6, 7, 8)
    made.net.thaw("a")
    made.net.run(made.net.now + 2.0)
    assert made.source.retried == made.source.duplicates == 0
    ends_well(made)


# --- coming and going


def test_an_agent_that_comes_and_goes_gets_work_later_each_time_unless_nobody_else_can_do_it() -> None:
    made = bench()
    members, worker = made.source.worker.members, made.source.worker
    waits = []
    for _ in range(5):
        made.net.kill("a")
        made.net.run(made.net.now + 1.0)
        made.agent("a", "4-8")
        made.net.run(made.net.now + 0.2)
        waits.append(members.flaps.hold_left_s(made.net.now, "a"))
        sent, held = worker.totals.sent["a"], waits[-1] > 0.5
        made.net.run(made.net.now + 0.3)
        assert held == (worker.totals.sent["a"] == sent) or not held
    assert waits[0] == 0.0, "one death is no flapping"
    assert all(later > 1.5 * sooner for sooner, later in pairwise(waits[1:])), waits
    assert len(told(made, "held", "a")) >= 4
    sent = worker.totals.sent["a"]
    made.net.kill("b")
    made.net.run(made.net.now + 0.5)
    assert worker.totals.sent["a"] > sent, "alone, it is given work all the same"
    made.agent("b", "4-8")
    made.net.run(made.net.now + 90.0)
    assert members.flaps.held == {}
    made.net.run(made.net.now + 600.0)
    assert members.flaps.penalty(made.net.now, "a") == 0.0, "in the end all is forgotten"
    ends_well(made)


def status(incarnation: int, *, online: bool = True, state: str = "ready") -> Status:
    return Status("a", incarnation, online, "agent", state, span=(4, 9), entries=(4,), window=4)


def test_a_goodbye_is_no_death_and_neither_is_what_a_dying_broker_says() -> None:
    members = Members("me", 2.5)
    for start in range(1, 5):
        members.status(start, status(start), retained=False)
        members.status(start + 0.5, status(start, online=False, state="left"), retained=False)
    assert members.flaps.penalty(5.0, "a") == 0.0
    members.status(6.0, status(9), retained=False)
    members.status(7.0, status(9, online=False), retained=False)
    assert members.flaps.penalty(7.0, "a") == 1.0
    members.disconnected(7.5)
    assert members.flaps.penalty(7.5, "a") == 0.0
    members.status(8.0, status(9), retained=True)
    members.status(8.1, status(9, online=False), retained=True)
    assert members.flaps.penalty(9.0, "a") == 0.0, "the broker's memory is no news"


def test_a_status_of_an_earlier_start_waits_for_a_sign_of_life_while_a_later_one_is_alive() -> None:
    members = Members("me", 2.5)
    members.status(0.0, status(5), retained=False)
    assert members.status(0.1, status(3), retained=False) is Change.NONE
    assert members.peers["a"].status.incarnation == 5
    assert members.telemetry(0.2, Telemetry(7, 3, "a", 0, 0, 0.0)) is Change.JOINED, "its clock had gone back"
    assert members.peers["a"].status.incarnation == 3
    assert members.peers["a"].ready
    assert members.is_gone("a", 5)
    assert not members.is_gone("a", 3)


def test_an_earlier_start_is_believed_at_once_when_the_later_one_is_dead() -> None:
    members = Members("me", 2.5)
    members.status(0.0, status(5), retained=False)
    assert [peer.name for peer in members.silent(3.0)] == ["a"]
    assert members.status(3.1, status(3), retained=False) is Change.JOINED
