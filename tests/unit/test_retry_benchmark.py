"""No retry storm: at three times the capacity, faults cost little more than they must."""

from __future__ import annotations

import pytest

from mdi_exit.benchmark.retry import FAULTS, Load, run_load

CAPACITY_PER_S = 218.0  # of the benchmark's three agents and source


@pytest.fixture(scope="module")
def plain() -> float:
    goodput: float = run_load(Load("none", CAPACITY_PER_S, seconds=20.0))["goodput_per_s"]
    assert goodput == pytest.approx(CAPACITY_PER_S, rel=0.1), "overload itself costs nothing"
    return goodput


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"none"}))
def test_goodput_stays_within_a_tenth_and_retries_within_their_budget(plain: float, fault: str) -> None:
    seconds = 20.0 if FAULTS[fault].end is None else 40.0  # 4 s without one agent of three are 3 % of 40 s
    row = run_load(Load(fault, CAPACITY_PER_S, seconds=seconds))
    assert row["goodput_per_s"] >= 0.9 * plain
    assert row["retried"] <= 0.1 * row["admitted"] + 20
    assert row["admitted"] == row["completed"]
    assert row["errors"] == row["pending"] == 0


def test_without_budget_and_back_off_there_is_a_storm(plain: float) -> None:
    row = run_load(Load("none", CAPACITY_PER_S, seconds=20.0, patient=False))
    assert row["goodput_per_s"] < 0.7 * plain
