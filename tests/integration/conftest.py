"""A deployment of real processes on a real Mosquitto."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import System

from broker.embedded import mosquitto_config


@pytest.fixture
def system(mosquitto: Any, tmp_path: Path) -> Iterator[System]:
    folder = tmp_path / "nodes"
    folder.mkdir()
    system = System(mosquitto.url, folder)
    yield system
    system.close()


@pytest.fixture
def talkative(mosquitto: Any, system: System) -> System:
    """A deployment on a broker that says every second how it does."""
    mosquitto.stop()
    mosquitto.config = mosquitto_config(mosquitto.port) + "sys_interval 1\n"
    mosquitto.start()
    return system
