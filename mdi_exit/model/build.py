"""Multi-exit networks from what a user names: the house's own, a small backbone, torchvision's, any module, a saved program.

``built`` makes one; its ``description`` and ``files`` go into the artifact, from which ``rebuilt`` makes the same again.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mdi_exit.errors import ArtifactError, UsageError
from mdi_exit.model import transformer
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.backbones import BACKBONES, layers_of
from mdi_exit.model.export import macs
from mdi_exit.model.graph import exported, failed_at, quiet, tidied
from mdi_exit.model.heads import head_for
from mdi_exit.model.manifest import TOKENIZER_FILE
from mdi_exit.model.network import MobileNetV2Config, MultiExitNetwork, mobilenetv2
from mdi_exit.model.network import rebuilt as rebuilt_mobilenetv2
from mdi_exit.model.partition import Partition, partitioned
from mdi_exit.model.program import dumped, loaded
from mdi_exit.model.speech import rebuilt_speech

__all__ = ["MODEL_FORMS", "PROGRAM_FILE", "TEXT_MODELS", "Built", "at_equal_cost", "built", "built_again", "rebuilt"]

MODEL_FORMS: Final = (
    f"mobilenetv2, {', '.join(BACKBONES)}, a name of torchvision's, MODULE:FACTORY, FILE.pt2, or bert:FOLDER"
)
PROGRAM_FILE: Final = "program.json"
TEXT_MODELS: Final = "bert:"
_CLASSES: Final = 10


@dataclass(frozen=True, slots=True)
class Built:
    """``description``: the manifest's ``network``; ``files``: what it refers to, by name; ``layer_names``: for people.

    ``whole``: the model as it came, inputs to logits, of the same weights, in evaluation mode. ``pretrained``: its layers
    have learned already, and none of its exits, not even the last.
    """

    network: MultiExitNetwork
    description: dict[str, Any]
    files: dict[str, bytes]
    layer_names: tuple[str, ...]
    classes: int
    whole: nn.Module
    pretrained: bool = False


class _LastExit(nn.Module):
    """A multi-exit network as an ordinary one."""

    def __init__(self, network: MultiExitNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_NCHW: Tensor) -> Tensor:
        logits_NK: Tensor = self.network(x_NCHW)[-1]
        return logits_NK


def built(
    spec: str,
    *,
    input_shape: tuple[int, ...],
    classes: int | None,
    exits: int | Sequence[int] | None = None,
    weights: Path | None = None,
    seed: int = 0,
    width: float | None = None,
    layers: int | None = None,
    crossing: int = 1,
) -> Built:
    """The network of ``spec`` (``MODEL_FORMS``) for images C×H×W or texts of at most T tokens, untrained heads at ``exits``,
    in evaluation mode.

    ``classes`` None: as many as the model has (the house's own: 10).
    ``exits``: the layers that end in one, the last among them or not; or how many there are, the last included, at equal
    shares of the cost; None: the network's own, else the last only. ``weights``: a state dict of the named model (.pt,
    loaded without code, or .safetensors); None: random by ``seed``. ``width``: of the channels, for the house's own models.
    ``layers``, ``crossing``: see ``partitioned``. Raises ``UsageError``.
    """
    torch.manual_seed(seed)
    if spec.startswith(TEXT_MODELS) != (len(input_shape) == 1):
        raise UsageError(
            "model", f"one that takes {'texts' if len(input_shape) == 1 else 'images'}, as the data is", spec
        )
    if width is not None and spec != "mobilenetv2" and spec not in BACKBONES:
        raise UsageError("width", f"none for {spec}: mobilenetv2 and {', '.join(BACKBONES)} have one", width)
    if spec.startswith(TEXT_MODELS):
        if weights is not None:
            raise UsageError("weights", "none: the folder of the encoder has its own", str(weights))
        return _transformer(spec.removeprefix(TEXT_MODELS), input_shape[0], classes or 2, exits)
    if spec == "mobilenetv2":
        made = _mobilenetv2(input_shape, classes or _CLASSES, exits, width)
    elif spec in BACKBONES:
        made = _backbone(spec, input_shape, classes or _CLASSES, exits, width)
    else:
        return _partitioned(spec, input_shape, classes, exits, weights, layers, crossing)
    if weights is not None:
        _load(made.network, weights, spec)
    return made


def built_again(artifact: Artifact, *, exits: int | Sequence[int] | None = None, seed: int = 0) -> Built:
    """The network of an artifact, without its weights, with heads at ``exits`` (as in ``built``; None: its own).

    Raises ``UsageError``, ``ArtifactError``.
    """
    manifest = artifact.manifest
    description, files = dict(manifest.network), {extra.file: artifact.read(extra) for extra in manifest.files}
    torch.manual_seed(seed)
    network = rebuilt(description, files)
    if exits is not None:
        description["exits"] = list(_exit_layers(exits, list(network.layers), _example(manifest.input.shape)))
        torch.manual_seed(seed)
        network = rebuilt(description, files)
    network.eval()
    names = tuple(layer.name for layer in manifest.layers)
    return Built(network, description, files, names, description["classes"], _LastExit(network).eval())


def rebuilt(description: Mapping[str, Any], files: Mapping[str, bytes]) -> MultiExitNetwork:
    """The network, without its weights, that an artifact describes. Raises ``ArtifactError``."""
    match description.get("kind"):
        case "exported":
            make = _rebuilt_partition
        case "backbone":
            make = _rebuilt_backbone
        case "transformer":
            make = _rebuilt_transformer
        case "speech":
            make = rebuilt_speech
        case _:
            return rebuilt_mobilenetv2(description)
    try:
        return make(description, files)
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError, msgspec.MsgspecError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0][:200]
        raise ArtifactError("model network", f"the fields of kind {description['kind']}", reason) from None


# --- places of exits


def _exit_layers(exits: int | Sequence[int] | None, layers: Sequence[nn.Module], x_NCHW: Tensor) -> tuple[int, ...]:
    last = len(layers) - 1
    if exits is None:
        return (last,)
    if isinstance(exits, int):
        if not 1 <= exits <= len(layers):
            raise UsageError("exits", f"1 to {len(layers)} for {len(layers)} layers", exits)
        return at_equal_cost(layers, x_NCHW, exits)
    if wrong := [layer for layer in exits if not 0 <= layer <= last]:
        raise UsageError("exits", f"layers from 0 to {last}", ", ".join(map(str, wrong)))
    return tuple(sorted({*exits, last}))


def at_equal_cost(layers: Sequence[nn.Module], x_NCHW: Tensor, count: int) -> tuple[int, ...]:
    """``count`` layers, the last one included, where the cost so far is nearest to 1/count, 2/count, … of the whole."""
    so_far, total = [], 0
    with torch.no_grad():
        for layer in layers:
            total += macs(layer, x_NCHW)
            so_far.append(total)
            x_NCHW = layer(x_NCHW)
    free = list(range(len(layers) - 1))
    chosen = [len(layers) - 1]
    for number in range(1, count):
        best = min(free, key=lambda layer: abs(so_far[layer] - total * number / count))
        free.remove(best)
        chosen.append(best)
    return tuple(sorted(chosen))


def _with_heads(
    layers: Sequence[nn.Module], last: nn.Module, exits: Sequence[int], shapes: Sequence[tuple[int, ...]], classes: int
) -> MultiExitNetwork:
    heads = {layer: head_for(shapes[layer], classes) for layer in exits if layer != len(layers) - 1}
    return MultiExitNetwork(layers, {**heads, len(layers) - 1: last}).eval()


def _example(shape: Sequence[int]) -> Tensor:
    return torch.zeros(1, *shape)


def _shapes(layers: Sequence[nn.Module], x_N: Tensor) -> list[tuple[int, ...]]:
    shapes = []
    with torch.no_grad():
        for layer in layers:
            x_N = layer.eval()(x_N)
            shapes.append(tuple(x_N.shape[1:]))
    return shapes


# --- the house's own


def _mobilenetv2(
    input_shape: tuple[int, ...], classes: int, exits: int | Sequence[int] | None, width: float | None
) -> Built:
    config = MobileNetV2Config(classes=classes, channels_in=input_shape[0], width=width or MobileNetV2Config().width)
    if exits is not None:
        layers = list(mobilenetv2(config).eval().layers)
        config = MobileNetV2Config(
            classes=classes, channels_in=input_shape[0], width=config.width,
            exits=_exit_layers(exits, layers, _example(input_shape)),
        )  # fmt: skip
    network = mobilenetv2(config).eval()
    description = {"kind": "mobilenetv2", **asdict(config), "exits": list(config.exits)}
    names = tuple(f"layer{index}" for index in range(len(network.layers)))
    return Built(network, description, {}, names, classes, _LastExit(network).eval())


def _backbone(
    spec: str, input_shape: tuple[int, ...], classes: int, exits: int | Sequence[int] | None, width: float | None
) -> Built:
    backbone = BACKBONES[spec](classes=classes, channels_in=input_shape[0], width=width or 1.0).eval()
    layers, classifier = layers_of(backbone)
    modules = list(layers.values())
    try:
        shapes = _shapes(modules, _example(input_shape))
    except RuntimeError as error:
        raise UsageError(f"{spec} for input {input_shape}", "larger images", str(error).splitlines()[0]) from None
    chosen = _exit_layers(exits, modules, _example(input_shape))
    description = {
        "kind": "backbone", "name": spec, "classes": classes, "width": width or 1.0, "input_shape": list(input_shape),
        "exits": list(chosen),
    }  # fmt: skip
    network = _with_heads(modules, classifier, chosen, shapes, classes)
    return Built(network, description, {}, tuple(layers), classes, _LastExit(network).eval())


def _rebuilt_backbone(description: Mapping[str, Any], files: Mapping[str, bytes]) -> MultiExitNetwork:
    return _backbone(
        description["name"],
        tuple(description["input_shape"]),
        description["classes"],
        tuple(description["exits"]),
        description["width"],
    ).network


# --- texts


def _transformer(place: str, most_tokens: int, classes: int, exits: int | Sequence[int] | None) -> Built:
    """An exit after each layer unless told otherwise."""
    folder = transformer.encoder_folder(place)
    sizes = transformer.sizes_in(folder, most_tokens)
    layers = transformer.pretrained(folder, sizes)
    chosen = range(len(layers)) if exits is None else _exit_layers(exits, layers, _example((most_tokens,)))
    network = _with_token_heads(layers, chosen, sizes, classes)
    description = {
        "kind": "transformer", "sizes": msgspec.to_builtins(sizes), "classes": classes, "exits": list(network.exit_layers)
    }  # fmt: skip
    files = {TOKENIZER_FILE: (folder / TOKENIZER_FILE).read_bytes()}
    names = tuple(f"encoder.layer.{index}" for index in range(len(layers)))
    return Built(network, description, files, names, classes, _LastExit(network).eval(), pretrained=True)


def _with_token_heads(
    layers: Sequence[nn.Module], exits: Sequence[int], sizes: transformer.Sizes, classes: int
) -> MultiExitNetwork:
    network = MultiExitNetwork(layers, {layer: transformer.TokenHead(sizes.width, classes) for layer in exits}).eval()
    network.channels_last = False
    return network


def _rebuilt_transformer(description: Mapping[str, Any], files: Mapping[str, bytes]) -> MultiExitNetwork:
    del files
    sizes = msgspec.convert(description["sizes"], transformer.Sizes)
    return _with_token_heads(
        transformer.encoder_layers(sizes), description["exits"], sizes, description["classes"]
    )  # fmt: skip


# --- any other


def _partitioned(
    spec: str,
    input_shape: tuple[int, ...],
    classes: int | None,
    exits: int | Sequence[int] | None,
    weights: Path | None,
    layers: int | None,
    crossing: int,
) -> Built:
    if spec.endswith(".pt2"):
        if weights is not None:
            raise UsageError("weights", "none: a saved program has its own", str(weights))
        program = _saved_program(Path(spec))
        whole: nn.Module = program.module(check_guards=False)
    else:
        whole = _module(spec, input_shape, classes)
        if weights is not None:
            _load(whole, weights, spec)
        program = exported(whole, input_shape, spec)
    found = partitioned(tidied(program, spec, input_shape), input_shape, spec, crossing=crossing, layers=layers)
    classes = _checked_classes(found, classes, spec)
    modules = list(found.layers)
    chosen = _exit_layers(exits, modules, _example(input_shape))
    description = {
        "kind": "exported", "program": PROGRAM_FILE, "classes": classes, "shapes": [list(shape) for shape in found.shapes],
        "exits": list(chosen),
    }  # fmt: skip
    files = {PROGRAM_FILE: dumped([*modules, found.classifier], spec)}
    network = _with_heads(modules, found.classifier, chosen, found.shapes, classes)
    network.channels_last = False
    return Built(network, description, files, found.names, classes, whole)


def _checked_classes(found: Partition, classes: int | None, spec: str) -> int:
    x_N = _example(found.shapes[-1])
    with torch.no_grad():
        logits_NK = found.classifier.eval()(x_N)
    count: int = logits_NK.shape[1]
    if classes not in (None, count):
        raise UsageError(f"{spec}: classes", str(classes), f"{count} logits")
    return count


def _rebuilt_partition(description: Mapping[str, Any], files: Mapping[str, bytes]) -> MultiExitNetwork:
    *layers, classifier = loaded(files[description["program"]], f"model file {description['program']}")
    shapes = [tuple(shape) for shape in description["shapes"]]
    network = _with_heads(layers, classifier, description["exits"], shapes, description["classes"])
    network.channels_last = False
    return network


def _saved_program(path: Path) -> torch.export.ExportedProgram:
    """One of the user's own: ``torch.export.load`` may run what is in the file."""
    if not path.is_file():
        raise UsageError("model", "a file saved by torch.export.save", f"none at {path}")
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:  # noqa: BLE001 - zip, JSON, schema and pickle errors for the one fault
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"model {path}", "a file saved by torch.export.save", reason) from None


def _module(spec: str, input_shape: tuple[int, ...], classes: int | None) -> nn.Module:
    if ":" in spec:
        return _from_factory(spec)
    names = torchvision.models.list_models(module=torchvision.models)
    if spec not in names:
        raise UsageError("model", MODEL_FORMS, repr(spec))
    options: dict[str, Any] = {"image_size": input_shape[1]} if spec.startswith("vit_") else {}
    if spec in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    if classes is not None:
        options["num_classes"] = classes
    try:
        made: nn.Module = torchvision.models.get_model(spec, weights=None, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"model {spec}", f"one that can be made for input {input_shape}", error) from None
    return made


def _from_factory(spec: str) -> nn.Module:
    """``MODULE:FACTORY``, looked up in the current folder too; the factory is a module or is called for one."""
    name, _, attribute = spec.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        made = getattr(importlib.import_module(name), attribute)
        if not isinstance(made, nn.Module):
            made = made()
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        raise UsageError(
            f"model {spec}{failed_at(error)}", "MODULE:FACTORY that gives a torch module", reason
        ) from None
    if not isinstance(made, nn.Module):
        raise UsageError(f"model {spec}", "a factory that gives a torch.nn.Module", type(made).__name__)
    return made


def _state(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _load(module: nn.Module, path: Path, what: str) -> None:
    """A state dict, strictly. Raises ``UsageError``."""
    if not path.is_file():
        raise UsageError("weights", "a file with a state dict, .pt or .safetensors", str(path))
    try:
        module.load_state_dict(_state(path))
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, SafetensorError, EOFError) as error:
        raise UsageError(f"weights {path}", f"a state dict of {what}", " ".join(str(error).split())[:200]) from None
    except Exception as error:  # noqa: BLE001 - what torch.load raises for a file with code in it is no class of torch's
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"weights {path}", "a state dict, without code", reason) from None
