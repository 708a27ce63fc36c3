from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mdi_exit.events import Task
from mdi_exit.queues import Held, Origin, TaskStore


def held(item: int, layer: int, origin: Origin = Origin.INJECTED, sender: str = "") -> Held:
    return Held(Task(7, item, 0, layer, None, 10), origin, sender)


def test_each_layer_is_a_queue_of_its_own_and_the_latest_comes_first() -> None:
    store = TaskStore(4)
    for item, layer in ((1, 0), (2, 4), (3, 0), (4, 2)):
        store.add(held(item, layer))
    assert store.inputs.latest_first() == [4, 2, 0]
    assert [h.task.item for h in store.take(0, 2)] == [1, 3]
    assert store.inputs.latest_first() == [4, 2]
    assert store.inputs.length == 2


def test_what_goes_back_to_the_front_is_taken_first() -> None:
    store = TaskStore(4)
    store.add(held(1, 2), output=True)
    store.add(held(2, 2), output=True, front=True)
    assert [h.task.item for h in store.take(2, 2, output=True)] == [2, 1]


def test_slots_are_for_each_layer_and_come_back_when_a_product_leaves() -> None:
    store = TaskStore(2)
    store.reserve(4, 2)
    assert (store.room(4), store.room(6)) == (0, 2)
    store.add(held(1, 4, Origin.PRODUCED), output=True)
    store.add(held(2, 4, Origin.PRODUCED))
    assert not store.problems(Counter())
    store.reclaim(4)
    assert (store.inputs.waiting(4), store.outputs.length, store.room(4)) == (2, 0, 0)
    assert not store.problems(Counter())
    store.take(4)
    assert store.room(4) == 1
    assert not store.problems(Counter())


def test_slots_of_a_sender_are_its_own() -> None:
    store = TaskStore(2)
    store.add(held(1, 4, Origin.RECEIVED, "a"))
    store.add(held(2, 4, Origin.RECEIVED, "b"))
    assert (store.held_for("a", 4), store.held_for("a", 6), store.room(4)) == (1, 0, 2)
    store.take(4, 2)
    assert store.held_for("a", 4) == 0


def test_broken_invariants_are_named() -> None:
    store = TaskStore(2)
    store.add(held(1, 4, Origin.PRODUCED))
    assert any("slots taken" in problem for problem in store.problems(Counter()))
    store.reserve(4, 4)
    assert any("more than 2" in problem for problem in store.problems(Counter({4: 3})))
    store.inputs.length += 1
    assert any("inputs: length" in problem for problem in store.problems(Counter()))


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["receive", "inject", "produce", "take", "send", "reclaim", "clear"]),
        st.integers(0, 3),
        st.sampled_from(["a", "b"]),
        st.booleans(),
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_any_operations_leave_it_sound(operations: list[tuple[str, int, str, bool]]) -> None:
    store = TaskStore(3)
    here = 0
    for item, (operation, layer, sender, output) in enumerate(operations):
        match operation:
            case "receive":
                store.add(held(item, layer, Origin.RECEIVED, sender))
                here += 1
            case "inject":
                store.add(held(item, layer), output=output)
                here += 1
            case "produce" if store.room(layer):
                store.reserve(layer, 1)
                store.add(held(item, layer, Origin.PRODUCED), output=output)
                here += 1
            case "take" if store.inputs.waiting(layer):
                (taken,) = store.take(layer)
                assert taken.task.next_layer == layer
                here -= 1
            case "send" if store.outputs.waiting(layer):
                store.take(layer, output=True)
                here -= 1
            case "reclaim" if store.outputs.waiting(layer):
                store.reclaim(layer)
            case "clear" if output and sender == "a":
                assert len(store.clear()) == here
                here = 0
        assert store.problems(Counter()) == []
        assert store.inputs.length + store.outputs.length == here
