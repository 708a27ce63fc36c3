"""Every codec keeps the size and the error that its table states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mdi_exit.errors import WireError
from mdi_exit.tensors import (
    CODECS,
    PLAIN_CODECS,
    ZSTD,
    decode_tensor,
    encode_tensor,
    encoded_size,
    is_compressed,
    without_compression,
)

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=6)
TENSORS = hnp.arrays(np.float32, SHAPES, elements=st.floats(-60000, 60000, width=32))


@pytest.mark.parametrize("codec", CODECS)
@given(x=TENSORS)
def test_size_shape_and_error(codec: str, x: np.ndarray) -> None:
    raw = encode_tensor(codec, x)
    back = decode_tensor(codec, x.shape, raw)
    if is_compressed(codec):
        assert 0 < len(raw) <= encoded_size(codec, x.shape)
    else:
        assert len(raw) == encoded_size(codec, x.shape)
    assert back.shape == x.shape
    assert back.dtype == np.float32
    error = np.abs(back.astype(np.float64) - x)
    peak = np.abs(x.reshape(x.shape[0], -1)).max(axis=1).reshape(-1, *[1] * (x.ndim - 1))
    match without_compression(codec):
        case "float32":
            assert np.array_equal(back, x)
        case "float16":
            assert (error <= np.maximum(np.abs(x) * 2.0**-11, 2.0**-25)).all()
        case "int8":
            assert (error <= peak / 254 * 1.001 + 1e-42).all()
        case "int4":
            assert (error <= peak / 14 * 1.001 + 1e-42).all()
        case _:
            pytest.fail(f"no error is stated for {codec}")


@pytest.mark.parametrize("codec", PLAIN_CODECS)
@given(x=TENSORS)
def test_compression_loses_nothing(codec: str, x: np.ndarray) -> None:
    plain = decode_tensor(codec, x.shape, encode_tensor(codec, x))
    packed = decode_tensor(codec + ZSTD, x.shape, encode_tensor(codec + ZSTD, x))
    assert packed.tobytes() == plain.tobytes()


@pytest.mark.parametrize("codec", [codec for codec in CODECS if without_compression(codec) != "float32"])
def test_what_is_not_finite_comes_back_finite(codec: str) -> None:
    x = np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float32)
    assert np.isfinite(decode_tensor(codec, x.shape, encode_tensor(codec, x))).all()


@pytest.mark.parametrize("codec", CODECS)
@given(size=st.integers(0, 200))
def test_another_size_is_refused(codec: str, size: int) -> None:
    shape = (2, 3, 3)
    if is_compressed(codec):  # zeros are no frame, whatever their number
        with pytest.raises(WireError) as caught:
            decode_tensor(codec, shape, bytes(size))
        assert caught.value.reason == ("payload-size" if size > encoded_size(codec, shape) else "payload")
    elif size != encoded_size(codec, shape):
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
