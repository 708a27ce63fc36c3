"""``mdi-exit benchmark clients``: the load, and the table."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from broker.embedded import embedded_broker
from mdi_exit.benchmark.clients import ClientLoad, measure_clients

__all__ = ["measure_load"]


async def measure_load(load: ClientLoad) -> list[dict[str, Any]]:
    """The total, then a row for each client."""
    async with embedded_broker() as broker:
        capacity, rows = await measure_clients(broker.url, load)
    served = sorted(row.labels for row in rows)
    mean = sum(served) / len(served)
    outcomes = sum((row.outcomes for row in rows), Counter[str]())
    asked, longest_s = sum(row.asked for row in rows), max(row.most_s for row in rows)
    total = {
        "clients": load.clients,
        "emulated": load.profile,
        "capacity_per_s": round(capacity, 2),
        "asked_per_s": round(asked / load.seconds, 2),
        "asked": asked,
        "outcomes": dict(outcomes),
        "labels_least_of_mean": round(served[0] / mean, 3) if mean else 0.0,
        "labels_most_of_mean": round(served[-1] / mean, 3) if mean else 0.0,
        "deadline_s": load.deadline_s,
        "longest_s": round(longest_s, 3),
    }
    table = Table(title=f"{load.clients} clients at {load.load:g} times the capacity (emulated: {load.profile})")
    table.add_column("what")
    table.add_column("measured", justify="right")
    for what, amount in total.items():
        table.add_row(
            what, ", ".join(f"{k} {v}" for k, v in amount.items()) if isinstance(amount, dict) else str(amount)
        )
    Console(width=110).print(table)
    return [total, *(row.to_json() for row in rows)]
