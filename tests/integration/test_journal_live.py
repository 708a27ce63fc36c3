"""A source with a journal is killed again and again: each item and each request has its result once."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from live import Listener, Source, System, until

from mdi_exit.client import Client
from mdi_exit.data import shipped

pytestmark = pytest.mark.broker


def begin(system: System, folder: Path, *flags: str) -> Source:
    """A source whose files are those of its earlier lives."""
    files = [f"--results={folder}/results.jsonl", f"--summary={folder}/summary.json", f"--journal={folder}/journal"]
    command = ["--name", "source", "--deployment", system.deployment, "--broker", system.url, *files, *flags]
    program = system.program("source.cli", "source", *command)
    return Source(program.name, folder, program.process)


def said(source: Source) -> str:
    """The log of the life that ended last is that of the newest folder."""
    newest = max(source.folder.parent.glob("source-*"), key=lambda path: path.stat().st_mtime)
    return (newest / "stderr").read_text(errors="replace")


@pytest.fixture
def folder(system: System) -> Path:
    path = system.folder / "kept"
    path.mkdir()
    return path


def ids(source: Source) -> list[str]:
    return [row["id"] for row in source.rows]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_each_item_once_however_often_the_source_is_killed(system: System, folder: Path, suffix: str) -> None:
    system.agent("a", "4-8")
    flags = ["--input", "shipped", "--layers", "0-3", "--limit", "1500", "--rate", "400/s"]
    if suffix == "csv":
        flags.append(f"--results={folder}/results.csv")
    results, rng = folder / f"results.{suffix}", random.Random(5)
    lines = 0
    for _ in range(4):
        source = begin(system, folder, *flags)
        wanted = lines + rng.randrange(20, 250)
        until_lines(results, wanted, source)
        source.kill()
        lines = count(results)
    source = begin(system, folder, *flags)
    assert source.until_ends() == 0, said(source)
    rows = results.read_text().splitlines()
    names = [json.loads(row)["id"] for row in rows] if suffix == "jsonl" else [row.split(",")[0] for row in rows[1:]]
    assert len(names) == 1500
    assert Counter(names).most_common(1)[0][1] == 1
    summary = source.summary
    assert (summary["admitted"], summary["completed"], summary["errors"], summary["pending"]) == (1500, 1500, 0, 0)
    assert sum(summary["exits"].values()) == 1500
    assert summary["accuracy"] > 0.85
    assert summary["elapsed_s"] > 2.0

    again = begin(system, folder, *flags)
    assert again.until_ends() == 0
    assert "nothing is left to do" in said(again)
    assert again.summary == summary | {"bytes_sent": {}, "threshold": None} | kept_out(again.summary, summary)


def kept_out(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What the last life alone knows, or rounds."""
    assert now["latency_s"]["p50"] == pytest.approx(before["latency_s"]["p50"], rel=1e-4)
    return {
        name: now[name]
        for name in ("latency_s", "energy_j", "energy_method", "joules_per_item", "elapsed_s", "rate_per_s")
    }


def until_lines(path: Path, wanted: int, source: Source) -> None:
    until(lambda: count(path) >= wanted, lambda: said(source))


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_stopped_source_leaves_the_rest_to_the_next_start(system: System, folder: Path) -> None:
    agent = system.agent("a", "4-8")
    flags = ["--input", "shipped", "--layers", "0-3", "--limit", "1200", "--exit-threshold", "1"]
    source = begin(system, folder, *flags)
    until(lambda: count(folder / "results.jsonl") > 20, lambda: said(source))
    agent.signal(signal.SIGSTOP)
    time.sleep(0.3)
    assert source.stop() == 0, said(source)
    summary = source.summary
    assert summary["pending"] > 0
    assert summary["errors"] == 0
    assert summary["admitted"] == summary["completed"] + summary["pending"]
    agent.signal(signal.SIGCONT)
    source = begin(system, folder, *flags)
    assert source.until_ends() == 0, said(source)
    assert len(ids(source)) == len(set(ids(source))) == 1200
    assert source.summary["admitted"] == source.summary["completed"] == 1200


def test_a_second_source_and_another_model_are_refused(system: System, folder: Path) -> None:
    flags = ["--input", "shipped", "--layers", "0-8", "--rate", "20/s"]
    source = begin(system, folder, *flags)
    until(lambda: count(folder / "results.jsonl") > 2, lambda: said(source))
    second = begin(system, folder, *flags)
    assert second.until_ends() == 3
    assert "no other source uses" in said(second)
    source.kill()
    other = begin(system, folder, "--input", "shipped:10", "--layers", "0-8")
    assert other.until_ends() == 2
    assert said(other).count("\n") == 1
    assert "expected the input that it was begun with, shipped, got shipped:10" in said(other)


@pytest.mark.slow
async def test_requests_over_a_killed_source_are_answered_once(system: System, folder: Path) -> None:
    agent = system.agent("a", "4-8")
    flags = ["--input", "requests", "--layers", "0-3", "--exit-threshold", "1", "--max-requests", "100"]
    images = shipped().images_NHWC
    source = begin(system, folder, *flags)
    async with Client(system.url, deployment=system.deployment, name="asker") as client:
        asked = [asyncio.create_task(client.infer(images[number])) for number in range(60)]
        for _ in range(2):
            done = sum(task.done() for task in asked)
            while sum(task.done() for task in asked) < min(done + 10, 50):
                await asyncio.sleep(0.01)
            source.kill()
            source = begin(system, folder, *flags)
        answers = await asyncio.wait_for(asyncio.gather(*asked), 60)
    assert len({answer.id for answer in answers}) == 60
    await asyncio.to_thread(until, lambda: count(folder / "results.jsonl") >= 60, lambda: said(source))
    # The life before may have answered all: the last one is only to be stopped once it listens to signals.
    await asyncio.to_thread(until, lambda: "metrics on" in said(source), lambda: said(source))
    assert source.stop() == 0
    assert Counter(ids(source)) == Counter(f"asker/{answer.id}" for answer in answers)
    assert {row["id"]: row["label"] for row in source.rows} == {f"asker/{one.id}": one.label for one in answers}
    agent.stop()


@pytest.mark.slow
def test_who_asks_once_in_plain_is_answered_by_the_next_life(system: System, folder: Path) -> None:
    """Nobody sends again: what was journalled is enough."""
    flags = ["--input", "requests", "--layers", "0-3", "--exit-threshold", "1"]
    source = begin(system, folder, *flags)
    with Listener(system.url, f"mdi/{system.deployment}/replies/+") as listener:
        agent = system.agent("a", "4-8")
        until(lambda: "all layers are held" in said(source), lambda: said(source))
        agent.signal(signal.SIGSTOP)
        picture = (Path(__file__).parents[2] / "docs/plot.png").read_bytes()
        topic = f"mdi/{system.deployment}/requests/plain"
        for _ in range(5):
            listener.publish(topic, picture)
        journal = folder / "journal-wal"
        until(lambda: journal.exists() and journal.stat().st_size > 4 * len(picture), lambda: said(source))
        source.kill()
        assert not listener.messages
        agent.signal(signal.SIGCONT)
        source = begin(system, folder, *flags)
        until(lambda: len(listener.messages) >= 5, lambda: said(source))
        assert source.stop() == 0
        replies = [json.loads(payload) for _, payload, _ in listener.messages]
    assert sorted(reply["id"] for reply in replies) == [f"#{number}" for number in range(1, 6)]
    assert all("label" in reply for reply in replies)
    assert Counter(ids(source)) == Counter(f"plain/#{number}" for number in range(1, 6))


def mounted(path: Path, size: str) -> None:
    path.mkdir(exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.decode().strip()}")


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True], ids=["results", "journal"])
def test_a_full_disk_stops_admission_and_loses_nothing(system: System, tmp_path: Path, kept: bool) -> None:
    disk = tmp_path / "disk"
    mounted(disk, "600k")
    try:
        filler = disk / "filler"
        filler.write_bytes(bytes(150_000))
        system.agent("a", "4-8")
        flags = ["--input", "shipped", "--layers", "0-3", "--limit", "3500"]
        flags += ["--name", "source", "--deployment", system.deployment, "--broker", system.url]
        flags += (
            [f"--results={disk}/results.jsonl"]
            if not kept
            else [f"--journal={disk}/j", f"--results={disk}/results.jsonl"]
        )
        source = system.program("source.cli", "source", *flags)
        source.until_says("trying again until it can be written")
        assert source.metric("mdi_exit_held{") == 1.0
        assert source.metric("mdi_exit_results_unwritten{") > 0
        status, text = source.get("/readyz")
        assert status == 503
        assert "space" in text.lower() or "full" in text
        until(lambda: not source.metric("mdi_exit_items_pending{"), lambda: source.log)
        admitted = source.metric("mdi_exit_items_admitted_total{")
        assert source.get("/healthz")[0] == 200
        assert source.metric("mdi_exit_items_admitted_total{") == admitted
        filler.unlink()
        source.until_says("results can be written again")
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert source.until_ends() == 0, source.log
        rows = [json.loads(line)["id"] for line in (disk / "results.jsonl").read_text().splitlines()]
        assert len(rows) == len(set(rows)) == 3500
    finally:
        for program in system.programs:
            program.kill()
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_live_input_goes_on_with_new_ids(system: System, folder: Path) -> None:
    flags = ["--input", "mqtt:cam/#", "--layers", "0-8", "--max-pending", "16"]
    picture = (Path(__file__).parents[2] / "docs/plot.png").read_bytes()
    stop = threading.Event()
    with Listener(system.url, "none") as camera:

        def film() -> None:
            while not stop.wait(0.02):
                camera.publish("cam/door", picture)

        filming = threading.Thread(target=film)
        filming.start()
        try:
            source = begin(system, folder, *flags)
            until(lambda: count(folder / "results.jsonl") >= 10, lambda: said(source))
            source.kill()
            before = set(ids(source))
            source = begin(system, folder, *flags)
            until(lambda: count(folder / "results.jsonl") >= len(before) + 10, lambda: said(source))
            assert source.stop() == 0, said(source)
        finally:
            stop.set()
            filming.join()
    after = ids(source)
    assert len(after) == len(set(after))
    assert any(name.endswith("@2") for name in after)
