"""The shipped model: split it equals the whole one."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from mdi_exit.data import shipped
from mdi_exit.engine import make_engine
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact, shipped_models
from mdi_exit.model.compose import Composer
from mdi_exit.segments import SegmentKey

IMAGES = 64


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return Artifact.open(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def x_NCHW(artifact: Artifact) -> np.ndarray:
    spec = artifact.manifest.input
    pixels_NHWC = shipped().images_NHWC[:IMAGES].astype(np.float32) / 255
    x_NHWC = (pixels_NHWC - np.float32(spec.mean[0])) / np.float32(spec.std[0])
    return np.ascontiguousarray(x_NHWC.transpose(0, 3, 1, 2))


def whole_torch(artifact: Artifact, x_NCHW: np.ndarray) -> list[np.ndarray]:
    torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
    from mdi_exit.engine.torch import network_of

    torch.set_num_threads(1)  # as the engine does: with more, sums are made in another order
    whole = torch.from_numpy(x_NCHW).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return [logits.numpy() for logits in network_of(artifact)(whole)]


def run_split(
    engine, composer: Composer, x: np.ndarray, cuts: list[int], exits: tuple[int, ...]
) -> dict[int, np.ndarray]:
    """Logits at every exit when the network is run in segments that end at ``cuts`` and at exits."""
    found = {}
    stops = sorted({*cuts, *(layer + 1 for layer in exits)})
    entry = 0
    for stop in stops:
        key = SegmentKey(entry, stop, stop - 1 in exits)
        engine.load(key, composer.segment(key))
        output = engine.run(key, x)
        if output.logits_NK is not None:
            found[stop - 1] = output.logits_NK
        if output.features is not None:
            x = output.features
        entry = stop
    return found


def test_torch_split_at_every_cut_equals_the_whole_bit_for_bit(artifact: Artifact, x_NCHW: np.ndarray) -> None:
    pytest.importorskip("torch", reason="needs the extra 'torch'")
    whole = whole_torch(artifact, x_NCHW)
    exits = artifact.manifest.plan.exit_layers
    engine, composer = make_engine("torch", model=DEFAULT_MODEL), Composer(artifact)
    for cut in range(1, 9):
        split = run_split(engine, composer, x_NCHW, [cut], exits)
        for layer, expected in zip(exits, whole, strict=True):
            assert np.array_equal(split[layer], expected), f"cut before layer {cut}, exit at layer {layer}"


def test_onnx_split_at_every_cut_equals_torch_within_1e_4_and_says_the_same(
    artifact: Artifact, x_NCHW: np.ndarray
) -> None:
    whole = whole_torch(artifact, x_NCHW)
    exits = artifact.manifest.plan.exit_layers
    engine, composer = make_engine("onnxruntime"), Composer(artifact)
    for cut in range(1, 9):
        split = run_split(engine, composer, x_NCHW, [cut], exits)
        for layer, expected in zip(exits, whole, strict=True):
            np.testing.assert_allclose(split[layer], expected, atol=1e-4, rtol=1e-4)
            np.testing.assert_array_equal(split[layer].argmax(axis=1), expected.argmax(axis=1))


def test_the_batch_changes_nothing(artifact: Artifact, x_NCHW: np.ndarray) -> None:
    engine, key = make_engine("onnxruntime"), SegmentKey(0, 2, True)
    engine.load(key, Composer(artifact).segment(key))
    together = engine.run(key, x_NCHW[:5])
    for index in range(5):
        alone = engine.run(key, x_NCHW[index : index + 1])
        np.testing.assert_allclose(alone.features, together.features[index : index + 1], atol=1e-5)


def test_a_loaded_segment_is_not_kept_a_second_time_as_a_file(artifact: Artifact) -> None:
    if {"CUDAExecutionProvider", "TensorrtExecutionProvider"} & {*onnxruntime.get_available_providers()}:
        pytest.skip("on a GPU the file is kept, to start anew on the CPU")
    engine, key = make_engine("onnxruntime"), SegmentKey(0, 2, True)
    graph = Composer(artifact).segment(key)
    before = sys.getrefcount(graph)
    engine.load(key, graph)
    assert sys.getrefcount(graph) == before


def test_a_segment_without_its_head_computes_no_head(artifact: Artifact) -> None:
    composer = Composer(artifact)
    for exit_spec in artifact.manifest.exits[:-1]:
        stop = exit_spec.layer + 1
        body = onnx.load_from_string(composer.segment(SegmentKey(stop - 1, stop, False)))
        head = onnx.load_from_string(composer.segment(SegmentKey(stop - 1, stop, True)))
        assert [output.name for output in body.graph.output] == ["features"]
        assert [output.name for output in head.graph.output] == ["features", "logits"]
        assert len(body.graph.node) < len(head.graph.node)
        assert not [node for node in body.graph.node if node.op_type in ("Gemm", "MatMul", "GlobalAveragePool")]


def test_composition_is_deterministic(artifact: Artifact) -> None:
    key = SegmentKey(4, 6, True)
    assert Composer(artifact).segment(key) == Composer(artifact).segment(key)


def test_the_shipped_artifact_keeps_its_promises(artifact: Artifact) -> None:
    assert DEFAULT_MODEL in shipped_models()
    manifest = artifact.manifest
    assert (len(manifest.layers), len(manifest.exits), len(manifest.labels)) == (9, 5, 10)
    assert manifest.exits[0].accuracy >= 0.80
    assert manifest.exits[-1].accuracy >= 0.91
    assert sum(path.stat().st_size for path in artifact.folder.iterdir()) <= 6_000_000


def test_accuracy_on_the_shipped_images_is_that_of_the_manifest(artifact: Artifact) -> None:
    dataset, spec = shipped(), artifact.manifest.input
    x_NHWC = (dataset.images_NHWC.astype(np.float32) / 255 - np.float32(spec.mean[0])) / np.float32(spec.std[0])
    engine, exits = make_engine("onnxruntime"), artifact.manifest.plan.exit_layers
    logits = run_split(engine, Composer(artifact), x_NHWC.transpose(0, 3, 1, 2).copy(), [], exits)
    for exit_spec in artifact.manifest.exits:
        right = np.mean(logits[exit_spec.layer].argmax(axis=1) == dataset.labels_N)
        assert right == pytest.approx(exit_spec.accuracy, abs=0.02)
