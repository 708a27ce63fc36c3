"""Home Assistant's MQTT discovery as its documentation has it, as tables; ``problems`` says where a message departs from it.

Read from the pages MQTT (discovery messages), MQTT sensor, MQTT binary sensor, Sensor and Binary sensor of
home-assistant.io, as of 2026, in our words. ``?`` after a type: may be left out.
"""

from __future__ import annotations

import json
import re
from typing import Any

TOPIC = re.compile(r"(?P<prefix>.+)/(?P<component>[a-z_]+)/(?P<node>[A-Za-z0-9_-]+)/(?P<object>[A-Za-z0-9_-]+)/config")

ENTITY = {
    "availability": "list?", "availability_mode": "word?", "availability_template": "template?",
    "availability_topic": "topic?", "default_entity_id": "text?", "device": "map?", "device_class": "word?",
    "enabled_by_default": "bool?", "encoding": "text?", "entity_category": "word?", "entity_picture": "text?",
    "expire_after": "int?", "force_update": "bool?", "icon": "icon?", "json_attributes_template": "template?",
    "json_attributes_topic": "topic?", "name": "text?", "payload_available": "text?", "payload_not_available": "text?",
    "platform": "word?", "qos": "int?", "unique_id": "text?", "value_template": "template?", "origin": "map?",
    "state_topic": "topic",
}  # fmt: skip
COMPONENTS = {
    "sensor": ENTITY | {
        "last_reset_value_template": "template?", "options": "list?", "state_class": "word?",
        "suggested_display_precision": "int?", "unit_of_measurement": "text?",
    },
    "binary_sensor": ENTITY | {"off_delay": "int?", "payload_on": "text?", "payload_off": "text?"},
}  # fmt: skip
DEVICE = {
    "configuration_url": "text?", "connections": "list?", "hw_version": "text?", "identifiers": "list?",
    "manufacturer": "text?", "model": "text?", "model_id": "text?", "name": "text?", "serial_number": "text?",
    "suggested_area": "text?", "sw_version": "text?", "via_device": "text?",
}  # fmt: skip
ORIGIN = {"name": "text", "sw_version": "text?", "support_url": "text?"}
AVAILABILITY = {
    "topic": "topic", "payload_available": "text?", "payload_not_available": "text?", "value_template": "template?",
}  # fmt: skip

WORDS = {
    "availability_mode": {"all", "any", "latest"},
    "entity_category": {"diagnostic", "config"},
    "state_class": {"measurement", "measurement_angle", "total", "total_increasing"},
}
SENSOR_UNITS = {  # of the device classes that we use; None: no unit
    "temperature": {"°C", "°F", "K"},
    "duration": {"d", "h", "min", "s", "ms", "μs"},
    "enum": {None},
}
BINARY_CLASSES = {
    "battery", "battery_charging", "carbon_monoxide", "cold", "connectivity", "door", "garage_door", "gas", "heat", "light",
    "lock", "moisture", "motion", "moving", "occupancy", "opening", "plug", "power", "presence", "problem", "running",
    "safety", "smoke", "sound", "tamper", "update", "vibration", "window",
}  # fmt: skip


def _is(kind: str, value: Any) -> bool:
    match kind.removesuffix("?"):
        case "text" | "word":
            return isinstance(value, str) and bool(value)
        case "topic":
            return isinstance(value, str) and bool(value) and not set(value) & set("+#\0")
        case "template":
            return isinstance(value, str) and value.count("{{") == value.count("}}") > 0
        case "icon":
            return isinstance(value, str) and re.fullmatch(r"[a-z]+:[a-z0-9-]+", value) is not None
        case "int":
            return isinstance(value, int) and not isinstance(value, bool) and value >= 0
        case "bool":
            return isinstance(value, bool)
        case "list":
            return isinstance(value, list) and bool(value)
        case "map":
            return isinstance(value, dict) and bool(value)
    raise ValueError(kind)


def _against(table: dict[str, str], content: dict[str, Any], where: str) -> list[str]:
    found = [f"{where}: {key} is no documented field" for key in content if key not in table]
    found += [f"{where}: {key} is missing" for key, kind in table.items() if kind[-1] != "?" and key not in content]
    for key, value in content.items():
        if key in table and not _is(table[key], value):
            found.append(f"{where}: {key} is {value!r}, expected {table[key]}")
        if key in WORDS and value not in WORDS[key]:
            found.append(f"{where}: {key} is {value!r}, expected one of {WORDS[key]}")
    return found


def _of_sensor(content: dict[str, Any], where: str) -> list[str]:
    found = []
    kind, unit = content.get("device_class"), content.get("unit_of_measurement")
    if kind is not None and (kind not in SENSOR_UNITS or unit not in SENSOR_UNITS[kind]):
        found.append(f"{where}: device class {kind} with unit {unit}")
    if ("options" in content) != (kind == "enum"):
        found.append(f"{where}: options and the class enum come together")
    if kind == "enum" and {"state_class", "unit_of_measurement"} & content.keys():
        found.append(f"{where}: an enum has neither state class nor unit")
    return found


def problems(topic: str, payload: bytes) -> list[str]:
    """What is wrong with one discovery message; nothing if it is as documented."""
    match = TOPIC.fullmatch(topic)
    if match is None:
        return [f"{topic}: not PREFIX/COMPONENT/NODE/OBJECT/config"]
    component = match["component"]
    if component not in COMPONENTS:
        return [f"{topic}: no component of ours"]
    content = json.loads(payload)
    found = _against(COMPONENTS[component], content, topic)
    device = content.get("device", {})
    found += _against(DEVICE, device, f"{topic} device")
    if device and not (device.get("identifiers") or device.get("connections")):
        found.append(f"{topic}: a device needs identifiers or connections")
    if device and "unique_id" not in content:
        found.append(f"{topic}: a device counts only with a unique_id")
    if "origin" in content:
        found += _against(ORIGIN, content["origin"], f"{topic} origin")
    if {"availability", "availability_topic"} <= content.keys():
        found.append(f"{topic}: either availability or availability_topic")
    for number, one in enumerate(content.get("availability", [])):
        found += _against(AVAILABILITY, one, f"{topic} availability {number}")
    if component == "sensor":
        found += _of_sensor(content, topic)
    elif content.get("device_class", "connectivity") not in BINARY_CLASSES:
        found.append(f"{topic}: device class {content['device_class']}")
    return found
