"""``mdi-exit benchmark hop``: every path in turn, and the table."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from broker.embedded import embedded_broker
from mdi_exit.benchmark.hop import hop
from mdi_exit.benchmark.relays import aiomqtt_relay, tcp_relay, transport_relay

__all__ = ["measure_hop"]

_SHAPES: Final = ((1, 16, 16), (1, 64, 64), (1, 128, 256))
_MESSAGES: Final = {1024: 6000, 16384: 6000, 131072: 2000}


async def measure_hop(window: int, scale: float, rounds: int) -> list[dict[str, Any]]:
    """Rows of all rounds; ``scale``: of the messages."""
    rows: list[dict[str, Any]] = []
    async with embedded_broker() as broker:
        for number in range(rounds):
            for shape in _SHAPES:
                size = 4 * shape[0] * shape[1] * shape[2]
                count = max(int(_MESSAGES[size] * scale), 50)
                load = {"window": window, "messages": count}
                found = [
                    await tcp_relay(size, **load),
                    await aiomqtt_relay(broker.url, size, qos=0, **load),
                    await aiomqtt_relay(broker.url, size, qos=1, **load),
                    await transport_relay(broker.url, size, qos=0, **load),
                    await transport_relay(broker.url, size, qos=1, **load),
                ]
                with tempfile.TemporaryDirectory(prefix="mdi-exit-hop-") as folder:
                    for results in (False, True):
                        found.append(
                            await hop(broker.url, Path(folder), shape, window=window, messages=count, results=results)
                        )
                rows += [{"round": number, **asdict(row)} for row in found]
        sys.stdout.write(f"broker: {broker.kind}; window {window}; medians of {rounds} rounds\n")
    _show_hop(rows)
    return rows


def _median(rows: list[dict[str, Any]], name: str, size: int, qos: int, field: str) -> float:
    values = sorted(row[field] for row in rows if (row["name"], row["payload_bytes"], row["qos"]) == (name, size, qos))
    return float(values[len(values) // 2])


def _show_hop(rows: list[dict[str, Any]]) -> None:
    table = Table(title="source → agent → source")
    columns = ("payload", "path", "QoS", "items/s", "of aiomqtt", "round trip p50", "times aiomqtt", "p99")
    for column in columns:
        table.add_column(column, justify="left" if column == "path" else "right")
    kinds = list(dict.fromkeys((row["payload_bytes"], row["name"], row["qos"]) for row in rows))
    for size, name, qos in kinds:
        rate = _median(rows, name, size, qos, "throughput_per_s")
        p50 = _median(rows, name, size, qos, "round_trip_p50_s")
        p99 = _median(rows, name, size, qos, "round_trip_p99_s")
        bare_rate = _median(rows, "aiomqtt", size, qos, "throughput_per_s")
        bare_p50 = _median(rows, "aiomqtt", size, qos, "round_trip_p50_s")
        table.add_row(
            f"{size // 1024} KB",
            name,
            str(qos),
            f"{rate:,.0f}",
            f"{rate / bare_rate:.2f}",
            f"{1000 * p50:.2f} ms",
            f"{p50 / bare_p50:.2f}",
            f"{1000 * p99:.2f} ms",
        )
    Console(width=110).print(table)
