"""``mdi-exit benchmark metrics``: what it costs to watch, and the table."""

from __future__ import annotations

import sys
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from broker.embedded import embedded_broker
from mdi_exit.benchmark.scrape import overhead_rows, scrape_rows, telemetry_rows

__all__ = ["measure_metrics"]

_MESSAGES: Final = 8000
_SCRAPE_PERIOD_S: Final = 1.0


async def measure_metrics(window: int, scale: float, rounds: int) -> list[dict[str, Any]]:
    """A scrape with a hundred agents, the telemetry of three, and throughput with and without scrapes."""
    rows = await scrape_rows()
    async with embedded_broker() as broker:
        rows += await telemetry_rows(broker.url)
        load = {"window": window, "messages": max(int(_MESSAGES * scale), 50)}
        rows += await overhead_rows(broker.url, **load, rounds=rounds, scrape_period_s=_SCRAPE_PERIOD_S)
        sys.stdout.write(f"broker: {broker.kind}; window {window}; {rounds} rounds\n")
    _show_metrics(rows)
    return rows


def _show_metrics(rows: list[dict[str, Any]]) -> None:
    table = Table(title="What it costs to watch")
    for column in ("what", "value"):
        table.add_column(column, justify="left" if column == "what" else "right")
    scrapes = [row for row in rows if row["name"] == "scrape"]
    seconds = sorted(row["seconds"] for row in scrapes)
    table.add_row(f"scrape with {scrapes[0]['agents']} agents, median", f"{1000 * median(seconds):.1f} ms")
    table.add_row("the slowest of them", f"{1000 * seconds[-1]:.1f} ms")
    table.add_row("its size", f"{scrapes[0]['bytes'] / 1000:,.0f} kB, {scrapes[0]['samples']:,} samples")
    for row in rows:
        if row["name"] == "telemetry":
            table.add_row(f"telemetry of {row['node']}", f"{row['bytes'] / row['seconds']:,.0f} B/s")
    for field, text, factor, unit in (
        ("items_per_s", "throughput", 1.0, "items/s"),
        ("cpu_s_per_item", "processor time an item", 1e6, "µs"),
    ):
        off, on = _paired(rows, field)
        ratios = sorted(of_on / of_off for of_on, of_off in zip(on, off, strict=True))
        table.add_row(f"{text}, metrics off, median", f"{factor * median(off):,.0f} {unit}")
        table.add_row(f"{text}, metrics on, median", f"{factor * median(on):,.0f} {unit}")
        table.add_row("on / off, median of the rounds' ratios", f"{median(ratios):.3f}")
        table.add_row("their range", f"{ratios[0]:.3f} to {ratios[-1]:.3f}")
    Console(width=110).print(table)


def _paired(rows: list[dict[str, Any]], field: str) -> tuple[list[float], list[float]]:
    """The values of each round with metrics off, and with metrics on."""
    off, on = (
        [row[field] for row in rows if row["name"] == "throughput" and row["metrics"] == which]
        for which in ("off", "on")
    )
    return off, on
