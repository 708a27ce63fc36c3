from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit.segments import ModelPlan, SegmentKey, needed_segments, segment_stop
from mdi_exit.span import LayerSpan


@st.composite
def plans(draw: st.DrawFn) -> ModelPlan:
    count = draw(st.integers(1, 14))
    early = draw(st.sets(st.integers(0, count - 1)))
    return ModelPlan("ab" * 16, count, tuple(sorted(early | {count - 1})), (4,) * count)


@st.composite
def spans_of(draw: st.DrawFn, plan: ModelPlan) -> LayerSpan:
    first = draw(st.integers(0, plan.layer_count - 1))
    return LayerSpan(first, draw(st.integers(first + 1, plan.layer_count)))


@given(st.data())
def test_segments_in_a_row_run_each_layer_once_and_never_past_an_exit(data: st.DataObject) -> None:
    plan = data.draw(plans())
    span = data.draw(spans_of(plan))
    entry, ran = span.first, []
    while entry < span.stop:
        key = plan.segment(entry, span, early_exits=True)
        assert key.stop == segment_stop(entry, span, plan.exit_layers)
        layers = list(range(key.entry, key.stop))
        assert not set(layers[:-1]) & set(plan.exit_layers), "an exit lies inside the segment"
        assert key.head == (layers[-1] in plan.exit_layers)
        bare = plan.segment(entry, span, early_exits=False)
        assert (bare.entry, bare.stop) == (key.entry, key.stop)
        assert bare.head == (key.stop == plan.layer_count)
        ran += layers
        entry = key.stop
    assert ran == list(span)


@given(st.data())
def test_every_segment_that_routing_can_ask_for_is_on_offer(data: st.DataObject) -> None:
    """Follow tasks from layer 0 through every node that could take them, at every entry that comes up."""
    plan = data.draw(plans())
    spans = data.draw(st.lists(spans_of(plan), min_size=1, max_size=5))
    offered = {span: needed_segments(plan, span, spans) for span in spans}
    entries, seen = [0], set[int]()
    while entries:
        entry = entries.pop()
        if entry in seen or entry >= plan.layer_count:
            continue
        seen.add(entry)
        for span in spans:
            if entry in span:
                for early in (True, False):
                    key = plan.segment(entry, span, early_exits=early)
                    assert key in offered[span]
                    entries.append(key.stop)


def test_a_segment_has_one_file_name() -> None:
    assert SegmentKey(4, 6, True).file == "segment-4-5-head"
    assert SegmentKey(4, 6, False).file == "segment-4-5-body"


@pytest.mark.parametrize(
    ("count", "exits", "sizes"),
    [
        (0, (), ()),
        (3, (2,), (1, 1)),
        (3, (1,), (1, 1, 1)),
        (3, (2, 1), (1, 1, 1)),
        (3, (1, 1, 2), (1, 1, 1)),
        (3, (), (1, 1, 1)),
    ],
)
def test_a_plan_that_contradicts_itself_is_not_made(count: int, exits: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ModelPlan("ab" * 16, count, exits, sizes)


def test_exits_are_numbered_from_nought() -> None:
    plan = ModelPlan("ab" * 16, 9, (1, 3, 8), (1,) * 9)
    assert [plan.exit_index(layer) for layer in (1, 3, 8)] == [0, 1, 2]


@pytest.mark.parametrize(("knob", "threshold"), [(0.0, 0.0), (0.25, 0.4), (0.5, 0.8), (0.75, 0.9), (1.0, 1.0)])
def test_one_knob_moves_the_threshold_of_each_exit(knob: float, threshold: float) -> None:
    """Calibrated to 0.8 with the knob at 0.5; an exit without a threshold of its own follows the knob."""
    plan = ModelPlan("ab" * 16, 3, (0, 1, 2), (4,) * 3, exit_thresholds=(0.8, None, None), calibrated_at=0.5)
    assert plan.threshold_at(0, knob) == pytest.approx(threshold)
    assert plan.threshold_at(1, knob) == knob


@pytest.mark.parametrize(
    ("at", "knob", "threshold"), [(0.0, 0.0, 0.6), (0.0, 0.5, 0.8), (1.0, 0.5, 0.3), (1.0, 1.0, 1.0)]
)
def test_a_knob_calibrated_at_an_end(at: float, knob: float, threshold: float) -> None:
    plan = ModelPlan("ab" * 16, 2, (0, 1), (4,) * 2, exit_thresholds=(0.6, None), calibrated_at=at)
    assert plan.threshold_at(0, knob) == pytest.approx(threshold)


def test_thresholds_are_one_for_each_exit() -> None:
    with pytest.raises(ValueError, match="2 exit thresholds, got 1"):
        ModelPlan("ab" * 16, 2, (0, 1), (4,) * 2, exit_thresholds=(0.6,))
