"""How the process and its board do: read once a second in a thread, so that no sensor holds up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import psutil

from mdi_exit.board import Sensors, read_host
from mdi_exit.energy import DevicePower, EnergyMeter
from mdi_exit.wire import Board

__all__ = ["Vitals"]

_PERIOD_S: Final = 1.0
_CPU_PERIOD_S: Final = 0.4


class Vitals:
    """``board``: the last reading, made at ``read_at`` (monotonic seconds).

    ``power``: the device whose watts to take where there is no sensor; ``emulated``: the node is stretched to that device,
    so that this board's own power says nothing about it.
    """

    def __init__(
        self, *, power: DevicePower | None = None, emulated: bool = False, sensors: Sensors | None = None
    ) -> None:
        self._process = psutil.Process()
        self._sensors = sensors if sensors is not None else Sensors()
        self._emulated = emulated
        self._meter = EnergyMeter(power)
        self._host = read_host()
        self._cpu_percent = 0.0
        self._cpu_at = float("-inf")
        self.board = Board(self._process.memory_info().rss, host=self._host)
        self.read_at = 0.0

    def cpu_percent(self, now: float) -> float:
        """Of one core, by this process, over the last half second or so: whoever asks more often gets the same answer."""
        if now - self._cpu_at >= _CPU_PERIOD_S:
            self._cpu_at = now
            self._cpu_percent = max(float(self._process.cpu_percent(None)), 0.0)
        return self._cpu_percent

    def read(self, now: float, busy_s: float) -> Board:
        """Read everything; ``busy_s``: seconds that the node has computed since its start. May take some milliseconds."""
        power_w = None if self._emulated else self._sensors.power_w()
        counted_j = None if self._emulated or power_w is not None else self._sensors.energy_j()
        self._meter.update(now, busy_s, power_w, counted_j)
        self.board = Board(
            memory_bytes=self._process.memory_info().rss,
            temperature_c=self._sensors.temperature_c(),
            power_w=self._meter.power_w,
            energy_j=self._meter.energy_j,
            measured=self._meter.measured,
            host=self._host,
        )
        self.read_at = now
        return self.board

    async def watch(self, busy_s: Callable[[], float]) -> None:
        """Read once a second, for as long as the node lives."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.to_thread(self.read, loop.time(), busy_s())
            await asyncio.sleep(_PERIOD_S)
