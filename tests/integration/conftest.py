"""A deployment of real processes on a real Mosquitto."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import System


@pytest.fixture
def system(mosquitto: Any, tmp_path: Path) -> Iterator[System]:
    folder = tmp_path / "nodes"
    folder.mkdir()
    system = System(mosquitto.url, folder)
    yield system
    system.close()
