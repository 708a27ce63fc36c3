"""A model spread over agents against the same model in one process, on all items that it was tested on.

Broker, source and agents are real processes; the source has no layers, so that every item crosses every cut that it gets to.
At each threshold: whether each item got the label and the exit that one process gives, what share left where, how many were
right. An item whose score comes nearer to the threshold than rounding may move it can leave at either exit: it is counted.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from broker.embedded import embedded_broker
from mdi_exit.benchmark.programs import started
from mdi_exit.data import splits
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.model.artifact import Artifact
from mdi_exit.outcomes import outcomes
from mdi_exit.trace import Trace

__all__ = ["SplitRow", "measure_split", "spans_of"]

_DEPLOYMENT: Final = "benchmark"
_NEAR: Final = 1e-4


@dataclass(frozen=True, slots=True)
class SplitRow:
    """One threshold. ``exits``: items by exit. ``accuracy``: of the run; ``accuracy_whole``: without early exits.

    ``near``: items whose label or exit is another, an early score of theirs being within 1e-4 of the threshold; ``other``:
    another without that. ``work``: share of all layers' multiply-accumulates that was done. ``bytes_an_item``: sent by nodes.
    """

    threshold: float
    items: int
    other: int
    near: int
    exits: tuple[int, ...]
    accuracy: float
    accuracy_whole: float
    work: float
    rate_per_s: float
    latency_p50_s: float
    bytes_an_item: float


def spans_of(layers: int, nodes: int) -> list[str]:
    """As people write them, as even as can be. Raises ``UsageError``."""
    if not 1 <= nodes <= layers:
        raise UsageError("--nodes", f"1 to {layers} for {layers} layers", nodes)
    ends = [round(layers * number / nodes) for number in range(nodes + 1)]
    return [f"{first}-{stop - 1}" for first, stop in pairwise(ends)]


def measure_split(
    model: str, thresholds: Sequence[float], nodes: int, codec: str, data_dir: Path | None
) -> list[dict[str, Any]]:
    """A row for each threshold. Raises ``MdiExitError``."""
    artifact = Artifact.open(model)
    spans = spans_of(len(artifact.manifest.layers), nodes)
    trace, ids = _in_one_process(artifact, codec, data_dir)
    rows = []
    for threshold in thresholds:
        with tempfile.TemporaryDirectory(prefix="mdi-exit-split-") as folder:
            given, summary = asyncio.run(_spread(model, threshold, spans, codec, data_dir, Path(folder)))
        rows.append(_row(trace, ids, threshold, given, summary, artifact))
    _show(artifact, rows, spans, codec)
    about = {"model": artifact.manifest.name, "digest": artifact.manifest.digest, "spans": spans, "codec": codec}
    return [{**about, **asdict(row)} for row in rows]


def _in_one_process(artifact: Artifact, codec: str, data_dir: Path | None) -> tuple[Trace, list[str]]:
    """Every exit of every test item, and the items' ids as the source gives them."""
    record = artifact.manifest.data
    if record is None:
        raise UsageError("model", "an artifact that says what it was tested on", "one that does not")
    test = splits(
        record.spec, seed=record.seed, data_dir=data_dir, calibration=record.calibration,
        shape=artifact.manifest.input.shape,
    ).test  # fmt: skip
    made = outcomes(artifact, test, codec=codec, batch=16)
    return made.trace(artifact.manifest.calibration.measure), [
        f"{test.name}/{number}" for number in test.ids_N.tolist()
    ]


async def _spread(
    model: str, threshold: float, spans: Sequence[str], codec: str, data_dir: Path | None, folder: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Results by item, and the summary, of a run over the broker."""
    results, summary = folder / "results.jsonl", folder / "summary.json"
    flags = ["--model", model, "--input", "test", "--rate", "max", "--exit-threshold", f"{threshold}", "--codec", codec]
    flags += ["--min-threshold", f"{min(threshold, 0.01)}", "--results", str(results), "--summary", str(summary)]
    flags += ["--data-dir", str(data_dir)] if data_dir is not None else []
    async with embedded_broker() as broker, AsyncExitStack() as stack:
        shared = ["--deployment", _DEPLOYMENT, "--broker", broker.url, "--log-level", "warning"]
        for number, span in enumerate(spans):
            agent = ["--layers", span, "--name", f"agent-{number}", *shared]
            await stack.enter_async_context(started("edge_agent.cli", agent, folder / f"agent-{number}.log"))
        log = folder / "source.log"
        source = await stack.enter_async_context(started("source.cli", [*flags, *shared], log))
        if await source.wait():
            raise MdiExitError(f"benchmark: the source ended with {source.returncode}: {log.read_text()[-300:]}")
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    return {row["id"]: row for row in rows}, json.loads(summary.read_text())


def _row(
    trace: Trace,
    ids: Sequence[str],
    threshold: float,
    given: dict[str, dict[str, Any]],
    summary: dict[str, Any],
    artifact: Artifact,
) -> SplitRow:
    plan = artifact.manifest.plan
    asked = [plan.threshold_at(number, threshold) for number in range(trace.exits)]
    exits_N = trace.exits_at(asked)
    near_N = np.abs(trace.scores_NS - asked)[:, :-1].min(axis=1, initial=1.0) < _NEAR
    other = near = right = 0
    for index, name in enumerate(ids):
        row, number = given[name], int(exits_N[index])
        right += row["label"] == row["truth"]
        if (row["label"], row["exit"]) != (int(trace.labels_NS[index, number]), number):
            near, other = (near + 1, other) if near_N[index] else (near, other + 1)
    exits = np.bincount([given[name]["exit"] for name in ids], minlength=trace.exits)
    work_S = np.cumsum(trace.layer_macs_L)[trace.exit_layers_S] / trace.layer_macs_L.sum()
    return SplitRow(
        threshold=threshold,
        items=len(ids),
        other=other,
        near=near,
        exits=tuple(exits.tolist()),
        accuracy=right / len(ids),
        accuracy_whole=float((trace.labels_NS[:, -1] == trace.truth_N).mean()),
        work=round(float(np.dot(exits, work_S)) / len(ids), 4),
        rate_per_s=round(summary["rate_per_s"], 2),
        latency_p50_s=round(summary["latency_s"]["p50"], 4),
        bytes_an_item=round(sum(summary["bytes_sent"].values()) / len(ids), 1),
    )


def _show(artifact: Artifact, rows: Sequence[SplitRow], spans: Sequence[str], codec: str) -> None:
    held = ", ".join(spans)
    table = Table(title=f"{artifact.manifest.name}: layers {held} on {len(spans)} agents, {codec}")
    for column in (
        "threshold",
        "items",
        "other than whole",
        "left at exit (%)",
        "accuracy",
        "work",
        "KB an item",
        "items/s",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        shares = " ".join(f"{100 * count / row.items:.1f}" for count in row.exits)
        table.add_row(
            f"{row.threshold:g}", f"{row.items:,}", f"{row.other} ({row.near} near)", shares, f"{100 * row.accuracy:.2f} %",
            f"{100 * row.work:.1f} %", f"{row.bytes_an_item / 1000:.1f}", f"{row.rate_per_s:.0f}",
        )  # fmt: skip
    Console(width=120).print(table)
