"""What an executor may count on, whatever runs the segments: ONNX Runtime, torch, and the engine that does nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mdi_exit.data import shipped
from mdi_exit.engine import ENGINES, Engine, make_engine
from mdi_exit.errors import EngineError, UsageError
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.segments import SegmentKey

KEYS = [SegmentKey(0, 2, True), SegmentKey(0, 2, False), SegmentKey(2, 3, False), SegmentKey(7, 9, True)]


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return Artifact.open(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def composer(artifact: Artifact) -> Composer:
    return Composer(artifact)


def loaded(name: str, composer: Composer) -> Engine:
    if name == "torch":
        pytest.importorskip("torch", reason="needs the extra 'torch'")
    engine = make_engine(name, model=DEFAULT_MODEL)
    for key in KEYS:
        engine.load(key, composer.segment(key))
    return engine


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, composer: Composer) -> Engine:
    return loaded(request.param, composer)


@pytest.fixture(scope="module", params=[name for name in ENGINES if name != "noop"])
def checking(request: pytest.FixtureRequest, composer: Composer) -> Engine:
    """The engines that look at what they are given: all but the one that does nothing."""
    return loaded(request.param, composer)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.file)
def test_one_row_of_logits_for_each_sample_if_and_only_if_there_is_a_head(
    engine: Engine, artifact: Artifact, key: SegmentKey, batch: int
) -> None:
    output = engine.run(key, np.zeros((batch, *artifact.manifest.in_shape(key.entry)), np.float32))
    assert (output.logits_NK is not None) == key.head
    if output.logits_NK is not None:
        assert output.logits_NK.dtype == np.float32
        assert len(output.logits_NK) == batch
    if key.stop < len(artifact.manifest.layers):
        assert output.features is not None
        assert output.features.dtype == np.float32
        assert len(output.features) == batch
        if engine.description != "noop":
            assert output.features.shape[1:] == artifact.manifest.in_shape(key.stop)
    elif engine.description != "noop":
        assert output.features is None


def test_the_same_again_gives_the_same(engine: Engine) -> None:
    x_NCHW = shipped().images_NHWC[:3].transpose(0, 3, 1, 2).astype(np.float32) / 255  # not contiguous
    before = x_NCHW.copy()
    first, second = engine.run(KEYS[0], x_NCHW), engine.run(KEYS[0], x_NCHW)
    assert np.array_equal(x_NCHW, before)
    assert np.array_equal(first.features, second.features)
    assert np.array_equal(first.logits_NK, second.logits_NK)


def test_a_read_only_input_is_taken(engine: Engine) -> None:
    x_NCHW = np.frombuffer(bytes(4 * 784), np.float32).reshape(1, 1, 28, 28)
    assert len(engine.run(KEYS[0], x_NCHW).logits_NK) == 1


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((1, 3, 28, 28), np.float32),
        np.zeros((1, 1, 20, 20), np.float32),
        np.zeros((1, 28, 28), np.float32),
        np.zeros((0, 1, 28, 28), np.float32),
        np.zeros((1, 1, 28, 28), np.float64),
        np.zeros((1, 1, 28, 28), np.uint8),
    ],
    ids=["channels", "size", "axes", "empty", "float64", "uint8"],
)
def test_what_does_not_fit_is_an_engine_error_of_one_line(checking: Engine, x: np.ndarray) -> None:
    with pytest.raises(EngineError, match="segment-0-1-head: expected float32") as caught:
        checking.run(KEYS[0], x)
    assert "\n" not in str(caught.value)


def test_a_segment_that_was_not_loaded_is_an_engine_error(checking: Engine) -> None:
    with pytest.raises(EngineError, match="segment-3-3-body: expected a loaded segment, got none"):
        checking.run(SegmentKey(3, 4, False), np.zeros((1, 16, 7, 7), np.float32))


@pytest.mark.parametrize(
    "key", [SegmentKey(0, 10, True), SegmentKey(9, 9, False), SegmentKey(0, 1, True)], ids=["layers", "none", "exit"]
)
def test_a_segment_that_the_model_has_not_is_an_engine_error(
    checking: Engine, composer: Composer, key: SegmentKey
) -> None:
    with pytest.raises(EngineError):
        checking.load(key, b"")
    if key.head:
        with pytest.raises(EngineError):  # a good graph, but of another segment
            checking.load(key, composer.segment(SegmentKey(0, 1, False)))


def test_engines_that_cannot_be_made_say_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="onnxruntime, torch, noop"):
        make_engine("tensorflow")
    with pytest.raises(UsageError, match="local model"):
        make_engine("torch")
    pytest.importorskip("torch", reason="needs the extra 'torch'")
    with pytest.raises(UsageError, match="model"):
        make_engine("torch", model=str(tmp_path))
