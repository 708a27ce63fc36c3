"""``mdi-exit benchmark agent``: resident memory and time to readiness."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from broker.embedded import embedded_broker
from mdi_exit.benchmark.programs import started
from mdi_exit.errors import MdiExitError

__all__ = ["measure_agents"]


async def measure_agents() -> list[dict[str, Any]]:
    """Resident memory and time to readiness of agents of the shipped model, on a local broker."""
    rows = []
    async with embedded_broker() as broker:
        with tempfile.TemporaryDirectory(prefix="mdi-exit-agent-") as folder:
            log = Path(folder) / "source.log"
            async with started("source.cli", ["--broker", broker.url, "--input", "shipped"], log):
                await _line(log, "no node holds")
                for span in ("0-8", "4-8", "0-3"):
                    rows.append(await _one_agent(broker.url, span, Path(folder)))
    table = Table(title="edge-agent on ONNX Runtime")
    for column in ("layers", "ready after", "resident"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["layers"], f"{row['ready_s']:.2f} s", f"{row['resident_mib']:.1f} MiB")
    Console().print(table)
    return rows


async def _line(log: Path, text: str) -> None:
    """Wait until a program has said ``text``."""
    deadline = time.monotonic() + 30.0
    while text not in (said := await asyncio.to_thread(log.read_text)):
        if time.monotonic() > deadline:
            raise MdiExitError(f"benchmark: expected a line with {text!r}, got: {said[-300:]}")
        await asyncio.sleep(0.01)


async def _one_agent(url: str, span: str, folder: Path) -> dict[str, Any]:
    log = folder / f"agent-{span}.log"
    begin = time.perf_counter()
    flags = ["--broker", url, "--layers", span, "--name", f"agent-{span}"]
    async with started("edge_agent.cli", flags, log) as agent:
        await _line(log, "ready: ")
        ready_s = time.perf_counter() - begin
        resident = psutil.Process(agent.pid).memory_info().rss
    return {"layers": span, "ready_s": ready_s, "resident_mib": resident / 2**20}
