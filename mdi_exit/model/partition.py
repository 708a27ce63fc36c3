"""Cutting a traced network into layers: where one tensor, or a stated few, crosses.

The graph's operations stand in one order. Between two neighbours *cross* the tensors that were made before and are used
after. A place is a cut when they are few enough, float32, begin with the batch axis and have no other free axis. Sizes of
the batch, constants and what is computed of these alone do not cross: each layer computes them anew. Every layer holds at
least one operation that multiplies (convolution, linear, matrix product, attention); the cheap ones after it belong to it.

Where several tensors cross, the layer before packs them into one flat tensor and the layer after unpacks it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.passes.split_utils import split_by_tags
from torch.utils.flop_counter import FlopCounterMode

from mdi_exit.errors import UsageError
from mdi_exit.model.graph import described, is_fixed, is_random, mutated, root_of, tensor_of

__all__ = ["Partition", "balanced", "partitioned"]

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Partition:
    """Layers in a row and the classifier behind them: logits = classifier(layers(x)), to the bit the network's.

    ``shapes``: of what leaves each layer, without batch. ``classifier``: one linear layer on a vector if the network ends
    so, else the identity.
    """

    layers: tuple[nn.Module, ...]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    classifier: nn.Module


def partitioned(
    graph: GraphModule, input_shape: tuple[int, ...], what: str, *, crossing: int = 1, layers: int | None = None
) -> Partition:
    """``graph`` (of ``graph.tidied``) cut wherever at most ``crossing`` tensors cross, then merged to at most ``layers``.

    Raises ``UsageError``, one line, for a network that cannot be cut, which says what crosses where.
    """
    places = _Places(graph, input_shape, crossing)
    stops = places.cuts()
    if not stops:
        raise UsageError(what, f"a network with a place where at most {crossing} tensor(s) cross", places.obstacle())
    last = stops[-1] if len(stops) > 1 and places.ends_in_linear(stops[-1]) else None
    inner = stops[:-1] if last is not None else stops
    costs = [sum(part) for part in _parts(places.macs, [*inner, len(places.macs) if last is None else last])]
    kept = [inner[index - 1] for index in balanced(costs, layers or len(costs))]
    ends = [*kept, *([last] if last is not None else [])]
    modules = _split(graph, places, ends)
    classifier = modules.pop() if last is not None else nn.Identity()
    names = _names(places, ends)[: len(modules)]
    return Partition(tuple(modules), tuple(names), tuple(_shapes(modules, input_shape)), classifier)


def balanced(costs: Sequence[int], count: int) -> list[int]:
    """Where to cut a row of costs into ``count`` parts (or as many as there are), the sum of squares being the least.

    Returns the indices at which parts begin, the first (0) left out.
    """
    total = [0, *itertools.accumulate(costs)]
    best = [float(each) ** 2 for each in total]
    choices: list[list[int]] = []
    for parts in range(2, min(count, len(costs)) + 1):
        chosen, values = [0] * len(total), [float("inf")] * len(total)
        for stop in range(parts, len(total)):
            values[stop], chosen[stop] = min(
                (best[begin] + float(total[stop] - total[begin]) ** 2, begin) for begin in range(parts - 1, stop)
            )
        best = values
        choices.append(chosen)
    cuts, stop = [], len(costs)
    for chosen in reversed(choices):
        stop = chosen[stop]
        cuts.append(stop)
    return cuts[::-1]


def _parts(values: Sequence[int], stops: Iterable[int]) -> list[Sequence[int]]:
    begin, parts = 0, []
    for stop in stops:
        parts.append(values[begin:stop])
        begin = stop
    return parts


class _Counted(Interpreter):
    """Runs the graph once, counting each node's multiply-accumulates."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.counter = FlopCounterMode(display=False)
        self.macs: dict[Node, int] = {}

    def run_node(self, n: Node) -> Any:
        before = self.counter.get_total_flops()
        result = super().run_node(n)
        self.macs[n] = (self.counter.get_total_flops() - before) // 2
        return result

    def counted(self, x_NCHW: Tensor) -> dict[Node, int]:
        with self.counter, torch.no_grad():
            self.run(x_NCHW)
        return self.macs


@dataclass(slots=True)
class _Places:
    """The operations that have a place in the order (``nodes``), their cost, and what crosses between them.

    A stop ``s`` is the place before ``nodes[s]``. ``free``: nodes that every layer computes anew.
    """

    graph: GraphModule
    input_shape: tuple[int, ...]
    crossing: int
    nodes: list[Node] = field(init=False)
    macs: list[int] = field(init=False)
    free: set[Node] = field(init=False)
    _crossing: list[list[Node]] = field(init=False)
    _barred: set[int] = field(init=False)

    def __post_init__(self) -> None:
        (source,) = self.graph.graph.find_nodes(op="placeholder")
        self.free = _free_nodes(self.graph, _batch_of(source))
        self.nodes = [node for node in self.graph.graph.nodes if _is_call(node) and node not in self.free]
        costs = _Counted(self.graph).counted(torch.zeros(1, *self.input_shape))
        self.macs = [costs[node] for node in self.nodes]
        place = {node: index for index, node in enumerate(self.nodes)}
        place[self.graph.graph.output_node()] = len(self.nodes)
        place[source] = -1
        self._crossing = [[] for _ in self.nodes]
        for node in [source, *self.nodes]:
            last = max((place[user] for user in node.users if user in place), default=-1)
            for stop in range(place[node] + 1, min(last, len(self.nodes) - 1) + 1):
                self._crossing[stop].append(node)
        self._barred = set()
        for node in self.nodes:
            if (base := mutated(node)) is not None:  # what is overwritten after a cut must not be looked at before it
                self._barred.update(range(place[root_of(base)] + 1, place[node] + 1))

    def crosses(self, stop: int) -> list[Node]:
        return self._crossing[stop]

    def cuts(self) -> list[int]:
        """The cut between each two costly operations: where fewest bytes cross, the last of equals."""
        (source,) = self.graph.graph.find_nodes(op="placeholder")
        batch = _batch_of(source)
        found = []
        for before, after in itertools.pairwise(self.costly):
            valid = [stop for stop in range(before + 1, after + 1) if self._is_cut(stop, batch)]
            if valid:
                found.append(min(valid, key=lambda stop: (sum(map(_size, self.crosses(stop))), -stop)))
        return found

    @property
    def costly(self) -> list[int]:
        return [index for index, macs in enumerate(self.macs) if macs]

    def _is_cut(self, stop: int, batch: Any) -> bool:
        crossing = self.crosses(stop)
        return (
            stop not in self._barred
            and 1 <= len(crossing) <= self.crossing
            and all(_can_cross(node, batch) for node in crossing)
        )

    def ends_in_linear(self, stop: int) -> bool:
        """Whether nothing but one linear layer on a vector stands behind ``stop``."""
        crossing, rest = self.crosses(stop), self.nodes[stop:]
        value = tensor_of(crossing[0])
        return len(crossing) == 1 and len(rest) == 1 and rest[0].target is aten.linear.default and value.ndim == 2  # type: ignore[union-attr]

    def obstacle(self) -> str:
        """Why there is no cut, where it came nearest."""
        costly = self.costly
        if len(costly) < 2:
            return f"{len(costly)} operation(s) that multiply"
        stops = range(costly[0] + 1, costly[-1] + 1)
        stop = min(stops, key=lambda each: (len(self.crosses(each)), each in self._barred))
        crossing = self.crosses(stop)
        tensors = ", ".join(described(node) for node in crossing[:4]) + (", …" if len(crossing) > 4 else "")
        where = f"between {_path(self.nodes[stop - 1])} and {_path(self.nodes[stop])}"
        barred = "; one of them is overwritten later" if stop in self._barred else ""
        return f"at least {len(crossing)} {where}: {tensors}{barred}"


def _is_call(node: Node) -> bool:
    return node.op in ("call_function", "call_module")


def _batch_of(source: Node) -> Any:
    """The symbol of the batch size."""
    return tensor_of(source).shape[0].node.expr  # type: ignore[union-attr]


def _expression(size: object) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def _can_cross(node: Node, batch: Any) -> bool:
    value = tensor_of(node)
    if value is None or value.dtype != torch.float32 or value.ndim < 2:
        return False
    return _expression(value.shape[0]) == batch and all(map(is_fixed, value.shape[1:]))


def _free_nodes(graph: GraphModule, batch: Any) -> set[Node]:
    """Sizes of the batch, and what is made of sizes, weights and constants alone."""
    pinned = {root_of(base) for node in graph.graph.nodes if (base := mutated(node)) is not None}
    free: set[Node] = set()
    for node in graph.graph.nodes:
        if not _is_call(node) or node.op == "call_module" or node in pinned or mutated(node) is not None:
            continue
        if node.target is aten.sym_size.int:
            if _expression(node.meta["val"]) == batch:
                free.add(node)
        elif all(each.op == "get_attr" or each in free for each in node.all_input_nodes) and not is_random(node):
            free.add(node)
    return free


def _size(node: Node) -> int:
    value = tensor_of(node)
    return 0 if value is None else value[0].numel()


# --- names


def _path(node: Node) -> str:
    """Of the module that the operation came from, or its own name."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.removeprefix("L['self'].") or node.name


def _names(places: _Places, stops: Sequence[int]) -> list[str]:
    """Each layer after the module that holds its costly operations and nobody else's, or after the first and the last."""
    paths = []
    for begin, stop in itertools.pairwise([0, *stops, len(places.nodes)]):
        paths.append([_path(places.nodes[index]) for index in range(begin, stop) if places.macs[index]])
    names = []
    for number, own in enumerate(paths):
        prefix = _prefix(own)
        others = [path for other, theirs in enumerate(paths) if other != number for path in theirs]
        alone = prefix and not any(path == prefix or path.startswith(prefix + ".") for path in others)
        names.append((prefix if alone or own[0] == own[-1] else f"{own[0]}..{own[-1]}")[:120])
    return names


def _prefix(paths: Sequence[str]) -> str:
    common = []
    for parts in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


# --- the split itself


def _split(graph: GraphModule, places: _Places, stops: Sequence[int]) -> list[nn.Module]:
    """One module for each stretch between stops. ``graph`` is used up."""
    _Seams(graph, places, stops).sew()
    graph.graph.lint()
    tags = [f"layer{number}" for number in range(len(stops) + 1)]
    split = split_by_tags(graph, tags)
    if not isinstance(split, GraphModule):
        raise TypeError(f"expected a GraphModule, got {type(split).__name__}")
    return [split.get_submodule(tag) for tag in tags]


class _Seams:
    """Prepares a graph so that exactly one tensor, row-major, crosses each stop and nothing else."""

    def __init__(self, graph: GraphModule, places: _Places, stops: Sequence[int]) -> None:
        self.graph, self.places = graph.graph, places
        self.stretches = [
            places.nodes[begin:stop] for begin, stop in itertools.pairwise([0, *stops, len(places.nodes)])
        ]
        self.crossing = [places.crosses(stop) for stop in stops]
        self.entering: Node = self.graph.find_nodes(op="placeholder")[0]
        self.tag = ""

    def sew(self) -> None:
        known: dict[Node, Node] = {self.entering: self.entering}
        for number, stretch in enumerate(self.stretches):
            self.tag = f"layer{number}"
            with self.graph.inserting_before(stretch[0]):
                if number:
                    known = self._unpacked(self.crossing[number - 1])
                known |= self._recomputed(stretch)
            for node in stretch:
                node.tag = self.tag
                for old in node.all_input_nodes:
                    if old in known:
                        node.replace_input_with(old, known[old])
            if number < len(self.crossing):
                with self.graph.inserting_before(stretch[-1].next):
                    self.entering = self._packed([known.get(node, node) for node in self.crossing[number]])
        self.graph.eliminate_dead_code(lambda node: node.is_impure() or mutated(node) is not None)

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        node: Node = self.graph.call_function(target, args, kwargs)
        node.tag = self.tag
        return node

    def _recomputed(self, stretch: Sequence[Node]) -> dict[Node, Node]:
        """Copies of the free nodes that ``stretch`` needs, sizes being those of what enters it."""
        made: dict[Node, Node] = {}

        def copy(node: Node) -> Node:
            if node not in self.places.free:
                return node
            if node not in made:
                if node.target is aten.sym_size.int:
                    made[node] = self._call(aten.sym_size.int, self.entering, 0)
                else:
                    for each in node.all_input_nodes:
                        copy(each)
                    made[node] = self.graph.node_copy(node, copy)
                    made[node].tag = self.tag
            return made[node]

        for node in stretch:
            for each in node.all_input_nodes:
                copy(each)
        return made

    def _packed(self, values: Sequence[Node]) -> Node:
        if len(values) > 1:
            return self._call(aten.cat.default, [self._call(aten.flatten.using_ints, node, 1) for node in values], 1)
        value = tensor_of(values[0])
        if value is not None and value.is_contiguous():
            return values[0]
        return self._call(aten.contiguous.default, values[0])

    def _laid_out(self, value: Node) -> Node:
        """What enters, in the memory order that the network had it in: another would give sums of another order."""
        fake = tensor_of(value)
        if (
            fake is None
            or fake.ndim != 4
            or fake.is_contiguous()
            or not fake.is_contiguous(memory_format=torch.channels_last)
        ):
            return self.entering
        return self._call(aten.contiguous.default, self.entering, memory_format=torch.channels_last)

    def _unpacked(self, values: Sequence[Node]) -> dict[Node, Node]:
        if len(values) == 1:
            return {values[0]: self._laid_out(values[0])}
        made, begin = {}, 0
        for node in values:
            stop = begin + _size(node)
            flat = self._call(aten.slice.Tensor, self.entering, 1, begin, stop)
            axes = list(tensor_of(node).shape[1:])  # type: ignore[union-attr]
            made[node] = self._call(aten.unflatten.int, flat, 1, axes) if len(axes) > 1 else flat
            begin = stop
        return made


def _shapes(layers: Iterable[nn.Module], input_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    shapes, x_N = [], torch.zeros(1, *input_shape)
    with torch.no_grad():
        for layer in layers:
            x_N = layer(x_N)
            shapes.append(tuple(x_N.shape[1:]))
    return shapes
