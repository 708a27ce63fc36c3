"""The command's own part: flags that would do nothing, an outage that does not come, the table. The processes are played."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torch'")

from rich.console import Console
from rich.progress import Progress

from mdi_exit.demo.fleet import Fleet, NodeEndedError
from mdi_exit.errors import StartError, UsageError
from mdi_exit.hierarchical import command
from mdi_exit.hierarchical.config import HierarchicalSettings, Outage
from mdi_exit.hierarchical.link import EdgeLinks


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ("--role edge --link 1Mbit", "--link: expected --role all with it, got edge"),
        ("--role cloud --outage 20s:30s", "--outage: expected --role all with it, got cloud"),
        ("--role cloud --shaping relay", "--shaping: expected --role all with it, got cloud"),
        ("--role all --shard 1/2", "--shard: expected --role edge with it, got all"),
        ("--role cloud --shard 1/2 --edges 2", "--shard: expected --role edge with it, got cloud"),
        ("--name edge7", "--name: expected --role edge or cloud with it, got all"),
        ("--scheme edge --outage 20s:30s", "--outage: expected a scheme that has a link, got edge"),
        ("--scheme edge --link 1Mbit", "--link: expected a scheme that has a link, got edge"),
        ("--role edge --shard 1/3 --edges 2", "--shard: expected I/2, as --edges says, or 1/1, got 1/3"),
        (
            "--scheme split,edge --edges 2",
            "--scheme: expected schemes with a cloud for --edges 2, got split,edge",
        ),
    ],
)
def test_a_flag_that_would_do_nothing_is_a_mistake(argv: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        command.main([*argv.split(), "--out", str(tmp_path / "model")])
    assert str(caught.value) == complaint


@pytest.mark.parametrize("role", ["edge", "cloud"])
def test_the_environment_may_serve_several_roles(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MDI_EXIT_LINK", "1Mbit")
    started: list[str] = []

    async def worker(settings: HierarchicalSettings) -> None:
        started.append(settings.role)

    monkeypatch.setattr(command, "_worker", worker)
    assert command.main(["--role", role, "--out", str(tmp_path / "model")]) == 0
    assert started == [role]


@pytest.fixture
def data(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    labels_N, images_NHW = np.arange(360) % 2, rng.integers(0, 255, (360, 16, 16)).astype(np.uint8)
    path = tmp_path / "noise.npz"
    np.savez(path, x=images_NHW[:260], y=labels_N[:260], x_test=images_NHW[260:], y_test=labels_N[260:])
    return f"npz:{path}"


def test_a_broker_that_is_not_there_is_told_at_once(data: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"mqtt://127.0.0.1:{taken.getsockname()[1]}"
        argv = ["--data", data, "--model", "small_vgg11", "--width", "0.125", "--broker", url]
        with pytest.raises(StartError, match=f"broker {url}: expected one that answers, got none"):
            command.main([*argv, "--out", str(tmp_path / "model")])


async def test_what_a_worker_ends_with_all_end_with(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    await fleet.start("edge1", "mdi_exit.hierarchical.command", ["--role", "edge"])
    with pytest.raises(NodeEndedError, match=r"edge1 ended with status 2: .*--out"):
        async with asyncio.timeout(60):
            await command._ended(fleet, lambda: None)


async def test_a_worker_that_was_killed_is_said_to_have_been(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    await fleet.start("edge1", "timeit", ["-n", "1", "import time; time.sleep(60)"])
    fleet.processes["edge1"].kill()
    await fleet.processes["edge1"].wait()
    with pytest.raises(NodeEndedError, match="edge1 was killed by signal 9, its last line: nothing") as caught:
        fleet.check()
    assert caught.value.exit_status == 1


def test_a_worker_is_given_flags_that_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[HierarchicalSettings] = []

    async def worker(settings: HierarchicalSettings) -> None:
        made.append(settings)

    monkeypatch.setattr(command, "_worker", worker)
    settings = HierarchicalSettings(out=tmp_path / "model", name="all", edges=2, link=1e5, seed=7)
    for role, number in (("cloud", 1), ("edge", 2)):
        command.main(command._flags(settings, role, f"{role}7", "mqtt://127.0.0.1:1", number))
    assert [(one.role, one.name, one.shard, one.seed) for one in made] == [
        ("cloud", "cloud7", (1, 1), 7),
        ("edge", "edge7", (2, 2), 7),
    ]


class Proxy:
    def __init__(self) -> None:
        self.said: list[str] = []

    def trouble(self, *_: Any) -> None:
        self.said.append("cut")

    def calm(self, *_: Any) -> None:
        self.said.append("mended")


@pytest.mark.parametrize("before", ["", "training begins: 6 steps\nstep 6 of 6\n"])
@pytest.mark.parametrize("at", [Outage(3600.0, 1.0), Outage(0.0, 1.0, 0.9), Outage(0.0, 3600.0, 0.5)])
def test_an_outage_that_does_not_come_is_told(
    at: Outage, before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = HierarchicalSettings(out=tmp_path / "model", name="all", outage=at)
    settings.work.mkdir()
    (settings.work / "edge1.log").write_text(before)
    bar = Progress(console=Console(file=io.StringIO()))
    progress = command._Progress(settings.work / "edge1.log", bar, "hierarchical")
    assert progress.share() is None  # what is there is of an earlier run
    with (settings.work / "edge1.log").open("a") as log:
        log.write("training begins: 6 steps\nstep 3 of 6\n")
    progress.tell()
    assert bar.tasks[0].completed == 0.5
    (settings.work / "edge1.json").write_text(json.dumps({"seconds": 12.0}))
    proxy, console = Proxy(), Console(file=io.StringIO(), width=200)
    links = EdgeLinks("not shaped", {}, lambda _: (), proxy)  # type: ignore[arg-type] # what is used of it

    async def ended(*_: Any) -> None:
        for _ in range(10):  # time for what may come
            await asyncio.sleep(0)

    monkeypatch.setattr(command, "_ended", ended)
    asyncio.run(command._ended_with_outage(Fleet(settings.work), settings, links, console, progress))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    if at.at_share == 0.5:
        assert (proxy.said, said) == (["cut", "mended"], "")
    else:
        assert proxy.said == []
        assert said == "the outage did not come: edge1 had ended before, after 12.0 s of training\n"


@pytest.mark.parametrize("skipped", [0, 41])
def test_the_table_fits_into_80_columns_and_has_no_column_of_zeros(skipped: int, tmp_path: Path) -> None:
    edge = {"cut": 2, "steps": 20_000, "seconds": 9876.5, "bytes_sent": 1.2e9, "batches_skipped": skipped}
    cloud = {"stalest_steps": 16 if skipped else 0}
    runs = [
        command.Run(scheme, "played", (edge,), None if scheme == "edge" else cloud, (0.5, 0.6))
        for scheme in ("hierarchical", "split", "cloud", "edge")
    ]
    console = Console(file=io.StringIO(), width=80)
    command._show(console, HierarchicalSettings(out=tmp_path / "model", name="all"), runs)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert "hierarchical" in text
    assert "60.00" in text
    assert ("unsent" in text) == ("stale" in text) == bool(skipped)
