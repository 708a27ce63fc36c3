"""``mdi-exit benchmark journal``: what it costs to write down what is admitted and finished.

Real processes: an agent that holds the whole model, and one source after another, with the journal as the only difference.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from broker.embedded import embedded_broker
from mdi_exit.benchmark.programs import started
from mdi_exit.client import Client
from mdi_exit.data import shipped
from mdi_exit.errors import MdiExitError
from mdi_exit.items import percentile

__all__ = ["JournalLoad", "measure_journal", "show_journal"]

KINDS: Final = ("none", "normal", "full")
_PATIENCE_S: Final = 240.0
_SYNCS: Final = 20

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class JournalLoad:
    """``items`` of the source's own as fast as they go, and ``asks`` requests one after another; in each of ``rounds``.

    ``folder``: where the files are, since it is the disk that is measured.
    """

    folder: Path = Path()
    items: int = 20_000
    asks: int = 500
    rounds: int = 5


async def measure_journal(load: JournalLoad) -> Rows:
    """All kinds in turn, in each round in another order. Raises ``MdiExitError``."""
    rows: Rows = []
    with tempfile.TemporaryDirectory(prefix="mdi-exit-journal-", dir=load.folder) as name:
        folder = Path(name)
        rows.append({"name": "fdatasync", "seconds": _sync_s(folder)})
        async with embedded_broker() as broker, _agent(broker.url):
            for number in range(load.rounds):
                order = [KINDS[(number + shift) % len(KINDS)] for shift in range(len(KINDS))]
                for kind in order:
                    rows.append(await _throughput(broker.url, folder, kind, number, load.items))
                for kind in order:
                    rows.append(await _latency(broker.url, folder, kind, number, load.asks))
        sys.stdout.write(f"broker: {broker.kind}; {load.rounds} rounds\n")
    return rows


def _sync_s(folder: Path) -> float:
    """Median seconds until a page is on the disk."""
    seconds = []
    with (folder / "probe").open("wb", buffering=0) as file:
        for _ in range(_SYNCS):
            file.write(bytes(4096))
            begin = time.perf_counter()
            os.fdatasync(file.fileno())
            seconds.append(time.perf_counter() - begin)
    return median(seconds)


def _agent(url: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    flags = ["--layers", "0-8", "--name", "agent", "--deployment", "journal", "--broker", url]
    return started("edge_agent.cli", [*flags, "--metrics", "off", "--log-level", "warning"])


@asynccontextmanager
async def _source(url: str, folder: Path, kind: str, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A source with its files in ``folder``; whoever enters sees to its end."""
    journal = [] if kind == "none" else ["--journal", f"{folder}/journal", "--journal-sync", kind]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "source.cli", "--deployment", "journal", "--broker", url, "--metrics", "off"),
        *("--log-level", "warning", "--exit-threshold", "1", "--results", f"{folder}/results.jsonl"),
        *("--summary", f"{folder}/summary.json", *journal, *flags),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
        if status := await asyncio.wait_for(process.wait(), _PATIENCE_S):
            raise MdiExitError(f"benchmark: expected a source that ends with status 0, got {status}")
    except TimeoutError:
        raise MdiExitError(f"benchmark: expected a source to end within {_PATIENCE_S:g} s, got none") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _throughput(url: str, above: Path, kind: str, number: int, items: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=above) as name:
        folder = Path(name)
        async with _source(url, folder, kind, "--input", "shipped", "--repeat", "--limit", str(items)):
            pass  # it ends by itself
        return {"name": "throughput", "round": number, "journal": kind, **_counted(folder)}


def _counted(folder: Path) -> dict[str, Any]:
    """What a source has left behind. Raises ``MdiExitError`` if it does not add up."""
    summary = json.loads((folder / "summary.json").read_text())
    with (folder / "results.jsonl").open("rb") as lines:
        recorded = sum(1 for _ in lines)
    if not recorded == summary["admitted"] == summary["completed"]:
        raise MdiExitError(f"benchmark: expected a result for each of {summary['admitted']} items, got {recorded}")
    journal = folder / "journal"
    size_bytes = journal.stat().st_size if journal.exists() else 0
    return {"items": recorded, "items_per_s": summary["rate_per_s"], "journal_bytes": size_bytes}


async def _latency(url: str, above: Path, kind: str, number: int, asks: int) -> dict[str, Any]:
    """From a client's request to its reply, which comes when both are written down."""
    image_HWC, seconds = shipped().images_NHWC[0], []
    with tempfile.TemporaryDirectory(dir=above) as name:
        folder = Path(name)
        async with (
            _source(url, folder, kind, "--input", "requests") as source,
            Client(url, deployment="journal") as client,
        ):
            for ask in range(asks + max(asks // 10, 10)):
                begin = time.perf_counter()
                await asyncio.wait_for(client.infer(image_HWC), _PATIENCE_S)
                if ask >= max(asks // 10, 10):
                    seconds.append(time.perf_counter() - begin)
            source.terminate()
    waits = {name: percentile(seconds, share) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
    return {"name": "latency", "round": number, "journal": kind, "asks": asks, "latency_s": waits}


def show_journal(rows: Rows) -> None:
    """Medians, and each round's ratio to the same round without a journal."""
    table = Table(title="What the journal costs")
    for column in ("journal", "items/s", "of none", "range", "reply p50", "p99", "p50 above none"):
        table.add_column(column, justify="left" if column == "journal" else "right")
    for kind in KINDS:
        rates, plain = _of(rows, "throughput", kind), _of(rows, "throughput", "none")
        ratios = sorted(one["items_per_s"] / other["items_per_s"] for one, other in zip(rates, plain, strict=True))
        waits, quick = _of(rows, "latency", kind), _of(rows, "latency", "none")
        p50, p99 = (1000 * median(row["latency_s"][name] for row in waits) for name in ("p50", "p99"))
        more = 1000 * median(
            one["latency_s"]["p50"] - other["latency_s"]["p50"] for one, other in zip(waits, quick, strict=True)
        )
        table.add_row(
            kind, f"{median(row['items_per_s'] for row in rates):,.0f}", f"{median(ratios):.3f}",
            f"{ratios[0]:.3f} to {ratios[-1]:.3f}", f"{p50:.2f} ms", f"{p99:.2f} ms", f"{more:+.2f} ms",
        )  # fmt: skip
    sync_s = next(row["seconds"] for row in rows if row["name"] == "fdatasync")
    Console(width=110).print(table)
    sys.stdout.write(f"a page is on this disk in {1000 * sync_s:.2f} ms (fdatasync, median of {_SYNCS})\n")


def _of(rows: Rows, what: str, kind: str) -> Rows:
    found = [row for row in rows if row["name"] == what and row["journal"] == kind]
    return sorted(found, key=lambda row: int(row["round"]))
