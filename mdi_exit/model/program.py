"""Partitioned layers as plain JSON: the graph of each, by the names of ATen operations, without weights.

``torch.export.save`` has a format too. Reading it back runs what the file says: its sample inputs are loaded with
``weights_only`` and, where that fails, unpickled without; its sizes are evaluated as expressions. It also promises nothing
across versions. An artifact may come from somebody else, so it holds this instead: reading it resolves functional ATen
operations, a few operators of numbers and five kinds of modules, and nothing else.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from mdi_exit.errors import ArtifactError, UsageError

__all__ = ["dumped", "loaded"]

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_ATEN: Final = re.compile(r"aten\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z0-9_]+)")
_FORBIDDEN: Final = frozenset({"from_file"})  # the one ATen operation that opens a file
_OPERATORS: Final[dict[str, Callable[..., Any]]] = {
    f"operator.{each.__name__}": each
    for each in (
        operator.add,
        operator.sub,
        operator.mul,
        operator.floordiv,
        operator.mod,
        operator.neg,
        operator.getitem,
    )
}
_NORMS: Final = {each.__name__: each for each in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)}
_DROPOUTS: Final = {each.__name__: each for each in (nn.Dropout, nn.Dropout2d, nn.AlphaDropout)}
_TORCH_VALUES: Final = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}


class _Weight(Struct, frozen=True, kw_only=True, omit_defaults=True):
    shape: tuple[int, ...]
    dtype: str = "float32"
    trained: bool = True


class _Part(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A module with a state or a mode. ``size``: channels of a norm; ``share``: dropped."""

    kind: str
    size: int = 0
    eps: float = 1e-5
    momentum: float | None = None
    affine: bool = True
    share: float = 0.0


class _Step(Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    target: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}


class _Layer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``output``: the step whose value leaves. The input is called ``x``, weights are steps ``weight`` of their path."""

    output: str
    weights: dict[str, _Weight] = {}
    parts: dict[str, _Part] = {}
    steps: list[_Step] = []


# --- writing


def dumped(modules: Sequence[nn.Module], what: str) -> bytes:
    """JSON of graph modules and identities. Raises ``UsageError`` for an operation that is not ATen's."""
    layers = [_layer(module, what) if isinstance(module, GraphModule) else _Layer(output="x") for module in modules]
    return msgspec.json.format(msgspec.json.encode(layers, order="deterministic"), indent=0)


def _layer(module: GraphModule, what: str) -> _Layer:
    weights, parts, steps, output = {}, {}, [], ""
    names: dict[Node, str] = {}
    for node in module.graph.nodes:
        names[node] = "x" if node.op == "placeholder" else f"s{len(names)}"
        target = str(node.target)
        match node.op:
            case "placeholder":
                continue
            case "output":
                output = names[node.args[0]]
                continue
            case "get_attr":
                weights[target] = _weight(module, target)
                target = f"weight {target}"
            case "call_module":
                parts[target] = _part(module.get_submodule(target))
                target = f"part {target}"
            case _:
                target = _target_name(node, what)
        arguments = [_plain(each, names) for each in node.args] if node.op != "get_attr" else []
        kwargs = {key: _plain(value, names) for key, value in node.kwargs.items()}
        steps.append(_Step(name=names[node], target=target, args=arguments, kwargs=kwargs))
    return _Layer(output=output, weights=weights, parts=parts, steps=steps)


def _weight(module: GraphModule, path: str) -> _Weight:
    owner, _, name = path.rpartition(".")
    value = getattr(module.get_submodule(owner), name)
    dtype = str(value.dtype).removeprefix("torch.")
    return _Weight(shape=tuple(value.shape), dtype=dtype, trained=isinstance(value, nn.Parameter))


def _part(module: nn.Module) -> _Part:
    kind = type(module).__name__
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return _Part(
            kind=kind, size=module.num_features, eps=module.eps, momentum=module.momentum, affine=module.affine
        )
    return _Part(kind=kind, share=module.p)  # type: ignore[arg-type] # a dropout


def _target_name(node: Node, what: str) -> str:
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        return str(node.target)
    name = f"operator.{getattr(node.target, '__name__', '')}"
    if name in _OPERATORS:
        return name
    raise UsageError(what, "operations of ATen only", f"{node.target} ({node.name})")


def _plain(value: Any, names: dict[Node, str]) -> Any:
    """An argument as JSON: what is no number, text or list becomes a table of one key that says what it is."""
    match value:
        case Node():
            return {"step": names[value]}
        case list() | tuple():
            return [_plain(each, names) for each in value]
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case torch.device():
            return {"device": value.type}
        case None | bool() | int() | float() | str():
            return value
    for key, kind in _TORCH_VALUES.items():
        if isinstance(value, kind):
            return {key: str(value).removeprefix("torch.")}
    raise UsageError("argument of an operation", "numbers, texts, lists and types", repr(value))


# --- reading


def loaded(raw: bytes, what: str) -> list[nn.Module]:
    """The modules, weights zero. Raises ``ArtifactError``."""
    try:
        layers = msgspec.json.decode(raw, type=list[_Layer])
        return [_module(layer) if layer.steps else nn.Identity() for layer in layers]
    except (
        msgspec.MsgspecError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        RecursionError,
    ) as error:
        raise ArtifactError(what, "layers of ATen operations", str(error).splitlines()[0][:200] or "none") from None


def _module(layer: _Layer) -> GraphModule:
    root: dict[str, Any] = {}
    for path, weight in layer.weights.items():
        value = torch.zeros(weight.shape, dtype=_torch_value("dtype", weight.dtype))
        root[_checked_name(path)] = nn.Parameter(value) if weight.trained else value
    for path, part in layer.parts.items():
        root[_checked_name(path)] = _made(part)
    graph = Graph()
    nodes = {"x": graph.placeholder("x")}
    for step in layer.steps:
        nodes[step.name] = _node(graph, step, nodes, root)
    graph.output(nodes[layer.output])
    return GraphModule(root, graph)


def _made(part: _Part) -> nn.Module:
    if part.kind in _DROPOUTS:
        return _DROPOUTS[part.kind](part.share)
    return _NORMS[part.kind](part.size, eps=part.eps, momentum=part.momentum, affine=part.affine)


def _node(graph: Graph, step: _Step, nodes: dict[str, Node], root: dict[str, Any]) -> Node:
    args = tuple(_value(each, nodes) for each in step.args)
    kind, _, path = step.target.partition(" ")
    if kind in ("weight", "part"):
        is_weight = isinstance(root[path], Tensor)
        if is_weight != (kind == "weight"):
            raise ValueError(f"{step.target}: no such {kind}")
        return graph.get_attr(path) if is_weight else graph.call_module(path, args)
    if not all(map(str.isidentifier, step.kwargs)):
        raise ValueError(f"no names of arguments: {', '.join(step.kwargs)}")
    kwargs = {key: _value(each, nodes) for key, each in step.kwargs.items()}
    return graph.call_function(_function(step.target), args, kwargs)


def _function(target: str) -> Callable[..., Any]:
    if target in _OPERATORS:
        return _OPERATORS[target]
    match = _ATEN.fullmatch(target)
    if match is None or match[1] in _FORBIDDEN:
        raise ValueError(f"no operation {target!r}")
    found: Callable[..., Any] = getattr(getattr(torch.ops.aten, match[1]), match[2])
    return found


def _value(plain: Any, nodes: dict[str, Node]) -> Any:
    if isinstance(plain, list):
        return [_value(each, nodes) for each in plain]
    if not isinstance(plain, dict):
        return plain
    ((key, text),) = plain.items()
    if key == "step":
        return nodes[text]
    if key == "float":
        return float(text)
    return torch.device(text) if key == "device" else _torch_value(key, text)


def _torch_value(key: str, text: str) -> Any:
    value = getattr(torch, text)
    if not isinstance(value, _TORCH_VALUES[key]):
        raise TypeError(f"{text} is no {key}")
    return value


def _checked_name(path: str) -> str:
    """Names become code: the one that torch.fx makes of a graph."""
    if not _NAME.fullmatch(path):
        raise ValueError(f"no name {path!r}")
    return path
