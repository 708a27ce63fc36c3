"""Samples of unlike lengths in one batch, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit.padding import present, stacked, unpadded


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from([(), (3,), (2, 2)]))
def test_what_was_padded_is_what_comes_back(lengths: list[int], inner: tuple[int, ...]) -> None:
    samples = [np.full((length, *inner), index + 1, np.float32) for index, length in enumerate(lengths)]
    x_N = stacked(samples)
    assert (x_N.shape, x_N.dtype) == ((len(samples), max(lengths), *inner), np.float32)
    for row, sample in zip(x_N, samples, strict=True):
        assert np.array_equal(unpadded(row), sample)


def test_zeros_inside_a_sample_stay() -> None:
    x = np.array([[0, 0], [1, 0], [0, 0], [0, 2], [0, 0]], np.float32)
    assert present(x) == 4
    assert np.array_equal(unpadded(x), x[:4])


def test_of_nothing_at_all_one_position_is_left() -> None:
    assert unpadded(np.zeros((5, 3), np.float32)).shape == (1, 3)


def test_samples_that_differ_in_another_axis_are_no_batch() -> None:
    with pytest.raises(ValueError, match="shape"):
        stacked([np.zeros((3, 2), np.float32), np.zeros((2, 4), np.float32)])
