"""Codecs beyond the suite: the bytes themselves, the values at the edge of float32, scales that lie."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mdi_exit.errors import WireError
from mdi_exit.tensors import (
    CODECS,
    MAX_ELEMENTS,
    PLAIN_CODECS,
    ZSTD,
    check_payload,
    decode_tensor,
    encode_tensor,
    encoded_size,
    without_compression,
)

ANY_FLOATS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=4), elements=st.floats(width=32))


def test_the_bytes_are_those_of_the_table() -> None:
    x = np.array([[1.0, -2.0], [0.0, 0.0]], np.float32)
    assert encode_tensor("float32", x) == np.array([1, -2, 0, 0], "<f4").tobytes()
    assert encode_tensor("float16", x) == np.array([1, -2, 0, 0], "<f2").tobytes()
    scales = np.array([np.float32(2) / np.float32(127), 0], "<f4").tobytes()
    assert encode_tensor("int8", x) == scales + bytes(np.array([64, -127, 0, 0], np.int8))
    whole = np.array([[4.0, -7.0], [0.0, 0.0]], np.float32)
    assert encode_tensor("int4", whole) == np.array([1, 0], "<f4").tobytes() + bytes([0x1C, 0x88])  # each plus 8
    assert [encoded_size(codec, (3, 5, 7)) for codec in PLAIN_CODECS] == [420, 210, 117, 65]


def test_an_odd_number_of_values_fills_its_last_byte_by_half() -> None:
    x = np.array([[7.0, -7.0, 1.0]], np.float32)
    raw = encode_tensor("int4", x)
    assert raw == np.array([1], "<f4").tobytes() + bytes([0x1F, 0x09])
    assert np.array_equal(decode_tensor("int4", x.shape, raw[:-1] + b"\xf9"), x)


def test_a_half_byte_that_no_value_gives_is_taken_for_the_least() -> None:
    raw = np.array([0.5], "<f4").tobytes() + bytes([0x10])
    assert decode_tensor("int4", (1, 2), raw).tolist() == [[-3.5, -3.5]]


def test_what_repeats_takes_few_bytes() -> None:
    x = np.zeros((16, 32, 32), np.float32)
    for codec in PLAIN_CODECS:
        assert len(encode_tensor(codec + ZSTD, x)) < 100


@pytest.mark.parametrize("codec", PLAIN_CODECS)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 3000))
def test_noise_stays_within_the_size_that_compression_may_take(codec: str, seed: int, size: int) -> None:
    x = np.random.default_rng(seed).integers(0, 2**32, size, np.uint32).view(np.float32).reshape(1, -1)
    assert len(encode_tensor(codec + ZSTD, x)) <= encoded_size(codec + ZSTD, x.shape)


def _frame(raw: bytes, **how: bool) -> bytes:
    return zstandard.ZstdCompressor(**how).compress(raw)


@pytest.mark.parametrize(
    "payload",
    [
        _frame(bytes(16 + 1)),
        _frame(bytes(2**20)),  # forty bytes that want a megabyte
        _frame(bytes(16), write_content_size=False),
        _frame(bytes(16))[:-1],
        _frame(bytes(16)) + b"x",
        _frame(bytes(8)) + _frame(bytes(8)),
        b"\x50\x2a\x4d\x18\x04\x00\x00\x00" + bytes(4),  # a frame to be skipped
        b"",
        bytes(16),
    ],
    ids=["longer", "bomb", "size not stated", "cut", "more behind", "two", "skippable", "none", "not compressed"],
)
def test_a_frame_that_is_not_of_the_size_of_the_tensor_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError) as caught:
        check_payload("float32" + ZSTD, (4,), payload)
    assert caught.value.reason == "payload"


def test_a_frame_that_gives_more_than_it_says_is_refused() -> None:
    honest = _frame(bytes(2**20))
    at = honest.index((2**20).to_bytes(4, "little"))
    payload = honest[:at] + (2**18).to_bytes(4, "little") + honest[at + 4 :]
    assert zstandard.frame_content_size(payload) == 2**18
    with pytest.raises(WireError) as caught:
        check_payload("float32" + ZSTD, (2**16,), payload)
    assert caught.value.reason == "payload"


def test_threads_compress_at_the_same_time() -> None:
    tensors = [np.random.default_rng(seed).standard_normal((8, 400)).astype(np.float32) for seed in range(64)]

    def round_trip(x: np.ndarray) -> bool:
        codec = "float32" + ZSTD
        return np.array_equal(decode_tensor(codec, x.shape, encode_tensor(codec, x)), x)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(round_trip, tensors))


@pytest.mark.parametrize("codec", [codec for codec in CODECS if without_compression(codec) != "float32"])
def test_nan_is_zero_and_an_infinity_the_largest(codec: str) -> None:
    x = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    zero, most, least = decode_tensor(codec, x.shape, encode_tensor(codec, x))[0]
    assert zero == 0
    assert most == -least
    assert most == 65504 if codec.startswith("float16") else most == pytest.approx(np.finfo(np.float32).max, rel=1e-3)


def test_float32_keeps_every_bit() -> None:
    x = np.array([0x7FC00001, 0xFF800000, 0x00000001, 0x80000000], np.uint32).view(np.float32)
    assert decode_tensor("float32", (4,), encode_tensor("float32", x)).tobytes() == x.tobytes()


@given(x=ANY_FLOATS)
@example(x=np.array([3.4000002e38], np.float32))
@example(x=np.array([np.finfo(np.float32).max, 1.0], np.float32))
def test_any_floats_come_back_finite_within_the_stated_error(x: np.ndarray) -> None:
    for codec in ("float16", "int8", "int4"):
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
            bound = peak / (254 if codec == "int8" else 14) * 1.001 + 1e-42
        assert (np.abs(back - wanted) <= bound).all()


@pytest.mark.parametrize("order", ["F", "reversed"])
def test_the_layout_in_memory_does_not_matter(order: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    odd = np.asfortranarray(x) if order == "F" else x[::-1].copy()[::-1]
    for codec in CODECS:
        assert encode_tensor(codec, odd) == encode_tensor(codec, x)


@pytest.mark.parametrize("codec", ["int8", "int4", "int8+zstd", "int4+zstd"])
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 3.4e38, -3.4e38])
def test_scales_that_would_not_give_finite_values_are_refused(codec: str, scale: float) -> None:
    raw = np.array([1, scale], "<f4").tobytes() + bytes(4 if codec.startswith("int8") else 2)
    with pytest.raises(WireError) as caught:
        check_payload(codec, (2, 2), _frame(raw) if codec.endswith(ZSTD) else raw)
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
