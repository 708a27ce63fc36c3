"""An artifact whose digests all fit, but whose graphs give something else than its manifest says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
from onnx import TensorProto, helper

from mdi_exit.benchmark.synthetic import write_identity_artifact
from mdi_exit.errors import ArtifactError
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.model.manifest import GraphFile, Manifest
from mdi_exit.segments import SegmentKey

SHAPE = (4, 2, 2)
BODY, WHOLE = SegmentKey(0, 2, head=False), SegmentKey(0, 3, head=True)


def first_channels(count: int, *, declared: int) -> bytes:
    """A layer that keeps the first ``count`` of four channels and says that it gives ``declared``."""
    bounds = [
        helper.make_tensor(name, TensorProto.INT64, [1], [at]) for name, at in zip("abc", (0, count, 1), strict=True)
    ]
    graph = helper.make_graph(
        [helper.make_node("Slice", ["x", "a", "b", "c"], ["y"])],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", declared, *SHAPE[1:]])],
        bounds,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def sealed(folder: Path, manifest: Manifest) -> Artifact:
    manifest = msgspec.structs.replace(manifest, digest="")
    manifest = msgspec.structs.replace(manifest, digest=manifest.computed_digest())
    (folder / "model.json").write_bytes(msgspec.json.encode(manifest))
    return Artifact.open(folder)


def with_layer_one(folder: Path, raw: bytes) -> Artifact:
    manifest = write_identity_artifact(folder, SHAPE, 3).manifest
    (folder / "other.onnx").write_bytes(raw)
    graph = GraphFile(file="other.onnx", bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
    layers = list(manifest.layers)
    layers[1] = msgspec.structs.replace(layers[1], graph=graph)
    return sealed(folder, msgspec.structs.replace(manifest, layers=tuple(layers)))


def one_line(artifact: Artifact, key: SegmentKey) -> str:
    with pytest.raises(ArtifactError) as caught:
        Composer(artifact).segment(key)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_a_layer_of_the_shape_that_the_manifest_says_is_composed(tmp_path: Path) -> None:
    artifact = with_layer_one(tmp_path, first_channels(4, declared=4))
    assert Composer(artifact).segment(BODY)


def test_a_layer_that_gives_another_shape_is_refused(tmp_path: Path) -> None:
    said = one_line(with_layer_one(tmp_path, first_channels(2, declared=2)), BODY)
    assert "layer 1: output shape: expected (N, 4, 2, 2)" in said


def test_a_layer_that_declares_a_shape_and_gives_another_is_refused(tmp_path: Path) -> None:
    said = one_line(with_layer_one(tmp_path, first_channels(2, declared=4)), BODY)
    assert "layer 1: expected a valid ONNX graph" in said


@pytest.mark.parametrize("names", [("no",), ("no", "yes", "perhaps")])
def test_a_head_with_more_or_fewer_logits_than_labels_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    manifest = write_identity_artifact(tmp_path, SHAPE, 3).manifest
    artifact = sealed(tmp_path, msgspec.structs.replace(manifest, labels=names))
    assert f"exit at layer 2: output shape: expected (N, {len(names)})" in one_line(artifact, WHOLE)
    assert Composer(artifact).segment(BODY)  # its layers are as good as before


def test_a_model_without_names_may_have_any_number_of_classes(tmp_path: Path) -> None:
    manifest = write_identity_artifact(tmp_path, SHAPE, 3).manifest
    assert Composer(sealed(tmp_path, msgspec.structs.replace(manifest, labels=()))).segment(WHOLE)
