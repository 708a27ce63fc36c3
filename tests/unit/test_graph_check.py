"""Which ONNX files are let through to ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from mdi_exit.engine import graph_check
from mdi_exit.engine.graph_check import check_graph
from mdi_exit.engine.onnx import OnnxEngine
from mdi_exit.errors import EngineError
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.segments import SegmentKey

KEY = SegmentKey(0, 1, head=False)
FLOAT = TensorProto.FLOAT


def value(name: str, shape: list[object] | None = None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape or ["N", 4])


def model() -> ModelProto:
    """x + w"""
    w = numpy_helper.from_array(np.ones(4, np.float32), "w")
    nodes = [helper.make_node("Add", ["x", "w"], ["features"])]
    graph = helper.make_graph(nodes, "g", [value("x")], [value("features")], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def refused(change: Callable[[ModelProto], object]) -> str:
    made = model()
    change(made)
    with pytest.raises(EngineError) as told:
        OnnxEngine().load(KEY, made.SerializeToString())
    (line,) = str(told.value).splitlines()
    return line


def test_what_goes_in_and_out_is_read() -> None:
    signature = check_graph(model().SerializeToString())
    assert (signature.inputs, signature.outputs) == ({"x": (None, 4)}, {"features": (None, 4)})


@pytest.mark.parametrize("key", [SegmentKey(0, 2, True), SegmentKey(4, 9, True), SegmentKey(2, 3, False)], ids=str)
def test_composed_segments_pass(key: SegmentKey) -> None:
    artifact = Artifact.open(DEFAULT_MODEL)
    raw = Composer(artifact).segment(key)
    assert check_graph(raw).inputs == {"x": (None, *artifact.manifest.in_shape(key.entry))}
    OnnxEngine().load(key, raw)


def initializer(made: ModelProto) -> TensorProto:
    return made.graph.initializer[0]


def outside(made: ModelProto) -> None:
    initializer(made).data_location = TensorProto.EXTERNAL
    initializer(made).external_data.add(key="location", value="/etc/passwd")


def outside_in_a_branch(made: ModelProto) -> None:
    tensor = TensorProto(name="c", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    branch = helper.make_graph([constant], "b", [], [value("c", [4])])
    made.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))


def branches(depth: int) -> Callable[[ModelProto], None]:
    def change(made: ModelProto) -> None:
        inner = helper.make_graph([], "b", [], [])
        for _ in range(depth):
            inner = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=inner)], "b", [], [])
        made.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner))

    return change


def sparse(made: ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "s_i")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**40]))


def dims(*sizes: int) -> Callable[[ModelProto], None]:
    def change(made: ModelProto) -> None:
        del initializer(made).dims[:]
        initializer(made).dims.extend(sizes)

    return change


def without_data(made: ModelProto) -> None:
    initializer(made).ClearField("raw_data")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (outside, "expected no data outside the file"),
        (outside_in_a_branch, "expected all data inside the file"),
        (lambda made: made.opset_import.append(helper.make_opsetid("com.microsoft", 1)), "'com.microsoft'"),
        (lambda made: setattr(made.graph.node[0], "domain", "custom"), "'custom'"),
        (lambda made: made.functions.add(), "no functions"),
        (lambda made: made.training_info.add(), "no training"),
        (sparse, "no sparse tensors"),
        (lambda made: setattr(made.graph.node[0], "op_type", "Loop"), "no loops, got Loop"),
        (lambda made: setattr(made.graph.node[0], "op_type", "Scan"), "no loops, got Scan"),
        (dims(2**40), "tensor of numbers"),
        (dims(2**20, 2**20), "bytes for a tensor"),
        (dims(-1), "tensor of numbers"),
        (dims(*[1] * 9), "at most 8 dimensions"),
        (dims(3), "expected 12 bytes"),
        (without_data, "expected values"),
        (lambda made: setattr(initializer(made), "data_type", TensorProto.STRING), "tensor of numbers"),
        (lambda made: made.graph.input.append(value("more")), "of x"),
        (lambda made: made.graph.output.append(value("more")), "expected outputs"),
        (lambda made: made.graph.input[0].CopyFrom(value("x", ["N", "T", "C"])), "expected x of shape"),
        (lambda made: made.graph.input[0].CopyFrom(value("x", [1, 4])), "expected x of shape"),
        (lambda made: made.graph.input[0].CopyFrom(value("x", None, TensorProto.DOUBLE)), "float32 in and out"),
        (branches(9), "branches within each other"),
    ],
)
def test_what_a_segment_does_not_need_is_refused(change: Callable[[ModelProto], object], says: str) -> None:
    assert says in refused(change)


def test_a_graph_that_is_there_twice_is_refused() -> None:
    """Readers of protobuf merge the two; a check of either would say nothing about the whole."""
    raw = model().SerializeToString()
    graph = model().graph.SerializeToString()
    with pytest.raises(EngineError, match="field 7 of a model once"):
        check_graph(raw + b"\x3a" + bytes((len(graph),)) + graph)


@pytest.mark.parametrize("tail", [b"\xc2\x3e\x00", b"\x0b\x0c", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x08"])
def test_what_is_no_field_of_a_model_is_refused(tail: bytes) -> None:
    with pytest.raises(EngineError):
        check_graph(model().SerializeToString() + tail)


def test_text_that_is_none_is_refused_before_the_runtime_prints_about_it(capfd: pytest.CaptureFixture[str]) -> None:
    raw = model().SerializeToString().replace(b"Add", b"A\xffd")
    with pytest.raises(EngineError, match="expected text"):
        OnnxEngine().load(KEY, raw)
    assert capfd.readouterr() == ("", "")


def test_the_form_of_onnx_runtime_itself_is_refused() -> None:
    with pytest.raises(EngineError):
        OnnxEngine().load(KEY, b"\x08\x00\x00\x00ORTM" + bytes(200))


def test_a_graph_of_too_many_fields_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_check, "MAX_GRAPH_FIELDS", 20)
    with pytest.raises(EngineError, match="fewer fields"):
        check_graph(model().SerializeToString())


def test_a_graph_of_too_many_bytes_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_check, "MAX_GRAPH_BYTES", 20)
    with pytest.raises(EngineError, match="at most 20 bytes"):
        check_graph(model().SerializeToString())
