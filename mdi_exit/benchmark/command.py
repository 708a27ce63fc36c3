"""``mdi-exit benchmark WHAT``: measure this machine or a method, print a table, write the raw rows."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil
from rich.console import Console
from rich.table import Table

from broker.embedded import embedded_broker
from mdi_exit import __version__
from mdi_exit.benchmark.clients import ClientLoad, measure_clients
from mdi_exit.benchmark.hop import hop
from mdi_exit.benchmark.placement import placement_rows, show_placement
from mdi_exit.benchmark.relays import aiomqtt_relay, tcp_relay, transport_relay
from mdi_exit.benchmark.risk import measure_risk
from mdi_exit.benchmark.scrape import overhead_rows, scrape_rows, telemetry_rows
from mdi_exit.errors import MdiExitError, UsageError

__all__ = ["main"]

_SHAPES: Final = ((1, 16, 16), (1, 64, 64), (1, 128, 256))
_MESSAGES: Final = {1024: 6000, 16384: 6000, 131072: 2000}
_OVERHEAD_MESSAGES: Final = 8000
_SCRAPE_PERIOD_S: Final = 1.0


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    parser = argparse.ArgumentParser(prog="mdi-exit benchmark", description="Measure this machine.")
    parser.add_argument(
        "what",
        choices=tuple(_MEASURES),
        help="hop: what the system costs a hop; agent: memory, start; metrics: what it costs to watch; "
        "clients: many at once, at more than the capacity; placement: plans against the best of all; "
        "risk: whether calibrated thresholds keep their promise; "
        "bottleneck: ResNet-50's first cut made small (needs torch)",
    )
    parser.add_argument("--out", type=Path, help="folder for the raw rows (JSON)")
    parser.add_argument("--window", type=int, default=64, help="items under way for the throughput (%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="more or fewer messages (%(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="whole rounds, taken in turn; medians count (%(default)s)"
    )
    many = ClientLoad()
    parser.add_argument("--clients", type=int, default=many.clients, help="clients: how many (%(default)s)")
    parser.add_argument("--load", type=float, default=many.load, help="clients: times the capacity (%(default)s)")
    parser.add_argument("--seconds", type=float, default=many.seconds, help="clients: how long (%(default)s)")
    parser.add_argument(
        "--deadline", type=float, default=many.deadline_s, help="clients: seconds; 0: none (%(default)s)"
    )
    parser.add_argument("--data-dir", type=Path, help="risk, bottleneck: where Fashion-MNIST is looked for and stored")
    args = parser.parse_args(argv)
    if args.window < 1 or not args.scale > 0 or args.rounds < 1:
        raise UsageError("--window, --scale, --rounds", "values above 0", (args.window, args.scale, args.rounds))
    if args.clients < 1 or not args.load > 0 or not args.seconds > 0 or args.deadline < 0:
        given = (args.clients, args.load, args.seconds, args.deadline)
        raise UsageError("--clients, --load, --seconds, --deadline", "values above 0", given)
    rows = asyncio.run(_MEASURES[args.what](args))
    if args.out is not None:
        _write(args.out, args.what, argv, rows)
    return 0


def _write(folder: Path, what: str, argv: Sequence[str], rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    path = folder / f"{what}-{now:%Y-%m-%dT%H%M%SZ}.json"
    record = {
        "command": "mdi-exit benchmark " + " ".join(argv),
        "at": now.isoformat(timespec="seconds"),
        "version": __version__,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in ("aiomqtt", "paho-mqtt", "onnxruntime", "numpy", "msgspec")},
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    sys.stdout.write(f"raw rows: {path}\n")


async def _hop(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    async with embedded_broker() as broker:
        for number in range(args.rounds):
            for shape in _SHAPES:
                size = 4 * shape[0] * shape[1] * shape[2]
                count = max(int(_MESSAGES[size] * args.scale), 50)
                load = {"window": args.window, "messages": count}
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
                            await hop(
                                broker.url, Path(folder), shape, window=args.window, messages=count, results=results
                            )
                        )
                rows += [{"round": number, **asdict(row)} for row in found]
        sys.stdout.write(f"broker: {broker.kind}; window {args.window}; medians of {args.rounds} rounds\n")
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


async def _metrics(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A scrape with a hundred agents, the telemetry of three, and throughput with and without scrapes."""
    rows = await scrape_rows()
    async with embedded_broker() as broker:
        rows += await telemetry_rows(broker.url)
        load = {"window": args.window, "messages": max(int(_OVERHEAD_MESSAGES * args.scale), 50)}
        rows += await overhead_rows(broker.url, **load, rounds=args.rounds, scrape_period_s=_SCRAPE_PERIOD_S)
        sys.stdout.write(f"broker: {broker.kind}; window {args.window}; {args.rounds} rounds\n")
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


async def _agent(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Resident memory and time to readiness of agents of the shipped model, on a local broker."""
    del args
    rows = []
    async with embedded_broker() as broker:
        with tempfile.TemporaryDirectory(prefix="mdi-exit-agent-") as folder:
            source = await _program("source.cli", broker.url, Path(folder) / "source.log", "--input", "shipped")
            try:
                await _line(Path(folder) / "source.log", "no node holds")
                for span in ("0-8", "4-8", "0-3"):
                    rows.append(await _one_agent(broker.url, span, Path(folder)))
            finally:
                source.terminate()
                await source.wait()
    table = Table(title="edge-agent on ONNX Runtime")
    for column in ("layers", "ready after", "resident"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["layers"], f"{row['ready_s']:.2f} s", f"{row['resident_mib']:.1f} MiB")
    Console().print(table)
    return rows


async def _clients(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Fifty clients at twice the capacity, or as asked."""
    load = ClientLoad(
        clients=args.clients, load=args.load, seconds=args.seconds, deadline_s=args.deadline or None
    )  # fmt: skip
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


async def _placement(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Plans against exhaustive search and the even split; nothing runs."""
    rows = placement_rows(args.scale)
    show_placement(rows)
    return rows


async def _bottleneck(args: argparse.Namespace) -> list[dict[str, Any]]:
    """ResNet-50's first cut: bytes at full width, accuracy at a small one. Goes on from its checkpoints in ``--out``."""
    if importlib.util.find_spec("torch") is None:
        raise UsageError("benchmark bottleneck", "the extra 'torch' (pip install 'mdi-exit[torch]')", "none")
    from mdi_exit.benchmark.bottleneck_run import measure_bottleneck

    return measure_bottleneck(args.out, args.data_dir)


async def _program(module: str, url: str, log: Path, *flags: str) -> asyncio.subprocess.Process:
    with log.open("wb") as output:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, "--broker", url, *flags, stdout=output, stderr=output
        )


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
    agent = await _program("edge_agent.cli", url, log, "--layers", span, "--name", f"agent-{span}")
    try:
        await _line(log, "ready: ")
        ready_s = time.perf_counter() - begin
        resident = psutil.Process(agent.pid).memory_info().rss
    finally:
        agent.terminate()
        await agent.wait()
    return {"layers": span, "ready_s": ready_s, "resident_mib": resident / 2**20}


async def _risk(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The shipped model on all Fashion-MNIST test images; files of its own beside the rows."""
    return measure_risk(args.out, args.data_dir, args.scale)


_MEASURES: Final = {
    "hop": _hop,
    "agent": _agent,
    "metrics": _metrics,
    "clients": _clients,
    "placement": _placement,
    "risk": _risk,
    "bottleneck": _bottleneck,
}
