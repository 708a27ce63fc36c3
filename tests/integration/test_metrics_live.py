"""Metrics, health and readiness of real programs, as whoever watches them sees these."""

from __future__ import annotations

from typing import Any

import pytest
from live import Listener, System, until
from prometheus_client.parser import text_string_to_metric_families

from mdi_exit.benchmark.scrape import overhead_rows
from mdi_exit.board import Sensors
from mdi_exit.metrics import CATALOGUE
from mdi_exit.topics import Topics
from mdi_exit.wire import Telemetry, decode

pytestmark = pytest.mark.broker

# there only after something has happened, or on boards that have the sensor
_SOMETIMES = {
    "mdi_exit_replies", "mdi_exit_bad_messages", "mdi_exit_stranded_tasks", "mdi_exit_board_temperature_celsius",
    "mdi_exit_board_power_watts", "mdi_exit_node_temperature_celsius", "mdi_exit_node_power_watts",
    "mdi_exit_plan_expected_per_second", "mdi_exit_neighbour_penalty", "mdi_exit_neighbour_hold_seconds",
    "mdi_exit_journal_bytes", "mdi_exit_journal_backlog", "mdi_exit_journal_commit_seconds",
}  # fmt: skip


def _families(text: str) -> dict[str, list[tuple[str, dict[str, str], float]]]:
    return {
        family.name: [(sample.name, sample.labels, sample.value) for sample in family.samples]
        for family in text_string_to_metric_families(text)
    }


def _of(scope: str) -> set[str]:
    return {name for name, row in CATALOGUE.items() if row.scope == scope}


def test_agent_and_source_say_what_the_catalogue_has(system: System) -> None:
    agent = system.agent("a", "4-8", "--device", "raspberry-pi-4")
    assert agent.get("/healthz") == (200, "ok\n")
    agent.until_says("waiting for a source")
    assert agent.get("/readyz") == (503, "waiting for source\n")
    source = system.source("--layers", "0-3", "--rate", "100/s", "--duration", "60s", "--profile", "jetson-nano")
    source.until_results(50)
    assert agent.get("/readyz") == source.get("/readyz") == (200, "ready\n")
    assert agent.get("/elsewhere")[0] == 404

    ours = _families(agent.scrape())
    links = {name for name in CATALOGUE if name.startswith("mdi_exit_link_")} | {"mdi_exit_tasks_sent"}
    assert set(ours) >= _of("node") - _SOMETIMES - links, "an agent with the last layers sends nothing on"
    assert set(ours) <= _of("node")
    until(
        lambda: source.metric('mdi_exit_node_energy_joules_total{node="a"}') > 0,
        lambda: "energy of a",
    )
    theirs = _families(source.scrape())
    assert set(theirs) >= set(CATALOGUE) - _of("broker") - _SOMETIMES
    assert set(theirs) <= set(CATALOGUE)
    for name, found in {**ours, **theirs}.items():
        for _, labels, _ in found:
            assert set(labels) - {"le"} == {"deployment", *CATALOGUE[name].labels}
            assert labels["deployment"] == "test"

    assert agent.metric("mdi_exit_tasks_received_total") > 0
    assert agent.metric('mdi_exit_segment_run_seconds_count{entry="4"}') > 0
    assert agent.metric('mdi_exit_info{name="a",span="4-8",role="agent"}') == 1
    assert agent.metric("mdi_exit_energy_joules_total") > 0
    assert source.metric("mdi_exit_items_completed_total") >= 50
    assert source.metric('mdi_exit_neighbour_alive{node="a"}') == 1
    assert source.metric('mdi_exit_node_info{node="a",span="4-8",state="ready"}') == 1
    assert source.metric('mdi_exit_node_info{node="source",emulated="jetson-nano"}') == 1
    assert source.metric('mdi_exit_node_link_tasks_total{node="source",to="a"}') > 0
    assert source.metric('mdi_exit_item_seconds_count{part="compute"}') >= 50
    assert source.metric('mdi_exit_events_total{kind="joined"}') == 1

    agent.stop()
    until(lambda: source.get("/readyz")[0] == 503, lambda: f"the gap: {source.get('/readyz')}")
    assert "no live node holds layers 4, 5, 6, 7, 8" in source.get("/readyz")[1]
    assert source.metric('mdi_exit_node_info{node="a",state="gone"}') == 1
    assert source.metric('mdi_exit_node_up{node="a"}') == 0


def test_without_a_broker_a_program_lives_and_is_not_ready(mosquitto: Any, system: System) -> None:
    mosquitto.stop()
    agent = system.agent("a", "4-8")
    agent.until_says("trying again")
    assert agent.get("/healthz")[0] == 200
    assert agent.get("/readyz") == (503, "not connected to the broker\n")
    mosquitto.start()
    until(lambda: agent.get("/readyz") == (503, "waiting for source\n"), lambda: str(agent.get("/readyz")))


def test_metrics_can_be_off_and_a_taken_port_is_one_plain_line(system: System) -> None:
    agent = system.agent("a", "4-8", "--metrics", "off")
    source = system.source("--layers", "0-3", "--metrics", "off", "--limit", "30")
    summary = source.until_completed(30)
    assert "metrics" not in agent.log + source.log
    if not Sensors().measures_energy:
        assert (summary["energy_j"], summary["joules_per_item"]) == ({}, None), "no sensor, no device, no figure"
    first = system.agent("b", "4-8")
    first.until_says("metrics on")
    taken = first.log.split("metrics on http://")[1].split("/metrics")[0]
    second = system.agent("c", "4-8", "--metrics", taken)
    assert second.until_ends() == 3
    assert f"metrics on {taken}: expected a free port" in second.log.splitlines()[-1]


def test_the_telemetry_of_an_agent_is_small_and_its_board_is_in_the_summary(system: System) -> None:
    agent = system.agent("a", "4-8", "--device", "raspberry-pi-4")
    agent.until_says("connected")
    with Listener(system.url, Topics("test").telemetry("a")) as listener:
        source = system.source("--layers", "0-3", "--rate", "60/s", "--duration", "5s", "--device", "laptop")
        summary = source.until_completed()
        frames = [payload for _, payload, _ in listener.messages]
    reports = [report for report, _ in map(decode, frames) if isinstance(report, Telemetry)]
    assert len(reports) >= 8
    assert 0.3 < sum(report.board is not None for report in reports) / len(reports) < 0.7
    assert sum(len(frame) + len(Topics("test").telemetry("a")) + 5 for frame in frames) / len(frames) < 500
    assert summary["energy_j"].keys() == {"source", "a"}
    assert set(summary["energy_method"].values()) == {"sensor" if Sensors().measures_energy else "estimate"}
    assert all(joules > 1 for joules in summary["energy_j"].values()), summary
    if not Sensors().measures_energy:
        assert summary["joules_per_item"] == pytest.approx(sum(summary["energy_j"].values()) / summary["completed"])


async def test_the_benchmark_compares_being_scraped_with_no_metrics(standing_mosquitto: str) -> None:
    rows = await overhead_rows(standing_mosquitto, window=8, messages=100, rounds=1, scrape_period_s=0.05)
    assert [row["metrics"] for row in rows] == ["off", "on"]
    assert all(row["items_per_s"] > 0 and row["cpu_s_per_item"] > 0 for row in rows)
