"""What the cloud of hierarchical training makes of its edges' words and weights, whoever sent them."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra 'torch'")

import torch

from mdi_exit.errors import WireError
from mdi_exit.hierarchical.members import Members
from mdi_exit.hierarchical.parts import State, state_bytes
from mdi_exit.wire import EdgeReport, Weights

STEPS = 40


def part(value: float = 0.0) -> State:
    return {"w": torch.full((3,), value), "seen": torch.tensor(4)}


def report(incarnation: int, state: str = "training") -> EdgeReport:
    return EdgeReport(incarnation, 7, state, 100, 5, STEPS)


def two() -> Members:
    members = Members(2, dead_after_s=5.0)
    members.form = part()
    for name in ("a", "b"):
        assert members.reported(name, report(1), 0.0)
    return members


def send(members: Members, name: str, number: int, state: State, samples: int = 100) -> bool:
    raw = state_bytes(state)
    return members.took(name, Weights(7, 1, number, samples, 0, 1, 0), memoryview(raw))


def values(raw: bytes) -> Any:
    from mdi_exit.hierarchical.parts import state_of

    return state_of(raw)["w"].tolist()


@pytest.mark.parametrize(
    "bad",
    [
        {"w": torch.zeros(3)},
        {"w": torch.zeros(4), "seen": torch.tensor(4)},
        {"w": torch.zeros(3, dtype=torch.float64), "seen": torch.tensor(4)},
        {"w": torch.tensor([0.0, float("nan"), 0.0]), "seen": torch.tensor(4)},
        {"w": torch.tensor([0.0, float("inf"), 0.0]), "seen": torch.tensor(4)},
    ],
)
def test_weights_that_are_no_part_of_this_network_are_refused_and_the_one_before_stays(bad: State) -> None:
    members = two()
    assert send(members, "a", 1, part(1.0))
    with pytest.raises(WireError):
        send(members, "a", 2, bad)
    kept = members.by_name["a"]
    assert kept.round == 1
    assert kept.state is not None
    assert kept.state["w"].tolist() == [1.0] * 3


def test_pieces_take_no_more_memory_than_a_part_of_ours_and_what_was_too_much_is_dropped() -> None:
    members, most = two(), len(state_bytes(part()))
    piece = memoryview(bytes(most // 2))
    for index in range(2):
        assert not members.took("a", Weights(7, 1, 1, 100, index, 9, 0), piece)
    with pytest.raises(WireError, match="expected at most"):
        members.took("a", Weights(7, 1, 1, 100, 2, 9, 0), piece)
    assert send(members, "a", 1, part(1.0))


def test_weights_before_the_cut_is_known_are_not_kept() -> None:
    members = two()
    members.form = None
    assert not send(members, "a", 1, part())


def test_the_mean_is_of_those_that_are_there() -> None:
    members = two()
    assert send(members, "a", 1, part(1.0), samples=300)
    assert members.to_average(1.0) == []
    assert send(members, "b", 1, part(5.0), samples=100)
    assert members.to_average(1.0) == ["a", "b"]
    assert members.average(["a", "b"]) == ["a", "b"]
    assert values(members.mean_bytes) == [2.0] * 3
    assert members.to_average(1.0) == []
    assert send(members, "a", 2, part(3.0))
    members.heard("a", 1, 20.0)  # and nothing of b: its old part does not count any more
    assert members.to_average(20.0) == ["a"]
    assert members.average(["a"]) == ["a"]
    assert values(members.mean_bytes) == [3.0] * 3


def test_a_part_that_comes_after_its_mean_was_made_is_answered_with_the_newest() -> None:
    members = two()
    send(members, "a", 2, part(1.0))
    members.heard("a", 1, 20.0)
    members.average(members.to_average(20.0))
    send(members, "b", 1, part(9.0))
    members.heard("b", 1, 20.0)
    assert members.waits_for_mean("b")
    send(members, "b", 3, part(9.0))
    assert not members.waits_for_mean("b")


def test_the_last_parts_make_no_mean() -> None:
    members = two()
    for name in ("a", "b"):
        send(members, name, STEPS + 3, part(1.0))
    assert members.to_average(1.0) == []
    assert len(members.last_parts()) == 2


def test_whatever_comes_of_an_edge_says_that_it_is_there() -> None:
    members = two()
    assert not members.lives("a", 6.0)
    assert members.heard("a", 1, 4.0)
    assert members.lives("a", 6.0)
    assert not members.heard("a", 2, 9.0)
    assert not members.heard("nobody", 1, 9.0)
    assert not members.lives("a", 9.5)


def test_the_second_of_a_name_waits_until_the_first_is_gone() -> None:
    members = two()
    assert not members.reported("a", report(2, "joining"), 4.0)
    assert members.by_name["a"].report.incarnation == 1
    assert members.reported("a", report(2, "joining"), 5.5)
    assert not members.reported("a", report(1), 6.0)
    assert members.reported("b", report(1, "finished"), 6.0)
    assert members.reported("b", report(2, "joining"), 6.1)  # the first one is done
    with pytest.raises(WireError, match="one more"):
        members.reported("c", report(1), 6.2)


def test_a_cloud_that_starts_again_knows_the_edges_that_have_finished() -> None:
    before = two()
    send(before, "a", STEPS + 3, part(1.0))
    send(before, "b", 2, part(1.0))
    before.reported("a", report(1, "finished"), 1.0)
    after = Members(2, dead_after_s=5.0)
    after.restore(before.kept())
    assert set(after.by_name) == {"a"}
    assert after.missing == 1
    assert after.by_name["a"].has_finished
    ((state, samples),) = after.last_parts()
    assert (state["w"].tolist(), samples) == ([1.0] * 3, 100)
    assert after.reported("a", report(2, "joining"), 0.0)
    assert not after.by_name["a"].has_finished


def test_the_artifact_is_made_of_the_edges_that_came_furthest() -> None:
    members = two()
    assert members.last_parts() == []
    send(members, "a", 2, part(1.0))
    send(members, "b", 3, part(2.0))
    assert [state["w"].tolist() for state, _ in members.last_parts()] == [[2.0] * 3]
    send(members, "a", 3, part(4.0))
    assert [state["w"].tolist() for state, _ in members.last_parts()] == [[4.0] * 3, [2.0] * 3]
    send(members, "a", STEPS + 3, part(5.0))  # b is never heard of again
    assert [state["w"].tolist() for state, _ in members.last_parts()] == [[5.0] * 3]
    send(members, "b", STEPS + 2, part(6.0))
    assert [state["w"].tolist() for state, _ in members.last_parts()] == [[5.0] * 3, [6.0] * 3]


def test_an_edge_whose_last_word_was_lost_has_finished() -> None:
    members = two()
    for name in ("a", "b"):
        send(members, name, STEPS + 3, part(1.0))
    members.reported("a", report(1, "finished"), 1.0)
    assert not members.have_finished(4.0)  # it may still say so itself
    assert members.have_finished(9.0)
    assert set(members.kept()) == {"a", "b"}
    silent = two()
    silent.reported("a", report(1, "finished"), 1.0)
    send(silent, "b", 2, part(1.0))
    assert not silent.have_finished(1e9)
