"""Segments on ONNX Runtime: CPU, CUDA or TensorRT, picked at start."""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # what boards do is told to their broker and to nobody else
import onnxruntime

from mdi_exit.engine.base import Array, SegmentOutput
from mdi_exit.engine.graph_check import Signature, check_graph
from mdi_exit.errors import EngineError
from mdi_exit.segments import SegmentKey

__all__ = ["OnnxEngine", "open_session"]

_PREFERRED: Final = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
_ERRORS_ONLY: Final = 3


class OnnxEngine:
    """``threads``: intra-operator threads of each segment."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._sessions: dict[SegmentKey, tuple[Any, list[str], tuple[int | str | None, ...]]] = {}

    @property
    def description(self) -> str:
        return f"onnxruntime {_providers()[0].removesuffix('ExecutionProvider')}"

    def load(self, key: SegmentKey, graph: bytes) -> None:
        try:
            _check_ends(key, check_graph(graph))
        except EngineError as error:
            raise EngineError(f"{key.file}: {error}") from None
        try:
            session = open_session(graph, self._threads)
            (source,) = session.get_inputs()
            names = [output.name for output in session.get_outputs()]
        except Exception as error:  # noqa: BLE001 - the runtime's errors share no base; this is their boundary
            raise EngineError(f"{key.file}: {_first_line(error)}") from None
        self._sessions[key] = session, names, tuple(source.shape[1:])

    def unload(self, key: SegmentKey) -> None:
        self._sessions.pop(key, None)

    def run(self, key: SegmentKey, x: Array) -> SegmentOutput:
        loaded = self._sessions.get(key)
        if loaded is None:
            raise EngineError(f"{key.file}: expected a loaded segment, got none")
        session, names, shape = loaded
        if x.dtype != np.float32 or not _fits(x.shape[1:], shape) or len(x) < 1:
            raise EngineError(f"{key.file}: expected float32 (N, {shape}), got {x.dtype} {x.shape}")
        try:
            outputs = dict(zip(names, session.run(names, {"x": x}), strict=True))
        except Exception as error:  # noqa: BLE001 - as above
            raise EngineError(f"{key.file}: {_first_line(error)}") from None
        return SegmentOutput(outputs.get("features"), outputs.get("logits"), outputs.get("gate"))


def _fits(shape: tuple[int, ...], declared: tuple[int | str | None, ...]) -> bool:
    """An axis that a graph declares by a name, or not at all, may have any length."""
    if len(shape) != len(declared):
        return False
    return all(size == axis or not isinstance(axis, int) for size, axis in zip(shape, declared, strict=True))


def _providers() -> list[str]:
    available = onnxruntime.get_available_providers()
    return [name for name in _PREFERRED if name in available]


def open_session(graph: bytes, threads: int) -> Any:
    """A session of ONNX Runtime on the best device there is."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # many small sessions: an arena each would cost more than it saves
    options.log_severity_level = _ERRORS_ONLY
    # Never ONNX Runtime's own format, which is not checked; and a declared shape that is wrong is refused.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.strict_shape_type_inference", "1")
    providers = _providers()
    session = onnxruntime.InferenceSession(
        graph,
        options,
        providers=providers,
        enable_fallback=int(len(providers) > 1),  # to the CPU, from which there is none: trying prints lines
        read_config_from_model=0,
    )
    if len(providers) == 1:
        session._model_bytes = None  # the whole graph, kept beside what was made of it to start anew on the CPU
    return session


def _check_ends(key: SegmentKey, signature: Signature) -> None:
    """Whether a graph takes and gives what a segment does, by name, the batch free and perhaps the axis after it.

    Raises ``EngineError``.
    """
    names = set(signature.outputs)
    expected = {"logits"} if key.head and "features" not in names else {"features", *(["logits"] * key.head)}
    if set(signature.inputs) != {"x"} or (names - {"gate"} if key.head else names) != expected:
        got = f"{sorted(name[:40] for name in names)[:5]} of {sorted(name[:40] for name in signature.inputs)[:5]}"
        raise EngineError(f"expected outputs {sorted(expected)} of x, got {got}")
    for name, shape in (*signature.inputs.items(), *signature.outputs.items()):
        if len(shape) < 2 or shape[0] is not None or (name == "x" and None in shape[2:]):
            raise EngineError(f"expected {name} of shape (N, …), got {shape}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
