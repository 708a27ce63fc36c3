"""What a message on a client's topic is read as, and what tensor is made of it."""

from __future__ import annotations

import base64
import io
import json
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mdi_exit.data import preprocess
from mdi_exit.errors import MdiExitError, WireError
from mdi_exit.modality.image import ImageInput, decode_image
from mdi_exit.model.manifest import InputSpec
from mdi_exit.wire import VERSION, Probe, Reply, Request, encode
from source.reception import Sent, read_request, reply_json, to_tensor

SPEC = InputSpec(kind="image", shape=(1, 28, 28), mean=(0.5,), std=(0.25,))
IMAGES = ImageInput(SPEC)


def frame(kind: str, data: bytes, shape: tuple[int, ...] = (), **fields: object) -> bytes:
    return encode(Request("desk", "a-1", kind, zlib.crc32(data), shape, **fields), data)  # type: ignore[arg-type]


def picture(kind: str, mode: str = "L", side: int = 28, **options: object) -> bytes:
    pixels = np.arange(side * side, dtype=np.uint32).reshape(side, side) % 251
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def plain(**fields: object) -> bytes:
    image = base64.b64encode(picture("PNG")).decode()
    return json.dumps({"image": image} | fields).encode()


def test_a_frame_is_read_with_all_its_fields() -> None:
    event = read_request("desk", frame("uint8", bytes(784), (28, 28), deadline_s=0.5))
    assert (event.client, event.id, event.size_bytes, event.deadline_s, event.plain) == ("desk", "a-1", 784, 0.5, False)
    assert isinstance(event.payload, Sent)
    assert (event.payload.kind, event.payload.shape) == ("uint8", (28, 28))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_an_image_file_is_a_request_as_it_is(kind: str) -> None:
    event = read_request("desk", picture(kind))
    assert (event.id, event.deadline_s, event.plain) == ("", None, True)
    x = to_tensor(event.payload, IMAGES)
    assert (x.shape, x.dtype) == ((1, 28, 28), np.float32)


@pytest.mark.parametrize(
    ("fields", "identity", "deadline_s"),
    [({}, "", None), ({"id": "x:1.b-_"}, "x:1.b-_", None), ({"id": 7, "deadline_s": 2}, "7", 2.0)],
)
def test_json_may_give_an_id_and_a_deadline(fields: dict[str, object], identity: str, deadline_s: float | None) -> None:
    event = read_request("desk", b"\n " + plain(**fields))
    assert (event.id, event.deadline_s, event.plain) == (identity, deadline_s, True)
    expected = preprocess(decode_image(picture("PNG")), SPEC)
    assert np.array_equal(to_tensor(event.payload, IMAGES), expected)


def test_json_may_give_sound_or_a_text_instead() -> None:
    file = base64.b64encode(b"RIFF").decode()
    sound = read_request("desk", json.dumps({"audio": file, "id": "a"}).encode())
    assert (sound.id, sound.payload) == ("a", Sent("image", (), b"RIFF")), "as the bytes of any file"
    assert read_request("desk", b'{"text": "hello"}').payload == Sent("text", (), b"hello")


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (plain(audio="UklGRg=="), "request"),
        (plain(text="x"), "request"),
        (plain(deadline=2), "request"),
        (plain(deadline_s=0), "request"),
        (plain(deadline_s=3601), "request"),
        (plain(id=""), "request"),
        (plain(id="#1"), "request"),
        (plain(id="a b"), "request"),
        (plain(id=-1), "request"),
        (b'{"image": "no base64!"}', "request"),
        (b'{"image": ""}', "payload-size"),
        (b"{}", "request"),
        (b"{\xff", "request"),
        (b"", "payload-size"),
        (bytes(9 * 1024 * 1024 + 1)[1:].replace(b"\0", b"\xff"), "payload-size"),
        (frame("image", b""), "payload-size"),
        (frame("image", b"x")[:-1], "crc"),
        (frame("image", b"x").replace(b"desk", b"else"), "crc"),
        (encode(Request("else", "a-1", "image", zlib.crc32(b"x")), b"x"), "identity"),
        (encode(Probe(1, 1, 1)), "type"),
        (bytes([VERSION]), "truncated"),
    ],
)
def test_what_is_no_request_is_refused_with_a_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(WireError) as error:
        read_request("desk", payload)
    assert error.value.reason == reason


@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,imagedlns_0123 \\u', max_size=80).map(str.encode))
def test_any_bytes_are_a_request_or_refused_and_a_tensor_or_an_error(payload: bytes) -> None:
    try:
        event = read_request("desk", payload)
    except WireError:
        return
    with pytest.raises((ValueError, MdiExitError)):
        to_tensor(event.payload, IMAGES)


def test_arrays_of_pixels_are_preprocessed_and_ready_ones_are_taken_as_they_are() -> None:
    pixels = np.arange(30 * 20 * 3, dtype=np.uint32).reshape(30, 20, 3).astype(np.uint8)
    x = to_tensor(Sent("uint8", (30, 20, 3), pixels.tobytes()), IMAGES)
    assert np.array_equal(x, preprocess(pixels, SPEC))
    ready = np.linspace(-2, 2, 784, dtype="<f4").reshape(1, 28, 28)
    assert np.array_equal(to_tensor(Sent("float32", (1, 28, 28), memoryview(ready.tobytes())), IMAGES), ready)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (Sent("uint8", (28, 28), bytes(783)), "784 bytes"),
        (Sent("uint8", (28, 28, 4), bytes(3136)), "H×W"),
        (Sent("uint8", (), bytes(1)), "H×W"),
        (Sent("float32", (28, 28), bytes(3136)), "shape"),
        (Sent("float32", (1, 28, 28), np.full(784, np.nan, "<f4").tobytes()), "values"),
        (Sent("float32", (1, 28, 28), np.full(784, -1e30, "<f4").tobytes()), "values"),
        (Sent("image", (), b"junk"), "JPEG"),
    ],
)
def test_what_the_model_cannot_take_is_an_error(sent: Sent, why: str) -> None:
    with pytest.raises((ValueError, MdiExitError), match=why):
        to_tensor(sent, IMAGES)


def test_images_are_read_upright_without_transparency_and_in_a_few_formats_only() -> None:
    turned = Image.fromarray(np.array([[0, 255]], np.uint8).repeat(8, 0).repeat(8, 1))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    assert decode_image(buffer.getvalue()).shape == (16, 8)
    clear = io.BytesIO()
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(clear, "PNG")
    assert (decode_image(clear.getvalue()) == 255).all()
    for other in ("EPS", "PPM"):
        with pytest.raises(ValueError, match="expected a file of JPEG"):
            decode_image(picture(other))
    with pytest.raises(ValueError, match="more than 700"):
        decode_image(picture("PNG"), largest=700)
    with pytest.raises(ValueError, match="expected a file of JPEG"):
        decode_image(picture("PNG")[:-40])


def test_replies_in_plain() -> None:
    reply = Reply("desk", "7", 9, "Ankle boot", 0.7500004, 2, ("a", "b"), 0.12345678)
    assert json.loads(reply_json(reply)) == {
        "id": "7", "label": 9, "label_name": "Ankle boot", "confidence": 0.75, "exit": 2, "path": ["a", "b"],
        "latency_s": 0.123457,
    }  # fmt: skip
    refused = Reply("desk", "7", error="refused", reason="full")
    assert json.loads(reply_json(refused)) == {"id": "7", "error": "refused", "reason": "full", "latency_s": 0.0}
