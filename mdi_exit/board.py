"""What can be read of the device under a node: memory, temperature, power, energy. Whatever cannot be read is None.

Sensors are files below ``/sys``, found once at the start: thermal zones and hwmon chips; the INA3221 of Jetsons, with the
drivers of JetPack 4 (iio) and later (hwmon); other INA chips; Intel's energy counters (RAPL), which often only root may read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Sensors", "read_host"]

_PROCESSOR: Final = re.compile(r"cpu|gpu|soc|pkg|core|k10temp|zenpower|big|little|\btj\b|^tj", re.IGNORECASE)
_PLAUSIBLE_C: Final = (-40.0, 150.0)
_MAX_WATTS: Final = 1e4
_INPUT_RAILS: Final = {"POM_5V_IN", "VDD_IN", "5V_IN"}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> float | None:
    text = _text(path)
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _listed(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def read_host(root: Path = Path("/")) -> str:
    """A short name of this boot of this machine, the same in all its containers; empty where the kernel gives none."""
    found = _text(root / "proc/sys/kernel/random/boot_id") or ""
    return found.replace("-", "")[:8]


@dataclass(slots=True)
class _EnergyCounter:
    """A counter of microjoules that starts anew at ``range_uj``."""

    path: Path
    range_uj: float
    last_uj: float
    total_uj: float = 0.0

    def joules(self) -> float | None:
        now_uj = _number(self.path)
        if now_uj is None:
            return None
        step_uj = now_uj - self.last_uj
        self.total_uj += step_uj if step_uj >= 0 else max(step_uj + self.range_uj, 0.0)
        self.last_uj = now_uj
        return self.total_uj / 1e6


class Sensors:
    """The sensors below ``root``; reading them may take some milliseconds each."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._temperatures = list(_temperatures(root / "sys/class"))
        self._rails = _rails(root / "sys")
        self._counters = _counters(root / "sys/class/powercap")

    @property
    def measures_energy(self) -> bool:
        """Whether there is a sensor of power or energy."""
        return bool(self._rails or self._counters)

    def temperature_c(self) -> float | None:
        """The hottest of the processors' sensors; of all sensors where none is known to be a processor's."""
        found = [value / 1000 for path in self._temperatures if (value := _number(path)) is not None]
        plausible = [value for value in found if _PLAUSIBLE_C[0] < value < _PLAUSIBLE_C[1]]
        return max(plausible, default=None)

    def power_w(self) -> float | None:
        """The sum of the board's rails, or of its input rail where there is one."""
        found = [rail() for rail in self._rails]
        watts = [value for value in found if value is not None and 0 <= value < _MAX_WATTS]
        return sum(watts) if watts and len(watts) == len(self._rails) else None

    def energy_j(self) -> float | None:
        """Joules since these sensors were found, by counters of energy."""
        found = [counter.joules() for counter in self._counters]
        joules = [value for value in found if value is not None]
        return sum(joules) if joules and len(joules) == len(self._counters) else None


def _temperatures(sys_class: Path) -> Iterator[Path]:
    """Files of millidegrees. Some boards have zones with a made-up value (PMIC-Die): those of processors come first."""
    named = [(_text(zone / "type") or "", zone / "temp") for zone in _listed(sys_class, "thermal/thermal_zone*")]
    for chip in _listed(sys_class, "hwmon/hwmon*"):
        name = _text(chip / "name") or ""
        named += [(name, path) for path in _listed(chip, "temp*_input")]
    readable = [(name, path) for name, path in named if _number(path) is not None]
    processors = [path for name, path in readable if _PROCESSOR.search(name)]
    yield from processors or [path for name, path in readable if "pmic" not in name.lower()]


def _rails(sys: Path) -> list[Callable[[], float | None]]:
    """Readers of watts, one for each rail."""
    named = [*_iio_rails(sys / "bus/i2c/drivers"), *_hwmon_rails(sys / "class")]
    inputs = [read for name, read in named if name in _INPUT_RAILS]
    return inputs[:1] or [read for _, read in named]


def _iio_rails(drivers: Path) -> Iterator[tuple[str, Callable[[], float | None]]]:
    """JetPack 4: milliwatts at ``ina3221x/*/iio:device*/in_power*_input``."""
    for path in _listed(drivers, "ina3221x/*/iio?device*/in_power*_input"):
        number = path.name.removeprefix("in_power").removesuffix("_input")
        if _number(path) is not None:
            yield _text(path.parent / f"rail_name_{number}") or "", _scaled(path, 1e-3)


def _hwmon_rails(sys_class: Path) -> Iterator[tuple[str, Callable[[], float | None]]]:
    """INA chips: microwatts, or millivolts times milliamperes."""
    for chip in _listed(sys_class, "hwmon/hwmon*"):
        if not (_text(chip / "name") or "").startswith(("ina", "power_meter")):
            continue
        for path in _listed(chip, "curr*_input"):
            number = path.name.removeprefix("curr").removesuffix("_input")
            volts = chip / f"in{number}_input"
            label = _text(chip / f"in{number}_label") or ""
            if _number(volts) is not None and _number(path) is not None and not label.startswith("sum"):
                yield label, _product(volts, path)
        if not _listed(chip, "curr*_input"):
            for path in [*_listed(chip, "power*_input"), *_listed(chip, "power*_average")][:1]:
                if _number(path) is not None:
                    yield "", _scaled(path, 1e-6)


def _scaled(path: Path, factor: float) -> Callable[[], float | None]:
    def read() -> float | None:
        value = _number(path)
        return None if value is None else value * factor

    return read


def _product(volts: Path, amperes: Path) -> Callable[[], float | None]:
    def read() -> float | None:
        u, i = _number(volts), _number(amperes)
        return None if u is None or i is None else u * i / 1e6

    return read


def _counters(powercap: Path) -> list[_EnergyCounter]:
    """Intel's counters that are not parts of each other: the platform's where there is one, else packages and memory."""
    parts: list[_EnergyCounter] = []
    platforms: list[_EnergyCounter] = []
    for zone in _listed(powercap, "intel-rapl:*"):
        name, now_uj = _text(zone / "name") or "", _number(zone / "energy_uj")
        if now_uj is None:
            continue
        counter = _EnergyCounter(zone / "energy_uj", _number(zone / "max_energy_range_uj") or 0.0, now_uj)
        if name == "psys":
            platforms.append(counter)
        elif name == "dram" or name.startswith("package"):
            parts.append(counter)
    return platforms or parts
