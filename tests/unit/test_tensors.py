"""Codecs beyond the suite: the bytes themselves, the values at the edge of float32, scales that lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mdi_exit.errors import WireError
from mdi_exit.tensors import CODECS, MAX_ELEMENTS, check_payload, decode_tensor, encode_tensor, encoded_size

ANY_FLOATS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=4), elements=st.floats(width=32))


def test_the_bytes_are_those_of_the_table() -> None:
    x = np.array([[1.0, -2.0], [0.0, 0.0]], np.float32)
    assert encode_tensor("float32", x) == np.array([1, -2, 0, 0], "<f4").tobytes()
    assert encode_tensor("float16", x) == np.array([1, -2, 0, 0], "<f2").tobytes()
    scales = np.array([np.float32(2) / np.float32(127), 0], "<f4").tobytes()
    assert encode_tensor("int8", x) == scales + bytes(np.array([64, -127, 0, 0], np.int8))
    assert [encoded_size(codec, (3, 5, 7)) for codec in CODECS] == [420, 210, 117]


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_nan_is_zero_and_an_infinity_the_largest(codec: str) -> None:
    x = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    zero, most, least = decode_tensor(codec, x.shape, encode_tensor(codec, x))[0]
    assert zero == 0
    assert most == -least
    assert most == 65504 if codec == "float16" else most == pytest.approx(np.finfo(np.float32).max, rel=1e-3)


def test_float32_keeps_every_bit() -> None:
    x = np.array([0x7FC00001, 0xFF800000, 0x00000001, 0x80000000], np.uint32).view(np.float32)
    assert decode_tensor("float32", (4,), encode_tensor("float32", x)).tobytes() == x.tobytes()


@given(x=ANY_FLOATS)
@example(x=np.array([3.4000002e38], np.float32))
@example(x=np.array([np.finfo(np.float32).max, 1.0], np.float32))
def test_any_floats_come_back_finite_within_the_stated_error(x: np.ndarray) -> None:
    for codec in ("float16", "int8"):
        back = decode_tensor(codec, x.shape, encode_tensor(codec, x)).astype(np.float64)
        largest = 65504.0 if codec == "float16" else float(np.finfo(np.float32).max)
        wanted = np.clip(
            np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=largest, neginf=-largest), -largest, largest
        )
        assert np.isfinite(back).all()
        if codec == "float16":
            bound = np.maximum(np.abs(wanted) * 2.0**-11, 2.0**-25)
        else:
            peak = np.abs(wanted.reshape(len(x), -1)).max(axis=1).reshape(-1, *[1] * (x.ndim - 1))
            bound = peak / 254 * 1.001 + 1e-42
        assert (np.abs(back - wanted) <= bound).all()


@pytest.mark.parametrize("order", ["F", "reversed"])
def test_the_layout_in_memory_does_not_matter(order: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    odd = np.asfortranarray(x) if order == "F" else x[::-1].copy()[::-1]
    for codec in CODECS:
        assert encode_tensor(codec, odd) == encode_tensor(codec, x)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 3.4e38, -3.4e38])
def test_int8_scales_that_would_not_give_finite_values_are_refused(scale: float) -> None:
    payload = np.array([1, scale], "<f4").tobytes() + bytes(4)
    with pytest.raises(WireError) as caught:
        check_payload("int8", (2, 2), payload)
    assert caught.value.reason == "payload"


@pytest.mark.parametrize("shape", [(-1, 4), (0,), (), (MAX_ELEMENTS + 1,), (2**40, 2**40)])
def test_impossible_shapes_are_refused_before_anything_is_made(shape: tuple[int, ...]) -> None:
    for codec in CODECS:
        with pytest.raises(WireError) as caught:
            decode_tensor(codec, shape, b"")
        assert caught.value.reason == "shape"


def test_a_tensor_without_axes_or_elements_is_not_sent() -> None:
    for x in (np.float32(1).reshape(()), np.zeros((0, 3), np.float32)):
        for codec in CODECS:
            with pytest.raises(WireError):
                encode_tensor(codec, x)


@given(raw=st.binary(max_size=60), shape=hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
def test_random_bytes_decode_or_are_refused(raw: bytes, shape: tuple[int, ...]) -> None:
    for codec in CODECS:
        try:
            x = decode_tensor(codec, shape, raw)
        except WireError as error:
            assert error.reason in ("payload-size", "payload")  # noqa: PT017 - one of two ends
        else:
            assert x.shape == shape
