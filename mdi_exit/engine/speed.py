"""How fast a node expects to be before it has run anything: seconds of one item in each layer of a model.

An emulated node states its profile's times. Any other runs the layers of the shipped model a few times at start, which takes
some milliseconds, and takes the multiply-accumulates a second of that for every model: rough (a network of small layers is
slower than its arithmetic), and corrected by measurement as soon as it runs segments.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from mdi_exit.engine.profile import DeviceProfile
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.model.manifest import Manifest
from mdi_exit.segments import SegmentKey

__all__ = ["layer_seconds", "measured_macs_per_s"]

_RUNS: Final = 5
_LEAST_S: Final = 1e-9


def measured_macs_per_s(threads: int) -> float:
    """Of this machine on ONNX Runtime, single items."""
    from mdi_exit.engine.onnx import open_session

    artifact = Artifact.open(DEFAULT_MODEL)
    macs, seconds = 0, 0.0
    for layer in artifact.manifest.layers:
        session = open_session(artifact.read(layer.graph), threads)
        x = np.zeros((1, *layer.in_shape), np.float32)
        taken = []
        for _ in range(_RUNS):
            begin = time.perf_counter()
            session.run(None, {"x": x})
            taken.append(time.perf_counter() - begin)
        macs, seconds = macs + layer.macs, seconds + min(taken)
    return macs / max(seconds, _LEAST_S)


def layer_seconds(manifest: Manifest, profile: DeviceProfile | None, macs_per_s: float) -> tuple[float, ...]:
    """Seconds of one item in each layer, exit head included; ``macs_per_s`` is for a node without a profile.

    Where the artifact says how long its layers took on the machine that made it, the whole is shared out in proportion.
    """
    plan = manifest.plan
    layers = range(plan.layer_count)
    if profile is not None:
        keys = (SegmentKey(layer, layer + 1, layer in plan.exit_layers) for layer in layers)
        return tuple(profile.seconds(manifest, key, 1) for key in keys)
    shares = [float(macs) for macs in plan.layer_macs]
    recorded = [layer.seconds for layer in manifest.layers if layer.seconds]
    if len(recorded) == plan.layer_count:
        shares = recorded
    total_s = sum(plan.layer_macs) / macs_per_s
    return tuple(max(total_s * share / max(sum(shares), _LEAST_S), _LEAST_S) for share in shares)
