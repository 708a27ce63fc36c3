"""An artifact whose layers do nothing, with features of a chosen size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mdi_exit.model.artifact import MANIFEST_FILE, Artifact, graph_file, sealed
from mdi_exit.model.manifest import FORMAT_VERSION, ExitSpec, InputSpec, LayerSpec, Manifest

__all__ = ["write_identity_artifact"]


def _graph(name: str, shape: tuple[int, ...], *, head: bool) -> bytes:
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])
    if head:
        weights = numpy_helper.from_array(np.zeros((int(np.prod(shape)), 2), np.float32), "w")
        nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
        target, initializers = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2]), [weights]
    else:
        nodes, initializers = [helper.make_node("Identity", ["x"], ["y"])], []
        target = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *shape])
    graph = helper.make_graph(nodes, name, [source], [target], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def write_identity_artifact(folder: Path, shape: tuple[int, int, int], layers: int) -> Artifact:
    """``layers`` identity layers on float32 C×H×W, one exit at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = tuple(
        LayerSpec(
            graph=graph_file(folder, f"layer-{index}.onnx", _graph(f"layer-{index}", shape, head=False)),
            in_shape=shape,
            out_shape=shape,
            macs=0,
            params=0,
        )
        for index in range(layers)
    )
    head = graph_file(folder, "exit.onnx", _graph("exit", shape, head=True))
    manifest = Manifest(
        format=FORMAT_VERSION,
        name="identity",
        input=InputSpec(kind="image", shape=shape, mean=(0.0,) * shape[0], std=(1.0,) * shape[0]),
        labels=("no", "yes"),
        layers=specs,
        exits=(ExitSpec(layer=layers - 1, graph=head, macs=0, params=0),),
    )
    (folder / MANIFEST_FILE).write_bytes(sealed(manifest))
    return Artifact.open(folder)
