"""``mdi-exit benchmark tls``: the same hop in the clear, by TLS, and by TLS with certificates on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from broker.embedded import dies_with_parent, find_mosquitto, free_port
from mdi_exit.benchmark.hop import PLAIN, Door, hop
from mdi_exit.errors import StartError
from mdi_exit.secure.store import Record, Store
from mdi_exit.transport.tls import tls_context

__all__ = ["measure_tls"]

_SHAPES: Final = ((1, 16, 16), (1, 64, 64), (1, 128, 256))
_MESSAGES: Final = {1024: 6000, 16384: 6000, 131072: 2000}
_START_S: Final = 10.0

# As mosquitto_config has it for one run, with three listeners. The last is as in production, access list and all.
_CONFIG: Final = """\
per_listener_settings true
set_tcp_nodelay true
persistence false
max_inflight_messages 1000
max_queued_messages 10000
log_dest stderr
log_type error
listener {plain} 127.0.0.1
allow_anonymous true
listener {tls} 127.0.0.1
allow_anonymous true
certfile {at}/broker/broker.crt
keyfile {at}/broker/broker.key
listener {mutual} 127.0.0.1
allow_anonymous false
acl_file {at}/broker/acl
cafile {at}/broker/ca.crt
certfile {at}/broker/broker.crt
keyfile {at}/broker/broker.key
crlfile {at}/broker/revoked.pem
require_certificate true
use_identity_as_username true
"""


@dataclass(frozen=True, slots=True)
class _Way:
    """One way in: the broker's URL there, and how source and agent show themselves."""

    name: str
    url: str
    door: Door


async def measure_tls(window: int, scale: float, rounds: int) -> list[dict[str, Any]]:
    """Rows of all rounds, the ways in turn; ``scale``: of the messages. Raises ``StartError`` without Mosquitto."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mdi-exit-tls-") as folder:
        async with _ways(Path(folder)) as ways:
            for number in range(rounds):
                for shape in _SHAPES:
                    size = 4 * shape[0] * shape[1] * shape[2]
                    count = max(int(_MESSAGES[size] * scale), 50)
                    for way in ways[number % 3 :] + ways[: number % 3]:  # none is always the first
                        artifact = Path(folder) / "artifact"
                        row = await hop(way.url, artifact, shape, window=window, messages=count, door=way.door)
                        rows.append({"round": number, "way": way.name, **asdict(row)})
    sys.stdout.write(f"window {window}; medians of {rounds} rounds\n")
    _show(rows)
    return rows


@asynccontextmanager
async def _ways(folder: Path) -> AsyncIterator[list[_Way]]:
    """A broker with three listeners, for as long as the context lasts."""
    ports = {name: free_port() for name in ("plain", "tls", "mutual")}
    record = Record(
        deployment="benchmark", hosts=("127.0.0.1",), port=ports["mutual"], password_port=0, days=1,
        install=str(folder), broker_install=str(folder),
    )  # fmt: skip
    store = Store.make(folder / "made", record, {"agent": "agent", "source": "source"}, datetime.now(UTC))
    config = folder / "mosquitto.conf"
    text = _CONFIG.format(at=store.folder, **ports)
    config.write_text(text + ("user root\n" if os.geteuid() == 0 else ""))
    ca, agent, source = store.folder / "authority" / "ca.crt", store.bundle("agent"), store.bundle("source")
    trusts = ("--ca", str(ca))
    shows = (*trusts, "--cert", str(agent / "node.crt"), "--key", str(agent / "node.key"))
    mutual = Door(tls_context(ca, source / "node.crt", source / "node.key"), shows)
    async with _broker(config, ports["mutual"]):
        yield [
            _Way("plain", f"mqtt://127.0.0.1:{ports['plain']}", PLAIN),
            _Way("TLS", f"mqtts://127.0.0.1:{ports['tls']}", Door(tls_context(ca, None, None), trusts)),
            _Way("mutual TLS", f"mqtts://127.0.0.1:{ports['mutual']}", mutual),
        ]


@asynccontextmanager
async def _broker(config: Path, port: int) -> AsyncIterator[None]:
    binary = find_mosquitto()
    if binary is None:
        raise StartError("benchmark tls: expected mosquitto on PATH, got none (apt install mosquitto)")
    process = await asyncio.create_subprocess_exec(
        binary, "-c", str(config), stdin=asyncio.subprocess.DEVNULL, preexec_fn=dies_with_parent()
    )
    try:
        deadline = asyncio.get_running_loop().time() + _START_S
        while not await _listens(port):
            if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                raise StartError(f"benchmark tls: expected mosquitto to listen on port {port}, got no answer")
            await asyncio.sleep(0.02)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _median(rows: list[dict[str, Any]], way: str, size: int, field: str) -> float:
    values = sorted(row[field] for row in rows if (row["way"], row["payload_bytes"]) == (way, size))
    return float(values[len(values) // 2])


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="source → agent → source")
    for column in ("payload", "way", "items/s", "of plain", "round trip p50", "times plain", "p99"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for size, way in dict.fromkeys((row["payload_bytes"], row["way"]) for row in rows if row["round"] == 0):
        rate, p50 = (_median(rows, way, size, field) for field in ("throughput_per_s", "round_trip_p50_s"))
        plain_rate, plain_p50 = (
            _median(rows, "plain", size, name) for name in ("throughput_per_s", "round_trip_p50_s")
        )
        table.add_row(
            f"{size // 1024} KB", way, f"{rate:,.0f}", f"{rate / plain_rate:.2f}", f"{1000 * p50:.2f} ms",
            f"{p50 / plain_p50:.2f}", f"{1000 * _median(rows, way, size, 'round_trip_p99_s'):.2f} ms",
        )  # fmt: skip
    Console(width=110).print(table)
