"""Confidence measures: in range, greater is surer, and what travels from exit to exit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit.confidence import MEASURES, judge

LOGITS = np.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [np.nan, 1.0, 0.0], [2.0, 1.0, 0.0]], np.float32)


@pytest.mark.parametrize("measure", ["max-probability", "margin", "entropy"])
def test_scores_of_extreme_logits_are_in_range_and_nan_never_exits(measure: str) -> None:
    scores = judge(measure, LOGITS, states=[()] * 4, exits=3).scores
    even = {"max-probability": 1 / 3, "margin": 0.0, "entropy": 0.0}[measure]
    assert scores[:3] == pytest.approx([1.0, even, 0.0], abs=1e-6)
    assert even < scores[3] < 1.0


@pytest.mark.parametrize("measure", ["max-probability", "margin", "entropy"])
def test_a_higher_temperature_is_less_sure_of_the_same_class(measure: str) -> None:
    cold, hot = (judge(measure, LOGITS[3:], states=[()], exits=3, temperature=t) for t in (1.0, 3.0))
    assert cold.labels == hot.labels == [0]
    assert cold.scores[0] > hot.scores[0]


def test_patience_counts_exits_that_agree_in_a_row() -> None:
    states, seen = [()], []
    for row in ([2, 1, 0], [0, 3, 0], [0, 4, 0], [0, 5, 1]):
        judged = judge("patience", np.array([row], np.float32), states=states, exits=4)
        states = judged.states
        seen.append(judged.scores[0])
    assert seen == [0.25, 0.25, 0.5, 0.75]


def test_a_row_of_gates_as_in_the_paper() -> None:
    """g = 0.2, 0.5, 0.9: P = 0.2, 0.5, 0.3; h = 0.2, 0.5/0.8, then all that is left."""
    states, seen = [()], []
    for gate in (0.2, 0.5, 0.9):
        judged = judge("gate", LOGITS[3:], states=states, exits=4, gate_N1=np.array([[gate]], np.float32))
        states = judged.states
        seen.append(judged.scores[0])
    assert seen == pytest.approx([0.2, 0.625, 1.0], abs=1e-5)


def test_a_certain_gate_leaves_nothing_and_later_ones_are_sure() -> None:
    first = judge("gate", LOGITS[3:], states=[()], exits=3, gate_N1=np.ones((1, 1), np.float32))
    second = judge("gate", LOGITS[3:], states=first.states, exits=3, gate_N1=np.zeros((1, 1), np.float32))
    assert (first.scores, second.scores) == ([1.0], [1.0])


def test_a_gate_that_is_no_number_never_exits() -> None:
    judged = judge("gate", LOGITS[3:], states=[()], exits=3, gate_N1=np.full((1, 1), np.nan, np.float32))
    assert judged.scores == [0.0]


@pytest.mark.parametrize("gate", [np.nan, np.inf, -np.inf, 1e30])
def test_what_a_broken_gate_says_is_still_a_state_that_may_travel(gate: float) -> None:
    judged = judge("gate", LOGITS[3:], states=[()], exits=3, gate_N1=np.full((1, 1), gate, np.float32))
    assert np.isfinite(judged.states[0]).all()
    assert 0 <= judged.scores[0] <= 1


def test_a_gate_measure_without_gate_is_an_error() -> None:
    with pytest.raises(ValueError, match="gate"):
        judge("gate", LOGITS, states=[()] * 4, exits=3)


@given(st.sampled_from(MEASURES), st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=1))
def test_scores_lie_between_0_and_1_and_samples_do_not_touch_each_other(measure: str, rows: list[list[float]]) -> None:
    logits_NK = np.array(rows, np.float32)
    gate_N1 = 1 / (1 + np.exp(-logits_NK[:, :1]))
    together = judge(measure, logits_NK, states=[()] * len(rows), exits=3, gate_N1=gate_N1)
    assert all(0.0 <= score <= 1.0 for score in together.scores)
    for index in range(len(rows)):
        row = slice(index, index + 1)
        alone = judge(measure, logits_NK[row], states=[()], exits=3, gate_N1=gate_N1[row])
        assert alone.labels[0] == together.labels[index]
        assert alone.scores[0] == pytest.approx(together.scores[index], abs=1e-6)
