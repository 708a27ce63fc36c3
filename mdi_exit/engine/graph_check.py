"""An ONNX file is looked through before ONNX Runtime sees it: a node gets them from the broker.

What a segment needs is listed field by field; whatever else a file has is refused, also what a later ONNX may add. Refused
by name: data outside the file, operators that are not ONNX's own, functions, training, sparse tensors (a few bytes that
become gigabytes), loops (a few bytes that run for ever), and a field given twice (a reader would merge them after the check).

What a file that passes may still do is take time and memory while it runs: shapes between operators are not inferred here.
Field numbers are those of onnx.proto3, IR version 13.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from mdi_exit.engine.protobuf import BYTES, FIXED32, FIXED64, VARINT, Field, Reader
from mdi_exit.errors import EngineError
from mdi_exit.limits import MAX_AXES, MAX_GRAPH_BYTES, MAX_GRAPH_DEPTH, MAX_GRAPH_FIELDS, MAX_GRAPH_NODES

__all__ = ["Signature", "check_graph"]

Shape = tuple[int | None, ...]

_STANDARD: Final = ("", "ai.onnx")
_ENDLESS: Final = ("Loop", "Scan", "SequenceMap")
_FLOAT: Final = 1
_BYTES_OF: Final = {  # TensorProto.DataType, text left out
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 1.0),
    **dict.fromkeys((4, 5, 10, 16), 2.0),
    **dict.fromkeys((1, 6, 12), 4.0),
    **dict.fromkeys((7, 11, 13, 14), 8.0),
    15: 16.0,
    **dict.fromkeys((21, 22, 23), 0.5),
}


@dataclass(frozen=True, slots=True)
class _Form:
    """A message: its singular fields and its repeated ones by number, each with the wire types that it may have.

    ``texts``: those that somebody will want to read, and which are therefore UTF-8.
    """

    name: str
    once: Mapping[int, tuple[int, ...]]
    often: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)
    texts: tuple[int, ...] = ()


_N, _B = (VARINT,), (BYTES,)
_NUMBERS = (VARINT, BYTES)
_MODEL: Final = _Form(
    "model",
    {1: _N, 2: _B, 3: _B, 4: _B, 5: _N, 6: _B, 7: _B},
    {8: _B, 14: _B},
    {20: "training", 25: "functions", 26: "configurations"},
    (2, 3, 4),
)
_OPSET: Final = _Form("operator set", {1: _B, 2: _N})
_GRAPH: Final = _Form(
    "graph",
    {2: _B, 10: _B},
    {1: _B, 5: _B, 11: _B, 12: _B, 13: _B, 16: _B},
    {14: "quantization annotations", 15: "sparse tensors"},
    (2,),
)
_NODE: Final = _Form(
    "node",
    {3: _B, 4: _B, 6: _B, 7: _B},
    {1: _B, 2: _B, 5: _B, 9: _B},
    {8: "functions", 10: "configurations"},
    (1, 2, 3, 4, 7),
)
_ATTRIBUTE: Final = _Form(
    "attribute",
    {1: _B, 2: (FIXED32,), 3: _N, 4: _B, 5: _B, 6: _B, 13: _B, 20: _N},
    {7: (FIXED32, BYTES), 8: _NUMBERS, 9: _B, 10: _B, 11: _B},
    {14: "types", 15: "types", 21: "functions", 22: "sparse tensors", 23: "sparse tensors"},
    (1,),
)
_TENSOR: Final = _Form(
    "tensor",
    {2: _N, 8: _B, 9: _B, 12: _B, 14: _N},
    {1: _NUMBERS, 4: (FIXED32, BYTES), 5: _NUMBERS, 7: _NUMBERS, 10: (FIXED64, BYTES), 11: _NUMBERS, 16: _B},
    {3: "segments", 6: "text", 13: "data outside the file"},
    (8,),
)
_VALUE: Final = _Form("value", {1: _B, 2: _B, 3: _B}, {4: _B}, texts=(1,))
_TYPE: Final = _Form("type", {1: _B, 6: _B})
_TENSOR_TYPE: Final = _Form("tensor type", {1: _N, 2: _B})
_SHAPE: Final = _Form("shape", {}, {1: _B})
_DIM: Final = _Form("dimension", {1: _N, 2: _B, 3: _B}, texts=(2, 3))


@dataclass(frozen=True, slots=True)
class Signature:
    """Names and shapes of the float32 tensors that go in and come out; None: an axis of any length."""

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]


def check_graph(raw: bytes) -> Signature:
    """What a file takes and gives. Raises ``EngineError`` for one that ONNX Runtime should not be given."""
    if len(raw) > MAX_GRAPH_BYTES:
        raise EngineError(f"graph: expected at most {MAX_GRAPH_BYTES:,} bytes, got {len(raw):,}")
    return _Check(raw).model()


class _Check:
    def __init__(self, raw: bytes) -> None:
        self._reader = Reader(raw, MAX_GRAPH_FIELDS)
        self._end = len(raw)
        self._nodes = 0

    def model(self) -> Signature:
        graphs: list[Field] = []
        sets = 0
        for found in self._fields(_MODEL, 0, self._end):
            if found.number == 8:
                sets += 1
                self._operator_set(found)
            elif found.number == 7:
                graphs.append(found)
        if len(graphs) != 1 or not sets:
            raise EngineError(f"graph: expected one with its operator set, got {len(graphs)} and {sets}")
        return self._graph(graphs[0], 0)

    def _fields(self, form: _Form, begin: int, end: int) -> Iterator[Field]:
        """The fields of a message, each one that the form has, with a type that it may have, no oftener than it may be."""
        seen: set[int] = set()
        for found in self._reader.fields(begin, end):
            number = found.number
            if number in form.refused:
                raise EngineError(f"graph: expected no {form.refused[number]}, got some in a {form.name}")
            kinds = form.once.get(number) or form.often.get(number)
            if kinds is None or found.kind not in kinds:
                raise EngineError(f"graph: expected known fields of a {form.name}, got {number} of type {found.kind}")
            if number in form.once:
                if number in seen:
                    raise EngineError(f"graph: expected field {number} of a {form.name} once, got it again")
                seen.add(number)
            if number in form.texts:
                self._reader.text(found)
            yield found

    def _operator_set(self, where: Field) -> None:
        for found in self._fields(_OPSET, where.begin, where.end):
            if found.number == 1:
                self._standard(found)

    def _standard(self, where: Field) -> None:
        if (domain := self._reader.text(where)) not in _STANDARD:
            raise EngineError(f"graph: expected standard operators only, got some of {domain[:80]!r}")

    def _graph(self, where: Field, depth: int) -> Signature:
        if depth > MAX_GRAPH_DEPTH:
            raise EngineError(f"graph: expected at most {MAX_GRAPH_DEPTH} branches within each other, got more")
        inputs: dict[str, Shape] = {}
        outputs: dict[str, Shape] = {}
        for found in self._fields(_GRAPH, where.begin, where.end):
            match found.number:
                case 1:
                    self._node(found, depth)
                case 5:
                    self._tensor(found)
                case 11 | 12 if depth == 0:
                    name, shape = self._value(found)
                    values = inputs if found.number == 11 else outputs
                    if name in values:
                        raise EngineError(f"graph: expected {name[:80]!r} once, got it again")
                    values[name] = shape
        return Signature(inputs, outputs)

    def _node(self, where: Field, depth: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_GRAPH_NODES:
            raise EngineError(f"graph: expected at most {MAX_GRAPH_NODES:,} nodes, got more")
        for found in self._fields(_NODE, where.begin, where.end):
            if found.number == 7:
                self._standard(found)
            elif found.number == 4 and (name := self._reader.text(found)) in _ENDLESS:
                raise EngineError(f"graph: expected no loops, got {name}")
            elif found.number == 5:
                self._attribute(found, depth)

    def _attribute(self, where: Field, depth: int) -> None:
        for found in self._fields(_ATTRIBUTE, where.begin, where.end):
            if found.number in (5, 10):
                self._tensor(found)
            elif found.number in (6, 11):
                self._graph(found, depth + 1)

    def _tensor(self, where: Field) -> None:
        """Its dimensions ask for no more values than it has."""
        dims: list[int] = []
        kind = stored = 0
        raw_bytes: int | None = None
        for found in self._fields(_TENSOR, where.begin, where.end):
            match found.number:
                case 1:
                    dims += self._numbers(found, MAX_AXES - len(dims))
                case 2:
                    kind = found.value
                case 9:
                    raw_bytes = found.end - found.begin
                case 4 | 5 | 7 | 10 | 11:
                    stored += found.end - found.begin
                case 14 if found.value:
                    raise EngineError("graph: expected all data inside the file, got a tensor with data outside")
        if kind not in _BYTES_OF or any(dim > MAX_GRAPH_BYTES for dim in dims):
            raise EngineError(f"graph: expected a tensor of numbers, got type {kind} of shape {dims}")
        wanted = math.ceil(math.prod(dims) * _BYTES_OF[kind])
        if raw_bytes is not None and (raw_bytes != wanted or stored):
            raise EngineError(f"graph: expected {wanted:,} bytes for a tensor of shape {dims}, got {raw_bytes:,}")
        if raw_bytes is None and math.prod(dims) * min(_BYTES_OF[kind], 1) > stored:  # a byte at least for each
            raise EngineError(f"graph: expected values for a tensor of shape {dims}, got {stored:,} bytes of them")

    def _numbers(self, where: Field, most: int) -> list[int]:
        """Of a field that may be packed; at most ``most`` of them."""
        if where.kind == VARINT:
            values = [where.value]
        else:
            values = []
            at = where.begin
            while at < where.end and len(values) <= most:
                value, at = self._reader.varint(at, where.end)
                values.append(value)
        if len(values) > most:
            raise EngineError(f"graph: expected at most {MAX_AXES} dimensions, got more")
        return values

    def _value(self, where: Field) -> tuple[str, Shape]:
        """Name and shape of what goes in or comes out."""
        name, shape = "", None
        for found in self._fields(_VALUE, where.begin, where.end):
            if found.number == 1:
                name = self._reader.text(found)
            elif found.number == 2:
                shape = self._type(found)
        if not name or shape is None:
            raise EngineError(
                f"graph: expected names and shapes for what goes in and comes out, got none of {name[:80]!r}"
            )
        return name, shape

    def _type(self, where: Field) -> Shape | None:
        for found in self._fields(_TYPE, where.begin, where.end):
            if found.number == 1:
                element, shape = 0, None
                for inner in self._fields(_TENSOR_TYPE, found.begin, found.end):
                    if inner.number == 1:
                        element = inner.value
                    else:
                        shape = tuple(map(self._dim, self._fields(_SHAPE, inner.begin, inner.end)))
                if element != _FLOAT:
                    raise EngineError(f"graph: expected float32 in and out, got type {element}")
                return self._few(shape)
        return None

    @staticmethod
    def _few(shape: Shape | None) -> Shape | None:
        if shape is not None and len(shape) > MAX_AXES + 1:
            raise EngineError(f"graph: expected at most {MAX_AXES} axes and the batch, got {len(shape)}")
        return shape

    def _dim(self, where: Field) -> int | None:
        length = None
        for found in self._fields(_DIM, where.begin, where.end):
            if found.number == 1:
                length = found.value
        return length
