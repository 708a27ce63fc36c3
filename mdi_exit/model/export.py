"""From a trained torch network to an artifact: one ONNX graph per layer and head, manifest, weights."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import MANIFEST_FILE, Artifact
from mdi_exit.model.manifest import FORMAT_VERSION, ExitSpec, GraphFile, InputSpec, LayerSpec, Manifest
from mdi_exit.model.network import MultiExitNetwork

__all__ = ["checked_folder", "export_artifact", "macs", "onnx_bytes"]

WEIGHTS_FILE = "weights.safetensors"
_OPSET = 17


def macs(module: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers for one sample of ``x``'s shape."""
    total = 0

    def count(part: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(part, nn.Conv2d):
            total += output[0].numel() * part.weight[0].numel()
        elif isinstance(part, nn.Linear):
            total += output[0].numel() * part.in_features

    hooks = [part.register_forward_hook(count) for part in module.modules()]
    with torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    return total


def onnx_bytes(module: nn.Module, x: Tensor) -> bytes:
    """The graph of one module in evaluation mode, batch dynamic, weights inside."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter that needs only the onnx package calls itself legacy; the new one needs onnxscript on top.
        warnings.filterwarnings("ignore", message=".*legacy TorchScript-based ONNX export.*")
        warnings.filterwarnings("ignore", message=".*feature will be removed.*")
        torch.onnx.export(
            module,
            (x,),
            buffer,  # type: ignore[arg-type]  # a file object is documented, and works
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
            opset_version=_OPSET,
            dynamo=False,
        )
    return buffer.getvalue()


def _written(folder: Path, name: str, raw: bytes) -> GraphFile:
    (folder / name).write_bytes(raw)
    return GraphFile(file=name, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())


def checked_folder(folder: Path) -> None:
    """Make ``folder`` if it is not there. Raises ``UsageError`` unless an artifact may be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_free = not any(folder.iterdir()) or (folder / MANIFEST_FILE).exists()
    except OSError as error:
        raise UsageError("output folder", "one that can be written to", f"{folder}: {error.strerror}") from None
    if not is_free:
        raise UsageError("output folder", "an empty folder or an artifact to replace", str(folder))


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
) -> Artifact:
    """Write ``folder`` and open it again, checked. ``rebuild`` is what makes the same network anew in torch.

    Raises ``UsageError`` when the folder holds something else than an artifact.
    """
    checked_folder(folder)
    network = network.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    x = torch.zeros(2, *input_spec.shape)
    layers, exits = [], []
    for index, layer in enumerate(network.layers):
        with torch.no_grad():
            y = layer(x)
        layers.append(
            LayerSpec(
                graph=_written(folder, f"layer-{index}.onnx", onnx_bytes(layer, x)),
                in_shape=tuple(x.shape[1:]),
                out_shape=tuple(y.shape[1:]),
                macs=macs(layer, x),
                params=_params(layer),
            )
        )
        if index in network.exit_layers:
            head = network.exits[str(index)]
            number = network.exit_layers.index(index)
            exits.append(
                ExitSpec(
                    layer=index,
                    graph=_written(folder, f"exit-{index}.onnx", onnx_bytes(head, y)),
                    macs=macs(head, y),
                    params=_params(head),
                    accuracy=accuracies[number] if accuracies else None,
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
        network=rebuild,
        weights=_written(folder, WEIGHTS_FILE, safetensors_bytes(_contiguous(network))),
        training=training,
    )
    manifest = msgspec.structs.replace(manifest, digest=manifest.computed_digest())
    raw = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1)
    (folder / MANIFEST_FILE).write_bytes(raw)
    return Artifact.open(folder)


def _contiguous(network: MultiExitNetwork) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in network.state_dict().items()}


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
