"""Dashboards and rules as files: as generated, as the SDK reads them, every panel explained, of known metrics only."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from dashboards import build
from dashboards.expressions import (
    BUILT_IN,
    RULES,
    dashboards,
    expressions,
    filled_in,
    metrics_of,
    panels_of,
    recorded,
    rule_expressions,
)
from dashboards.sdk import models, register_default_plugins
from mdi_exit.metrics import CATALOGUE, exposed

FILES = dashboards()
PANELS = [
    pytest.param(panel, id=f"{name.removesuffix('.json')}-{panel['id']}-{panel['title']}")
    for name, dashboard in FILES.items()
    for panel in panels_of(dashboard)
]
COLOURS = re.compile(r"#[0-9a-fA-F]{3,8}\b|rgba?\(")


def by_scraped_name() -> dict[str, str]:
    """The catalogue's metric by each name under which it is scraped."""
    return {scraped: name for name in CATALOGUE for scraped in exposed(name)}


def test_the_committed_files_are_those_that_the_code_makes() -> None:
    assert {name: (build.FOLDER / name).read_text() for name in FILES} == build.build()
    assert build.main(["--check"]) == 0


@pytest.mark.parametrize("name", FILES)
def test_the_sdk_reads_a_file_and_writes_the_same(name: str) -> None:
    register_default_plugins()
    read = models.Dashboard.from_json(FILES[name])
    assert json.loads(build.encoded(read)) == FILES[name]


def test_the_sdk_drops_a_key_that_it_does_not_know() -> None:
    """What the test above rests on."""
    register_default_plugins()
    changed = json.loads(json.dumps(FILES["mdi-exit-overview.json"]))
    panels_of(changed)[0]["options"]["colourMode"] = "value"
    assert json.loads(build.encoded(models.Dashboard.from_json(changed))) != changed


def test_there_are_three_dashboards_linked_to_each_other() -> None:
    assert set(FILES) == {"mdi-exit-overview.json", "mdi-exit-node.json", "mdi-exit-broker.json"}
    for dashboard in FILES.values():
        (link,) = dashboard["links"]
        assert link["type"] == "dashboards"
        assert set(link["tags"]) <= set(dashboard["tags"])
        assert link["includeVars"]
        assert link["keepTime"]
        assert "placement" not in link


@pytest.mark.parametrize("dashboard", FILES.values(), ids=FILES)
def test_variables_choose_source_and_deployment_and_events_are_annotated(dashboard: dict[str, Any]) -> None:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert list(variables)[:2] == ["datasource", "deployment"]
    assert variables["datasource"]["type"] == "datasource"
    assert all(variable["label"] and variable["description"] for variable in variables.values())
    for annotation in dashboard["annotations"]["list"]:
        assert annotation["target"]["expr"] == annotation["expr"]
        assert annotation["datasource"]["uid"] == annotation["target"]["datasource"]["uid"] == "${datasource}"
    shown = {annotation["name"] for annotation in dashboard["annotations"]["list"]}
    assert {"Joins", "Deaths", "Orders"} <= shown
    assert any("hreshold" in name for name in shown)
    assert any("plan" in name for name in shown)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_is_explained_and_has_a_source_and_a_unit(panel: dict[str, Any]) -> None:
    assert panel["title"].strip()
    assert panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        assert target["expr"].strip()
        assert bool(target.get("instant")) != bool(target.get("range"))
    refs = [target["refId"] for target in panel["targets"]]
    assert len(set(refs)) == len(refs)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_reads_one_deployment_and_rates_go_over_grafanas_interval(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        expr = target["expr"]
        assert set(re.findall(r"\[([^\]]*)\]", expr)) <= {"$__rate_interval"}
        for selector in re.findall(r"\b(?:mdi_exit|deployment:mdi_exit)[\w:]*(\{[^}]*\})?", expr):
            assert 'deployment="$deployment"' in selector, f"{selector} in {expr}"


@pytest.mark.parametrize("dashboard", FILES.values(), ids=FILES)
def test_panels_have_their_own_place_and_number(dashboard: dict[str, Any]) -> None:
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", FILES)
def test_a_dashboard_is_readable_on_light_and_on_dark(name: str) -> None:
    """Colours by name only: Grafana has a shade of each for both themes. Text is coloured, backgrounds are not."""
    text = (build.FOLDER / name).read_text()
    assert not COLOURS.search(text)
    assert "color-background" not in text
    assert '"background' not in text


def test_links_lead_to_dashboards_and_panels_that_exist() -> None:
    numbers = {dashboard["uid"]: {panel["id"] for panel in panels_of(dashboard)} for dashboard in FILES.values()}
    urls = [url for text in map(json.dumps, FILES.values()) for url in re.findall(r'"url": "(/d/[^"]*)"', text)]
    assert any("viewPanel" in url for url in urls)
    assert any("mdi-exit-node" in url for url in urls)
    for url in urls:
        match = re.match(r"/d/(?P<uid>[\w-]+)\?(?:viewPanel=(?P<panel>\d+)&)?", url)
        assert match, url
        assert match["panel"] is None or int(match["panel"]) in numbers[match["uid"]]
        assert match["uid"] in numbers
        assert "${__url_time_range}" in url


def test_every_metric_in_use_is_in_the_catalogue() -> None:
    known = {*by_scraped_name(), *recorded(), *BUILT_IN}
    unknown = {found.name: metrics_of(found.expr) - known for found in expressions()}
    assert {name: metrics for name, metrics in unknown.items() if metrics} == {}
    assert all(metrics_of(found.expr) for found in expressions())


def test_metrics_that_nothing_shows_are_listed(record_property: Any) -> None:
    shown = {by_scraped_name().get(metric) for found in expressions() for metric in metrics_of(found.expr)}
    unshown = sorted(set(CATALOGUE) - shown)
    record_property("unshown", unshown)
    print("in the catalogue and on no dashboard or rule:", *unshown, sep="\n  ")  # noqa: T201 - the list that was asked for


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        ('sum by (node) (rate(a_total{node=~"b|c"}[5m]))', {"a_total"}),
        ("a / on (x, y) group_left (z) b > 0.5 and c:d:e unless up", {"a", "b", "c:d:e", "up"}),
        ("a offset 5m - a * 1e3", {"a"}),
        ('label_replace(a, "x", "$1", "y", "(.*)")', {"a"}),
        ('label_values(a{b="$c"}, d)', {"a"}),
        ("histogram_quantile(0.5, sum by (le) (rate(h_bucket[$__rate_interval])))", {"h_bucket"}),
    ],
)
def test_the_metrics_of_a_query_are_found(expr: str, names: set[str]) -> None:
    assert metrics_of(expr) == names


def test_variables_are_filled_in() -> None:
    values = {"a": "x", "__rate_interval": "1m"}
    assert filled_in('m{l="$a",k="${a}"}[$__rate_interval] "$1"', values) == 'm{l="x",k="x"}[1m] "$1"'
    with pytest.raises(KeyError):
        filled_in("$unknown", values)


def test_every_alert_says_what_and_how_bad_and_is_tested_and_documented() -> None:
    rules = [
        rule
        for file in RULES.glob("*.yml")
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]
    tests = [test for file in (RULES / "tests").glob("*.yml") for test in yaml.safe_load(file.read_text())["tests"]]
    fired = {check["alertname"] for test in tests for check in test.get("alert_rule_test", []) if check["exp_alerts"]}
    checked = {
        sample["labels"].split("{")[0]
        for test in tests
        for check in test.get("promql_expr_test", [])
        for sample in check["exp_samples"]
    }
    documented = (RULES.parents[1] / "docs" / "dashboards.md").read_text()
    for rule in rules:
        if "record" in rule:
            assert rule["record"] in checked
            continue
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert {"summary", "description"} <= set(rule["annotations"])
        assert rule["alert"] in fired
        assert f"`{rule['alert']}`" in documented


@pytest.mark.parametrize(
    "command",
    [
        ("check", "config", "dashboards/prometheus.yml"),
        ("check", "rules", *(str(file) for file in sorted(RULES.glob("*.yml")))),
        ("test", "rules", *(str(file) for file in sorted((RULES / "tests").glob("*.yml")))),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_promtool_accepts_configuration_rules_and_their_tests(command: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool (Debian's package prometheus)")
    done = subprocess.run(
        [promtool, *command], cwd=RULES.parents[1], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_provisioning_names_the_data_source_and_the_folder_of_the_dashboards() -> None:
    folder = RULES.parent / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["isDefault"]
    configured = yaml.safe_load((RULES.parent / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == configured["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "mdi-exit.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"].startswith("/")
    assert rule_expressions()
