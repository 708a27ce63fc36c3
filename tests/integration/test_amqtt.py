"""The same system on the broker that comes with the base installation."""

from __future__ import annotations

from pathlib import Path

import pytest
from live import System

from broker.embedded import embedded_broker

pytestmark = pytest.mark.broker


async def test_a_run_on_amqtt(tmp_path: Path) -> None:
    async with embedded_broker(prefer="amqtt") as broker:
        assert broker.kind == "amqtt"
        system = System(broker.url, tmp_path)
        try:
            agents = [system.agent("a", "4-8"), system.agent("b", "2-8")]
            for agent in agents:
                agent.until_says("waiting for a source")
            source = system.source("--layers", "0-3", "--limit", "200")
            summary = source.until_completed(200)
            assert summary["duplicates"] == 0
            assert len({node for row in source.rows for node in row["path"]}) > 1
            assert [agent.stop() for agent in agents] == [0, 0]
        finally:
            system.close()
