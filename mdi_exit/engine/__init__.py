"""What runs a segment: ONNX Runtime by default, torch as the other, and an engine that does nothing."""

from __future__ import annotations

from typing import Final

from mdi_exit.engine.base import Engine, SegmentOutput
from mdi_exit.errors import UsageError

__all__ = ["ENGINES", "Engine", "SegmentOutput", "make_engine"]

ENGINES: Final = ("onnxruntime", "torch", "noop")


def make_engine(name: str, *, threads: int = 1, model: str | None = None) -> Engine:
    """The engine of that name; its library is imported now. ``model``: a local artifact, which torch needs."""
    if name == "onnxruntime":
        from mdi_exit.engine.onnx import OnnxEngine

        return OnnxEngine(threads)
    if name == "torch":
        if model is None:
            raise UsageError("engine torch", "a local model (--model NAME-or-PATH)", "none")
        from mdi_exit.engine.torch import TorchEngine

        return TorchEngine(model, threads)
    if name == "noop":
        from mdi_exit.engine.noop import NoopEngine

        return NoopEngine()
    raise UsageError("engine", f"one of {', '.join(ENGINES)}", repr(name))
