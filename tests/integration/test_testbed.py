"""The emulated testbed: links that are no faster than they should be, and a run that is near the simulated one."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from mdi_exit.errors import UsageError
from mdi_exit.plot.files import read_run
from mdi_exit.simulation.scenario import Link, Medium
from mdi_exit.simulation.star import Wires
from mdi_exit.trial.compare import compared
from mdi_exit.trial.relay import relays
from mdi_exit.trial.testbed import main

MESH = """
[links]
bandwidth = "20Mbit/s"
delay = "3ms"
[source]
layers = "0-3"
[[agents]]
name = "a"
layers = "2-8"
[[agents]]
name = "b"
layers = "4-8"
"""


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
    writer.close()


async def _there_and_back(wires: Wires, content: bytes) -> float:
    """Seconds that the content takes to a server behind the relay and back again."""
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    async with server, relays(wires, ["a"], server.sockets[0].getsockname()[1]) as ports:
        reader, writer = await asyncio.open_connection("127.0.0.1", ports["a"])
        begin = loop.time()
        writer.write(content)
        assert await reader.readexactly(len(content)) == content
        took_s = loop.time() - begin
        writer.close()
        await writer.wait_closed()
    return took_s


async def test_a_relay_passes_everything_and_no_sooner_than_the_link_allows() -> None:
    content = os.urandom(200_000)
    slow = Wires({"a": Link(up_bytes_per_s=2e6, down_bytes_per_s=None, delay_s=0.03)}, {}, ())
    assert await _there_and_back(slow, content) >= 0.1 + 2 * 0.03 - 0.005
    medium = Wires({"a": Link(delay_s=0.0, medium="wifi")}, {"wifi": Medium("wifi", 2e6)}, ())
    assert await _there_and_back(medium, content) >= 0.2 - 0.005, "up and down take the same airtime"


@pytest.mark.broker
@pytest.mark.slow
def test_a_mesh_live_is_near_the_simulated_one(tmp_path: Path) -> None:
    """Tolerances are those of a short run on a machine that may be busy; a quiet one's are in benchmarks/results."""
    file = tmp_path / "mesh.toml"
    file.write_text(MESH + '[run]\nrate = "max"\nexit_threshold = 0.9\nduration = "8s"\n')
    out = tmp_path / "run"
    out.mkdir()
    flags = [
        "--summary",
        out / "summary.json",
        "--timeline",
        out / "timeline.jsonl",
        "--results",
        out / "results.jsonl",
    ]
    assert main([str(file), "--compare", "--shaping", "relay", *map(str, flags)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["errors"] == summary["pending"] == 0
    assert summary["admitted"] == summary["completed"] == len(read_run(out).items)
    assert summary["emulated"] == "jetson-nano"
    assert "paced by relays in user space" in summary["links"]
    both = summary["simulated"]
    assert abs(both["rate_error"]) < 0.4
    assert both["accuracy"][1] == pytest.approx(both["accuracy"][0], abs=0.05)
    assert both["exit_error"] < 0.12


@pytest.mark.broker
@pytest.mark.slow
def test_a_node_dies_and_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "dies.toml"
    dies = "".join(
        f'[[changes]]\nat = "{at}s"\nnode = "b"\nalive = {alive}\n' for at, alive in ((2, "false"), (4, "true"))
    )
    file.write_text(MESH + dies + '[run]\nrate = "20/s"\nexit_threshold = 0.8\nduration = "8s"\n')
    assert main([str(file), "--summary", str(tmp_path / "s.json"), "--timeline", str(tmp_path / "t.jsonl")]) == 0
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["errors"] == summary["pending"] == 0
    told = [
        line for moment in (tmp_path / "t.jsonl").read_text().splitlines() for line in json.loads(moment)["notices"]
    ]
    assert any(line == "b left" for line in told)
    assert sum(line.startswith("b joined") for line in told) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[run]\ncells = 2\n", "one cell of at most 16 nodes, got 6 nodes"),
        ('[[changes]]\nat = "1s"\nnode = "a"\nspeed = 0.5\n', "got a change of speed"),
        ('[run]\narrivals = "bursts"\nburst = 5\nrate = "9/s"\n', "arrivals fixed or poisson, got bursts"),
        (f"[[agents]]\nname = 'c'\nlayers = '8'\nlayer_seconds = {[0.1] * 9}\n", "seconds of its own at c"),
    ],
)
def test_what_cannot_be_had_live_is_told(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "s.toml"
    file.write_text(MESH + text)
    with pytest.raises(UsageError, match=says):
        main([str(file)])


def test_summaries_are_compared() -> None:
    measured = {"rate_per_s": 50.0, "accuracy": 0.9, "exits": {"0": 60, "2": 40}}
    simulated = {"rate_per_s": 55.0, "accuracy": 0.91, "exits": {0: 70, 1: 30}}
    found = compared(measured, simulated)
    assert found.rate_error == pytest.approx(0.1)
    assert found.exit_shares == ((0.6, 0.7), (0.0, 0.3), (0.4, 0.0))
    assert found.exit_error == pytest.approx(0.4)
