"""Manifest, artifact and composition beyond what ``test_model`` covers: whatever is wrong with a file is one line."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mdi_exit.benchmark.synthetic import write_identity_artifact
from mdi_exit.engine import make_engine
from mdi_exit.errors import ArtifactError
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.model.compose import Composer, checked_graph
from mdi_exit.model.manifest import GraphFile, Manifest, parse_manifest
from mdi_exit.segments import SegmentKey, needed_segments
from mdi_exit.span import LayerSpan

SHAPE = (1, 4, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_identity_artifact(tmp_path / "model", SHAPE, 3)
    return tmp_path / "model"


@pytest.fixture(scope="module")
def shipped_artifact() -> Artifact:
    return Artifact.open(DEFAULT_MODEL)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as JSON; give it a right digest where it still is a manifest."""
    path = folder / "model.json"
    plain = msgspec.json.decode(path.read_bytes())
    change(plain)
    try:
        manifest = msgspec.convert(plain, Manifest)
        plain["digest"] = manifest.computed_digest()
    except msgspec.ValidationError:
        pass
    path.write_bytes(msgspec.json.encode(plain))


def one_line(call: Callable[[], object]) -> str:
    with pytest.raises(ArtifactError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _set(*path: Any) -> Callable[[dict[str, Any]], object]:
    *way, last, value = path

    def change(plain: Any) -> None:
        for step in way:
            plain = plain[step]
        plain[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("format", 1), "expected version 2, got 1"),
        (_set("format", "1"), "format"),
        (_set("format", 2.0), "format"),
        (lambda plain: plain.pop("format"), "format"),
        (lambda plain: plain.pop("layers"), "layers"),
        (_set("layers", []), "layers"),
        (_set("exits", []), "exits"),
        (_set("exits", 0, "layer", 1), "rising layers that end at 2"),
        (lambda plain: plain["exits"].insert(0, plain["exits"][0]), "rising layers"),
        (_set("exits", 0, "threshold", 1.5), "threshold"),
        (_set("layers", 0, "in_shape", [1, 0, 4]), "in_shape"),
        (_set("layers", 0, "in_shape", [1, 4, 5]), "shape entering layer 0"),
        (_set("layers", 1, "out_shape", [2, 4, 4]), "shape entering layer 2"),
        (_set("layers", 0, "graph", "file", "../../etc/passwd"), "file"),
        (_set("layers", 0, "graph", "file", "/etc/passwd"), "file"),
        (_set("layers", 0, "graph", "file", ".."), "regex"),
        (_set("layers", 0, "graph", "bytes", 0), "bytes"),
        (_set("layers", 0, "graph", "sha256", "0" * 63), "sha256"),
        (_set("layers", 0, "macs", -1), "macs"),
        (_set("input", "kind", "sound"), "kind"),
        (_set("input", "std", [0.0]), "std"),
        (_set("input", "mean", [0.0, 0.0]), "mean and std"),
        (_set("name", "a/b"), "name"),
        (_set("labels", "cat"), "labels"),
    ],
)
def test_a_manifest_with_one_thing_wrong_says_which(
    folder: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    rewritten(folder, change)
    assert says in one_line(lambda: Artifact.open(folder))


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"null", b"1", b'"x"', b"{", b"\xff\xfe", b"[" * 100_000, b'{"format":2}', b'{"format":' + b"9" * 400]
)  # fmt: skip
def test_bytes_that_are_no_manifest_are_one_line(raw: bytes) -> None:
    one_line(lambda: parse_manifest(raw, "here"))


@given(raw=st.binary(max_size=200))
def test_random_bytes_are_no_manifest(raw: bytes) -> None:
    one_line(lambda: parse_manifest(raw, "here"))


@given(data=st.data())
def test_a_manifest_with_any_bit_changed_is_refused_or_says_the_same(
    shipped_artifact: Artifact, data: st.DataObject
) -> None:
    raw = bytearray(shipped_artifact.manifest_bytes)
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        manifest = parse_manifest(bytes(raw), "here")
    except ArtifactError:
        return
    assert manifest == shipped_artifact.manifest  # white space, or the digits beyond a float's precision


def test_an_edited_manifest_is_refused(folder: Path) -> None:
    path = folder / "model.json"
    path.write_bytes(path.read_bytes().replace(b'"identity"', b'"identitz"'))
    assert "digest" in one_line(lambda: Artifact.open(folder))


def test_a_wrong_artifact_is_a_usage_error() -> None:
    with pytest.raises(ArtifactError, match="no-such-model") as caught:
        Artifact.open("no-such-model")
    assert caught.value.exit_status == 2


def test_the_digest_is_that_of_every_field_but_itself(shipped_artifact: Artifact) -> None:
    manifest = shipped_artifact.manifest
    assert msgspec.structs.replace(manifest, digest="").computed_digest() == manifest.digest
    assert (
        msgspec.structs.replace(manifest, labels=(*manifest.labels[:-1], "boot")).computed_digest() != manifest.digest
    )


def test_a_folder_a_file_and_a_manifest_that_is_a_folder_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "odd" / "model.json").mkdir(parents=True)
    for name in (tmp_path, tmp_path / "file", tmp_path / "odd", "", "fashion-mnist-mobilenetv2/../x", "a\x00b"):
        assert DEFAULT_MODEL in one_line(lambda name=name: Artifact.open(name))


@pytest.mark.parametrize("file", ["weights.safetensors", "exit-1.onnx", "layer-8.onnx"])
def test_every_file_of_an_artifact_is_checked_when_it_is_opened(
    shipped_artifact: Artifact, tmp_path: Path, file: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(shipped_artifact.folder, folder)
    path = folder / file
    raw = path.read_bytes()
    path.write_bytes(raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
    assert "SHA-256" in one_line(lambda: Artifact.open(folder))
    path.write_bytes(raw + b"x")
    assert "size" in one_line(lambda: Artifact.open(folder))
    path.unlink()
    assert file in one_line(lambda: Artifact.open(folder))


def test_a_file_that_changes_after_opening_is_noticed_when_it_is_read(folder: Path) -> None:
    artifact = Artifact.open(folder)
    (folder / "layer-0.onnx").write_bytes(bytes(artifact.manifest.layers[0].graph.bytes))
    assert "SHA-256" in one_line(lambda: Composer(artifact).segment(SegmentKey(0, 1, False)))


def test_weights_that_are_none_and_a_model_without_are_one_line(
    shipped_artifact: Artifact, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="needs the extra 'torch'")
    from mdi_exit.engine.torch import network_of

    assert "weights for torch" in one_line(lambda: network_of(Artifact.open(folder)))
    copy = tmp_path / "copy"
    shutil.copytree(shipped_artifact.folder, copy)
    raw = b"\xff" * 64
    (copy / "weights.safetensors").write_bytes(raw)
    weights = GraphFile(file="weights.safetensors", bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
    rewritten(copy, _set("weights", msgspec.to_builtins(weights)))
    assert "weights" in one_line(lambda: network_of(Artifact.open(copy)))
    shutil.copy(shipped_artifact.folder / "weights.safetensors", copy)
    rewritten(copy, _set("weights", msgspec.to_builtins(shipped_artifact.manifest.weights)))
    rewritten(copy, _set("network", "width", 0.25))  # another network than the weights'
    assert "weights" in one_line(lambda: network_of(Artifact.open(copy)))


# --- graphs


def external(name: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="secret.bin")
    return tensor


def graph(
    *,
    nodes: list[Any] | None = None,
    initializers: Any = (),
    shape: Any = ("N", 1, 4, 4),
    outputs: int = 1,
    domain: str | None = None,
) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    ys = [helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, shape) for index in range(outputs)]
    made = nodes or [helper.make_node("Identity", ["x"], [y.name]) for y in ys]
    model = helper.make_model(
        helper.make_graph(made, "g", [x], ys, list(initializers)),
        opset_imports=[helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])],
        ir_version=8,
    )
    return bytes(model.SerializeToString())


def branch(tensor: TensorProto) -> Any:
    """A graph inside an ``If``, whose constant lies elsewhere."""
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    out = helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])
    return helper.make_graph([constant], "branch", [], [out])


def nested_external() -> list[Any]:
    condition = helper.make_tensor("t", TensorProto.BOOL, [], [True])
    return [
        helper.make_node("Constant", [], ["condition"], value=condition),
        helper.make_node(
            "If", ["condition"], ["w"], then_branch=branch(external("c")), else_branch=branch(external("c"))
        ),
        helper.make_node("Mul", ["x", "w"], ["y0"]),
    ]


@pytest.mark.parametrize(
    "raw",
    [
        graph(nodes=[helper.make_node("Mul", ["x", "w"], ["y0"])], initializers=[external("w")]),
        graph(
            nodes=[
                helper.make_node("Constant", [], ["w"], value=external("w")),
                helper.make_node("Mul", ["x", "w"], ["y0"]),
            ]
        ),
        graph(nodes=nested_external()),
    ],
    ids=["initializer", "constant", "inside an If"],
)
def test_external_data_is_refused_wherever_it_hides(
    raw: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(bytes(4))  # it is there: not its absence is the reason
    one_line(lambda: checked_graph(raw, "layer 1", SHAPE))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (graph(outputs=2), "one input and one output"),
        (graph(shape=(1, 1, 4, 4)), "input shape"),
        (graph(shape=("N", 1, 4)), "input shape"),
        (graph(shape=("N", 1, "H", 4)), "input shape"),
        (graph(shape=()), "input shape"),
        (graph(nodes=[helper.make_node("NoSuchOperator", ["x"], ["y0"])]), "valid ONNX graph"),
        (graph(nodes=[helper.make_node("Identity", ["nowhere"], ["y0"])]), "valid ONNX graph"),
        (graph(nodes=[helper.make_node("Gelu", ["x"], ["y0"], domain="evil")]), "valid ONNX graph"),
        (graph(nodes=[helper.make_node("Gelu", ["x"], ["y0"], domain="evil")], domain="evil"), "operators of evil"),
        (b"\x00\x01 not a graph", "valid ONNX graph"),
        (b"", "valid ONNX graph"),
        (graph()[:-7], "valid ONNX graph"),
    ],
    ids=[
        "outputs",
        "fixed batch",
        "axes",
        "dynamic",
        "scalar",
        "operator",
        "edge",
        "undeclared",
        "domain",
        "noise",
        "empty",
        "cut off",
    ],
)
def test_a_graph_that_is_no_layer_is_one_line(raw: bytes, says: str) -> None:
    assert says in one_line(lambda: checked_graph(raw, "layer 1", SHAPE))


def test_a_scalar_is_no_layers_input_even_where_the_manifest_says_so() -> None:
    assert "input shape" in one_line(lambda: checked_graph(graph(shape=()), "layer 1", ()))


def flops(model: onnx.ModelProto) -> int:
    """Weights in the graph, a measure of what it computes."""
    return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)


def every_segment(artifact: Artifact) -> Iterator[SegmentKey]:
    spans = [LayerSpan(first, 9) for first in range(9)] + [LayerSpan(0, stop) for stop in range(1, 9)]
    yield from sorted({key for span in spans for key in needed_segments(artifact.manifest.plan, span, spans)})


def test_every_segment_has_just_its_layers_and_its_head(shipped_artifact: Artifact) -> None:
    composer, manifest = Composer(shipped_artifact), shipped_artifact.manifest
    alone = [checked_graph(shipped_artifact.read(spec.graph), "layer", spec.in_shape) for spec in manifest.layers]
    heads = {
        spec.layer: checked_graph(shipped_artifact.read(spec.graph), "exit", manifest.layers[spec.layer].out_shape)
        for spec in manifest.exits
    }
    keys = list(every_segment(shipped_artifact))
    assert len(keys) >= 20
    for key in keys:
        model = onnx.load_from_string(composer.segment(key))
        parts = [*alone[key.entry : key.stop], *([heads[key.stop - 1]] if key.head else [])]
        ends = key.stop == len(manifest.layers)
        assert [value.name for value in model.graph.input] == ["x"]
        assert {value.name for value in model.graph.output} == {*([] if ends else ["features"]), *["logits"] * key.head}
        assert len(model.graph.node) == sum(len(part.graph.node) for part in parts), key.file
        assert flops(model) == sum(flops(part) for part in parts), key.file


def test_every_segment_loads_and_its_features_do_not_depend_on_the_head(shipped_artifact: Artifact) -> None:
    engine, composer = make_engine("onnxruntime"), Composer(shipped_artifact)
    rng = np.random.default_rng(0)
    keys = set(every_segment(shipped_artifact))
    for key in sorted(keys):
        engine.load(key, composer.segment(key))
        twin = SegmentKey(key.entry, key.stop, not key.head)
        if key.head and twin in keys:
            engine.load(twin, composer.segment(twin))
            x = rng.standard_normal((2, *shipped_artifact.manifest.in_shape(key.entry)), np.float32)
            np.testing.assert_allclose(engine.run(key, x).features, engine.run(twin, x).features, atol=1e-5)
