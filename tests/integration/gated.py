"""The shipped model with a gate at each early exit, so that every measure of confidence can be tried on one artifact."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact, rewritten
from mdi_exit.model.manifest import Calibration, GraphFile, Measure

_CLASSES = 10


def _gate(lift: float) -> bytes:
    """sigmoid(max logit - lift)."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["most", "lift"], ["lowered"]),
        helper.make_node("Sigmoid", ["lowered"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "gate",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", _CLASSES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(np.array([lift], np.float32), "lift")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def gated_artifact(folder: Path, measure: Measure = "gate") -> Artifact:
    """Written into ``folder``, which must be there or be made."""
    artifact = rewritten(shipped := Artifact.open(DEFAULT_MODEL), shipped.manifest, folder)
    exits = list(artifact.manifest.exits)
    for number, spec in enumerate(exits[:-1]):
        raw = _gate(6.0 + number)
        name = f"gate-{spec.layer}.onnx"
        (folder / name).write_bytes(raw)
        file = GraphFile(file=name, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
        exits[number] = msgspec.structs.replace(spec, gate=file, temperature=1.0 + 0.1 * number)
    manifest = msgspec.structs.replace(artifact.manifest, exits=tuple(exits), calibration=Calibration(measure=measure))
    return rewritten(artifact, manifest, folder)
