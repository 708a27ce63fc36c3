"""``mdi-exit benchmark journal``: what it costs to write down what is admitted and finished.

Real processes: an agent that holds the whole model, and one source after another, with the journal as the only difference.
With ``--engine noop`` the network computes nothing, so that what is left is the system's own work: the worst case.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from broker.embedded import embedded_broker
from mdi_exit.errors import MdiExitError

__all__ = ["JournalLoad", "measure_journal", "show_journal"]

KINDS: Final = ("none", "normal", "full")
_PATIENCE_S: Final = 240.0
_SYNCS: Final = 20

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class JournalLoad:
    """``items`` as fast as they go, and as many a second as ``rate_per_s`` for ``seconds``; in each of ``rounds``.

    ``folder``: where the files are, since it is the disk that is measured.
    """

    folder: Path = Path()
    engine: str = "noop"
    items: int = 20_000
    rate_per_s: float = 50.0
    seconds: float = 10.0
    rounds: int = 5


async def measure_journal(load: JournalLoad) -> Rows:
    """All kinds in turn, in each round in another order. Raises ``MdiExitError``."""
    rows: Rows = []
    with tempfile.TemporaryDirectory(prefix="mdi-exit-journal-", dir=load.folder) as name:
        folder = Path(name)
        rows.append({"name": "fdatasync", "seconds": _sync_s(folder)})
        async with embedded_broker() as broker, _agent(broker.url, load.engine):
            for number in range(load.rounds):
                order = [KINDS[(number + shift) % len(KINDS)] for shift in range(len(KINDS))]
                for kind in order:
                    flags = ["--limit", str(load.items)]
                    rows.append(await _run(broker.url, folder, kind, number, "throughput", flags))
                for kind in order:
                    flags = ["--limit", str(int(load.rate_per_s * load.seconds)), "--rate", f"{load.rate_per_s:g}/s"]
                    rows.append(await _run(broker.url, folder, kind, number, "latency", flags))
        sys.stdout.write(f"broker: {broker.kind}; engine {load.engine}; {load.rounds} rounds\n")
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


@asynccontextmanager
async def _agent(url: str, engine: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "edge_agent.cli", "--layers", "0-8", "--name", "agent", "--deployment", "journal"),
        *("--broker", url, "--engine", engine, "--metrics", "off", "--log-level", "warning"),
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _run(url: str, folder: Path, kind: str, number: int, what: str, flags: Sequence[str]) -> dict[str, Any]:
    """One source from its start to its end."""
    files = {name: folder / f"{what}-{number}-{kind}.{name}" for name in ("jsonl", "json", "journal")}
    journal = [] if kind == "none" else ["--journal", str(files["journal"]), "--journal-sync", kind]
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "source.cli",
            "--input",
            "shipped",
            "--repeat",
            "--deployment",
            "journal",
            "--broker",
            url,
        ),
        *("--metrics", "off", "--log-level", "warning", "--exit-threshold", "1"),
        *("--results", str(files["jsonl"]), "--summary", str(files["json"]), *journal, *flags),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        status = await asyncio.wait_for(process.wait(), _PATIENCE_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise MdiExitError(f"benchmark: expected a source to end within {_PATIENCE_S:g} s, got none") from None
    if status:
        raise MdiExitError(f"benchmark: expected a source that ends with status 0, got {status}")
    return _row(files, kind, number, what)


def _row(files: Mapping[str, Path], kind: str, number: int, what: str) -> dict[str, Any]:
    """What a source has left behind, which goes with it. Raises ``MdiExitError`` if it does not add up."""
    summary = json.loads(files["json"].read_text())
    with files["jsonl"].open("rb") as lines:
        recorded = sum(1 for _ in lines)
    if not recorded == summary["admitted"] == summary["completed"]:
        raise MdiExitError(f"benchmark: expected a result for each of {summary['admitted']} items, got {recorded}")
    row = {
        "name": what,
        "round": number,
        "journal": kind,
        "items": recorded,
        "items_per_s": summary["rate_per_s"],
        "latency_s": summary["latency_s"],
        "journal_bytes": files["journal"].stat().st_size if kind != "none" else 0,
    }
    for file in files.values():
        file.unlink(missing_ok=True)
    return row


def show_journal(rows: Rows) -> None:
    """Medians, and each round's ratio to the same round without a journal."""
    table = Table(title="What the journal costs")
    for column in ("journal", "items/s", "of none", "range", "p50", "p99", "p50 above none"):
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
