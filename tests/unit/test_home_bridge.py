"""Descriptions and states from plain facts; a real run and the documented fields are in integration/test_home_assistant."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from mdi_exit.events import ModelKnown, StatusReceived, TelemetryReceived
from mdi_exit.segments import ModelPlan
from mdi_exit.source_state import SourceConfig, SourceState
from mdi_exit.topics import Topics
from mdi_exit.wire import Board, Status, Telemetry
from mdi_exit.worker_config import WorkerConfig
from source import home_bridge
from source.home_assistant import NodeFacts, SourceFacts, descriptions, states
from source.home_bridge import HomeAssistant, HomeCleaner
from source.outside import OutsideLine

TOPICS = Topics("lab")
FACTS = SourceFacts(
    nodes=(NodeFacts("cam", "source", True, 3, version="1.2"), NodeFacts("pi", "agent", True, 1, span="4-8")),
    model="net",
    labels=("cat", "dog"),
    rate_per_s=3.14159,
    threshold=0.8,
)


def read(facts: SourceFacts) -> dict[str, dict[str, Any]]:
    return {topic.split("/")[3]: json.loads(raw) for topic, raw in descriptions(facts, TOPICS, "homeassistant").items()}


def test_what_is_not_known_has_no_entity() -> None:
    plain = {
        "cam-connected",
        "cam-label",
        "cam-rate",
        "cam-threshold",
        "cam-latency",
        "cam-queue",
        "pi-connected",
        "pi-queue",
    }
    assert set(read(FACTS)) == plain
    source, agent = FACTS.nodes
    warm = replace(FACTS, accuracy=0.9, nodes=(source, replace(agent, temperature_c=51.26)))
    assert set(read(warm)) == plain | {"cam-accuracy", "pi-temperature"}
    assert json.loads(states(warm)["pi"])["temperature_c"] == 51.3
    assert json.loads(states(warm)["cam"])["accuracy_percent"] == 90


def test_a_model_without_names_of_labels_gives_a_plain_text() -> None:
    assert read(FACTS)["cam-label"]["options"] == ["cat", "dog"]
    assert not {"options", "device_class"} & read(replace(FACTS, labels=()))["cam-label"].keys()


def test_no_two_nodes_of_two_deployments_are_mistaken_for_each_other() -> None:
    def ids(deployment: str, node: str) -> set[str]:
        facts = replace(FACTS, nodes=(NodeFacts(node, "source", True, 0),))
        return {json.loads(raw)["unique_id"] for raw in descriptions(facts, Topics(deployment), "h").values()}

    assert not ids("a-b", "c") & ids("a", "b-c")


def test_the_connection_of_the_source_is_told_by_its_last_will() -> None:
    connected = read(FACTS)["cam-connected"]
    assert connected["state_topic"] == "mdi/lab/home/cam/life"
    assert (connected["payload_on"], connected["payload_off"]) == ("online", "offline")
    assert "availability" not in connected  # it would hide the very thing
    assert read(FACTS)["pi-connected"]["availability"][0]["topic"] == "mdi/lab/home/cam/life"


class Line(OutsideLine):
    """A connection that keeps what is published."""

    def __init__(self) -> None:
        super().__init__()
        self.up = True
        self.sent: list[tuple[str, bytes, bool]] = []
        self.at: list[float] = []

    @property
    def connected(self) -> bool:
        return self.up

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        if self.up:
            self.sent.append((topic, payload, retain))
            if topic.endswith("home/cam"):
                self.at.append(asyncio.get_running_loop().time())
        return self.up


def a_state() -> SourceState:
    state = SourceState(SourceConfig(run=7), WorkerConfig("cam", 1, None), Random(0))
    state.handle(0.0, ModelKnown(ModelPlan("ab" * 16, 9, (1, 3, 5, 6, 8), (100,) * 9)))
    state.handle(0.0, StatusReceived(Status("pi", 5, True, state="ready", span=(0, 9), version="3")))
    state.handle(0.1, TelemetryReceived(Telemetry(7, 5, "pi", 2, 3, 0.1, board=Board(temperature_c=48.0))))
    return state


async def test_only_what_is_new_is_told() -> None:
    line = Line()
    home = HomeAssistant(line, TOPICS, "homeassistant", a_state(), "net", ("cat",))
    home.tell(100.0)
    first = [topic for topic, _, _ in line.sent]
    assert first[0] == "mdi/lab/home/cam/life"
    assert "homeassistant/sensor/mdi-exit-lab/pi-temperature/config" in first
    assert all(
        retain == (not topic.startswith("mdi/lab/home/") or topic.endswith("/life")) for topic, _, retain in line.sent
    )
    pi = json.loads(next(payload for topic, payload, _ in line.sent if topic == "mdi/lab/home/pi"))
    assert pi == {"connected": True, "queue": 5, "temperature_c": 48.0}
    line.sent.clear()
    home.tell(101.0)
    assert line.sent == []
    line.on_connected()
    home.tell(102.0)
    assert [topic for topic, _, _ in line.sent] == first


async def test_the_own_board_is_asked_each_time() -> None:
    line, board = Line(), [Board(temperature_c=51.0)]
    home = HomeAssistant(line, TOPICS, "homeassistant", a_state(), "net", ("cat",), board=lambda: board[0])
    home.tell(100.0)
    board[0] = Board(temperature_c=52.5)
    home.tell(101.0)
    told = [json.loads(payload) for topic, payload, _ in line.sent if topic == "mdi/lab/home/cam"]
    assert [state["temperature_c"] for state in told] == [51.0, 52.5]


async def test_however_often_home_assistant_starts_it_is_told_once_a_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_bridge, "_PERIOD_S", 0.1)
    line = Line()
    home = HomeAssistant(line, TOPICS, "homeassistant", a_state(), "net", ("cat",))
    running = asyncio.create_task(home.run())
    async with asyncio.timeout(20):
        while len(line.at) < 3:
            line.on_message("homeassistant/status", b"online", False)
            await asyncio.sleep(0.005)
    running.cancel()
    assert all(later - earlier >= 0.099 for earlier, later in zip(line.at, line.at[1:], strict=False))


async def test_the_cleaner_keeps_what_it_finds_until_it_can_publish() -> None:
    line = Line()
    cleaner = HomeCleaner(line, TOPICS, "cam")
    line.up = False
    line.on_message("homeassistant/sensor/mdi-exit-lab/cam-rate/config", b"{}", True)
    line.on_message("homeassistant/sensor/mdi-exit-other/cam-rate/config", b"{}", True)
    line.up = True
    line.on_connected()
    assert cleaner.removed == 1
    assert ("homeassistant/sensor/mdi-exit-lab/cam-rate/config", b"", True) in line.sent
    assert not [topic for topic, _, _ in line.sent if "other" in topic]
