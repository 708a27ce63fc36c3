"""``mdi-exit chaos`` as a user calls it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from live import System, environment, until

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.fixture
def system(mosquitto: Any, tmp_path: Path) -> Iterator[System]:
    folder = tmp_path / "nodes"
    folder.mkdir()
    system = System(mosquitto.url, folder)
    yield system
    system.close()


@pytest.mark.timeout(180)
def test_the_proxy_harms_who_is_behind_it_and_the_counts_add_up(system: System) -> None:
    flags = ("--broker", system.url, "--listen", "127.0.0.1:0", "--deployment", system.deployment)
    chaos = system.program(
        "mdi_exit.cli", "chaos", "chaos", *flags, "--faults", "cut,half-open", "--every", "1s", "--lasts", "1s",
        "--duration", "8s", "--seed", "2",
    )  # fmt: skip
    until(lambda: "proxy on" in chaos.stdout, lambda: chaos.stdout + chaos.log)
    found = re.search(r"proxy on (mqtt://\S+):", chaos.stdout)
    assert found
    behind = System(found[1], system.folder, programs=system.programs)
    behind.agent("suffers", "0-8")
    system.agent("spared", "0-8")
    source = system.source("--rate", "20/s", "--exit-threshold", "0.9", "--duration", "120s")
    assert chaos.until_ends() == 0, chaos.stdout + chaos.log
    said = chaos.stdout
    assert len(re.findall(r"^(?:cut|half-open) at suffers for 1\.0 s$", said, re.MULTILINE)) >= 2, said
    assert "at spared" not in said
    assert re.search(r"admitted [\d,]+ = completed [\d,]+ \+ errors 0 \+ under way", said), said
    assert source.stop() == 0, source.log
    assert source.summary["errors"] <= source.summary["admitted"]
    ids = [row["id"] for row in source.rows]
    assert len(set(ids)) == len(ids) == source.summary["admitted"]


@pytest.mark.timeout(120)
def test_the_demo_says_of_each_fault_whether_the_promise_was_kept() -> None:
    command = [sys.executable, "-m", "mdi_exit.cli", "chaos", "--demo", "--faults", "duplicate", "--duration", "6s"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "duplicate: kept" in done.stdout
    assert re.search(r"duplicate\s+1\s+150\s+0\s+0\s+0\s+0", done.stdout), done.stdout


@pytest.mark.timeout(120)
def test_what_was_started_ends_with_it_even_what_stands_still(system: System) -> None:
    chaos = system.program("mdi_exit.cli", "chaos", "chaos", "--demo", "--faults", "agent-freeze", "--duration", "60s")
    started: dict[int, psutil.Process] = {}

    def one_stands_still() -> bool:
        started.update({child.pid: child for child in psutil.Process(chaos.process.pid).children(recursive=True)})
        return psutil.STATUS_STOPPED in {child.status() for child in started.values() if child.is_running()}

    until(one_stands_still, lambda: chaos.stdout + chaos.log, 60.0)
    assert len(started) >= 5, "broker, three agents, source"
    assert chaos.stop() == 1
    assert "ended by SIGTERM" in chaos.log
    assert psutil.wait_procs(list(started.values()), 10)[1] == []


@pytest.mark.timeout(60)
def test_a_wait_for_nodes_that_do_not_come_ends_with_ctrl_c(system: System) -> None:
    chaos = system.program("mdi_exit.cli", "chaos", "chaos", "--broker", system.url, "--listen", "127.0.0.1:0")
    until(lambda: "waiting for a source" in chaos.stdout, lambda: chaos.stdout + chaos.log)
    begin = time.monotonic()
    os.kill(chaos.process.pid, signal.SIGINT)
    assert chaos.until_ends() == 1
    assert "no source was seen" in chaos.log
    assert time.monotonic() - begin < 30
