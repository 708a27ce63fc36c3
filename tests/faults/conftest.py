"""Needs a real Mosquitto; each test has processes of its own, so that several may run at once."""

from __future__ import annotations

import pytest

from broker.embedded import find_mosquitto


@pytest.fixture(autouse=True)
def a_broker() -> None:
    if find_mosquitto() is None:
        pytest.skip("needs mosquitto on PATH")
