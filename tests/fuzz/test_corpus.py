"""The corpus of the fuzzers, replayed, and a short run of each target's mutations; what is read is also what was written."""

from __future__ import annotations

import contextlib
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit import wire
from mdi_exit.config import parse_toml
from mdi_exit.engine.graph_check import check_graph
from mdi_exit.errors import ArtifactError, EngineError, UsageError, WireError
from mdi_exit.fuzzing.targets import TARGETS, Target, changed_frame, sample_frames
from mdi_exit.fuzzing.worker import run_batch
from mdi_exit.model.manifest import parse_manifest
from mdi_exit.tensors import CODECS, decode_tensor, encode_tensor

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(file for file in CORPUS.rglob("*") if file.is_file())
SHORT = {"config": 200, "onnx": 1500, "requests": 1000}


def held(target: Target, data: bytes) -> None:
    """Run, and let nothing through but what the target declares."""
    with contextlib.suppress(target.refuses):
        target.run(data)


def test_the_corpus_is_there_and_small() -> None:
    assert {file.parent.name for file in FILES} == set(TARGETS)
    assert sum(file.stat().st_size for file in FILES) < 200_000


@pytest.mark.filterwarnings("ignore::Warning:PIL")
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_of_the_corpus_does_harm(name: str) -> None:
    for file in (CORPUS / name).iterdir():
        held(TARGETS[name], file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_good_examples_are_accepted(name: str) -> None:
    for data in TARGETS[name].examples():
        TARGETS[name].run(data)


@pytest.mark.filterwarnings("ignore::Warning:PIL")
@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_finds_nothing(name: str) -> None:
    corpus = [file.read_bytes() for file in sorted((CORPUS / name).iterdir())]
    row = run_batch(TARGETS[name], corpus, 1, 0, SHORT.get(name, 4000))
    assert row["found"] == []
    assert row["accepted"] + row["refused"] == row["executions"]
    assert row["traced"] > 0


def test_a_batch_is_the_same_whenever_it_is_run() -> None:
    rows = [run_batch(TARGETS["wire"], [], 3, 5, 2000) for _ in range(2)]
    assert rows[0]["accepted"] == rows[1]["accepted"]
    assert 0 < rows[0]["accepted"] < 2000


def test_what_a_batch_finds_is_told_with_its_input() -> None:
    def run(data: bytes) -> None:
        if data[:1] == b"\xff":
            raise KeyError("found")
        if data[:1] == b"\xfe":
            bytes(3 << 20)

    target = Target("made-up", "", run, (), lambda: [b"\xff", b"\xfe", b"a"], lambda rng, data: data, 1, 1)
    row = run_batch(target, [], 1, 0, 50)
    assert {(found["what"], found["input"]) for found in row["found"]} == {("crash", "ff"), ("memory", "fe")}


# --- properties


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_wire_error(data: bytes) -> None:
    held(TARGETS["wire"], data)
    held(TARGETS["wire"], wire.framed(data))


@given(st.sampled_from(sample_frames()), st.integers(0, 2**32))
def test_a_changed_message_is_read_as_what_it_says_or_refused(frame: bytes, seed: int) -> None:
    held(TARGETS["wire"], changed_frame(Random(seed), frame))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_as_a_manifest(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        parse_manifest(data, "any")


@given(st.binary(max_size=300))
def test_any_bytes_are_toml_or_a_usage_error(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(parse_toml(data, "", "any"), dict)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_as_a_graph(data: bytes) -> None:
    with pytest.raises(EngineError):
        check_graph(data)


@given(st.sampled_from(CODECS), st.lists(st.integers(-3, 2**25), max_size=10).map(tuple), st.binary(max_size=200))
def test_any_bytes_are_a_tensor_of_the_shape_or_a_wire_error(codec: str, shape: tuple[int, ...], data: bytes) -> None:
    with contextlib.suppress(WireError):
        assert decode_tensor(codec, shape, data).shape == shape


@given(st.sampled_from(CODECS), st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple))
def test_a_tensor_comes_back_in_its_shape(codec: str, shape: tuple[int, ...]) -> None:
    x = np.ones(shape, np.float32)
    assert np.allclose(decode_tensor(codec, shape, encode_tensor(codec, x)), x, atol=0.1)
