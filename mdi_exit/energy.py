"""Energy of a node: what its board's sensor says, else our estimate for a device that was named. Never a made-up number.

The watts are of the whole board without display and accessories, idle and with one stream of inference on its processor:
orders of magnitude, ours, rounded from what is commonly reported; no board was measured. A node is taken to have the
board to itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mdi_exit.engine.profile import parse_profile

__all__ = ["DEVICES", "DevicePower", "EnergyMeter", "power_of"]


@dataclass(frozen=True, slots=True)
class DevicePower:
    """Watts of a device that does nothing, and of one that computes all the time."""

    name: str
    idle_w: float
    busy_w: float


DEVICES: Final = {
    device.name: device
    for device in (
        DevicePower("jetson-nano", 2.0, 7.0),
        DevicePower("jetson-orin-nano", 4.0, 10.0),
        DevicePower("raspberry-pi-4", 2.5, 5.5),
        DevicePower("raspberry-pi-5", 3.0, 7.5),
        DevicePower("laptop", 8.0, 25.0),
    )
}


def power_of(device: str | None, profile: str | None) -> DevicePower | None:
    """The watts of the device that was named, else of the one that ``profile`` (NAME or NAMExFACTOR) emulates."""
    if device is not None:
        return DEVICES.get(device)
    if profile is None:
        return None
    return DEVICES.get(parse_profile(profile).name.rpartition("x")[0]) or DEVICES.get(profile)


class EnergyMeter:
    """Joules since its first update. ``device``: whose watts to take where no sensor says anything."""

    def __init__(self, device: DevicePower | None) -> None:
        self._device = device
        self._begin: tuple[float, float] | None = None
        self._last: tuple[float, float | None] | None = None
        self._counted_j: float | None = None
        self._sensed_j: float | None = None
        self._estimate_j: float | None = None
        self.power_w: float | None = None

    @property
    def energy_j(self) -> float | None:
        return self._sensed_j if self._sensed_j is not None else self._estimate_j

    @property
    def measured(self) -> bool:
        return self._sensed_j is not None

    def update(self, now: float, busy_s: float, power_w: float | None, counted_j: float | None) -> None:
        """A reading at ``now`` (monotonic seconds). ``busy_s``: seconds computed since the node's start; ``power_w``: of a
        sensor of power; ``counted_j``: of a counter of energy, which is preferred.

        Between two readings power is taken to change evenly; a reading that fails adds nothing.
        """
        begin_at, begin_busy_s = self._begin = self._begin or (now, busy_s)
        if counted_j is not None:
            self._count(now, counted_j)
        else:
            self._integrate(now, power_w)
        self._last = (now, power_w)
        if self._device is not None:
            elapsed_s, idle_w = now - begin_at, self._device.idle_w
            computed_s = min(max(busy_s - begin_busy_s, 0.0), elapsed_s)
            self._estimate_j = idle_w * elapsed_s + (self._device.busy_w - idle_w) * computed_s

    def _count(self, now: float, counted_j: float) -> None:
        before_j, self._counted_j = self._counted_j, counted_j
        step_j = 0.0 if before_j is None else max(counted_j - before_j, 0.0)
        self._sensed_j = (self._sensed_j or 0.0) + step_j
        if before_j is not None and self._last is not None and now > self._last[0]:
            self.power_w = step_j / (now - self._last[0])

    def _integrate(self, now: float, power_w: float | None) -> None:
        self.power_w = power_w
        if power_w is None:
            return
        before_at, before_w = self._last or (now, power_w)
        step_j = 0.0 if before_w is None else (before_w + power_w) / 2 * (now - before_at)
        self._sensed_j = (self._sensed_j or 0.0) + step_j
