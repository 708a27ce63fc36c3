"""Every codec keeps the size and the error that its table states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mdi_exit.errors import WireError
from mdi_exit.tensors import CODECS, decode_tensor, encode_tensor, encoded_size

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=6)
TENSORS = hnp.arrays(np.float32, SHAPES, elements=st.floats(-60000, 60000, width=32))


@pytest.mark.parametrize("codec", CODECS)
@given(x=TENSORS)
def test_size_shape_and_error(codec: str, x: np.ndarray) -> None:
    raw = encode_tensor(codec, x)
    back = decode_tensor(codec, x.shape, raw)
    assert len(raw) == encoded_size(codec, x.shape)
    assert back.shape == x.shape
    assert back.dtype == np.float32
    error = np.abs(back.astype(np.float64) - x)
    if codec == "float32":
        assert np.array_equal(back, x)
    elif codec == "float16":
        assert (error <= np.maximum(np.abs(x) * 2.0**-11, 2.0**-25)).all()
    else:
        peak = np.abs(x.reshape(x.shape[0], -1)).max(axis=1).reshape(-1, *[1] * (x.ndim - 1))
        assert (error <= peak / 254 * 1.001 + 1e-42).all()


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_what_is_not_finite_comes_back_finite(codec: str) -> None:
    x = np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float32)
    assert np.isfinite(decode_tensor(codec, x.shape, encode_tensor(codec, x))).all()


@pytest.mark.parametrize("codec", CODECS)
@given(size=st.integers(0, 200))
def test_another_size_is_refused(codec: str, size: int) -> None:
    shape = (2, 3, 3)
    if size != encoded_size(codec, shape):
        with pytest.raises(WireError) as caught:
            decode_tensor(codec, shape, bytes(size))
        assert caught.value.reason == "payload-size"


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (2**13, 2**13)])
def test_impossible_shapes_are_refused(shape: tuple[int, ...]) -> None:
    for codec in CODECS:
        with pytest.raises(WireError):
            encoded_size(codec, shape)


def test_unknown_codecs_are_refused() -> None:
    with pytest.raises(WireError) as caught:
        encoded_size("pickle", (1,))
    assert caught.value.reason == "codec"
