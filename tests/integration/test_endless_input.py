"""``--repeat``: a source that stays, as docker-compose.yml starts it."""

from __future__ import annotations

from typing import Any

from live import System, until


def test_an_input_that_is_repeated_has_no_end(mosquitto: Any, system: System) -> None:
    source = system.source("--layers", "0-8", "--input", "shipped:3", "--repeat", "--rate", "40/s")
    completed = "mdi_exit_items_completed_total"
    until(lambda: source.metric(completed) > 9, lambda: f"a fourth round:\n{source.log}")
    assert source.running
    assert source.stop() == 0
