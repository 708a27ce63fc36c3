"""The catalogue, the samples read from state, their text, and the page about them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mdi_exit.benchmark.scrape import big_source
from mdi_exit.benchmark.synthetic import write_identity_artifact
from mdi_exit.driver import NodeDriver, Sample
from mdi_exit.engine import make_engine
from mdi_exit.events import RequestReceived, StatusReceived, TelemetryReceived, Tick
from mdi_exit.executor import Executor
from mdi_exit.histogram import Histogram
from mdi_exit.metrics import CATALOGUE, exposed, samples
from mdi_exit.metrics.doc import document
from mdi_exit.metrics.exposition import exposition
from mdi_exit.metrics.samples import fleet_samples, node_samples, readiness, source_samples
from mdi_exit.model.artifact import Artifact
from mdi_exit.source_state import SourceState
from mdi_exit.topics import Topics
from mdi_exit.transport.memory import MemoryBroker, MemoryTransport
from mdi_exit.wire import ResultRow, Status, Telemetry
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_identity_artifact(tmp_path_factory.mktemp("identity"), (1, 4, 4), 9)


def _driver(state: Any) -> NodeDriver:
    worker = getattr(state, "worker", state)
    return NodeDriver(state, worker, Topics("test"), Executor(make_engine("noop")))


def _transport(driver: NodeDriver) -> MemoryTransport:
    return MemoryTransport(MemoryBroker(), client_id="test", handler=driver, will=driver.will())


def _values(found: Iterator[Sample], name: str) -> dict[tuple[str, ...], Any]:
    return {labels: value for sample, labels, value in found if sample == name}


# --- the catalogue


def test_the_catalogue_has_what_dashboards_are_made_of() -> None:
    """Names, kinds and labels that others rely on."""
    of_links = {f"mdi_exit_{who}link_{what}": labels for who, labels in (("", {"to"}), ("node_", {"node", "to"}))
                for what in ("tasks_total", "bytes_total", "delay_seconds", "credits")}  # fmt: skip
    node = {"node"}
    wanted: dict[str, set[str]] = of_links | {
        "mdi_exit_segment_run_seconds_bucket": {"entry"},
        "mdi_exit_info": {"name", "role", "span", "engine", "version", "emulated"},
        "mdi_exit_process_cpu_ratio": set(), "mdi_exit_process_memory_bytes": set(), "mdi_exit_process_tasks": set(),
        "mdi_exit_board_temperature_celsius": set(), "mdi_exit_board_power_watts": set(),
        "mdi_exit_energy_joules_total": {"method"}, "mdi_exit_broker_reconnects_total": set(),
        **{f"mdi_exit_items_{what}_total": set()
           for what in ("admitted", "completed", "failed", "refused", "retried", "judged", "right")},
        "mdi_exit_items_pending": set(), "mdi_exit_results_duplicate_total": set(),
        "mdi_exit_item_exits_total": {"exit"}, "mdi_exit_item_seconds_bucket": {"part"},
        "mdi_exit_item_confidence_bucket": {"exit"}, "mdi_exit_offered_per_second": set(), "mdi_exit_threshold": set(),
        "mdi_exit_plan_epoch": set(), "mdi_exit_plan_moves_total": {"reason"}, "mdi_exit_plan_expected_per_second": set(),
        "mdi_exit_threshold_floor": set(), "mdi_exit_paused": set(), "mdi_exit_events_total": {"kind"},
        "mdi_exit_node_up": node, "mdi_exit_node_info": node | {"role", "span", "engine", "version", "emulated", "state"},
        "mdi_exit_node_queue_tasks": node | {"queue"}, "mdi_exit_node_backlog_seconds": node,
        "mdi_exit_node_segment_seconds": node | {"entry"}, "mdi_exit_node_tasks_executed_total": node,
        "mdi_exit_node_exits_total": node | {"exit"}, "mdi_exit_node_free_slots": node | {"entry"},
        "mdi_exit_node_cpu_ratio": node, "mdi_exit_node_memory_bytes": node, "mdi_exit_node_temperature_celsius": node,
        "mdi_exit_node_power_watts": node, "mdi_exit_node_energy_joules_total": node | {"method"},
        "mdi_exit_node_sent_bytes_total": node, "mdi_exit_node_report_age_seconds": node,
    }  # fmt: skip
    offered = {shown: set(row.labels) for name, row in CATALOGUE.items() for shown in exposed(name)}
    assert {name: offered.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_row_keeps_to_the_rules(name: str) -> None:
    row = CATALOGUE[name]
    assert name.startswith("mdi_exit_")
    assert not name.endswith(("_total", "_count", "_sum", "_bucket"))
    assert row.help.endswith(".")
    assert bool(row.buckets) == (row.kind == "histogram")
    assert "deployment" not in row.labels
    assert "_ms" not in name
    if row.unit in ("seconds", "bytes", "watts", "joules") and row.scope != "broker":  # words in Mosquitto's order
        assert name.endswith(f"_{row.unit}")


def test_the_page_is_made_of_the_catalogue() -> None:
    written = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert written == document(), "python -m mdi_exit.metrics.doc > docs/metrics.md"
    assert all(f"`{name}" in written for name in CATALOGUE)


# --- the text


def _read(text: str) -> dict[str, tuple[str, str, set[tuple[str, tuple[tuple[str, str], ...], float]]]]:
    return {
        family.name: (
            family.type,
            family.documentation,
            {(sample.name, tuple(sorted(sample.labels.items())), sample.value) for sample in family.samples},
        )
        for family in text_string_to_metric_families(text)
    }


async def test_the_text_has_every_sample_under_its_exposed_name(artifact: Artifact) -> None:
    state = big_source(artifact, 5, asyncio.get_running_loop().time())
    driver = _driver(state)
    now = asyncio.get_running_loop().time()
    found = [*node_samples(driver, _transport(driver), now), *source_samples(state, now), *fleet_samples(driver, now)]
    found.append(("mdi_exit_node_up", ('quo"te \\ and\nline',), float("inf")))
    driver.close()
    text = exposition(found, 'de"pl').decode()
    read = _read(text)
    assert len(read) > 50
    shown = {sample for _, _, of_family in read.values() for sample in of_family}
    for name, labels, value in found:
        row = CATALOGUE[name]
        wanted = tuple(sorted({"deployment": 'de"pl', **dict(zip(row.labels, labels, strict=True))}.items()))
        if isinstance(value, Histogram):
            assert (f"{name}_sum", wanted, value.total) in shown
            last = tuple(sorted((*wanted, ("le", "+Inf"))))
            assert (f"{name}_bucket", last, float(sum(value.counts))) in shown
        else:
            assert (exposed(name)[0], wanted, float(value)) in shown
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert len(comments) == 2 * len(read), "each metric's samples stand together"


def test_a_metric_that_the_catalogue_does_not_have_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        exposition([("mdi_exit_unheard_of", (), 1.0)], "test")
    with pytest.raises(ValueError, match="expected values of"):
        exposition([("mdi_exit_node_up", (), 1.0)], "test")
    with pytest.raises(TypeError, match="expected a histogram"):
        exposition([("mdi_exit_item_seconds", ("total",), 1.0)], "test")


@pytest.mark.parametrize(("links", "shown"), [(8, 800), (99, 100 * (samples.MAX_LINKS // 101))])
async def test_a_scrape_of_a_hundred_agents_is_less_than_a_megabyte(artifact: Artifact, links: int, shown: int) -> None:
    now = asyncio.get_running_loop().time()
    state = big_source(artifact, 100, now, links=links)
    driver = _driver(state)
    found = [*node_samples(driver, _transport(driver), now), *source_samples(state, now), *fleet_samples(driver, now)]
    driver.close()
    text = exposition(found, "default")
    assert len(_values(iter(found), "mdi_exit_node_up")) == 101
    assert len(_values(iter(found), "mdi_exit_node_link_tasks")) == shown
    assert 300_000 < len(text) < 1_000_000


# --- the samples


async def test_a_node_that_is_gone_for_a_minute_disappears(artifact: Artifact) -> None:
    now = asyncio.get_running_loop().time()
    state = big_source(artifact, 3, now)
    driver = _driver(state)
    state.handle(now + 10, Tick())
    state.handle(now + 10, TelemetryReceived(Telemetry(1, 1, "agent-001", 3, 0, 0.5)))

    def seen(at: float, name: str) -> dict[tuple[str, ...], Any]:
        return _values(fleet_samples(driver, now + at), name)

    assert seen(11, "mdi_exit_node_up") == {("source",): 1, ("agent-000",): 0, ("agent-001",): 1, ("agent-002",): 0}
    assert {labels[-1] for labels in seen(11, "mdi_exit_node_info")} == {"gone", "ready"}
    assert seen(12, "mdi_exit_node_report_age_seconds")["agent-001",] == pytest.approx(2.0)
    assert seen(59, "mdi_exit_node_up").keys() == seen(11, "mdi_exit_node_up").keys()
    assert seen(61, "mdi_exit_node_up").keys() == {("source",), ("agent-001",)}
    assert not [labels for _, labels, _ in fleet_samples(driver, now + 61) if labels[:1] == ("agent-000",)]
    alive = _values(node_samples(driver, _transport(driver), now + 61), "mdi_exit_neighbour_alive")
    assert alive == {("agent-001",): 1}
    driver.close()


async def test_nodes_links_and_reasons_have_a_limit(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    now = asyncio.get_running_loop().time()
    state = big_source(artifact, 20, now)
    state.handle(now + 10, Tick())
    for number in range(10, 20):
        state.handle(now + 10, TelemetryReceived(Telemetry(1, 1, f"agent-{number:03}", 3, 0, 0.5)))
    driver = _driver(state)
    monkeypatch.setattr(samples, "MAX_NODES", 12)
    monkeypatch.setattr(samples, "MAX_LINKS", 26)
    monkeypatch.setattr(samples, "MAX_REASONS", 2)
    up = _values(fleet_samples(driver, now + 11), "mdi_exit_node_up")
    assert len(up) == 13
    assert sum(up.values()) == 11, "those alive come first"
    links = _values(fleet_samples(driver, now + 11), "mdi_exit_node_link_tasks")
    peer = state.worker.members.get("agent-010")
    assert peer is not None
    assert peer.telemetry is not None
    busiest = sorted((load.tasks for load in peer.telemetry.links.values()), reverse=True)[:2]
    assert sorted((count for (node, _), count in links.items() if node == "agent-010"), reverse=True) == busiest
    assert len(links) == 2 * 12
    driver.bad.update({"crc": 5, "topic": 1, "shape": 2, "dtype": 3})
    reasons = _values(node_samples(driver, _transport(driver), now), "mdi_exit_bad_messages")
    assert reasons == {("crc",): 5, ("topic",): 1, ("other",): 5}
    driver.close()


async def test_a_task_that_was_not_taken_does_not_count_back(artifact: Artifact) -> None:
    state = big_source(artifact, 2, asyncio.get_running_loop().time())
    driver = _driver(state)
    state.worker.totals.sent["agent-001"] = 4
    state.worker.totals.unsent["agent-001"] = 1
    now = asyncio.get_running_loop().time()
    assert _values(node_samples(driver, _transport(driver), now), "mdi_exit_tasks_sent") == {("agent-001",): 5}
    driver.close()


async def test_readiness_says_why_not(artifact: Artifact) -> None:
    now = asyncio.get_running_loop().time()
    state = big_source(artifact, 0, now)
    driver = _driver(state)
    async with _transport(driver) as transport:
        async with asyncio.timeout(10):
            await driver.connected_once.wait()
        assert readiness(driver, transport) == "no live node holds layers 4, 5, 6, 7, 8"
        status = Status("a", 1, True, state="ready", span=(4, 9), entries=(4, 5, 6, 7, 8), window=16)
        state.handle(now, StatusReceived(status))
        assert readiness(driver, transport) == ""
        state.handle(now, StatusReceived(msgspec.structs.replace(status, online=False)))
        assert "layers 4" in readiness(driver, transport)
    assert readiness(driver, transport) == "not connected to the broker"
    driver.close()


async def test_an_agent_waits_for_its_source() -> None:
    worker = WorkerState(WorkerConfig("a", 1, None), Random(0))
    driver = _driver(worker)
    async with _transport(driver) as transport:
        async with asyncio.timeout(10):
            await driver.connected_once.wait()
        assert readiness(driver, transport) == "waiting for source"
    found = list(node_samples(driver, transport, 0.0))
    assert not _values(iter(found), "mdi_exit_threshold"), "nobody has said one"
    driver.close()


def test_only_what_was_completed_is_in_the_histograms(artifact: Artifact) -> None:
    state: SourceState = big_source(artifact, 0, 0.0)
    (total,) = (
        v for n, labels, v in source_samples(state, 0.0) if n == "mdi_exit_item_seconds" and labels == ("total",)
    )
    assert isinstance(total, Histogram)
    assert total.count == 1000
    total.add(1.0)
    assert state.items.seconds["total"].count == 1000, "what is read is a copy"


def test_requests_and_their_replies_are_counted(artifact: Artifact) -> None:
    state = big_source(artifact, 0, 0.0)
    desk = state.desk
    for number in range(3):
        desk.receive(1.0, RequestReceived("camera", str(number), object(), 10, None))
    request = desk.take("camera")
    desk.result(1.7, request, ResultRow(1, 0, ("source",), 2, 5, 0.9))
    desk.reply(2.0, desk.take("camera"), error="refused", reason="overloaded")
    found = [sample for sample in source_samples(state, 2.0) if "request" in sample[0] or "repl" in sample[0]]
    assert _values(iter(found), "mdi_exit_requests_received") == {(): 3}
    assert _values(iter(found), "mdi_exit_requests_waiting") == {(): 1}
    assert _values(iter(found), "mdi_exit_replies") == {("label",): 1, ("refused",): 1}
    seconds = _values(iter(found), "mdi_exit_reply_seconds")[()]
    assert (seconds.count, seconds.total) == (1, pytest.approx(0.7))
