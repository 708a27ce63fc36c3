"""What Home Assistant is told, as its MQTT discovery wants it: pure, from plain facts.

Each entity has one retained description at ``PREFIX/COMPONENT/mdi-exit-DEPLOYMENT/NODE-KEY/config`` and reads its value out
of its node's state, a JSON object at ``mdi/DEPLOYMENT/home/NODE``. The source is one device, each agent another that is
reached through it. All of it counts for as long as the source's life topic says online; its last will says offline.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mdi_exit.topics import Topics

__all__ = ["OFFLINE", "ONLINE", "Entity", "LastResult", "NodeFacts", "SourceFacts", "descriptions", "states"]

ONLINE: Final = "online"
OFFLINE: Final = "offline"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node as it is now; ``temperature_c`` None: its board has no sensor that can be read."""

    name: str
    role: str
    connected: bool
    queue: int
    span: str = ""
    engine: str = ""
    emulated: str = ""
    version: str = ""
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class LastResult:
    """The last label."""

    id: str | None = None
    label: str | None = None
    confidence: float | None = None
    exit: int | None = None
    latency_ms: float | None = None
    path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """A run as it is now. ``nodes``: the source itself first. ``accuracy``: None where no truth is known."""

    nodes: tuple[NodeFacts, ...]
    model: str
    labels: tuple[str, ...]
    rate_per_s: float
    threshold: float
    accuracy: float | None = None
    latency_p50_s: float | None = None
    last: LastResult = field(default_factory=LastResult)

    @property
    def name(self) -> str:
        return self.nodes[0].name


@dataclass(frozen=True, slots=True)
class Entity:
    """One row of the tables below. ``value``: where it stands in the node's state; ``more``: further documented fields."""

    component: str
    key: str
    name: str
    value: str
    more: Mapping[str, Any] = field(default_factory=dict)


def _measured(unit: str | None = None, digits: int = 0, **more: Any) -> dict[str, Any]:
    units = {} if unit is None else {"unit_of_measurement": unit}
    return {"state_class": "measurement", "suggested_display_precision": digits, **units, **more}


_HEALTH: Final = {"entity_category": "diagnostic"}

_OF_SOURCE: Final = (
    Entity("sensor", "rate", "Rate", "rate_per_s", _measured("items/s", 1, icon="mdi:speedometer")),
    Entity("sensor", "threshold", "Exit threshold", "threshold", _measured(None, 2, icon="mdi:tune-vertical")),
    Entity("sensor", "latency", "Latency", "latency_ms", _measured("ms", 0, device_class="duration")),
)
_ACCURACY: Final = Entity("sensor", "accuracy", "Accuracy", "accuracy_percent", _measured("%", 1, icon="mdi:bullseye"))
_QUEUE: Final = Entity("sensor", "queue", "Queue", "queue", _measured("tasks", 0, icon="mdi:tray-full", **_HEALTH))
_TEMPERATURE: Final = Entity(
    "sensor", "temperature", "Temperature", "temperature_c", _measured("°C", 1, device_class="temperature", **_HEALTH)
)


def states(facts: SourceFacts) -> dict[str, bytes]:
    """By node, what its entities read."""
    found: dict[str, bytes] = {}
    for node in facts.nodes:
        state: dict[str, Any] = {
            "connected": node.connected,
            "queue": node.queue,
            "temperature_c": _rounded(node.temperature_c, 1),
        }
        if node.name == facts.name:
            last = facts.last
            state |= {
                "rate_per_s": round(facts.rate_per_s, 1),
                "threshold": round(facts.threshold, 3),
                "latency_ms": _rounded(_times(facts.latency_p50_s, 1000), 1),
                "accuracy_percent": _rounded(_times(facts.accuracy, 100), 1),
                "last": {
                    "label": last.label,
                    "confidence": _rounded(last.confidence, 4),
                    "exit": last.exit,
                    "latency_ms": _rounded(last.latency_ms, 1),
                    "id": last.id,
                    "path": list(last.path),
                },
            }
        found[node.name] = _json(state)
    return found


def descriptions(facts: SourceFacts, topics: Topics, prefix: str) -> dict[str, bytes]:
    """By topic, the retained description of each entity that there is something to say of."""
    return {
        topics.home_config(prefix, entity.component, f"{node.name}-{entity.key}"): _json(described)
        for node in facts.nodes
        for entity, described in _entities(facts, node, topics)
    }


def _entities(facts: SourceFacts, node: NodeFacts, topics: Topics) -> Iterator[tuple[Entity, dict[str, Any]]]:
    life = {"topic": topics.home_life(facts.name), "payload_available": ONLINE, "payload_not_available": OFFLINE}
    device, state = _device(facts, node, topics), topics.home_state(node.name)
    is_source = node.name == facts.name

    def described(
        entity: Entity, availability: Sequence[Mapping[str, str]], **more: Any
    ) -> tuple[Entity, dict[str, Any]]:
        fields: dict[str, Any] = {
            "name": entity.name,
            "unique_id": f"{_identifier(topics, node.name)}.{entity.key}",
            "state_topic": state,
            "value_template": "{{ value_json." + entity.value + " }}",
            **entity.more,
            **more,
            "device": device,
            "origin": _origin(facts),
        }
        if availability:
            fields |= {"availability": list(availability), "availability_mode": "all"}
        return entity, fields

    connected = Entity(
        "binary_sensor", "connected", "Connected", "connected", {"device_class": "connectivity", **_HEALTH}
    )
    if is_source:
        lively = {"state_topic": life["topic"], "payload_on": ONLINE, "payload_off": OFFLINE}
        entity, fields = described(connected, (), **lively)
        del fields["value_template"]
        yield entity, fields
        yield described(_label(facts), [life], **_attributes(state))
        for entity in _OF_SOURCE:
            yield described(entity, [life])
        if facts.accuracy is not None:
            yield described(_ACCURACY, [life])
        there = [life]
    else:
        on = "{{ 'ON' if value_json.connected else 'OFF' }}"
        yield described(connected, [life], value_template=on, payload_on="ON", payload_off="OFF")
        alive = "{{ '" + ONLINE + "' if value_json.connected else '" + OFFLINE + "' }}"
        there = [life, {**life, "topic": state, "value_template": alive}]
    yield described(_QUEUE, there)
    if node.temperature_c is not None:
        yield described(_TEMPERATURE, there)


def _label(facts: SourceFacts) -> Entity:
    """A choice among the model's labels, where it names them."""
    choices = {"device_class": "enum", "options": list(facts.labels)} if facts.labels else {}
    return Entity("sensor", "label", "Label", "last.label", {"icon": "mdi:tag-outline", **choices})


def _attributes(state: str) -> dict[str, str]:
    return {"json_attributes_topic": state, "json_attributes_template": "{{ value_json.last | tojson }}"}


def _device(facts: SourceFacts, node: NodeFacts, topics: Topics) -> dict[str, Any]:
    is_source = node.name == facts.name
    what = f"source of {facts.model}" if is_source else f"edge agent, layers {node.span}" if node.span else "edge agent"
    device: dict[str, Any] = {
        "identifiers": [_identifier(topics, node.name)],
        "name": f"{topics.deployment} {node.name}",
        "manufacturer": "mdi-exit",
        "model": what,
    }
    if node.version:
        device["sw_version"] = node.version
    if node.engine:
        device["hw_version"] = node.engine + (f", emulating {node.emulated}" if node.emulated else "")
    if not is_source:
        device["via_device"] = _identifier(topics, facts.name)
    return device


def _identifier(topics: Topics, node: str) -> str:
    """A full stop stands in no name, so that no two nodes of any two deployments have the same."""
    return f"mdi-exit.{topics.deployment}.{node}"


def _origin(facts: SourceFacts) -> dict[str, str]:
    origin = {"name": "mdi-exit"}
    return origin | {"sw_version": facts.nodes[0].version} if facts.nodes[0].version else origin


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
