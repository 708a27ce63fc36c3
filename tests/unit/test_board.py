"""Sensors of boards, as the kernel shows them, in folders made for the purpose."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdi_exit.board import Sensors, read_host


def _write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def test_a_machine_without_sensors_says_nothing(tmp_path: Path) -> None:
    sensors = Sensors(tmp_path)
    assert (sensors.temperature_c(), sensors.power_w(), sensors.energy_j()) == (None, None, None)
    assert not sensors.measures_energy
    assert read_host(tmp_path) == ""


def test_a_raspberry_pi_has_a_temperature_only(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 48312,
            "sys/class/hwmon/hwmon0/name": "cpu_thermal",
            "sys/class/hwmon/hwmon0/temp1_input": 48312,
            "sys/class/hwmon/hwmon1/name": "rpi_volt",
            "sys/class/hwmon/hwmon1/in0_lcrit_alarm": 0,
            "proc/sys/kernel/random/boot_id": "4ff1b19b-ac2a-4044-bd01-0154cdf7a372",
        },
    )
    sensors = Sensors(tmp_path)
    assert sensors.temperature_c() == pytest.approx(48.312)
    assert sensors.power_w() is None
    assert read_host(tmp_path) == "4ff1b19b"


def _jetson_nano(root: Path) -> None:
    """JetPack 4: iio; a zone of the PMIC that always says 100 °C."""
    chip = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    _write(
        root,
        {
            "sys/class/thermal/thermal_zone0/type": "AO-therm",
            "sys/class/thermal/thermal_zone0/temp": 41000,
            "sys/class/thermal/thermal_zone1/type": "CPU-therm",
            "sys/class/thermal/thermal_zone1/temp": 36500,
            "sys/class/thermal/thermal_zone2/type": "GPU-therm",
            "sys/class/thermal/thermal_zone2/temp": 34000,
            "sys/class/thermal/thermal_zone4/type": "PMIC-Die",
            "sys/class/thermal/thermal_zone4/temp": 100000,
            f"{chip}/rail_name_0": "POM_5V_IN",
            f"{chip}/in_power0_input": 2345,
            f"{chip}/rail_name_1": "POM_5V_GPU",
            f"{chip}/in_power1_input": 82,
            f"{chip}/rail_name_2": "POM_5V_CPU",
            f"{chip}/in_power2_input": 656,
        },
    )


def test_a_jetson_nano_has_the_power_of_its_input_rail(tmp_path: Path) -> None:
    _jetson_nano(tmp_path)
    sensors = Sensors(tmp_path)
    assert sensors.measures_energy
    assert sensors.power_w() == pytest.approx(2.345)
    assert sensors.temperature_c() == pytest.approx(36.5)


def test_a_jetson_orin_nano_has_millivolts_and_milliamperes(tmp_path: Path) -> None:
    chip = "sys/class/hwmon/hwmon3"
    _write(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 47125,
            "sys/class/thermal/thermal_zone8/type": "tj-thermal",
            "sys/class/thermal/thermal_zone8/temp": 48500,
            f"{chip}/name": "ina3221",
            f"{chip}/in1_label": "VDD_IN",
            f"{chip}/in1_input": 5056,
            f"{chip}/curr1_input": 904,
            f"{chip}/in2_label": "VDD_CPU_GPU_CV",
            f"{chip}/in2_input": 5056,
            f"{chip}/curr2_input": 96,
            f"{chip}/in7_label": "sum of shunt voltages",
            f"{chip}/in7_input": 5,
            f"{chip}/curr4_input": 1000,
        },
    )
    sensors = Sensors(tmp_path)
    assert sensors.power_w() == pytest.approx(5.056 * 0.904)
    assert sensors.temperature_c() == pytest.approx(48.5)


def test_rails_add_up_where_none_is_the_input(tmp_path: Path) -> None:
    chip = "sys/class/hwmon/hwmon0"
    rails = {f"{chip}/in{n}_input": 5000 for n in (1, 2)} | {f"{chip}/curr{n}_input": 100 * n for n in (1, 2)}
    _write(tmp_path, {f"{chip}/name": "ina3221", f"{chip}/in1_label": "GPU", f"{chip}/in2_label": "CPU", **rails})
    sensors = Sensors(tmp_path)
    assert sensors.power_w() == pytest.approx(1.5)
    (tmp_path / chip / "curr2_input").unlink()
    assert sensors.power_w() is None, "a part is not the whole"


def test_a_power_meter_says_microwatts(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {
            "sys/class/hwmon/hwmon0/name": "power_meter",
            "sys/class/hwmon/hwmon0/power1_average": 12_500_000,
            "sys/class/hwmon/hwmon1/name": "amdgpu",
            "sys/class/hwmon/hwmon1/power1_average": 99_000_000,
        },
    )
    assert Sensors(tmp_path).power_w() == pytest.approx(12.5), "a graphics card is not the machine"


def _rapl(root: Path, package_uj: int, memory_uj: int) -> None:
    powercap = "sys/class/powercap"
    zones = (("0", "package-0", package_uj), ("0:0", "core", 10**9), ("0:1", "dram", memory_uj))
    for zone, name, energy_uj in zones:
        _write(
            root,
            {
                f"{powercap}/intel-rapl:{zone}/name": name,
                f"{powercap}/intel-rapl:{zone}/energy_uj": energy_uj,
                f"{powercap}/intel-rapl:{zone}/max_energy_range_uj": 1_000_000_000,
            },
        )


def test_energy_counters_start_anew_and_parts_count_once(tmp_path: Path) -> None:
    _rapl(tmp_path, 999_000_000, 5_000_000)
    sensors = Sensors(tmp_path)
    assert sensors.measures_energy
    assert sensors.energy_j() == pytest.approx(0.0)
    _rapl(tmp_path, 2_000_000, 6_000_000)
    assert sensors.energy_j() == pytest.approx(1.0 + 2.0 + 1.0)
    _rapl(tmp_path, 4_000_000, 6_000_000)
    assert sensors.energy_j() == pytest.approx(6.0)
    assert sensors.power_w() is None


def test_the_counter_of_the_platform_holds_the_others(tmp_path: Path) -> None:
    _rapl(tmp_path, 0, 0)
    _write(tmp_path, {"sys/class/powercap/intel-rapl:1/name": "psys", "sys/class/powercap/intel-rapl:1/energy_uj": 0})
    sensors = Sensors(tmp_path)
    _rapl(tmp_path, 9_000_000, 9_000_000)
    _write(tmp_path, {"sys/class/powercap/intel-rapl:1/energy_uj": 20_000_000})
    assert sensors.energy_j() == pytest.approx(20.0)


def test_nonsense_and_sensors_that_vanish_are_none(tmp_path: Path) -> None:
    _jetson_nano(tmp_path)
    sensors = Sensors(tmp_path)
    zone = tmp_path / "sys/class/thermal"
    (zone / "thermal_zone1/temp").write_text("hot\n")
    (zone / "thermal_zone2/temp").write_text("-274000\n")
    assert sensors.temperature_c() is None
    for path in (tmp_path / "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0").iterdir():
        path.unlink()
    assert sensors.power_w() is None


def test_a_zone_of_no_processor_is_better_than_nothing(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/type": "acpitz",
            "sys/class/thermal/thermal_zone0/temp": 27800,
            "sys/class/thermal/thermal_zone1/type": "PMIC-Die",
            "sys/class/thermal/thermal_zone1/temp": 100000,
        },
    )
    assert Sensors(tmp_path).temperature_c() == pytest.approx(27.8)
