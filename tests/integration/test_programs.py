"""The contracts of ``edge-agent`` and ``edge-source``: exit statuses, lines for people, signals, files."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from live import Listener, System, run_program, until

from mdi_exit import __version__
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.topics import Topics
from mdi_exit.wire import Status, decode, encode

pytestmark = pytest.mark.broker

TOPICS = Topics("test")
PROGRAMS = {"edge_agent.cli": "edge-agent", "source.cli": "edge-source"}
NEEDED = {"edge_agent.cli": ["--layers", "4-8"], "source.cli": ["--input", "shipped"]}


@pytest.mark.parametrize("module", PROGRAMS)
def test_help_version_and_check_end_with_0(module: str) -> None:
    for flags, expected in (
        (["--help"], "usage: " + PROGRAMS[module]),
        (["--version"], f"{PROGRAMS[module]} {__version__}"),
        ([*NEEDED[module], "--check"], "auto"),
    ):
        ended = run_program(module, *flags)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert expected in ended.stdout


@pytest.mark.parametrize(
    ("module", "flags", "named"),
    [
        ("edge_agent.cli", ["--layers", "automatic"], "--layers"),
        ("edge_agent.cli", ["--layers", "4-8", "--nam", "a"], "--name"),
        ("edge_agent.cli", ["--layers", "4-8", "--name", "a/b"], "--name"),
        ("edge_agent.cli", ["--layers", "4-8", "--broker", "http://127.0.0.1"], "--broker"),
        ("source.cli", [], "--input"),
        ("source.cli", ["--input", "nonsense"], "input"),
        ("source.cli", ["--input", "shipped", "--rate", "fast"], "--rate"),
        ("source.cli", ["--input", "shipped", "--layers", "4-12"], "--layers"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(module: str, flags: list[str], named: str) -> None:
    ended = run_program(module, *flags)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"{PROGRAMS[module]}: error: ")
    assert named in line
    assert "expected" in line


def test_a_corrupt_artifact_is_one_line_and_status_2(tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(Artifact.open(DEFAULT_MODEL).folder, copy)
    graph = copy / "layer-3.onnx"
    raw = bytearray(graph.read_bytes())
    raw[len(raw) // 2] ^= 1
    graph.write_bytes(raw)
    ended = run_program("source.cli", "--input", "shipped", "--model", copy)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert "layer-3.onnx" in line
    assert "SHA-256" in line


def test_a_name_in_use_is_refused_and_its_owner_serves_on(system: System) -> None:
    first = system.agent("a", "0-8")
    first.until_says("waiting for a source")
    second = system.agent("a", "0-8")
    assert second.until_ends() == 3
    (error,) = [line for line in second.log.splitlines() if line.startswith("edge-agent: error: ")]
    assert "name a" in error
    source = system.source("--limit", "20")
    source.until_completed(20)
    assert first.running


def test_who_starts_later_and_heard_nothing_of_the_other_is_told_so_by_it(mosquitto: Any, system: System) -> None:
    """A second agent of the name that missed the first one's signs of life; the first speaks up, which makes it yield."""
    agent = system.agent("a", "0-8")
    agent.until_says("waiting for a source")
    with Listener(mosquitto.url) as ear:
        until(lambda: bool(ear.on(TOPICS.agents("a"))), lambda: "the agent's status")
        first, _ = decode(ear.on(TOPICS.agents("a"))[-1])
        assert isinstance(first, Status)
        later = msgspec.structs.replace(first, incarnation=first.incarnation + 1)
        ear.publish(TOPICS.agents("a"), encode(later), retain=True)
        until(
            lambda: (
                [decode(raw)[0].incarnation for raw in ear.on(TOPICS.agents("a"))][-2:]
                == [later.incarnation, first.incarnation]
            ),
            lambda: "the first one's status again",
        )
    earlier = msgspec.structs.replace(first, incarnation=first.incarnation - 1)
    with Listener(mosquitto.url) as ear:
        ear.publish(TOPICS.agents("a"), encode(earlier), retain=True)
        assert agent.until_ends() == 3
    assert "name a: expected one that no live node has" in agent.log.splitlines()[-1]


def test_a_source_whose_name_is_in_use_is_refused(system: System) -> None:
    system.agent("a", "4-8")
    first = system.source("--layers", "0-3", "--rate", "100/s", "--duration", "60s")
    first.until_results(10)
    second = system.source("--layers", "0-3", "--limit", "10")
    assert second.until_ends() == 3
    assert "name source" in second.log.splitlines()[-1]
    done = len(first.rows)
    first.until_results(done + 50)
    assert first.stop() == 0
    assert first.summary["admitted"] == first.summary["completed"]


def _last_status(listener: Listener, name: str) -> Status | None:
    found = listener.on(TOPICS.agents(name))
    if not found:
        return None
    status, _ = decode(found[-1])
    assert isinstance(status, Status)
    return status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_says_goodbye_and_ends_with_0(system: System, number: int) -> None:
    agent = system.agent("a", "4-8")
    other = system.agent("b", "4-8")
    source = system.source("--layers", "0-3", "--limit", "400")
    source.until_results(100)
    agent.signal(number)
    assert agent.until_ends() == 0
    assert "draining" in agent.log
    assert "Traceback" not in agent.log
    with Listener(system.url) as listener:
        until(lambda: _last_status(listener, "a") is not None, lambda: "a retained status of a")
        status = _last_status(listener, "a")
        assert status is not None
        assert not status.online
        assert all(kept for topic, _, kept in listener.messages if topic.endswith("agents/a"))
    source.until_completed(400)
    assert other.stop() == 0


def test_a_source_that_is_told_to_stop_accounts_for_every_item(system: System) -> None:
    system.agent("a", "4-8")
    source = system.source("--layers", "0-3", "--duration", "60s")
    source.until_results(50)
    assert source.stop() == 0
    summary = source.summary
    assert summary["admitted"] == summary["completed"] == len(source.rows) >= 50
    assert summary["errors"] == summary["pending"] == 0


def test_an_agent_waits_for_broker_and_source_and_says_so(mosquitto: Any, system: System) -> None:
    mosquitto.stop()
    agent = system.agent("a", "0-8")
    agent.until_says("trying again")
    assert f"broker {system.url}" in agent.log
    mosquitto.start()
    agent.until_says("waiting for a source and its model")
    source = system.source("--limit", "20")
    source.until_completed(20)
    agent.until_says("ready: layers 0-8")
    assert agent.log.count("trying again") == 1


def test_a_source_tells_the_gap_once_and_runs_when_the_agent_comes(system: System) -> None:
    source = system.source("--layers", "0-3", "--limit", "50")
    source.until_says("no node holds layers 4-8")
    system.agent("a", "4-8")
    source.until_completed(50)
    assert source.log.count("no node holds") == 1
    assert source.log.count("all layers are held") == 1


def test_items_of_a_killed_agent_are_done_by_another(system: System) -> None:
    doomed, other = system.agent("a", "4-8"), system.agent("b", "4-8")
    for agent in (doomed, other):
        agent.until_says("connected")
    source = system.source("--layers", "0-3", "--limit", "500")
    until(
        lambda: any("a" in row["path"] for row in source.rows) and len(source.rows) >= 50,
        lambda: f"work at a:\n{source.log}",
    )
    doomed.kill()
    source.until_completed(500)
    assert "a left" in source.log


def test_a_gap_left_by_a_killed_agent_is_told_and_closed_by_its_restart(system: System) -> None:
    doomed = system.agent("a", "4-8")
    source = system.source("--layers", "0-3", "--limit", "400")
    source.until_results(50)
    doomed.kill()
    source.until_says("no node holds layers 4-8")
    assert source.running
    system.agent("a", "4-8")
    source.until_completed(400)


def test_a_run_survives_a_restart_of_the_broker(mosquitto: Any, system: System) -> None:
    agent = system.agent("a", "4-8")
    source = system.source("--layers", "0-3", "--limit", "400")
    source.until_results(50)
    mosquitto.restart()
    source.until_completed(400)
    assert "trying again" in source.log
    assert agent.running


def test_results_and_summary_have_the_fields_of_the_contract(system: System) -> None:
    system.agent("a", "4-8")
    source = system.source("--layers", "0-3", "--limit", "200")
    summary = source.until_completed(200)
    fields = {"id", "label", "label_name", "confidence", "exit", "path", "latency_s", "truth"}
    manifest = Artifact.open(DEFAULT_MODEL).manifest
    for row in source.rows:
        assert set(row) == fields
        assert manifest.labels[row["label"]] == row["label_name"]
        assert 0 <= row["confidence"] <= 1
        assert 0 <= row["exit"] < len(manifest.exits)
        assert row["path"]
        assert set(row["path"]) <= {"source", "a"}
        assert row["latency_s"] > 0
    right = sum(row["label"] == row["truth"] for row in source.rows)
    assert summary["accuracy"] == pytest.approx(right / 200)
    exits = [row["exit"] for row in source.rows]
    assert summary["exits"] == {str(number): exits.count(number) for number in sorted(set(exits))}
    assert summary["bytes_sent"].keys() == {"source", "a"}
    assert summary["emulated"] is None
    assert "admitted" in source.stdout


def test_results_are_not_overwritten_unasked(tmp_path: Path) -> None:
    kept = tmp_path / "results.jsonl"
    kept.write_text("mine\n")
    ended = run_program("source.cli", "--input", "shipped", "--results", kept)
    assert ended.returncode == 2
    assert "--overwrite" in ended.stderr
    assert kept.read_text() == "mine\n"


def test_an_agent_outside_the_model_says_so_and_waits(system: System) -> None:
    outside = system.agent("outside", "7-12")
    system.agent("a", "4-8")
    source = system.source("--layers", "0-3", "--limit", "50")
    outside.until_says("layers 7-12: expected layers in 0-8")
    source.until_completed(50)
    assert all("outside" not in row["path"] for row in source.rows)
    assert outside.stop() == 0


def test_an_agent_outside_its_local_model_is_refused(system: System) -> None:
    agent = system.agent("a", "7-12", "--model", DEFAULT_MODEL)
    assert agent.until_ends() == 2
    assert "layers in 0-8" in agent.log.splitlines()[-1]
    assert "Traceback" not in agent.log


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_an_agent_runs_a_local_artifact(system: System, engine: str) -> None:
    if engine == "torch":
        pytest.importorskip("torch")
    folder = str(Artifact.open(DEFAULT_MODEL).folder)
    agent = system.agent("a", "4-8", "--model", folder, "--engine", engine)
    source = system.source("--layers", "0-3", "--limit", "50", "--exit-threshold", "1")
    source.until_completed(50)
    assert all(row["path"][-1] == "a" for row in source.rows)
    agent.until_says(f"ready: layers 4-8 on {engine}")
    assert agent.stop() == 0


def test_a_demo_ends_as_its_source_does(tmp_path: Path) -> None:
    flags = ["demo", "--input", f"folder:{tmp_path / 'none'}", "--profile", "none", "--out", tmp_path / "out"]
    ended = run_program("mdi_exit.cli", *flags)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("mdi-exit demo: error: source ended with status 2: edge-source: error: ")
    assert "Traceback" not in ended.stdout
