"""What is too large, too deep or not finite is refused by each reader, in one line, before memory or time is spent on it."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mdi_exit import client, limits, wire
from mdi_exit.arrays import read_arrays
from mdi_exit.benchmark.synthetic import write_identity_artifact
from mdi_exit.config import parse_toml, read_toml
from mdi_exit.errors import ArtifactError, UsageError, WireError
from mdi_exit.limits import (
    MAX_CONFIG_BYTES,
    MAX_COUNTERS,
    MAX_KEY_PARTS,
    MAX_LAYERS,
    MAX_MANIFEST_BYTES,
    MAX_NAMES,
    MAX_REAL,
    MAX_REQUEST_BYTES,
)
from mdi_exit.modality.image import decode_image
from mdi_exit.model.artifact import MANIFEST_FILE, Artifact
from mdi_exit.model.manifest import Manifest, parse_manifest
from source.reception import read_request


def test_every_limit_is_public() -> None:
    assert set(limits.__all__) == {name for name in vars(limits) if name.startswith("MAX_")}


# --- messages


def features(**changes: object) -> bytes:
    body = bytes(4)
    usual: dict[str, object] = {
        "run": 7, "sender": "a", "incarnation": 11, "seq": 1, "item": 1, "attempt": 0, "epoch": 0, "model": "ab" * 16,
        "next_layer": 4, "codec": "float32", "shape": (1,), "crc": wire.crc32(body),
    }  # fmt: skip
    return wire.encode(wire.Features(**(usual | changes)), body)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 2 * MAX_REAL])
def test_a_number_that_is_none_is_refused(number: float) -> None:
    """As a deadline or a gate it would have gone into every comparison of the core."""
    report = wire.Telemetry(7, 11, "a", 0, 0, 0.0, board=wire.Board(temperature_c=number))
    links = wire.Telemetry(7, 11, "a", 0, 0, 0.0, links={"b": wire.LinkLoad(1, 1, 0.1, 1, abs(number))})
    for frame in (features(deadline_s=number), features(exit_state=(0.5, number)), *map(wire.encode, (report, links))):
        with pytest.raises(WireError, match="header: "):
            wire.decode(frame)


@pytest.mark.parametrize(
    "changes",
    [
        {"backlog_by_layer_s": dict.fromkeys(range(MAX_LAYERS + 1), 0.0)},
        {"received": {f"n{number}": 1 for number in range(MAX_NAMES + 1)}},
        {"counters": {f"n{number}": 1 for number in range(MAX_COUNTERS + 1)}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_load_report_of_too_many_entries_is_refused(changes: dict[str, dict[object, object]]) -> None:
    (name, entries), *_ = changes.items()
    with pytest.raises(WireError, match="length"):
        wire.decode(wire.encode(wire.Telemetry(7, 11, "a", 0, 0, 0.0, **changes)))  # type: ignore[arg-type]
    entries.popitem()
    message, _ = wire.decode(wire.encode(wire.Telemetry(7, 11, "a", 0, 0, 0.0, **{name: entries})))  # type: ignore[arg-type]
    assert getattr(message, name) == entries


def test_the_largest_header_takes_little_memory() -> None:
    layers = dict.fromkeys(range(MAX_LAYERS), 0.0)
    frame = wire.encode(wire.Telemetry(7, 11, "a", 0, 0, 0.0, layers))
    assert len(frame) > limits.MAX_HEADER_BYTES * 0.7
    tracemalloc.start()
    wire.decode(frame)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3_000_000


# --- requests and images


@pytest.mark.parametrize("identity", [10**30, 10**4000, 2**63])
def test_the_number_of_a_request_is_one_that_a_reply_can_repeat(identity: int) -> None:
    with pytest.raises(WireError, match="request: "):
        read_request("desk", b'{"image": "aaaa", "id": %d}' % identity)


def test_a_request_is_not_decoded_when_it_is_too_long() -> None:
    raw = b'{"image": "' + b"a" * (2 * MAX_REQUEST_BYTES) + b'"}'
    tracemalloc.start()
    with pytest.raises(WireError, match="payload-size: "):
        read_request("desk", raw)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < MAX_REQUEST_BYTES / 8


async def test_a_client_reads_no_more_of_a_file_than_it_may_send(tmp_path: Path) -> None:
    file = tmp_path / "large.jpg"
    with file.open("wb") as stream:
        stream.truncate(1 << 34)  # no machine of the tests could hold it
    with pytest.raises(client.BadRequest, match="expected 1 to"):
        await client._payload("a", file)


def bmp(width: int, height: int) -> bytes:
    header = bytearray(54)
    header[:2], header[10], header[14], header[26], header[28] = b"BM", 54, 40, 1, 24
    header[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(header)


@pytest.mark.parametrize(("width", "height"), [(6000, 5000), (60000, 50000), (2**31 - 1, 2**31 - 1)])
def test_an_image_that_says_it_is_huge_is_not_decoded(width: int, height: int) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match="image"):
        decode_image(bmp(width, height))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 10_000_000  # the decoders are loaded at the first


_BROKEN_TIFF = """
import io, numpy, PIL.Image
from mdi_exit.modality.image import decode_image
buffer = io.BytesIO()
PIL.Image.fromarray(numpy.zeros((8, 8), numpy.uint8)).save(buffer, "TIFF")
for at in (8, 14, 20):
    raw = bytearray(buffer.getvalue())
    raw[at] = 255
    try:
        decode_image(bytes(raw))
    except ValueError as error:
        print(len(str(error).splitlines()))
"""


def test_a_broken_image_fills_no_log() -> None:
    """In a process of its own: pytest sets the filters of warnings anew for each test."""
    done = subprocess.run([sys.executable, "-c", _BROKEN_TIFF], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) == {"1"}
    assert done.stderr == ""


# --- manifests


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write_identity_artifact(tmp_path / "model", (1, 4, 4), 2)


def resealed(raw: bytes, change: Callable[[dict[str, object]], object]) -> bytes:
    tree = json.loads(raw)
    change(tree)
    raw = json.dumps(tree).encode()
    try:
        tree["digest"] = msgspec.json.decode(raw, type=Manifest).computed_digest()
    except msgspec.MsgspecError:
        return raw
    return json.dumps(tree).encode()


def large(shape: list[int]) -> Callable[[dict[str, object]], object]:
    def change(tree: dict[str, object]) -> None:
        tree["input"]["shape"] = shape  # type: ignore[index]
        for layer in tree["layers"]:  # type: ignore[attr-defined]
            layer["in_shape"] = layer["out_shape"] = shape

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (large([1, 2**24, 2**24]), "at most 16,777,216 values"),
        (large([1, 2**24, 2**25]), "<= 16777216"),
        (lambda tree: tree["layers"][0].update(out_shape=[1] * 9), "length <= 8"),
        (lambda tree: tree["layers"][0].update(macs=2**60), "<= 9007199254740992"),
        (lambda tree: tree["layers"][0]["graph"].update(bytes=2**31), "<= 1073741824"),
        (lambda tree: tree["layers"][0]["graph"].update(file="a.onnx\n"), "matching regex"),
        (lambda tree: tree.update(labels=["x"] * 70_000), "length <= 65536"),
        (lambda tree: tree.update(labels=["x" * 201]), "length <= 200"),
        (lambda tree: tree.update(exits=tree["exits"] * 5000), "length <= 4096"),
        (lambda tree: tree.update(exits=tree["exits"] * 4000), "got 4000 others"),
    ],
)
def test_a_manifest_beyond_the_limits_is_refused(
    artifact: Artifact, change: Callable[[dict[str, object]], object], says: str
) -> None:
    with pytest.raises(ArtifactError) as told:
        parse_manifest(resealed(artifact.manifest_bytes, change), "here")
    assert says in str(told.value)
    assert len(str(told.value)) < 600


def test_a_manifest_of_too_many_bytes_is_not_read(artifact: Artifact) -> None:
    raw = b" " * MAX_MANIFEST_BYTES + artifact.manifest_bytes
    with pytest.raises(ArtifactError, match="at most 4,194,304 bytes"):
        parse_manifest(raw, "here")
    with (artifact.folder / MANIFEST_FILE).open("wb") as stream:
        stream.truncate(1 << 34)
    with pytest.raises(ArtifactError, match="at most 4,194,304 bytes"):
        Artifact.open(artifact.folder)


def test_a_graph_is_not_read_when_its_size_is_wrong(artifact: Artifact) -> None:
    graph = artifact.manifest.layers[0].graph
    with (artifact.folder / graph.file).open("ab") as stream:
        stream.truncate(1 << 34)
    with pytest.raises(ArtifactError, match="size: expected"):
        artifact.read(graph)


def test_members_that_nobody_knows_take_no_memory() -> None:
    raw = b'{"format": 1, ' + b", ".join(b'"a%d": [[], {}]' % number for number in range(150_000)) + b"}"
    assert len(raw) < MAX_MANIFEST_BYTES
    tracemalloc.start()
    with pytest.raises(ArtifactError, match="format: expected version"):
        parse_manifest(raw, "here")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 100_000


# --- TOML and arrays


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "{a = " * 5000])
def test_toml_nested_without_end_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="expected valid TOML") as told:
        parse_toml(text.encode(), "", "--config")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("part", ["a", '"a b"', "'a'", "a "])
def test_a_long_dotted_key_is_refused_before_it_is_read(part: str) -> None:
    """The reader of the standard library takes 3 s for one of 40 KB, and four times that for twice as much."""
    for parts in (MAX_KEY_PARTS + 1, 100_000):
        for form in ("{} = 1", "[{}]", "b = {{ {} = 1 }}"):
            with pytest.raises(UsageError, match="keys of at most 32 parts"):
                parse_toml(form.format(".".join([part] * parts)).encode(), "", "--config")
    assert parse_toml((".".join([part] * MAX_KEY_PARTS) + " = 1").encode(), "", "--config")


def test_a_toml_file_without_end_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large.toml"
    with file.open("wb") as stream:
        stream.truncate(1 << 34)
    with pytest.raises(UsageError, match=f"at most {MAX_CONFIG_BYTES:,} bytes of TOML"):
        read_toml(file, "--config")


def npz(folder: Path, member: bytes, name: str = "x.npy") -> Path:
    file = folder / "made.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, member)
    return file


def npy(shape: tuple[int, ...], data: bytes) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


@pytest.mark.parametrize("shape", [(2**40,), (2**33, 2**33), (100,)])
def test_an_array_that_says_it_is_larger_than_its_file_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"x\.npy: expected an array of"):
        read_arrays(npz(tmp_path, npy(shape, bytes(8))), "data file")


def test_arrays_that_unpack_to_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdi_exit.arrays.MAX_ARRAYS_BYTES", 1000)
    with pytest.raises(UsageError, match="at most 1,000 bytes of arrays"):
        read_arrays(npz(tmp_path, npy((1000,), bytes(8000))), "data file")


@pytest.mark.parametrize("member", [b"", b"\x93NUMPY", b"\x93NUMPY\x09\x00" + bytes(40), b"noise" * 10])
def test_what_is_no_array_is_refused(tmp_path: Path, member: bytes) -> None:
    with pytest.raises(UsageError, match="data file"):
        read_arrays(npz(tmp_path, member), "data file")


def test_good_arrays_are_read(tmp_path: Path) -> None:
    file = tmp_path / "good.npz"
    np.savez_compressed(file, x=np.arange(6).reshape(2, 3), name=np.array("text"), none=np.zeros((0, 4)))
    assert {name: array.shape for name, array in read_arrays(file, "data file").items()} == {
        "x": (2, 3), "name": (), "none": (0, 4),
    }  # fmt: skip
