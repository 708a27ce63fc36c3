"""Flow control, staleness and turns of hierarchical training; and where the runtime model cuts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi_exit.errors import UsageError, WireError
from mdi_exit.hierarchical.config import Outage, bit_rate
from mdi_exit.hierarchical.cuts import best_cut, cut_times
from mdi_exit.hierarchical.flow import CloudFlow, EdgeFlow, Grant, Offer
from mdi_exit.hierarchical.lessons import RAW, batch_bytes, packed, unpacked


def linked(window: int = 2) -> tuple[EdgeFlow, CloudFlow[str]]:
    edge, cloud = EdgeFlow(dead_after_s=5.0), CloudFlow[str](window, most_stale=8)
    cloud.joined("e", 11, 100)
    edge.connected = True
    edge.granted(cloud.grant("e"), 0, 0.0)
    return edge, cloud


def test_an_edge_sends_as_far_as_its_credits_go_and_then_waits() -> None:
    edge, _ = linked(window=2)
    for step in range(2):
        assert edge.offer(1.0) is Offer.SEND
        edge.sending(step)
    assert edge.offer(1.0) is Offer.WAIT
    with pytest.raises(ValueError, match="expected a credit"):
        edge.sending(2)


def test_a_credit_comes_back_when_a_batch_was_learned_from() -> None:
    edge, cloud = linked(window=1)
    cloud.arrived("e", 11, edge.sending(0), 0, 10, "batch")
    edge.granted(cloud.grant("e"), 1, 1.0)
    assert edge.offer(1.0) is Offer.WAIT
    turn = cloud.next()
    assert turn is not None
    cloud.done(turn)
    edge.granted(cloud.grant("e"), 1, 1.5)
    assert edge.offer(1.5) is Offer.SEND
    assert (edge.open, edge.longest_open) == (0, 1)


def test_without_a_link_the_edge_goes_on_and_with_it_again_it_sends_again() -> None:
    edge, cloud = linked(window=2)
    edge.sending(0)
    edge.connected = False
    assert edge.offer(1.0) is Offer.SKIP
    edge.connected = True
    assert edge.offer(5.1) is Offer.SKIP  # silence
    edge.granted(cloud.grant("e"), 3, 6.0)
    assert edge.offer(6.0) is Offer.SEND


def test_what_was_lost_with_the_link_gives_its_credits_back() -> None:
    edge, cloud = linked(window=2)
    edge.sending(0)
    edge.sending(1)
    assert edge.offer(1.0) is Offer.WAIT
    cloud.heard("e", 11, last_seq=edge.sent, step=2)
    edge.granted(cloud.grant("e"), 2, 1.0)
    assert edge.offer(1.0) is Offer.SEND
    assert cloud.grant("e").lost == 2
    cloud.validate()


def test_batches_that_are_too_old_are_not_learned_from() -> None:
    cloud = CloudFlow[str](window=4, most_stale=3)
    cloud.joined("e", 11, 100)
    assert cloud.arrived("e", 11, 1, 0, 10, "old")
    assert cloud.arrived("e", 11, 2, 4, 10, "new")
    turn = cloud.next()
    assert turn is not None
    assert turn.batch == "new"
    assert cloud.grant("e").dropped == 1
    assert cloud.stalest == 0


def test_the_edge_that_has_had_least_for_its_data_goes_first() -> None:
    cloud = CloudFlow[str](window=8, most_stale=100)
    cloud.joined("large", 1, 300)
    cloud.joined("small", 2, 100)
    for seq in range(1, 9):
        cloud.arrived("large", 1, seq, seq, 10, "l")
        cloud.arrived("small", 2, seq, seq, 10, "s")
    order = ""
    for _ in range(8):
        turn = cloud.next()
        assert turn is not None
        cloud.done(turn)
        order += turn.batch
    assert (order.count("l"), order.count("s")) == (6, 2)


def test_an_edge_that_starts_anew_begins_with_number_one() -> None:
    cloud = CloudFlow[str](window=2, most_stale=8)
    cloud.joined("e", 11, 100)
    cloud.arrived("e", 11, 1, 0, 10, "before")
    cloud.joined("e", 12, 100)
    assert not cloud.arrived("e", 11, 2, 1, 10, "late")
    assert cloud.arrived("e", 12, 1, 0, 10, "after")
    turn = cloud.next()
    assert turn is not None
    assert turn.batch == "after"


def test_a_cloud_that_starts_anew_is_sent_number_one() -> None:
    edge, _ = linked(window=2)
    edge.sending(0)
    edge.restarted()
    edge.granted(Grant(allowed=2), 1, 1.0)
    assert edge.sending(1) == 1


EVENTS = st.lists(
    st.tuples(st.sampled_from(["step", "lose", "pass", "learn", "tell", "report"]), st.sampled_from(["a", "b"])),
    max_size=80,
)


@settings(deadline=None)
@given(events=EVENTS, window=st.integers(1, 4), most_stale=st.integers(1, 6))
def test_whatever_is_lost_no_more_than_the_window_is_open_and_nothing_older_is_learned(
    events: list[tuple[str, str]], window: int, most_stale: int
) -> None:
    cloud = CloudFlow[int](window, most_stale)
    edges = {name: EdgeFlow(5.0, connected=True) for name in "ab"}
    way: dict[str, list[tuple[int, int]]] = {"a": [], "b": []}
    steps = {"a": 0, "b": 0}
    for name, edge in edges.items():
        cloud.joined(name, 1, 10)
        edge.granted(cloud.grant(name), 0, 0.0)
    for what, name in events:
        edge = edges[name]
        match what:
            case "step":
                if edge.offer(0.0) is Offer.SEND:
                    way[name].append((edge.sending(steps[name]), steps[name]))
                steps[name] += 1
            case "lose":
                way[name] = way[name][1:]
            case "pass":
                if way[name]:
                    seq, step = way[name].pop(0)
                    assert cloud.arrived(name, 1, seq, step, 1, step)
            case "report":
                if not way[name]:
                    cloud.heard(name, 1, edge.sent, steps[name])
            case "learn":
                if (turn := cloud.next()) is not None:
                    cloud.done(turn)
            case _:
                edge.granted(cloud.grant(name), steps[name], 0.0)
        cloud.validate()
        assert all(one.open <= window for one in edges.values())
    assert cloud.stalest <= most_stale


def test_the_cut_is_where_the_slowest_of_three_is_least() -> None:
    sizes = [4000, 2000, 1000, 500, 100]
    edge_s, cloud_s = [1.1, 2.1, 3.1, 4.1], [2.1, 1.6, 1.1, 0.6]
    slow = cut_times(edge_s, cloud_s, sizes, 500.0)
    assert [time.cut for time in slow] == [0, 1, 2, 3]
    assert slow[0].slowest == "link"
    assert slow[0].step_s == pytest.approx(8.0)
    assert best_cut(slow).cut == 2  # 3.1 s at the edge, 2 s on the link
    fast = cut_times(edge_s, cloud_s, sizes, 1e9)
    assert best_cut(fast).cut == 1  # 2.1 s, as after layer 0, and half of the bytes
    many = cut_times(edge_s, cloud_s, sizes, 1e9, edges=4)
    assert best_cut(many).cut == 3  # 4.1 s at each edge, 2.4 s for four batches in the cloud


@pytest.mark.parametrize("codec", ["float32", "float16", "int8", "int8+zstd"])
def test_a_batch_comes_back_as_it_went(codec: str) -> None:
    x_BCHW = np.random.default_rng(0).normal(size=(6, 4, 3, 3)).astype(np.float32)
    labels_B = np.array([0, 9, 3, 1, 65535, 2])
    payload = packed(codec, x_BCHW, labels_B)
    assert len(payload) <= batch_bytes(codec, 6, (4, 3, 3))
    again, labels = unpacked(codec, x_BCHW.shape, 6, memoryview(payload))
    assert labels.tolist() == labels_B.tolist()
    step_C = np.abs(x_BCHW).max(axis=(0, 2, 3)) / 127
    most = {"float32": 0.0, "float16": 2e-3}.get(codec, float(step_C.max()) / 2 + 1e-6)
    assert np.abs(again - x_BCHW).max() <= most


def test_images_are_as_they_were() -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    again, labels = unpacked(RAW, images.shape, 2, memoryview(packed(RAW, images, np.array([1, 2]))))
    assert (again == images).all()
    assert labels.tolist() == [1, 2]


@pytest.mark.parametrize(("shape", "count"), [((2, 4, 3, 3), 1), ((2, 4, 3, 2), 2), ((2,), 2), ((9, 4, 3, 3), 9)])
def test_a_batch_that_is_not_what_it_says_is_refused(shape: tuple[int, ...], count: int) -> None:
    payload = packed("int8", np.ones((2, 4, 3, 3), np.float32), np.array([1, 2]))
    with pytest.raises(WireError):
        unpacked("int8", shape, count, memoryview(payload))


def test_rates() -> None:
    assert bit_rate("1Mbit") == 125_000
    assert bit_rate("500 kbit/s") == 62_500
    with pytest.raises(UsageError):
        bit_rate("fast")
    assert Outage(1.0, 2.0).for_s == 2.0
