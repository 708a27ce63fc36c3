"""The energy of a run from what nodes report."""

from __future__ import annotations

import pytest

from mdi_exit.run_energy import EnergyLedger
from mdi_exit.wire import Board


def _board(joules: float | None, *, measured: bool = False, host: str = "") -> Board:
    return Board(1, energy_j=joules, measured=measured, host=host)


def test_only_what_was_used_in_the_run_counts() -> None:
    ledger = EnergyLedger()
    for at in (0.0, 1.0, 2.0):
        ledger.seen(at, "a", 1, _board(100.0 + 5 * at))
    ledger.begin(2.5)
    for at in (3.0, 4.0):
        ledger.seen(at, "a", 1, _board(100.0 + 5 * at))
    assert ledger.spent(4.5).joules == pytest.approx({"a": 5 * 2.0}), "between two reports it grows evenly"


def test_a_report_repeated_says_nothing_new() -> None:
    ledger = EnergyLedger()
    for at in range(4):
        ledger.seen(at, "a", 1, _board(10.0 * (at // 2)))
    assert ledger.spent(3.0).joules == pytest.approx({"a": 15.0})


def test_a_node_that_joins_counts_from_then_on_and_one_that_restarts_goes_on() -> None:
    ledger = EnergyLedger()
    ledger.begin(0.0)
    ledger.seen(1.0, "a", 1, _board(50.0))
    ledger.seen(2.0, "a", 1, _board(60.0))
    ledger.seen(5.0, "a", 2, _board(1.0))
    ledger.seen(6.0, "a", 2, _board(4.0))
    assert ledger.spent(6.0).joules == pytest.approx({"a": 13.0})


def test_unknown_energy_and_a_single_reading_are_not_guessed_at() -> None:
    ledger = EnergyLedger()
    ledger.seen(0.0, "unknown", 1, _board(None))
    ledger.seen(0.0, "short", 1, _board(5.0))
    spent = ledger.spent(10.0)
    assert (spent.joules, spent.method, spent.total_j) == ({}, {}, 0.0)


def test_a_sensor_that_nodes_share_counts_once() -> None:
    ledger = EnergyLedger()
    for at in (0.0, 10.0):
        ledger.seen(at, "a", 1, _board(10 * at, measured=True, host="m1"))
        ledger.seen(at, "b", 1, _board(10 * at + 7, measured=True, host="m1"))
        ledger.seen(at, "c", 1, _board(2 * at, measured=True, host="m2"))
        ledger.seen(at, "d", 1, _board(at, host="m1"))
    spent = ledger.spent(10.0)
    assert spent.joules == pytest.approx({"a": 100.0, "b": 100.0, "c": 20.0, "d": 10.0})
    assert spent.method == {"a": "sensor", "b": "sensor", "c": "sensor", "d": "estimate"}
    assert spent.total_j == pytest.approx(130.0)
