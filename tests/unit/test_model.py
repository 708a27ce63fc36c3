"""Artifact, segments, export and training: the split model equals the whole one, and nothing broken gets in."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mdi_exit.benchmark.synthetic import write_identity_artifact
from mdi_exit.data import Dataset, load, shipped
from mdi_exit.engine import make_engine
from mdi_exit.engine.base import labels_and_scores
from mdi_exit.engine.profile import parse_profile
from mdi_exit.errors import ArtifactError, EngineError, UsageError
from mdi_exit.executor import Executor
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact, shipped_models
from mdi_exit.model.compose import Composer
from mdi_exit.model.manifest import GraphFile, Manifest
from mdi_exit.segments import SegmentKey
from mdi_exit.span import LayerSpan

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
            assert labels_and_scores(split[layer])[0] == labels_and_scores(expected)[0]


def test_the_batch_changes_nothing(artifact: Artifact, x_NCHW: np.ndarray) -> None:
    engine, key = make_engine("onnxruntime"), SegmentKey(0, 2, True)
    engine.load(key, Composer(artifact).segment(key))
    together = engine.run(key, x_NCHW[:5])
    for index in range(5):
        alone = engine.run(key, x_NCHW[index : index + 1])
        np.testing.assert_allclose(alone.features, together.features[index : index + 1], atol=1e-5)


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
        right = np.mean(np.array(labels_and_scores(logits[exit_spec.layer])[0]) == dataset.labels_N)
        assert right == pytest.approx(exit_spec.accuracy, abs=0.02)


# --- what is broken is refused with one line


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    write_identity_artifact(tmp_path / "model", (1, 4, 4), 3)
    return tmp_path / "model"


def refused(folder: Path, *expected: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        Composer(Artifact.open(folder)).segment(SegmentKey(0, 3, True))
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.exit_status == 2
    for part in expected:
        assert part in text


def edited(folder: Path, **changes: object) -> None:
    """Change the manifest and give it a right digest."""
    manifest = msgspec.json.decode((folder / "model.json").read_bytes(), type=Manifest)
    manifest = msgspec.structs.replace(manifest, **changes)
    manifest = msgspec.structs.replace(manifest, digest=manifest.computed_digest())
    (folder / "model.json").write_bytes(msgspec.json.encode(manifest))


def replaced_layer(folder: Path, raw: bytes) -> None:
    """Put another graph in the place of layer 1, with a right digest."""
    (folder / "layer-1.onnx").write_bytes(raw)
    manifest = msgspec.json.decode((folder / "model.json").read_bytes(), type=Manifest)
    layers = list(manifest.layers)
    graph = GraphFile(file="layer-1.onnx", bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
    layers[1] = msgspec.structs.replace(layers[1], graph=graph)
    edited(folder, layers=tuple(layers))


def test_no_such_model() -> None:
    with pytest.raises(ArtifactError, match="no-such-model"):
        Artifact.open("no-such-model")


def test_another_format_version_is_refused(copied: Path) -> None:
    edited(copied, format=2)
    refused(copied, "format", "version 1", "got 2")


def test_an_edited_manifest_is_refused(copied: Path) -> None:
    path = copied / "model.json"
    path.write_bytes(path.read_bytes().replace(b'"identity"', b'"identitz"'))
    refused(copied, "digest")


def test_a_manifest_that_is_none_is_refused(copied: Path) -> None:
    (copied / "model.json").write_bytes(b"\x80\x04not json")
    refused(copied, "model.json")


def test_shapes_that_do_not_fit_together_are_refused(copied: Path) -> None:
    layers = list(Artifact.open(copied).manifest.layers)
    layers[1] = msgspec.structs.replace(layers[1], in_shape=(2, 4, 4))
    edited(copied, layers=tuple(layers))
    refused(copied, "shape entering layer 1")


def test_a_truncated_a_changed_and_a_missing_file_are_refused(copied: Path) -> None:
    path = copied / "layer-1.onnx"
    good = path.read_bytes()
    path.write_bytes(good[:-3])
    refused(copied, "layer-1.onnx", "size")
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    refused(copied, "layer-1.onnx", "SHA-256")
    path.unlink()
    refused(copied, "layer-1.onnx")


def test_bytes_that_are_no_graph_are_refused(copied: Path) -> None:
    replaced_layer(copied, b"\x00\x01\x02 not a graph")
    refused(copied, "layer 1")


def graph_bytes(shape: tuple[int, ...], *, domain: str = "", external: bool = False) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *shape])
    w = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    if external:
        w.ClearField("float_data")
        w.data_location = TensorProto.EXTERNAL
        w.external_data.add(key="location", value="../../etc/passwd")
    node = helper.make_node("Mul", ["x", "w"], ["y"], domain=domain)
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y], [w]),
        opset_imports=[helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])],
        ir_version=8,
    )
    return model.SerializeToString()


def test_external_data_foreign_operators_and_other_shapes_are_refused(copied: Path) -> None:
    replaced_layer(copied, graph_bytes((1, 4, 4), external=True))
    refused(copied, "layer 1")
    replaced_layer(copied, graph_bytes((1, 4, 4), domain="evil.ops"))
    refused(copied, "standard operators", "evil.ops")
    replaced_layer(copied, graph_bytes((1, 5, 4)))
    refused(copied, "layer 1", "shape")


# --- engines and executor


@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
def test_engines_refuse_what_does_not_fit(name: str, artifact: Artifact) -> None:
    if name == "torch":
        pytest.importorskip("torch", reason="needs the extra 'torch'")
    engine, key = make_engine(name, model=DEFAULT_MODEL), SegmentKey(0, 2, True)
    engine.load(key, Composer(artifact).segment(key))
    with pytest.raises(EngineError):
        engine.run(key, np.zeros((1, 3, 28, 28), np.float32))
    output = engine.run(key, np.zeros((3, 1, 28, 28), np.float32))
    assert output.features.shape == (3, *artifact.manifest.in_shape(2))
    assert output.logits_NK.shape == (3, 10)


def test_onnxruntime_refuses_what_is_not_loaded_and_what_is_no_graph() -> None:
    engine = make_engine("onnxruntime")
    with pytest.raises(EngineError, match="loaded"):
        engine.run(SegmentKey(0, 1, False), np.zeros((1, 1), np.float32))
    with pytest.raises(EngineError):
        engine.load(SegmentKey(0, 1, False), b"no graph")
    with pytest.raises(UsageError, match="one of"):
        make_engine("tensorflow")


def test_scores_of_extreme_logits_are_in_range_and_nan_never_exits() -> None:
    logits = np.array([[1e4, -1e4], [0.0, 0.0], [np.nan, 1.0]], np.float32)
    labels, scores = labels_and_scores(logits)
    assert labels[0] == 0
    assert scores == pytest.approx([1.0, 0.5, 0.0])


async def test_the_executor_says_what_went_wrong_and_stretches_to_the_profile(artifact: Artifact) -> None:
    from mdi_exit.events import RunSegment, SegmentDone, SegmentFailed, Task

    profile = parse_profile("jetson-nanox4")
    executor = Executor(make_engine("onnxruntime"), profile)
    key = SegmentKey(0, 2, True)
    try:
        seconds = await executor.load(artifact.manifest, {key: Composer(artifact).segment(key)})
        stated = profile.seconds(artifact.manifest, key, 1)
        assert seconds[key] >= stated
        task = Task(1, 1, 0, 0, np.zeros((1, 28, 28), np.float32), 3136)
        done = await executor.run(RunSegment(1, key, (task, task)))
        assert isinstance(done, SegmentDone)
        assert done.seconds >= profile.seconds(artifact.manifest, key, 2)
        assert len(done.outcomes) == 2
        wrong = Task(1, 2, 0, 0, np.zeros((2, 28, 28), np.float32), 3136)
        failed = await executor.run(RunSegment(2, key, (wrong,)))
        assert isinstance(failed, SegmentFailed)
    finally:
        executor.close()


@pytest.mark.parametrize("bad", ["nano", "jetson-nanox0", "jetson-nanoxnan", "x2", ""])
def test_unknown_profiles_are_refused(bad: str) -> None:
    with pytest.raises(UsageError, match="device profile"):
        parse_profile(bad)


# --- data and training


def idx(folder: Path, name: str, array: np.ndarray, *, compressed: bool) -> None:
    raw = bytes([0, 0, 8, array.ndim]) + b"".join(int(dim).to_bytes(4, "big") for dim in array.shape) + array.tobytes()
    (folder / (name + ".gz" if compressed else name)).write_bytes(gzip.compress(raw) if compressed else raw)


def write_fashion(folder: Path, dataset: Dataset, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, compressed in (("train", True), ("t10k", False)):
        idx(folder, f"{stem}-images-idx3-ubyte", dataset.images_NHWC[:count, ..., 0], compressed=compressed)
        idx(folder, f"{stem}-labels-idx1-ubyte", dataset.labels_N[:count].astype(np.uint8), compressed=compressed)


def test_fashion_mnist_is_read_from_its_own_files(tmp_path: Path) -> None:
    write_fashion(tmp_path / "fashion-mnist", shipped(), 30)
    for split in ("train", "test"):
        dataset = load("fashion-mnist", split, tmp_path)
        assert np.array_equal(dataset.images_NHWC, shipped().images_NHWC[:30])
        assert np.array_equal(dataset.labels_N, shipped().labels_N[:30])
    (tmp_path / "fashion-mnist" / "t10k-images-idx3-ubyte").write_bytes(b"\x00\x00\x08\x03\x00")
    with pytest.raises(UsageError, match="t10k-images"):
        load("fashion-mnist", "test", tmp_path)


def test_cifar_is_read_from_its_binary_version(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    rows = b"".join(bytes([label]) + image.tobytes() for label, image in zip((3, 1, 9, 0), images, strict=True))
    (tmp_path / "cifar-10-batches-bin").mkdir()
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(rows)
    dataset = load("cifar10", "test", tmp_path)
    assert dataset.labels_N.tolist() == [3, 1, 9, 0]
    assert np.array_equal(dataset.images_NHWC, images.transpose(0, 2, 3, 1))
    (tmp_path / "test.bin").write_bytes(b"".join(bytes([5, 77]) + image.tobytes() for image in images))
    assert load("cifar100", "test", tmp_path).labels_N.tolist() == [77] * 4
    (tmp_path / "test.bin").write_bytes(b"123")
    with pytest.raises(UsageError, match="multiple of"):
        load("cifar100", "test", tmp_path)


def test_unknown_data_sets_are_refused() -> None:
    with pytest.raises(UsageError, match="fashion-mnist"):
        load("mnist", "test")


def test_the_shipped_images_are_the_first_of_the_test_set() -> None:
    dataset = shipped()
    assert dataset.images_NHWC.shape == (2000, 28, 28, 1)
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("the whole data set is not on this machine")
    assert np.array_equal(load("fashion-mnist", "test").images_NHWC[:2000], dataset.images_NHWC)


def test_training_lowers_the_loss_and_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
    from mdi_exit.model.network import MobileNetV2Config, mobilenetv2
    from mdi_exit.training.joint import TrainConfig, normalised, train_joint

    dataset = shipped()
    x = normalised(dataset.images_NHWC[:256], (0.286,), (0.353,))
    y = torch.from_numpy(dataset.labels_N[:256])
    config = TrainConfig(epochs=3, batch_size=64, learning_rate=0.05, threads=1)

    def fresh():
        torch.manual_seed(0)
        return mobilenetv2(MobileNetV2Config(width=0.25))

    straight = fresh()
    losses = train_joint(straight, x, y, config)
    assert losses[-1] < losses[0]

    class InterruptError(Exception):
        pass

    def interrupt(epoch: int) -> None:
        if epoch == 1:
            raise InterruptError

    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(InterruptError):
        train_joint(fresh(), x, y, config, checkpoint=checkpoint, epoch_done=interrupt)
    resumed = fresh()
    assert train_joint(resumed, x, y, config, checkpoint=checkpoint) == pytest.approx(losses)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_train_command_makes_an_artifact_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="needs the extra 'torch'")
    import argparse

    from mdi_exit.training import command

    write_fashion(tmp_path / "data", shipped(), 200)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    flags = ["--out", str(tmp_path / "model"), "--data-dir", str(tmp_path / "data"), "--epochs", "1", "--width", "0.25"]
    assert command.run(parser.parse_args([*flags, "--limit", "128", "--threads", "1"])) == 0
    printed = capsys.readouterr().out
    assert "accuracy" in printed
    artifact = Artifact.open(tmp_path / "model")
    assert artifact.manifest.training["images"] == 128
    assert artifact.manifest.plan.exit_layers == (1, 3, 5, 6, 8)
    engine, key = make_engine("onnxruntime"), artifact.manifest.plan.segment(0, LayerSpan(0, 9), early_exits=True)
    engine.load(key, Composer(artifact).segment(key))
    assert engine.run(key, np.zeros((1, 1, 28, 28), np.float32)).logits_NK.shape == (1, 10)
    with pytest.raises(UsageError, match="--epochs"):
        command.run(parser.parse_args([*flags, "--epochs", "0"]))
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="empty folder"):
        command.run(parser.parse_args([*flags, "--limit", "128", "--threads", "1"]))
