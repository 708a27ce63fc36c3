"""Every query of the dashboards and rules, read back from their files.

Which metrics it uses, and how it reads once the variables of Grafana have values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml

__all__ = [
    "BUILT_IN",
    "RULES",
    "Expression",
    "dashboards",
    "expressions",
    "filled_in",
    "label_values",
    "metrics_of",
    "panels_of",
    "recorded",
    "rule_expressions",
]

Kind = Literal["panel", "annotation", "variable", "record", "alert"]

HERE: Final = Path(__file__).parent
RULES: Final = HERE / "rules"
BUILT_IN: Final = frozenset({"ALERTS", "scrape_duration_seconds", "scrape_samples_scraped", "up"})

_LABEL_VALUES: Final = re.compile(r"label_values\((?P<series>.*), (?P<label>\w+)\)")
_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABELS: Final = re.compile(r"\{[^{}]*\}")
_RANGE: Final = re.compile(r"\[[^\]]*\]|\boffset\s+\S+")
_LISTS: Final = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)")
_NAME: Final = re.compile(r"(?<![\w.:$])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])")
_WORDS: Final = frozenset(
    {"and", "or", "unless", "bool", "by", "without", "on", "ignoring", "sum", "min", "max", "inf", "nan"}
)


@dataclass(frozen=True, slots=True)
class Expression:
    """One query. ``place``: its dashboard or group; ``title``: its panel, annotation, variable or rule; ``legend``, or ref
    where there are several; ``instant``: asked of now and not of a time.
    """

    kind: Kind
    place: str
    title: str
    legend: str
    expr: str
    unit: str = ""
    instant: bool = False

    @property
    def name(self) -> str:
        """Unique, and short enough for a list."""
        return f"{self.place} / {self.title} / {self.legend}" if self.legend else f"{self.place} / {self.title}"


def dashboards() -> dict[str, dict[str, Any]]:
    """The committed dashboards by file name."""
    files = sorted((HERE / "grafana" / "dashboards").glob("*.json"))
    return {file.name: json.loads(file.read_text()) for file in files}


def panels_of(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Its panels, without the headings of rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions() -> list[Expression]:
    """Those of the dashboards, then those of the rules."""
    shown = [found for dashboard in dashboards().values() for found in _of_dashboard(dashboard)]
    return [*shown, *rule_expressions()]


def _of_dashboard(dashboard: Mapping[str, Any]) -> Iterator[Expression]:
    place = dashboard["title"].removeprefix("mdi-exit: ")
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield Expression("variable", place, f"${variable['name']}", "", variable["query"])
    for annotation in dashboard["annotations"]["list"]:
        yield Expression("annotation", place, annotation["name"], "", annotation["expr"])
    for panel in panels_of(dashboard):
        units = {"": panel["fieldConfig"]["defaults"].get("unit", ""), **_units(panel)}
        for target in panel["targets"]:
            legend = target.get("legendFormat") or _heading(panel, target["refId"])
            unit = units.get(legend, units[""])
            yield Expression("panel", place, panel["title"], legend, target["expr"], unit, bool(target.get("instant")))


def _units(panel: Mapping[str, Any]) -> dict[str, str]:
    """Units of single columns of a table, by heading."""
    return {
        override["matcher"]["options"]: setting["value"]
        for override in panel["fieldConfig"]["overrides"]
        for setting in override["properties"]
        if setting["id"] == "unit"
    }


def _heading(panel: Mapping[str, Any], ref: str) -> str:
    """What a query without a legend is called: the heading of its column, or its ref where there are several."""
    for transformation in panel.get("transformations", ()):
        names: dict[str, str] = transformation["options"].get("renameByName", {})
        if panel["type"] == "table" and (heading := names.get(f"Value #{ref}") or names.get("Value")):
            return heading
    return ref if len(panel["targets"]) > 1 else ""


def rule_expressions() -> list[Expression]:
    """The rules of every file."""
    found = []
    for file in sorted(RULES.glob("*.yml")):
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                kind: Kind = "record" if "record" in rule else "alert"
                found.append(Expression(kind, group["name"], rule[kind], "", rule["expr"]))
    return found


def recorded() -> set[str]:
    """Names that recording rules make."""
    return {rule.title for rule in rule_expressions() if rule.kind == "record"}


def label_values(query: str) -> tuple[str, str]:
    """The selector and the label of a variable's query. Raises ``ValueError`` for another kind of query."""
    match = _LABEL_VALUES.fullmatch(query)
    if match is None:
        raise ValueError(f"expected label_values(SELECTOR, LABEL), got {query}")
    return match["series"], match["label"]


def metrics_of(expr: str) -> set[str]:
    """Names of the metrics that a query reads, built-in ones and recorded ones too."""
    if expr.startswith("label_values("):
        expr, _ = label_values(expr)
    for pattern in (_STRING, _LABELS, _RANGE, _LISTS):
        expr = pattern.sub(" ", expr)
    return {name for name in _NAME.findall(expr) if name.lower() not in _WORDS}


def filled_in(expr: str, values: Mapping[str, str]) -> str:
    """The query with ``$name`` and ``${name}`` replaced. Raises ``KeyError`` for a variable without a value."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: _value(match, values), expr)


def _value(match: re.Match[str], values: Mapping[str, str]) -> str:
    name = match[1] or match[2]
    return match[0] if name.isdigit() else values[name]  # $1 is label_replace's own
