"""A real Prometheus scrapes a live deployment: every query of dashboards and rules parses, and has data during the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from live import Listener, Program, System, until

from broker.embedded import dies_with_parent, free_port
from dashboards.expressions import RULES, metrics_of, rule_expressions
from dashboards.report import Answer, Prometheus, ask, either, markdown
from mdi_exit.topics import Topics
from mdi_exit.wire import Order, encode

SCRAPE_S = 1.0
SCRAPES = 6

# Queries that may have no data in this run, and why. Alerts are apart: see below.
_NO_SENSOR = "this machine has no such sensor"
_FIXED_LAYERS = "all agents have fixed layers; tests/unit/test_metrics.py reads it of a placement"
MAY_BE_EMPTY = {
    "overview / Placement's promise / promised": _FIXED_LAYERS,
    "node / Temperature": _NO_SENSOR,
    "node / Temperature / hottest": _NO_SENSOR,
    "node / Power / sensor": _NO_SENSOR,
    **{f"{place} / Re-plans and other events": "nothing of the kind" for place in ("overview", "node", "broker")},
}
ABOUT = """\
Made on {date} under Prometheus {version}, which scrapes every second, with
`DASHBOARD_REPORT=FILE python -m pytest tests/integration/test_prometheus.py`. The run: Mosquitto; a source over
the shipped images, at 40 items/s and then at 250; agent `a` with layers 0-3, emulated as a Jetson Nano; agent `b` with
layers 4-8, emulated as a laptop, killed at the end. Values are of the calm phase where it had any, otherwise of the end,
when `b` was gone."""
UNKNOWN_HERE = {
    "mdi_exit_node_temperature_celsius": _NO_SENSOR,
    "mdi_exit_plan_expected_per_second": _FIXED_LAYERS,
}


@dataclass
class Server:
    """A Prometheus and its API."""

    process: subprocess.Popen[bytes]
    api: Prometheus
    log: Path

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            self.api.get("status/buildinfo")
        except OSError:
            return False
        return True


def configuration(sources: list[str], agents: list[str]) -> str:
    """The repository's, with our targets and a second between two scrapes."""
    given: dict[str, Any] = yaml.safe_load((RULES.parent / "prometheus.yml").read_text())
    given["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), f"{SCRAPE_S:g}s")
    given["rule_files"] = [str(RULES.parent / pattern) for pattern in given["rule_files"]]
    jobs = {job["job_name"]: job for job in given["scrape_configs"]}
    del jobs["mdi-exit-agents"]["file_sd_configs"]
    jobs["mdi-exit-source"]["static_configs"] = [{"targets": sources}]
    jobs["mdi-exit-agents"]["static_configs"] = [{"targets": agents}]
    given["scrape_configs"] = [jobs["mdi-exit-source"], jobs["mdi-exit-agents"]]
    return yaml.safe_dump(given)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    """Starts a Prometheus for sources and agents."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("needs prometheus (Debian's package of that name)")
    servers: list[Server] = []

    def start(sources: list[Program], agents: list[Program]) -> Server:
        file, log, port = tmp_path / "prometheus.yml", tmp_path / "prometheus.log", free_port()
        file.write_text(
            configuration([target(program) for program in sources], [target(program) for program in agents])
        )
        flags = [
            f"--config.file={file}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with log.open("wb") as output:
            process = subprocess.Popen([binary, *flags], stdout=output, stderr=output, preexec_fn=dies_with_parent())
        servers.append(Server(process, Prometheus(f"http://127.0.0.1:{port}"), log))
        until(servers[-1].answers, log.read_text)
        return servers[-1]

    yield start
    for server in servers:
        server.process.terminate()
        server.process.wait(20)


def target(program: Program) -> str:
    """Where a program serves its metrics: host and port."""
    program.until_says("metrics on http")
    return program.log.split("metrics on http://")[1].split("/")[0]


@pytest.mark.broker
@pytest.mark.slow
def test_every_query_parses_and_has_data_during_a_run(talkative: System, started: Any, tmp_path: Path) -> None:
    began = time.time()
    pace = ("--schedule", "calm=40/s@0s,storm=250/s@11s", "--adapt", "threshold", "--min-threshold", "0.8")
    source = talkative.source(*pace, "--duration", "120s")
    a = talkative.agent("a", "0-3", "--profile", "jetson-nano")
    b = talkative.agent("b", "4-8", "--profile", "laptop")
    server = started([source], [a, b])
    source.until_results(1)
    with Listener(talkative.url, "mdi/test/none") as stranger:
        stranger.publish("mdi/test/links/a/stranger", b"not a message of ours")
    until(lambda: scrapes_with_results(server) >= SCRAPES, lambda: f"{SCRAPES} scrapes\n{source.log}")
    questions = {"since_s": began, "interval_s": SCRAPE_S, "scrape_s": SCRAPE_S}
    running = ask(server.api, "test", "a", **questions)
    until(lambda: has_happened(server, "floor"), lambda: f"the threshold comes down to its floor\n{source.log}")

    with Listener(talkative.url, "mdi/test/none") as stranger:
        stranger.publish(Topics("test").commands("operator"), encode(Order("operator", 1, "pause")))

    b.kill()
    until(lambda: firing(server) >= {"MdiExitAgentGone"}, lambda: f"an alert, got {firing(server)}\n{source.log}")
    until(lambda: has_happened(server, "gap"), lambda: f"a gap\n{source.log}")
    answers = either(running, ask(server.api, "test", "a", **questions))

    reasons = {**MAY_BE_EMPTY, **{answer.expression.name: "not firing" for answer in answers if is_alert(answer)}}
    about = ABOUT.format(version=server.api.get("status/buildinfo")["version"], date=time.strftime("%Y-%m-%d"))
    report = markdown(answers, "Every query of the dashboards and rules, asked during a run", about, reasons)
    write(report, tmp_path)
    assert {answer.query: answer.error for answer in answers if answer.error} == {}
    empty = [answer for answer in answers if not answer.has_data]
    assert [answer.expression.name for answer in empty if answer.expression.name not in reasons] == []
    assert quiet_metrics(server, began) - UNKNOWN_HERE.keys() == set()
    assert rules_that_fail(server) == {}


def is_alert(answer: Answer) -> bool:
    return answer.expression.kind == "alert"


def scrapes_with_results(server: Server) -> float:
    """Scrapes of the source, once results have come and both links have carried tasks."""
    links = "count(mdi_exit_node_link_tasks_total > 0) >= 2"
    results = "min(mdi_exit_items_completed_total) > 50"
    found = server.api.now(f"min(count_over_time(mdi_exit_items_completed_total[1h])) and {results} and {links}")
    return found[0][1] if found else 0.0


def firing(server: Server) -> set[str]:
    alerts: list[dict[str, Any]] = server.api.get("alerts")["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


def has_happened(server: Server, kind: str) -> bool:
    return bool(server.api.now(f'mdi_exit_events_total{{kind="{kind}"}} > 0'))


def quiet_metrics(server: Server, since_s: float) -> set[str]:
    """Metrics that alerts read and that had no sample at all: such an alert could never fire."""
    used = {metric for rule in rule_expressions() for metric in metrics_of(rule.expr)}
    return {metric for metric in used if not server.api.course(metric, since_s, time.time(), SCRAPE_S)}


def rules_that_fail(server: Server) -> dict[str, str]:
    """Rules whose evaluation has an error, as the server says."""
    groups: list[dict[str, Any]] = server.api.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {rule.title for rule in rule_expressions()}
    return {rule["name"]: rule.get("lastError", rule["health"]) for rule in rules if rule["health"] != "ok"}


def write(report: str, folder: Path) -> None:
    """Beside the test's other files, and where DASHBOARD_REPORT says."""
    (folder / "report.md").write_text(report)
    if wanted := os.environ.get("DASHBOARD_REPORT"):
        Path(wanted).write_text(report)
