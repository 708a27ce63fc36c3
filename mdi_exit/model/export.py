"""From a trained torch network to an artifact: one ONNX graph per layer and head, manifest, weights."""

from __future__ import annotations

import io
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.jit._trace import TracerWarning
from torch.utils.flop_counter import FlopCounterMode

from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import MANIFEST_FILE, Artifact, graph_file, made_output, sealed
from mdi_exit.model.graph import quiet, traceable
from mdi_exit.model.manifest import (
    FORMAT_VERSION,
    Calibration,
    DataRecord,
    ExitSpec,
    GraphFile,
    InputSpec,
    LayerSpec,
    Manifest,
)
from mdi_exit.model.network import MultiExitNetwork

__all__ = ["export_artifact", "macs", "onnx_bytes"]

WEIGHTS_FILE = "weights.safetensors"
_OPSET = 17
_EXACT = "float32"  # of the numbers of tokens: other codecs would make other words of them

Free = tuple[bool, bool]
_TIMED_RUNS = 20
_LONGEST_TIMING_S = 0.5


def macs(module: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one sample of ``x``'s shape: convolutions, matrix products, attention."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(x[:1])
    return counter.get_total_flops() // 2


def onnx_bytes(module: nn.Module, x: Tensor, what: str = "model", *, free: Free = (False, False)) -> bytes:
    """The graph of one module in evaluation mode, batch dynamic, weights inside, standard operators. ``what``: in messages;
    ``free``: whether the axis after the batch may have any length, of the input and of the output.

    The older of torch's two exporters: it needs the onnx package alone (the newer one onnxscript and onnx_ir too) and takes
    a second or two for all layers of a ResNet. It freezes sizes that a traced graph hands around as numbers, hence
    ``traceable``; where it cannot tell the shape that leaves, the shape is written down here. Raises ``UsageError``.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings(), quiet():
        warnings.filterwarnings("ignore", message=".*legacy TorchScript-based ONNX export.*")
        warnings.filterwarnings("ignore", message=".*feature will be removed.*")
        warnings.filterwarnings("ignore", category=TracerWarning)
        warnings.filterwarnings("ignore", module=r"torch\.(onnx|jit)")
        try:
            torch.onnx.export(
                traceable(module, x) if isinstance(module, GraphModule) else module,
                (x,),
                buffer,  # type: ignore[arg-type]  # a file object is documented, and works
                input_names=["x"],
                output_names=["y"],
                dynamic_axes={"x": _axes(free[0]), "y": _axes(free[1])},
                opset_version=_OPSET,
                dynamo=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise UsageError(what, "operations that ONNX has", str(error).splitlines()[0][:200]) from None
    return _shaped(buffer.getvalue(), module, x, free=free[1])


def _axes(free: bool) -> dict[int, str]:
    return {0: "N", 1: "T"} if free else {0: "N"}


def _shaped(raw: bytes, module: nn.Module, x: Tensor, *, free: bool) -> bytes:
    """``raw`` with every axis of its output known but the batch, and the one after it when that is free."""
    model = onnx.load_from_string(raw)
    axes, names = model.graph.output[0].type.tensor_type.shape.dim, _axes(free)
    if axes and all(axis.HasField("dim_param" if index in names else "dim_value") for index, axis in enumerate(axes)):
        return raw
    with torch.no_grad():
        shape = module(x).shape
    wanted = [names.get(index, size) for index, size in enumerate(shape)]
    value = helper.make_tensor_value_info(model.graph.output[0].name, TensorProto.FLOAT, wanted)
    model.graph.output[0].CopyFrom(value)
    return bytes(model.SerializeToString())


def seconds_on_this_machine(raw: bytes, shape: tuple[int, ...]) -> float:
    """Of one sample of ``shape`` (without batch) through a graph, one thread of ONNX Runtime: the best of several runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    x_1 = np.zeros((1, *shape), np.float32)
    best, end = math.inf, time.perf_counter() + _LONGEST_TIMING_S
    for number in range(_TIMED_RUNS):
        begin = time.perf_counter()
        session.run(None, {session.get_inputs()[0].name: x_1})
        now = time.perf_counter()
        best = min(best, now - begin)
        if now > end and number:
            break
    return best


def export_artifact(
    network: MultiExitNetwork,
    folder: Path,
    *,
    name: str,
    input_spec: InputSpec,
    labels: tuple[str, ...],
    rebuild: dict[str, Any],
    training: dict[str, Any],
    accuracies: tuple[float, ...] | None = None,
    names: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    timed: bool = False,
    gates: Sequence[nn.Module] = (),
    calibration: Calibration | None = None,
    data: DataRecord | None = None,
    length: int | None = None,
) -> Artifact:
    """Write ``folder`` and open it again, checked. ``rebuild`` is what makes the same network anew in torch, together with
    ``files``; ``names``: of the layers; ``timed``: each layer's seconds on this machine are measured and written down.
    ``gates``: from logits to a gate's value, for each early exit (none for a network without gates); with them each early
    exit gets the threshold of ``calibration``, and so with branches. ``length``: given for a network whose samples may
    vary in their first axis, at every cut, up to the input's shape; costs are stated for this one.

    Raises ``UsageError`` when the folder holds something else than an artifact.
    """
    made_output(folder)
    network = network.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    most = x = torch.zeros(2, *input_spec.shape)
    x, free = (x, False) if length is None else (x[:, :length], True)
    layers, exits = [], []
    for index, layer in enumerate(network.layers):
        with torch.no_grad():
            y, most_out = layer(x), layer(most)
        raw = onnx_bytes(layer, x, f"layer {index} of {name}", free=(free, free))
        layers.append(
            LayerSpec(
                graph=graph_file(folder, f"layer-{index}.onnx", raw),
                in_shape=tuple(most.shape[1:]),
                out_shape=tuple(most_out.shape[1:]),
                in_length=x.shape[1] if free else None,
                out_length=y.shape[1] if free else None,
                codec=_EXACT if index == 0 and input_spec.kind == "text" else None,
                macs=macs(layer, x),
                params=_params(layer),
                name=names[index] if names else "",
                seconds=seconds_on_this_machine(raw, tuple(x.shape[1:])) if timed else None,
            )
        )
        if index in network.exit_layers:
            head = network.exits[str(index)]
            number = network.exit_layers.index(index)
            gate = gates[number] if number < len(gates) else None
            branch = dict(network.branches.items()).get(str(index))
            beside = [module for module in (head, branch) if module is not None]
            with torch.no_grad():
                logits_NK = head(y)
            exits.append(
                ExitSpec(
                    layer=index,
                    graph=graph_file(folder, f"exit-{index}.onnx", onnx_bytes(head, y, free=(free, False))),
                    macs=sum(macs(module, y) for module in beside),
                    params=sum(map(_params, beside)),
                    accuracy=accuracies[number] if accuracies else None,
                    gate=graph_file(folder, f"gate-{index}.onnx", onnx_bytes(gate, logits_NK)) if gate else None,
                    branch=_branch_file(folder, index, branch, y, free=free),
                    threshold=calibration.threshold if (gate or branch) and calibration else None,
                )
            )
        x, most = y, most_out
    manifest = Manifest(
        format=FORMAT_VERSION,
        name=name,
        input=input_spec,
        labels=labels,
        layers=tuple(layers),
        exits=tuple(exits),
        calibration=calibration or Calibration(),
        data=data,
        network=rebuild,
        weights=graph_file(folder, WEIGHTS_FILE, safetensors_bytes(_contiguous(network))),
        files=tuple(graph_file(folder, file, content) for file, content in (files or {}).items()),
        training=training,
    )
    (folder / MANIFEST_FILE).write_bytes(sealed(manifest))
    return Artifact.open(folder)


def _branch_file(folder: Path, layer: int, branch: nn.Module | None, y: Tensor, *, free: bool) -> GraphFile | None:
    if branch is None:
        return None
    return graph_file(folder, f"branch-{layer}.onnx", onnx_bytes(branch, y, free=(free, False)))


def _contiguous(network: MultiExitNetwork) -> dict[str, Tensor]:
    """The state, memory of its own for each entry: the format knows no weights that two layers share."""
    seen: set[int] = set()
    state = {}
    for key, value in network.state_dict().items():
        state[key] = value.contiguous() if value.data_ptr() not in seen else value.contiguous().clone()
        seen.add(state[key].data_ptr())
    return state


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
