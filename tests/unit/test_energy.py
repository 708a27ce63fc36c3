"""Joules by sensor or by estimate, and how a board is read."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mdi_exit.board import Sensors
from mdi_exit.energy import DEVICES, DevicePower, EnergyMeter, power_of
from mdi_exit.engine.profile import PROFILES
from mdi_exit.vitals import Vitals

PI = DevicePower("pi", idle_w=2.0, busy_w=6.0)


def test_every_device_that_can_be_emulated_has_its_watts() -> None:
    assert set(DEVICES) == set(PROFILES)
    assert all(0 < device.idle_w < device.busy_w for device in DEVICES.values())


@pytest.mark.parametrize(
    ("device", "profile", "expected"),
    [
        (None, None, None),
        ("laptop", None, "laptop"),
        (None, "jetson-nano", "jetson-nano"),
        (None, "jetson-nanox0.5", "jetson-nano"),
        ("raspberry-pi-4", "jetson-nanox0.5", "raspberry-pi-4"),
    ],
)
def test_the_watts_are_of_the_named_device_or_of_none(
    device: str | None, profile: str | None, expected: str | None
) -> None:
    found = power_of(device, profile)
    assert (found.name if found else None) == expected


def test_without_sensor_and_device_nothing_is_made_up() -> None:
    meter = EnergyMeter(None)
    meter.update(0.0, 0.0, None, None)
    meter.update(10.0, 5.0, None, None)
    assert (meter.energy_j, meter.power_w, meter.measured) == (None, None, False)


def test_an_estimate_is_idle_watts_and_what_computing_adds() -> None:
    meter = EnergyMeter(PI)
    meter.update(100.0, 7.0, None, None)
    assert meter.energy_j == 0.0
    meter.update(110.0, 10.0, None, None)
    assert meter.energy_j == pytest.approx(2.0 * 10 + 4.0 * 3)
    assert meter.power_w is None, "a power that was not measured is not shown"
    assert not meter.measured
    meter.update(120.0, 99.0, None, None)
    assert meter.energy_j == pytest.approx(6.0 * 20), "nobody computes more than all the time"


def test_power_is_integrated_and_a_failed_reading_adds_nothing() -> None:
    meter = EnergyMeter(PI)
    meter.update(0.0, 0.0, 4.0, None)
    meter.update(2.0, 0.0, 6.0, None)
    assert meter.energy_j == pytest.approx(10.0)
    assert meter.power_w == 6.0
    meter.update(3.0, 0.0, None, None)
    meter.update(4.0, 0.0, 6.0, None)
    assert meter.energy_j == pytest.approx(10.0)
    meter.update(5.0, 0.0, 6.0, None)
    assert meter.energy_j == pytest.approx(16.0)
    assert meter.measured, "a sensor outranks the table"


def test_a_counter_gives_energy_and_the_power_of_the_last_moment() -> None:
    meter = EnergyMeter(None)
    meter.update(0.0, 0.0, None, 50.0)
    assert (meter.energy_j, meter.power_w) == (0.0, None)
    meter.update(2.0, 0.0, None, 80.0)
    assert meter.energy_j == pytest.approx(30.0)
    assert meter.power_w == pytest.approx(15.0)
    assert meter.measured


def _powered(root: Path, milliwatts: int) -> Sensors:
    rail = root / "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    rail.mkdir(parents=True, exist_ok=True)
    (rail / "rail_name_0").write_text("POM_5V_IN\n")
    (rail / "in_power0_input").write_text(f"{milliwatts}\n")
    return Sensors(root)


def test_a_board_is_read_with_what_it_has(tmp_path: Path) -> None:
    vitals = Vitals(power=PI, sensors=_powered(tmp_path, 5000))
    vitals.read(10.0, 0.0)
    board = vitals.read(12.0, 0.0)
    assert vitals.board is board
    assert vitals.read_at == 12.0
    assert board.memory_bytes > 10_000_000
    assert (board.power_w, board.energy_j, board.measured) == (5.0, 10.0, True)
    assert board.temperature_c is None


def test_an_emulated_node_does_not_show_the_power_of_this_machine(tmp_path: Path) -> None:
    vitals = Vitals(power=PI, emulated=True, sensors=_powered(tmp_path, 5000))
    vitals.read(10.0, 0.0)
    board = vitals.read(12.0, 1.0)
    assert board.power_w is None
    assert board.energy_j == pytest.approx(2.0 * 2 + 4.0 * 1)
    assert not board.measured


def test_whoever_asks_for_the_load_does_not_take_it_from_others(tmp_path: Path) -> None:
    vitals = Vitals(sensors=Sensors(tmp_path))
    vitals.cpu_percent(0.0)
    sum(number * number for number in range(400_000))
    busy = vitals.cpu_percent(1.0)
    assert busy > 0
    assert vitals.cpu_percent(1.1) == busy


async def test_it_is_read_in_the_background(tmp_path: Path) -> None:
    vitals = Vitals(power=PI, sensors=Sensors(tmp_path))
    watching = asyncio.create_task(vitals.watch(lambda: 0.0))
    async with asyncio.timeout(20):
        while vitals.board.energy_j is None:
            await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
