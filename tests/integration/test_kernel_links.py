"""Links by the kernel: as fast as they should be and no faster, lossy where they should be, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest

from mdi_exit.errors import StartError
from mdi_exit.simulation.scenario import Link, Medium
from mdi_exit.trial import kernel, shaping
from mdi_exit.trial.kernel import PREFIX, KernelLinks, kernel_links, remove_stale, unavailable
from mdi_exit.trial.testbed import main

NAMESPACES = Path("/run/netns")
RECEIVE = "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\nwhile s.recv(65536): pass"
SCENARIO = """
[links]
bandwidth = "20Mbit/s"
delay = "3ms"
[source]
layers = "0-3"
[[agents]]
name = "a"
layers = "2-8"
bandwidth = "2Mbit/s"
[run]
rate = "20/s"
exit_threshold = 0.8
"""


@pytest.fixture(scope="module")
def able() -> None:
    if why := unavailable():
        pytest.skip(f"links by the kernel: {why}")


def _own() -> set[str]:
    return {path.name for path in NAMESPACES.glob(f"{PREFIX}{os.getpid()}-*")}


async def _sent(links: KernelLinks, sizes: Mapping[str, int]) -> float:
    """Seconds that it takes until each node has received so many bytes from the hub, all at the same time."""
    content = Random(1).randbytes(max(sizes.values()))
    loop = asyncio.get_running_loop()
    begun = []

    async def one(name: str, size: int) -> None:
        with links.listener(name) as listener:
            host, port = listener.getsockname()
            listener.setblocking(False)
            words = (*links.inside(name), sys.executable, "-c", RECEIVE, host, str(port))
            receiver = await asyncio.create_subprocess_exec(*words)
            taken, _ = await loop.sock_accept(listener)
        with taken:
            begun.append(loop.time())
            await loop.sock_sendall(taken, content[:size])
        assert await receiver.wait() == 0

    await asyncio.gather(*(one(name, size) for name, size in sizes.items()))
    return loop.time() - min(begun)


async def test_a_link_is_as_fast_as_it_should_be_and_can_change(able: None) -> None:
    with kernel_links({"a": Link(2.5e6, 2.5e6), "b": Link(2.5e6, 2.5e6)}, {}) as links:
        took_s = await _sent(links, {"a": 4_000_000})
        assert took_s >= 4_000_000 / 2.5e6 - 0.05
        links.change("a", Link(2.5e6, None))
        assert await _sent(links, {"a": 4_000_000}) < took_s
        links.change("a", Link(None, 0.5e6))
        assert await _sent(links, {"a": 500_000}) >= 500_000 / 0.5e6 - 0.05
    assert not _own()


async def test_all_stations_of_a_medium_share_its_rate(able: None) -> None:
    links = {"a": Link(None, None, 0.0, 0.0, "air"), "b": Link(None, None, 0.0, 0.0, "air")}
    with kernel_links(links, {"air": Medium("air", 2.5e6)}) as made:
        assert await _sent(made, {"a": 2_000_000, "b": 2_000_000}) >= 4_000_000 / 2.5e6 - 0.05
        made.change("b", Link(None, None))
        assert await _sent(made, {"a": 2_000_000, "b": 2_000_000}) < 4_000_000 / 2.5e6


async def test_packets_are_lost_and_everything_arrives(able: None) -> None:
    with kernel_links({"a": Link(None, None, 0.0, 0.05)}, {}) as links:
        await _sent(links, {"a": 3_000_000})
        words = (*links.inside("a"), "iptables", "-nvxL", "INPUT")
        listing = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        told = (await listing.communicate())[0].decode()
    dropped = re.search(r"^ *(\d+) .*DROP", told, re.MULTILINE)
    assert dropped is not None
    assert int(dropped[1]) > 10


def test_what_a_killed_testbed_leaves_is_removed_by_the_next(able: None) -> None:
    code = (
        "import sys, time\nfrom mdi_exit.simulation.scenario import Link\nfrom mdi_exit.trial.kernel import kernel_links\n"
        "with kernel_links({'a': Link()}, {}) as links: print(links.hub, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        hub = process.stdout.readline().strip()
        assert hub not in remove_stale(), "its testbed still runs"
        assert (NAMESPACES / hub).exists()
        process.kill()
    with kernel_links({"a": Link()}, {}):
        assert not (NAMESPACES / hub).exists()
        assert len(_own()) == 2
    assert not _own()


@pytest.mark.broker
def test_ctrl_c_leaves_nothing_behind(able: None, tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(SCENARIO)
    command = [sys.executable, "-m", "mdi_exit.cli", "testbed", str(file), "--shaping", "kernel"]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        pattern = f"{PREFIX}{process.pid}-*-*"
        while process.poll() is None and len(list(NAMESPACES.glob(pattern))) < 3:
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "stopped before the end" in told
    assert not list(NAMESPACES.glob(pattern))


@pytest.fixture
def summary(tmp_path: Path) -> Path:
    (tmp_path / "s.toml").write_text(SCENARIO + 'duration = "4s"\n')
    return tmp_path / "summary.json"


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.parametrize(("how", "says"), [("auto", "shaped by the kernel"), ("none", "not shaped")])
def test_a_scenario_runs_on_them(able: None, summary: Path, how: str, says: str) -> None:
    assert main([str(summary.with_name("s.toml")), "--shaping", how, "--summary", str(summary)]) == 0
    told = json.loads(summary.read_text())
    assert told["errors"] == told["pending"] == 0
    assert told["shaping"] == ("none" if how == "none" else "kernel")
    assert told["links"].startswith(says)
    assert not _own()


def test_without_root_relays_do_it_and_the_kernel_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel.os, "geteuid", lambda: 1000)
    assert shaping.unavailable() == "needs root"
    file = tmp_path / "s.toml"
    file.write_text(SCENARIO)
    with pytest.raises(StartError, match="got: needs root"):
        main([str(file), "--shaping", "kernel"])
