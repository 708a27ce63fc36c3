"""The paper's topologies, each from its one file, live."""

from __future__ import annotations

import itertools
import json
import subprocess
import tomllib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from live import run_program

pytestmark = [pytest.mark.broker, pytest.mark.slow]

Run = tuple[Path, "subprocess.CompletedProcess[str]"]

FOLDER = Path(__file__).parents[2] / "benchmarks" / "scenarios"
SCENARIOS = sorted([*FOLDER.glob("*-disjoint.toml"), *FOLDER.glob("*-overlapping.toml")])


def test_there_is_a_file_of_each_kind() -> None:
    kinds = ("two-node", "three-node-mesh", "three-node-circular", "five-node-mesh")
    wanted = {f"{kind}-{spans}" for kind in kinds for spans in ("disjoint", "overlapping")}
    assert {path.stem for path in SCENARIOS} == wanted


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _demo(scenario: Path, out: Path) -> Run:
    flags = ("--topology", scenario, "--duration", "4s", "--out", out)
    return out, run_program("mdi_exit.cli", "demo", *flags, deadline_s=100)


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Future[Run]]]:
    """The demo of each scenario that is wanted; several at once, since emulated nodes mostly wait."""
    mine = [item for item in request.session.items if item.path == request.path]
    wanted = [item.callspec.params["scenario"] for item in mine if hasattr(item, "callspec")]
    pool = ThreadPoolExecutor(3)
    yield {one: pool.submit(_demo, one, tmp_path_factory.mktemp(one.stem) / "run") for one in wanted}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[path.stem for path in SCENARIOS])
def test_a_topology_runs_from_its_file(scenario: Path, runs: dict[Path, Future[Run]]) -> None:
    out, ended = runs[scenario].result()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["admitted"] == summary["completed"] > 0
    assert summary["errors"] == summary["pending"] == 0
    assert summary["emulated"] == "jetson-nano"

    document = tomllib.loads(scenario.read_text())
    nodes = {"source", *(agent["name"] for agent in document["agents"])}
    paths = [row["path"] for row in _lines(out / "results.jsonl")]
    assert any(len(path) > 1 for path in paths)
    assert {node for path in paths for node in path} <= nodes
    _check_neighbours(document, paths)

    timeline = _lines(out / "timeline.jsonl")
    assert all(0 < snapshot["threshold"] <= 1 for snapshot in timeline)
    reported = {node["name"] for snapshot in timeline for node in snapshot["nodes"] if node["state"] == "ready"}
    assert reported == nodes
    executed = {node["name"] for snapshot in timeline for node in snapshot["nodes"] if node["executed_per_s"] > 0}
    assert executed >= {path[0] for path in paths}


def _check_neighbours(document: dict[str, Any], paths: list[list[str]]) -> None:
    """Nobody sent a task to a node that the file does not name as its neighbour."""
    allowed = {agent["name"]: set(agent["neighbours"]) for agent in document["agents"]}
    allowed[document["source"].get("name", "source")] = set(document["source"]["neighbours"])
    for path in paths:
        for here, there in itertools.pairwise(path):
            assert there == here or there in allowed[here], path
