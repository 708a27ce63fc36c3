"""An outsider sees a real deployment, and says why when it sees nothing."""

from __future__ import annotations

import asyncio

import pytest
from live import Listener, System

from mdi_exit.observer import Observer
from mdi_exit.topics import Topics

pytestmark = pytest.mark.broker


async def _until(condition, deadline_s: float = 30.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.02)


async def test_it_sees_nodes_flows_and_the_run(system: System) -> None:
    await asyncio.to_thread(_start, system)
    changes: list[None] = []
    async with Observer(system.url, "test", on_change=lambda: changes.append(None)) as observer:
        await _until(lambda: (seen := observer.view()).source is not None and seen.source.completed >= 50)
        await _until(lambda: any(link.tasks for link in observer.view().links))
        await _until(lambda: len(observer.view().nodes) == 2)
        view = observer.view()
        assert view.trouble == ""
        assert {node.name: node.span for node in view.nodes} == {"source": "0-3", "a": "4-8"}
        assert {(link.sender, link.to) for link in view.links} >= {("source", "a")}
        assert view.accuracy is not None
        assert view.accuracy > 0.5
        assert view.layer_count == 9
        assert "joined" in {happened.kind for happened in view.happened}
        assert changes
        assert observer.bad == 0
        with Listener(system.url) as listener:
            listener.publish(Topics("test").telemetry("a"), b"junk")
        await _until(lambda: observer.bad == 1)
    system.close()


def _start(system: System) -> None:
    system.agent("a", "4-8").until_says("connected")
    system.source("--layers", "0-3", "--rate", "100/s", "--duration", "60s").until_results(20)


async def test_without_a_broker_it_says_so() -> None:
    async with Observer("mqtt://127.0.0.1:9", "test") as observer:
        await _until(lambda: "127.0.0.1:9" in observer.view().trouble and "connecting" not in observer.view().trouble)
        assert not observer.view().connected
