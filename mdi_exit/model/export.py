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
    InputSpec,
    LayerSpec,
    Manifest,
)
from mdi_exit.model.network import MultiExitNetwork

__all__ = ["export_artifact", "macs", "onnx_bytes"]

WEIGHTS_FILE = "weights.safetensors"
_OPSET = 17
_TIMED_RUNS = 20
_LONGEST_TIMING_S = 0.5


def macs(module: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one sample of ``x``'s shape: convolutions, matrix products, attention."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(x[:1])
    return counter.get_total_flops() // 2


def onnx_bytes(module: nn.Module, x: Tensor, what: str = "model") -> bytes:
    """The graph of one module in evaluation mode, batch dynamic, weights inside, standard operators. ``what``: in messages.

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
                dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
                opset_version=_OPSET,
                dynamo=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise UsageError(what, "operations that ONNX has", str(error).splitlines()[0][:200]) from None
    return _shaped(buffer.getvalue(), module, x)


def _shaped(raw: bytes, module: nn.Module, x: Tensor) -> bytes:
    """``raw`` with every axis but the batch of its output known."""
    model = onnx.load_from_string(raw)
    axes = model.graph.output[0].type.tensor_type.shape.dim
    if axes and all(axis.HasField("dim_value") for axis in axes[1:]) and axes[0].HasField("dim_param"):
        return raw
    with torch.no_grad():
        shape = module(x).shape
    value = helper.make_tensor_value_info(model.graph.output[0].name, TensorProto.FLOAT, ["N", *shape[1:]])
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
) -> Artifact:
    """Write ``folder`` and open it again, checked. ``rebuild`` is what makes the same network anew in torch, together with
    ``files``; ``names``: of the layers; ``timed``: each layer's seconds on this machine are measured and written down.
    ``gates``: from logits to a gate's value, for each early exit (none for a network without gates); with them each early
    exit gets the threshold of ``calibration``.

    Raises ``UsageError`` when the folder holds something else than an artifact.
    """
    made_output(folder)
    network = network.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    x = torch.zeros(2, *input_spec.shape)
    layers, exits = [], []
    for index, layer in enumerate(network.layers):
        with torch.no_grad():
            y = layer(x)
        raw = onnx_bytes(layer, x, f"layer {index} of {name}")
        layers.append(
            LayerSpec(
                graph=graph_file(folder, f"layer-{index}.onnx", raw),
                in_shape=tuple(x.shape[1:]),
                out_shape=tuple(y.shape[1:]),
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
            with torch.no_grad():
                logits_NK = head(y)
            exits.append(
                ExitSpec(
                    layer=index,
                    graph=graph_file(folder, f"exit-{index}.onnx", onnx_bytes(head, y)),
                    macs=macs(head, y),
                    params=_params(head),
                    accuracy=accuracies[number] if accuracies else None,
                    gate=graph_file(folder, f"gate-{index}.onnx", onnx_bytes(gate, logits_NK)) if gate else None,
                    threshold=calibration.threshold if gate and calibration else None,
                )
            )
        x = y
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
