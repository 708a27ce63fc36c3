"""When the source asks the planner, what it tells it, and what it makes of the answer."""

from __future__ import annotations

from collections import Counter

import pytest

from mdi_exit.events import MakePlan, Notice
from mdi_exit.membership import Members
from mdi_exit.placement import Device, PlacementRules, decide
from mdi_exit.planning import ExitMix, Planning, devices_of
from mdi_exit.segments import ModelPlan
from mdi_exit.span import LayerSpan
from mdi_exit.wire import LinkLoad, Status, Telemetry

PLAN = ModelPlan("ab" * 16, 4, (1, 3), (100, 100, 100, 100), layer_bytes=(1,) * 4)
OWN = Device("source", (0.01,) * 4, 0, fixed=True)


def status(name: str, span: tuple[int, int] | None = None, *, start: int = 5, **more: object) -> Status:
    given: dict[str, object] = {"auto": True, "memory_bytes": 2, "layer_s": (0.01,) * 4, **more}
    return Status(name, start, True, "agent", "ready", span, (), 16, **given)  # type: ignore[arg-type]


def members(*statuses: Status) -> Members:
    made = Members("source", 2.5)
    for one in statuses:
        made.status(0.0, one, retained=False)
    return made


def look(planning: Planning, now: float, here: Members, exits: Counter[int] | None = None) -> MakePlan | None:
    return planning.look(now, here, OWN, PLAN, exits or Counter())


def placed(planning: Planning, here: Members, now: float = 0.0) -> list[str]:
    """Ask at once and after the time to settle; the lines that the answer gives."""
    asked = look(planning, now, here) or look(planning, now + 1.5, here)
    assert asked is not None
    told = planning.made(now + 1.5, decide(asked.problem, asked.resting, asked.rules), here)
    return [command.text for command in told if isinstance(command, Notice)]


def test_agents_that_join_together_are_placed_together() -> None:
    planning = Planning("source", PlacementRules())
    assert look(planning, 0.0, members(status("a"))) is None
    both = members(status("a"), status("b"))
    assert look(planning, 0.5, both) is None
    (line,) = placed(planning, both, 1.0)
    assert line.startswith("plan 1: a ")
    assert sorted(planning.spans.values()) == [LayerSpan(0, 2), LayerSpan(2, 4)]
    assert (planning.epoch, planning.moves) == (1, 0)
    assert planning.on_wire().keys() == {"a", "b"}
    assert look(planning, 5.0, both) is None


def test_without_agents_that_let_it_choose_it_does_nothing() -> None:
    planning = Planning("source", PlacementRules())
    fixed = members(status("a", (0, 4), auto=False))
    assert all(look(planning, float(now), fixed) is None for now in range(10))


def test_a_lost_layer_is_planned_for_at_once() -> None:
    planning = Planning("source", PlacementRules())
    three = [status("a", memory_bytes=2), status("b", memory_bytes=2), status("c", memory_bytes=2)]
    here = members(*three)
    placed(planning, here)
    alone = next(name for name, span in planning.spans.items() if list(planning.spans.values()).count(span) == 1)
    here.status(3.0, Status(alone, 5, False), retained=False)
    asked = look(planning, 3.0, here)
    assert asked is not None
    planning.made(3.0, decide(asked.problem, asked.resting, asked.rules), here)
    assert alone not in planning.spans
    assert planning.epoch == 2
    assert planning.moves == planning.forced > 0


def test_a_node_that_slows_down_is_news_and_one_that_wavers_is_not() -> None:
    planning = Planning("source", PlacementRules())
    here = members(status("a", (0, 2)), status("b", (2, 4)))
    placed(planning, here)

    def measured(now: float, seconds: float) -> None:
        here.telemetry(now, Telemetry(7, 5, "a", 0, 0, 0.0, speed_s={0: seconds}))

    measured(5.0, 0.022)
    assert look(planning, 5.0, here) is None
    assert planning._due_at is None
    measured(6.0, 0.08)
    assert look(planning, 6.0, here) is None
    asked = look(planning, 7.5, here)
    assert asked is not None
    assert 0.015 < asked.problem.by_name["a"].layer_s[0] < 0.04


def test_an_answer_that_counts_on_a_node_that_has_gone_is_not_taken() -> None:
    planning = Planning("source", PlacementRules())
    here = members(status("a"), status("b"), status("c"))
    look(planning, 0.0, here)
    asked = look(planning, 1.5, here)
    assert asked is not None
    here.status(2.0, Status("a", 5, False), retained=False)
    assert planning.made(2.0, decide(asked.problem, asked.resting, asked.rules), here) == []
    assert (planning.epoch, planning.spans) == (0, {})
    look(planning, 4.0, here)
    again = look(planning, 5.5, here)
    assert again is not None
    assert "a" not in again.problem.by_name


def test_another_mix_of_exits_is_news() -> None:
    planning = Planning("source", PlacementRules())
    here = members(status("a"), status("b"))
    placed(planning, here)
    exits = Counter({1: 100})
    assert look(planning, 3.0, here, exits) is None
    assert planning._due_at is None
    exits = Counter({0: 200, 1: 100})
    assert look(planning, 4.0, here, exits) is None
    asked = look(planning, 5.5, here, exits)
    assert asked is not None
    assert asked.problem.reach[2] < 0.1


def test_a_node_that_starts_again_holds_nothing_of_the_plan() -> None:
    planning = Planning("source", PlacementRules())
    here = members(status("a"), status("b"))
    placed(planning, here)
    here.status(5.0, status("a", start=6), retained=False)
    assert look(planning, 5.0, here) is not None
    assert "a" not in planning.spans


def test_spans_of_an_earlier_run_are_taken_over() -> None:
    planning = Planning("source", PlacementRules())
    assert placed(planning, members(status("a", (0, 2)), status("b", (2, 4)))) == []
    assert planning.spans == {"a": LayerSpan(0, 2), "b": LayerSpan(2, 4)}
    assert planning.epoch == 0


def test_agents_too_small_for_the_model_are_told_of_once() -> None:
    planning = Planning("source", PlacementRules(rest_s=1.0))
    here = members(status("a", memory_bytes=1))
    assert "cannot hold all layers" in placed(planning, here)[0]
    assert placed(planning, here, 10.0) == []
    assert planning.spans == {}


# --- on what figures


def test_measured_times_correct_the_stated_ones_and_those_of_nodes_without() -> None:
    slow = Telemetry(7, 5, "a", 0, 0, 0.0, speed_s={0: 0.04}, links={"b": LinkLoad(1, 1, 0.0, 1, 2e6)})
    found = devices_of([(status("a", (0, 2)), slow, None), (status("b"), None, None)], PLAN)
    assert found[0].layer_s == pytest.approx((0.02,) * 4)
    assert found[1].layer_s == pytest.approx((0.02,) * 4)
    assert found[0].bytes_per_s == 2e6
    assert found[1].memory_bytes == 2


def test_neighbours_are_those_of_the_status() -> None:
    found = devices_of([(status("a", neighbours=("b",)), None, None), (status("b"), None, None)], PLAN)
    assert [one.neighbours for one in found] == [frozenset({"b"}), None]


def test_a_fixed_node_that_states_nothing_has_the_speed_that_was_measured() -> None:
    told = Telemetry(7, 5, "a", 0, 0, 0.0, speed_s={0: 0.04, 2: 0.08})
    (found,) = devices_of([(status("a", (0, 4), auto=False, layer_s=()), told, None)], PLAN)
    assert found.fixed
    assert sum(found.layer_s) == pytest.approx(0.12)


def test_who_does_not_know_the_model_yet_is_not_planned_with() -> None:
    assert devices_of([(status("a", layer_s=()), None, None), (status("b", (0, 9)), None, None)], PLAN) == []


def test_the_exit_mix_is_that_of_recent_items() -> None:
    mix = ExitMix()
    mix.seen(Counter({0: 10}))
    assert mix.reach(PLAN) == (1.0,) * 4
    mix.seen(Counter({0: 15, 1: 15}))
    assert mix.reach(PLAN)[:2] == (1.0, 1.0)
    assert 0.4 < mix.reach(PLAN)[2] < 0.6
    mix.seen(Counter({0: 15, 1: 1015}))
    assert mix.reach(PLAN)[2] > 0.99
