"""Home Assistant's view of a real run: descriptions as documented, states, and what happens when something goes or comes.

Templates are rendered with jinja2, as Home Assistant does.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from home_assistant_fields import problems
from live import Listener, System, until

jinja2 = pytest.importorskip("jinja2")

LIFE, SOURCE, AGENT = "mdi/test/home/source/life", "mdi/test/home/source", "mdi/test/home/tail"


def render(template: str, payload: bytes) -> str:
    environment = jinja2.Environment(autoescape=False)
    environment.filters["tojson"] = json.dumps
    return str(environment.from_string(template).render(value_json=json.loads(payload)))


def described(listener: Listener) -> dict[str, dict[str, Any]]:
    """The descriptions in force, by topic."""
    now = {topic: payload for topic, payload, _ in listener.messages if topic.startswith("homeassistant/")}
    return {topic: json.loads(payload) for topic, payload in now.items() if topic.endswith("/config") and payload}


def retained(url: str, pattern: str) -> dict[str, bytes]:
    """What the broker remembers."""
    with Listener(url, pattern) as later, Listener(url, "$SYS/broker/version") as version:
        until(lambda: bool(version.messages), lambda: "the broker answers")
        later.publish("test/marker", b"x")
        return {topic: payload for topic, payload, kept in later.messages if kept}


GOOD = {
    "name": "Rate", "unique_id": "x", "state_topic": "a/b", "value_template": "{{ value_json.rate }}",
    "state_class": "measurement", "unit_of_measurement": "items/s", "origin": {"name": "mdi-exit"},
    "device": {"identifiers": ["x"]}, "availability": [{"topic": "a/life"}], "availability_mode": "all",
}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"state_topik": "a"}, {"state_topic": None}, {"state_topic": "a/#"}, {"value_template": "value_json.rate"},
        {"state_class": "sometimes"}, {"device": {"name": "x"}}, {"device": {"identifiers": ["x"], "colour": "red"}},
        {"origin": {"sw_version": "1"}}, {"availability": [{"payload_available": "online"}]}, {"availability_topic": "a"},
        {"device_class": "temperature"}, {"device_class": "enum", "options": ["a"]}, {"options": ["a"]},
        {"unique_id": None}, {"icon": "bullseye"}, {"suggested_display_precision": "1"},
    ],
    ids=str,
)  # fmt: skip
def test_the_check_finds_what_departs_from_the_documentation(wrong: dict[str, Any]) -> None:
    topic = "homeassistant/sensor/n/o/config"
    assert problems(topic, json.dumps(GOOD).encode()) == []
    content = {key: value for key, value in (GOOD | wrong).items() if value is not None}
    assert problems(topic, json.dumps(content).encode())
    assert problems("homeassistant/sensor/n o/config", json.dumps(GOOD).encode())


@pytest.mark.broker
def test_a_run_appears_in_home_assistant_and_disappears_again(mosquitto: Any, system: System) -> None:
    with Listener(mosquitto.url, "homeassistant/#") as home, Listener(mosquitto.url, "mdi/test/home/#") as states:
        tail = system.agent("tail", "4-8")
        source = system.source("--layers", "0-3", "--rate", "40/s", "--exit-threshold", "1", "--duration", "60s",
                               "--home-assistant")  # fmt: skip
        source.until_results(5)
        expected = {
            "source": {"connected", "label", "rate", "threshold", "latency", "accuracy", "queue"},
            "tail": {"connected", "queue"},
        }
        keys = {f"{node}-{key}" for node, entities in expected.items() for key in entities}
        until(lambda: keys <= {topic.split("/")[3] for topic in described(home)}, lambda: f"{described(home).keys()}")

        # each message is as documented, and each id is there once
        raw = [(topic, payload) for topic, payload, _ in home.messages if topic.endswith("/config")]
        assert [line for topic, payload in raw for line in problems(topic, payload)] == []
        found = described(home)
        ids = [content["unique_id"] for content in found.values()]
        assert len(set(ids)) == len(ids)
        devices = {json.dumps(content["device"]["identifiers"]): content["device"] for content in found.values()}
        assert len(devices) == 2
        (via,) = [device["via_device"] for device in devices.values() if "via_device" in device]
        assert json.dumps([via]) in devices

        # each template finds its value in the state that it names
        until(lambda: b'"label":null' not in (states.on(SOURCE) or [b'"label":null'])[-1], lambda: "a label is told")
        until(lambda: bool(states.on(AGENT)), lambda: "the agent's state is told")
        values = {
            topic.split("/")[3]: render(content["value_template"], states.on(content["state_topic"])[-1])
            for topic, content in found.items()
            if "value_template" in content
        }
        label = found["homeassistant/sensor/mdi-exit-test/source-label/config"]
        assert values["source-label"] in label["options"]
        attributes = json.loads(render(label["json_attributes_template"], states.on(SOURCE)[-1]))
        assert attributes["exit"] == 4
        assert attributes["path"] == ["source", "tail"]
        assert 0 < attributes["confidence"] <= 1
        assert values["tail-connected"] == "ON"
        for key in (
            "source-rate",
            "source-threshold",
            "source-latency",
            "source-accuracy",
            "source-queue",
            "tail-queue",
        ):
            assert float(values[key]) >= 0, key
        assert float(values["source-threshold"]) == 1
        assert states.on(LIFE)[-1] == b"online"

        # Home Assistant starts again and knows nothing
        before = len(raw)
        home.publish("homeassistant/status", b"online")
        until(lambda: len([t for t, _, _ in home.messages if t.endswith("/config")]) >= before + len(found),
              lambda: "all descriptions are sent again")  # fmt: skip

        tail.kill()
        connected = "{{ 'ON' if value_json.connected else 'OFF' }}"
        assert found["homeassistant/binary_sensor/mdi-exit-test/tail-connected/config"]["value_template"] == connected
        until(lambda: render(connected, states.on(AGENT)[-1]) == "OFF", lambda: "the agent is off")
        available = found["homeassistant/sensor/mdi-exit-test/tail-queue/config"]["availability"][1]
        assert render(available["value_template"], states.on(AGENT)[-1]) == available["payload_not_available"]

        source.kill()
        until(lambda: states.on(LIFE)[-1] == b"offline", lambda: "the last will says offline")
        kept = retained(mosquitto.url, "homeassistant/#")
        assert set(kept) == set(described(home))

        again = system.source("--input", "shipped:20", "--layers", "0-8", "--home-assistant", "off")
        again.until_completed(20)
        assert f"home assistant: {len(found)} descriptions of earlier runs removed" in again.log
    assert retained(mosquitto.url, "homeassistant/#") == {}
    assert retained(mosquitto.url, "mdi/test/home/#") == {}
