"""From a module or a saved program to a flat graph of ATen operations that can be trained, cut and exported.

``torch.export`` traces the module in evaluation mode with a free batch axis. What the trace took for granted is then made
trainable again: batch norm and dropout become modules, which follow ``train()`` and ``eval()``; operations in place become
plain ones, so that a layer never writes into what it was given. Stochastic depth is the identity in evaluation mode and
leaves no trace, so a partitioned network trains without it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import ShapeProp

from mdi_exit.errors import UsageError

__all__ = [
    "as_traced",
    "described",
    "exported",
    "failed_at",
    "is_fixed",
    "is_random",
    "mutated",
    "quiet",
    "root_of",
    "tensor_of",
    "tidied",
    "traceable",
]

aten = torch.ops.aten

_NORMS: Final = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_DROPOUTS: Final = {
    aten.dropout.default: nn.Dropout,
    aten.dropout_.default: nn.Dropout,
    aten.feature_dropout.default: nn.Dropout2d,
    aten.feature_dropout_.default: nn.Dropout2d,
    aten.alpha_dropout.default: nn.AlphaDropout,
    aten.alpha_dropout_.default: nn.AlphaDropout,
}


def exported(module: nn.Module, input_shape: tuple[int, ...], what: str) -> ExportedProgram:
    """The program of ``module`` in evaluation mode, for batches of any size. ``what``: the model, in messages.

    Raises ``UsageError``, one line that names the source line where tracing stopped.
    """
    x_NCHW = torch.zeros(2, *input_shape)
    try:
        with quiet():
            return torch.export.export(module.eval(), (x_NCHW,), dynamic_shapes=({0: Dim("N", max=2**20)},))
    except Exception as error:  # noqa: BLE001 - whatever the model's code or the tracer raises
        where = failed_at(error)
        raise UsageError(
            f"{what}{where}", f"a model that torch.export can trace for input {input_shape}", _reason(error)
        ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch prints and logs pages about a model that it cannot trace or export, beside the error that it raises."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def as_traced() -> Iterator[None]:
    """Attention by the operations that a trace holds, not by the kernel that eager torch uses for inference alone."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def failed_at(error: Exception) -> str:
    """`` at FILE:LINE (`code`)`` of the innermost frame that is the model's own; nothing where there is none."""
    libraries = [Path(str(module.__file__)).parent for module in (torch, importlib)] + [Path(__file__).parent]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.suffix == ".py" and not any(path.is_relative_to(library) for library in libraries):
            return f" at {path.name}:{frame.lineno}" + (f" ({frame.line})" if frame.line else "")
    return ""


def _reason(error: Exception) -> str:
    if "data-dependent" in str(error):
        return "control flow that depends on the data"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def tidied(program: ExportedProgram, what: str, input_shape: tuple[int, ...]) -> GraphModule:
    """The program's graph, trainable, as the module says.

    Raises ``UsageError`` unless images of ``input_shape`` (without batch) go in and logits come out.
    """
    made = program.module(check_guards=False)
    if not isinstance(made, GraphModule):
        raise UsageError(what, "a program of one graph", type(made).__name__)
    graph = GraphModule(made, made.graph)  # without the calling convention of the program
    graph.graph.set_codegen(torch.fx.graph.CodeGen())
    _check_ends(graph, what, input_shape)
    _folded(graph, set(program.graph_signature.lifted_tensor_constants))
    for node in list(graph.graph.nodes):
        if node.op == "call_function":
            _replaced(graph, node)
    graph.graph.eliminate_dead_code(_is_impure)
    graph.recompile()
    return graph


def _check_ends(graph: GraphModule, what: str, input_shape: tuple[int, ...]) -> None:
    places = graph.graph.find_nodes(op="placeholder")
    entering = tensor_of(places[0]) if len(places) == 1 else None
    if entering is None:
        raise UsageError(what, "one input tensor", f"{len(places)} inputs: {', '.join(node.name for node in places)}")
    if is_fixed(entering.shape[0]):
        raise UsageError(what, "a program with a free batch axis (dynamic_shapes)", f"a batch of {entering.shape[0]}")
    if entering.shape[1:] != input_shape or entering.dtype != torch.float32:
        raise UsageError(f"{what}: input", f"float32 {input_shape}", f"{entering.dtype} {tuple(entering.shape[1:])}")
    output = graph.graph.output_node()
    leaves: list[Node] = []
    torch.fx.map_arg(output.args[0], leaves.append)
    leaving = tensor_of(leaves[0]) if len(leaves) == 1 else None
    if leaving is None or leaving.ndim != 2:
        raise UsageError(what, "one output, logits N×K", f"{len(leaves)}: {', '.join(map(described, leaves))}")
    output.args = (leaves[0],)


def _is_impure(node: Node) -> bool:
    return node.is_impure() or mutated(node) is not None


def tensor_of(node: Node) -> Tensor | None:
    """The fake tensor that the node stands for, if it is a tensor."""
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def described(node: Node) -> str:
    """Name and shape, for people."""
    value = tensor_of(node)
    axes = value.shape if value is not None else ()
    return f"{node.name} ({', '.join(str(axis) if is_fixed(axis) else 'N' for axis in axes)})"


def is_fixed(axis: object) -> bool:
    """Whether a size is a number; a free one is a symbol."""
    return isinstance(axis, int)


def is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def root_of(node: Node) -> Node:
    """The tensor whose memory a view of a view shares."""
    while (_is_view(node) or mutated(node) is not None) and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def mutated(node: Node) -> Node | None:
    """What an operation in place writes into."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return None
    for argument, given in zip(schema.arguments, node.args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(given, Node):
            return given
    return None


def _is_view(node: Node) -> bool:
    """Whether the node may share memory with its first argument."""
    schema = getattr(node.target, "_schema", None)
    return (
        node.op == "call_function"
        and schema is not None
        and (any(value.alias_info is not None for value in schema.returns) or node.target in _MAYBE_VIEWS)
    )


_MAYBE_VIEWS: Final = {aten.reshape.default, aten.contiguous.default, aten.flatten.using_ints, aten.to.dtype}


def _replaced(graph: GraphModule, node: Node) -> None:
    if node.target in _DROPOUTS:
        _dropout(graph, node)
    elif node.target is aten.batch_norm.default:
        _batch_norm(graph, node)
    elif node.target in (aten._assert_tensor_metadata.default, aten.detach.default) or _is_no_padding(node):
        _bypassed(graph, node)
    elif (base := mutated(node)) is not None and (plain := _out_of_place(node, base)) is not None:
        node.target = plain


def _is_no_padding(node: Node) -> bool:
    """Padding by nothing: the exporter cannot tell the shape behind it."""
    return node.target is aten.pad.default and not any(node.args[1])  # type: ignore[arg-type]


def _folded(graph: GraphModule, constants: set[str]) -> None:
    """What depends on no input and no weight is computed now: masks that a model fills in place, position tables.

    Left alone where something is still written into after it is first looked at by the rest.
    """
    values: dict[Node, Any] = {}
    read: set[Node] = set()
    for node in graph.graph.nodes:
        if node.op == "get_attr" and node.target in constants:
            values[node] = _attribute(graph, node).clone()
        elif node.op == "call_function" and _is_constant(node, values):
            if (base := mutated(node)) is not None and root_of(base) in {root_of(each) for each in read}:
                return
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda each: values.get(each, torch.zeros(())))
            values[node] = node.target(*args, **kwargs)
        else:
            read |= {each for each in node.all_input_nodes if each in values and each.op != "get_attr"}
    for number, node in enumerate(read):
        if isinstance(values[node], Tensor):
            name = f"folded_{number}"
            graph.register_buffer(name, values[node].clone())
            with graph.graph.inserting_before(node):
                constant = graph.graph.get_attr(name)
            constant.meta = dict(node.meta)
            node.replace_all_uses_with(constant, delete_user_cb=lambda user: user not in values)
    for node in reversed(values):
        if not node.users:
            graph.graph.erase_node(node)


def _is_constant(node: Node, values: dict[Node, Any]) -> bool:
    if is_random(node):
        return False
    inputs = node.all_input_nodes
    if node.target in _NEW and isinstance(node.args[0], Node):  # like another tensor in dtype alone
        value = tensor_of(node.args[0])
        return value is not None and value.dtype == torch.float32 and inputs == [node.args[0]]
    return all(each in values for each in inputs) and isinstance(node.meta.get("val"), Tensor)


_NEW: Final = {aten.new_zeros.default, aten.new_ones.default, aten.new_full.default}


def _bypassed(graph: GraphModule, node: Node) -> None:
    if isinstance(node.args[0], Node):
        node.replace_all_uses_with(node.args[0])
    graph.graph.erase_node(node)


def _out_of_place(node: Node, base: Node) -> Callable[..., Any] | None:
    """``relu`` for ``relu_`` where nobody looks at the overwritten tensor again."""
    order = {each: index for index, each in enumerate(node.graph.nodes)}
    later = [user for user in base.users if order[user] > order[node]]
    if (
        later
        or _is_view(base)
        or base.op == "get_attr"
        or any(_is_view(user) for user in base.users if user is not node)
    ):
        return None
    namespace, _, name = node.target._schema.name.partition("::")  # type: ignore[union-attr]
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    plain: Callable[..., Any] | None = getattr(packet, node.target._overloadname, None)  # type: ignore[union-attr]
    return plain


def _dropout(graph: GraphModule, node: Node) -> None:
    share = float(node.args[1])  # type: ignore[arg-type]
    if share == 0.0:
        _bypassed(graph, node)
        return
    _becomes_module(graph, node, f"dropouts.{node.name}", _DROPOUTS[node.target](share))  # type: ignore[index]


def _batch_norm(graph: GraphModule, node: Node) -> None:
    """One with running statistics, in evaluation mode. Others stay as they are."""
    x, weight, bias, mean, variance, training, momentum, eps = node.args[:8]
    value = tensor_of(x) if isinstance(x, Node) else None
    attributes = [part for part in (weight, bias, mean, variance) if isinstance(part, Node)]
    if training or value is None or not isinstance(mean, Node) or any(part.op != "get_attr" for part in attributes):
        return
    path = str(mean.target).rpartition(".")[0]
    statistics = _attribute(graph, mean)
    norm = _NORMS[value.ndim](len(statistics), eps=eps, momentum=momentum, affine=isinstance(weight, Node))  # type: ignore[arg-type]
    for name, part in (("weight", weight), ("bias", bias), ("running_mean", mean), ("running_var", variance)):
        if isinstance(part, Node):
            setattr(norm, name, _attribute(graph, part))
    _becomes_module(graph, node, path or f"norms.{node.name}", norm)


def _attribute(graph: GraphModule, node: Node) -> Tensor:
    path, _, name = str(node.target).rpartition(".")
    found: Tensor = getattr(graph.get_submodule(path), name)
    return found


def _becomes_module(graph: GraphModule, node: Node, path: str, module: nn.Module) -> None:
    """``node`` calls a module at ``path`` instead; one that is there already is used again (a module called twice)."""
    try:
        known = isinstance(graph.get_submodule(path), type(module))
    except AttributeError:
        known = False
    if not known:
        graph.add_submodule(path, module.eval())
    with graph.graph.inserting_before(node):
        call = graph.graph.call_module(path, (node.args[0],))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)


def traceable(graph: GraphModule, x_N: Tensor) -> GraphModule:
    """A copy that a tracer for ONNX sees as it sees a model's own code, sizes included. ``x_N``: what enters.

    ``aten.sym_size`` gives a plain number, which tracing freezes; ``Tensor.size`` does not. What takes sizes is then called
    as a method of its tensor, or as the function in ``torch``. Adaptive pooling to a size that does not divide is two
    matrix products.
    """
    ShapeProp(graph).propagate(x_N)
    copy = torch.fx.Graph()
    sizes: set[Node] = set()
    extra: dict[str, Tensor] = {}

    def transformed(node: Node, known: dict[Node, Node]) -> Node:
        has_size = any(each in sizes for each in node.all_input_nodes)
        if node.target is aten.sym_size.int or (has_size and getattr(node.target, "__module__", "") == "_operator"):
            sizes.add(node)
        if node.target is aten.adaptive_avg_pool2d.default and (pools := _uneven_pools(node)) is not None:
            extra.update({f"{node.name}_rows": pools[0], f"{node.name}_columns": pools[1]})
            rows = copy.call_function(
                torch.matmul, (copy.get_attr(f"{node.name}_rows"), known[node.all_input_nodes[0]])
            )
            return copy.call_function(torch.matmul, (rows, copy.get_attr(f"{node.name}_columns")))
        made = copy.node_copy(node, known.__getitem__)
        if node.target is aten.sym_size.int:
            made.op, made.target = "call_method", "size"
        elif has_size and isinstance(node.target, torch._ops.OpOverload):
            name = node.target._schema.name.partition("::")[2]
            if isinstance(node.args[0], Node) and node.args[0] not in sizes and hasattr(Tensor, name):
                made.op, made.target = "call_method", name
            else:
                made.target = getattr(torch, name)
        return made

    known: dict[Node, Node] = {}
    for node in graph.graph.nodes:
        known[node] = transformed(node, known)
    root: dict[str, Any] = dict(extra)
    for node in graph.graph.nodes:
        if node.op in ("get_attr", "call_module"):
            path = str(node.target)
            root[path] = _attribute(graph, node) if node.op == "get_attr" else graph.get_submodule(path)
    return GraphModule(root, copy).eval()  # or the exporter would set the shared parts to training at its end


def _uneven_pools(node: Node) -> tuple[Tensor, Tensor] | None:
    """Matrices that take the means over rows (from the left) and columns (from the right); None where sizes divide."""
    *_, height, width = tuple(node.all_input_nodes[0].meta["tensor_meta"].shape)
    rows, columns = cast(Sequence[int], node.args[1])
    if height % rows == 0 and width % columns == 0:
        return None
    return _means(height, rows), _means(width, columns).T.contiguous()


def _means(size: int, count: int) -> Tensor:
    """count×size: each row the mean over one of ``count`` stretches of ``size``, as adaptive pooling makes them."""
    matrix = torch.zeros(count, size)
    for index in range(count):
        begin, end = index * size // count, -(-(index + 1) * size // count)
        matrix[index, begin:end] = 1.0 / (end - begin)
    return matrix
