"""Segments composed from layer and head graphs, so that the runtime optimises across layers.

ONNX Runtime computes every output of a graph whatever is fetched, so a segment without its head is a graph of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Literal

import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, numpy_helper

from mdi_exit.errors import ArtifactError
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.manifest import ExitSpec, GraphFile
from mdi_exit.outline import LEAST_PIECE_BYTES, assembled, outlined
from mdi_exit.segments import SegmentKey
from mdi_exit.wire import Outline

__all__ = ["FEATURES", "GATE", "INPUT", "LOGITS", "Composed", "Composer", "checked_graph"]

INPUT = "x"
FEATURES = "features"
LOGITS = "logits"
GATE = "gate"
_OPERATOR_SETS = frozenset({"", "ai.onnx"})
_PLAIN = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64})


def checked_graph(
    raw: bytes, what: str, in_shape: tuple[int, ...], out_shape: tuple[int, ...] | None = None
) -> ModelProto:
    """A layer's or head's graph: one input of ``in_shape``, one output, no external data, standard operators only.

    Shapes are without batch; an axis of 0 is free. ``out_shape``: what the output must be (None: whatever it is). Raises
    ``ArtifactError``.
    """
    try:
        model = onnx.load_from_string(raw)
        is_external = any(tensor.data_location == TensorProto.EXTERNAL for tensor in _tensors(model.graph))
        # Infers shapes too, so that the output's declared one is not taken on trust.
        if not is_external:
            onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # noqa: BLE001 - protobuf and onnx raise many kinds for the one fault: not a graph
        raise ArtifactError(what, "a valid ONNX graph", str(error).splitlines()[0][:200] or "none") from None
    if is_external:
        raise ArtifactError(what, "all weights inside the file", "a reference to external data")
    graph = model.graph
    if foreign := {entry.domain for entry in model.opset_import} - _OPERATOR_SETS:
        raise ArtifactError(what, "standard operators only", f"operators of {', '.join(sorted(foreign))}")
    if len(graph.input) != 1 or len(graph.output) != 1:
        raise ArtifactError(what, "one input and one output", f"{len(graph.input)} and {len(graph.output)}")
    _check_shape(graph.input[0], f"{what}: input shape", in_shape)
    if out_shape is not None:
        _check_shape(graph.output[0], f"{what}: output shape", out_shape)
    return model


def _check_shape(value: ValueInfoProto, what: str, expected: tuple[int, ...]) -> None:
    """The batch is free, and every axis of which 0 is expected. Raises ``ArtifactError``."""
    dims = value.type.tensor_type.shape.dim
    shape = tuple(dim.dim_value for dim in dims[1:])
    free = [dim.HasField("dim_value") for dim, size in zip(dims, (0, *expected), strict=False) if not size]
    if not dims or shape != expected or any(free):
        raise ArtifactError(what, f"(N, {', '.join(map(str, expected))})", f"(?, {shape})")


def _free(shape: tuple[int, ...], length: int | None) -> tuple[int, ...]:
    """As ``checked_graph`` takes it."""
    return shape if length is None else (0, *shape[1:])


def _tensors(graph: GraphProto) -> Iterable[TensorProto]:
    """All of them in the order of the file, also those in the branches of an ``If`` and the bodies of a ``Loop``."""
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def _made_raw(model: ModelProto) -> ModelProto:
    """Numbers as bytes, as most files have them: then the weights of a layer are the same bytes in each of its segments."""
    for tensor in _tensors(model.graph):
        if tensor.data_type in _PLAIN and not tensor.HasField("raw_data") and math.prod(tensor.dims) > 1:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return model


@dataclass(frozen=True, slots=True)
class _Weights:
    """The larger tensors of one graph in a row: a file; ``places``: where in ``raw`` each view of it begins."""

    raw: bytes
    sha256: str
    places: dict[memoryview, int]


def _weights(model: ModelProto) -> _Weights:
    found = dict.fromkeys(
        tensor.raw_data for tensor in _tensors(model.graph) if len(tensor.raw_data) >= LEAST_PIECE_BYTES
    )
    raw = b"".join(found)
    stops = itertools.accumulate(map(len, found), initial=0)
    places = {memoryview(raw)[start:stop]: start for start, stop in itertools.pairwise(stops)}
    return _Weights(raw, hashlib.sha256(raw).hexdigest(), places)


@dataclass(frozen=True, slots=True)
class Composed:
    """A segment as an outline, ``body`` being what that has itself, and the files of ``weights`` that it names, by digest.

    ``size_bytes``, ``sha256``: of the whole segment.
    """

    outline: Outline
    body: bytes
    weights: dict[str, bytes]
    size_bytes: int
    sha256: str


class Composer:
    """Composes segments of one artifact, each once, from whichever thread, and keeps each weight once for all of them."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._made: dict[SegmentKey, Composed] = {}
        self._weights: dict[str, _Weights] = {}
        self._lock = Lock()

    def segment(self, key: SegmentKey) -> bytes:
        """The ONNX graph of a segment: input ``x``; outputs ``features`` (unless the network ends), ``logits``, ``gate``."""
        made = self.composed(key)
        return assembled(made.outline, made.body, made.weights)

    def composed(self, key: SegmentKey) -> Composed:
        """The same for sending."""
        with self._lock:
            if key not in self._made:
                self._made[key] = self._outlined(key)
            return self._made[key]

    def _outlined(self, key: SegmentKey) -> Composed:
        graph = _made_raw(self._compose(key)).SerializeToString(deterministic=True)
        found = [self._weights_of(file) for file in self._files(key)]
        places = {view: (one.sha256, start) for one in found for view, start in one.places.items()}
        files = {one.sha256: one.raw for one in found if one.raw}
        tensors = (tensor.raw_data for tensor in _tensors(onnx.load_from_string(graph).graph))
        outline, body = outlined(graph, tensors, places, {digest: len(raw) for digest, raw in files.items()})
        return Composed(outline, body, files, len(graph), hashlib.sha256(graph).hexdigest())

    def _files(self, key: SegmentKey) -> list[GraphFile]:
        """The artifact's files that are in the segment."""
        manifest = self.artifact.manifest
        found = [spec.graph for spec in manifest.layers[key.entry : key.stop]]
        for layer, spec in enumerate(manifest.layers[key.entry : key.stop + 1], key.entry):
            if (code := spec.bottleneck) is not None:
                found += [code.decoder] if layer < key.stop else []
                found += [code.encoder] if layer > key.entry else []
        if key.head:
            exit_ = next(spec for spec in manifest.exits if spec.layer == key.stop - 1)
            found += [exit_.graph, *(extra for extra in (exit_.gate, exit_.branch) if extra is not None)]
        return found

    def _weights_of(self, file: GraphFile) -> _Weights:
        if file.sha256 not in self._weights:
            self._weights[file.sha256] = _weights(_made_raw(onnx.load_from_string(self.artifact.read(file))))
        return self._weights[file.sha256]

    def check(self) -> None:
        """Look at every graph now rather than when a segment is asked for. Raises ``ArtifactError``."""
        manifest = self.artifact.manifest
        for layer in range(len(manifest.layers)):
            self._layer(layer)
            self._half(layer, "encoder")
            self._half(layer, "decoder")
        for spec in manifest.exits:
            self._head(spec)
            self._branch(spec)

    def _compose(self, key: SegmentKey) -> ModelProto:
        """Layers in a row, the autoencoders of the cuts inside and at both ends with them, then head and gate."""
        manifest = self.artifact.manifest
        parts = [*self._half(key.entry, "decoder"), self._layer(key.entry)]
        for layer in range(key.entry + 1, key.stop):
            parts += [*self._half(layer, "encoder"), *self._half(layer, "decoder"), self._layer(layer)]
        model, end = _chained(None, parts, "l", INPUT)
        if key.head:
            model = self._with_head(model, key, end)
        if key.stop < len(manifest.layers):
            if encoder := self._half(key.stop, "encoder"):
                keep = [output.name for output in model.graph.output if output.name != end]
                model, end = _chained(model, encoder, "code", end, keep)
            _rename_output(model, end, FEATURES)
        model.graph.name = key.file
        model.graph.ClearField(
            "value_info"
        )  # shapes inside: versions of onnx keep other ones, and bytes are to be the same
        onnx.checker.check_model(model)
        return model

    def _layer(self, layer: int) -> ModelProto:
        spec = self.artifact.manifest.layers[layer]
        what = f"{self.artifact.folder}: layer {layer}"
        shapes = _free(spec.in_shape, spec.in_length), _free(spec.out_shape, spec.out_length)
        return checked_graph(self.artifact.read(spec.graph), what, *shapes)

    def _half(self, layer: int, half: Literal["encoder", "decoder"]) -> list[ModelProto]:
        """The encoder or decoder of the cut before ``layer``, if it has one."""
        spec = self.artifact.manifest.layers[layer] if layer else None
        if spec is None or spec.bottleneck is None:
            return []
        code, what = spec.bottleneck, f"{self.artifact.folder}: {half} before layer {layer}"
        if half == "encoder":
            return [checked_graph(self.artifact.read(code.encoder), what, spec.in_shape, code.shape)]
        return [checked_graph(self.artifact.read(code.decoder), what, code.shape, spec.in_shape)]

    def _head(self, spec: ExitSpec) -> tuple[ModelProto, ModelProto | None]:
        """The head of an exit, and its gate if it has one."""
        manifest, what = self.artifact.manifest, f"{self.artifact.folder}: exit at layer {spec.layer}"
        out_shape = (len(manifest.labels),) if manifest.labels else None  # a model without names has any number
        layer = manifest.layers[spec.layer]
        in_shape = _free(layer.out_shape, layer.out_length)
        head = checked_graph(self.artifact.read(spec.graph), what, in_shape, out_shape)
        if spec.gate is None:
            return head, None
        shape = tuple(dim.dim_value for dim in head.graph.output[0].type.tensor_type.shape.dim[1:])
        return head, checked_graph(self.artifact.read(spec.gate), f"{what}: gate", shape, (1,))

    def _branch(self, spec: ExitSpec) -> ModelProto | None:
        """What an exit's branch makes of the features that its head gets."""
        if spec.branch is None:
            return None
        layer, what = self.artifact.manifest.layers[spec.layer], f"{self.artifact.folder}: branch at layer {spec.layer}"
        return checked_graph(self.artifact.read(spec.branch), what, _free(layer.out_shape, layer.out_length), (1,))

    def _with_head(self, model: ModelProto, key: SegmentKey, end: str) -> ModelProto:
        manifest = self.artifact.manifest
        spec = next(spec for spec in manifest.exits if spec.layer == key.stop - 1)
        head, gate = self._head(spec)
        keep = [LOGITS] if key.stop == len(manifest.layers) else [end, LOGITS]
        if (branch := self._branch(spec)) is not None:
            branch = _renamed(branch, "branch_", "branch_in", GATE)
            model = onnx.compose.merge_models(model, branch, io_map=[(end, "branch_in")], outputs=[end, GATE])
            keep.append(GATE)
        head = _renamed(head, "head_", "head_in", LOGITS)
        model = onnx.compose.merge_models(model, head, io_map=[(end, "head_in")], outputs=keep)
        if gate is None:
            return model
        gate = _renamed(gate, "gate_", "gate_in", GATE)
        return onnx.compose.merge_models(model, gate, io_map=[(LOGITS, "gate_in")], outputs=[*keep, GATE])


def _chained(
    model: ModelProto | None, parts: Sequence[ModelProto], prefix: str, begin: str, keep: Sequence[str] = ()
) -> tuple[ModelProto, str]:
    """``parts`` one after the other, behind the output ``begin`` of ``model`` if there is one; and the last output's name.

    ``keep``: outputs of ``model`` that stay.
    """
    end = begin
    for index, part in enumerate(parts):
        source, target = (INPUT if model is None else f"{prefix}_in{index}"), f"{prefix}_out{index}"
        following = _renamed(part, f"{prefix}{index}_", source, target)
        if model is None:
            model = following
        else:
            model = onnx.compose.merge_models(model, following, io_map=[(end, source)], outputs=[target, *keep])
        end = target
    if model is None:
        raise ValueError("expected at least one graph, got none")
    return model, end


def _renamed(model: ModelProto, prefix: str, source: str, target: str) -> ModelProto:
    """A copy whose names all carry ``prefix``, but for its input and output."""
    old_in, old_out = model.graph.input[0].name, model.graph.output[0].name
    copy = onnx.compose.add_prefix(model, prefix)
    renames = {prefix + old_in: source, prefix + old_out: target}
    for node in copy.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renames.get(name, name)
    copy.graph.input[0].name = source
    copy.graph.output[0].name = target
    return copy


def _rename_output(model: ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    for output in model.graph.output:
        if output.name == old:
            output.name = new
