"""Device profiles: the stated speed to which a node's compute can be stretched, for emulation.

The rates are effective single-stream rates on the board's CPU, orders of magnitude, ours: no board was measured. An emulated
task is a camera-size one: the costs of the artifact's layers are scaled by the ratio of the areas, 224² to that of its
input (texts are taken as they are, at the length at which the artifact states its costs). Feature tensors are not enlarged,
so an emulated deployment's links carry less than the real one's would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from mdi_exit.errors import UsageError
from mdi_exit.model.manifest import Manifest
from mdi_exit.segments import SegmentKey

__all__ = ["PROFILES", "DeviceProfile", "camera_scale", "parse_profile"]

CAMERA_SIDE: Final = 224


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """``macs_per_s``: multiply-accumulates a second; ``layer_overhead_s``: fixed seconds for each layer and batch."""

    name: str
    macs_per_s: float
    layer_overhead_s: float

    def seconds(self, manifest: Manifest, key: SegmentKey, batch: int) -> float:
        """Stated seconds for one batch of a segment. Batching saves only the fixed part."""
        macs = sum(layer.macs for layer in manifest.layers[key.entry : key.stop]) + _bottleneck_macs(manifest, key)
        if key.head:
            macs += next(spec.macs for spec in manifest.exits if spec.layer == key.stop - 1)
        return batch * macs * camera_scale(manifest) / self.macs_per_s + (key.stop - key.entry) * self.layer_overhead_s


def camera_scale(manifest: Manifest) -> float:
    """By how much a camera-size task is more than one of the artifact's images; 1 for anything but images."""
    if manifest.input.kind != "image":
        return 1.0
    _, height, width = manifest.input.image_shape
    return CAMERA_SIDE**2 / (height * width)


def _bottleneck_macs(manifest: Manifest, key: SegmentKey) -> int:
    """Of the autoencoders within a segment, the decoder at its beginning and the encoder at its end."""
    codes = [layer.bottleneck for layer in manifest.layers[key.entry : key.stop + 1]]
    macs = sum(code.macs for code in codes[: key.stop - key.entry] if code is not None)
    if codes[0] is not None:
        macs -= codes[0].encoder_macs
    if len(codes) > key.stop - key.entry and codes[-1] is not None:
        macs += codes[-1].encoder_macs
    return macs


PROFILES: Final = {
    profile.name: profile
    for profile in (
        DeviceProfile("jetson-nano", 8e9, 0.5e-3),
        DeviceProfile("jetson-orin-nano", 40e9, 0.2e-3),
        DeviceProfile("raspberry-pi-4", 5e9, 0.5e-3),
        DeviceProfile("raspberry-pi-5", 15e9, 0.3e-3),
        DeviceProfile("laptop", 60e9, 0.1e-3),
    )
}


def parse_profile(text: str) -> DeviceProfile:
    """``NAME`` or ``NAMExFACTOR``: ``jetson-nanox0.5`` is half as fast. Raises ``UsageError``."""
    if text in PROFILES:
        return PROFILES[text]
    name, _, factor = text.rpartition("x")
    try:
        speed = float(factor)
    except ValueError:
        speed = math.nan
    if name not in PROFILES or not 0 < speed < 1e6:
        raise UsageError("device profile", f"{', '.join(PROFILES)}, or NAMExFACTOR such as jetson-nanox0.5", repr(text))
    base = PROFILES[name]
    return replace(base, name=text, macs_per_s=base.macs_per_s * speed, layer_overhead_s=base.layer_overhead_s / speed)
