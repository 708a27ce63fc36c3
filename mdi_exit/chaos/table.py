"""``mdi-exit benchmark faults``: each fault with many seeds, and what became of the items."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from mdi_exit.chaos.faults import FAULTS, FaultKind
from mdi_exit.chaos.inject import why_not
from mdi_exit.chaos.rows import Row, RowFile
from mdi_exit.chaos.run import reference, run_fault
from mdi_exit.errors import MdiExitError
from mdi_exit.items import percentile
from mdi_exit.program import run_tidily

__all__ = ["main", "render", "run_all", "sound", "table_rows", "text_of"]

_COLUMNS: Final = (
    "fault", "runs", "admitted", "completed", "errors", "lost", "twice", "wrong", "retried", "recovery p50, s", "p99, s",
)  # fmt: skip
_SHORT: Final = ("fault", "runs", "admitted", "errors", "lost", "twice", "wrong", "p50, s", "p99, s")
_SUMS: Final = ("admitted", "completed", "errors", "lost", "duplicated", "wrong", "retried")


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns 1 if the promise was broken anywhere. Raises ``MdiExitError``."""
    parser = argparse.ArgumentParser(prog="mdi-exit benchmark faults", description=__doc__)
    parser.add_argument("--faults", default=",".join(FAULTS), metavar="NAMES", help="which (all)")
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="runs of each fault (%(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, metavar="S", help="length of a run (%(default)s)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="runs at once (%(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.jsonl",
        help="raw rows; a file that is there is gone on with; a page FILE.md beside",
    )
    args = parser.parse_args(argv)
    kinds = [FaultKind(name) for name in args.faults.split(",") if name in set(FAULTS)]
    if len(kinds) != len(args.faults.split(",")):
        parser.error(f"argument --faults: expected names of {', '.join(FAULTS)}, got {args.faults}")
    file = RowFile(args.out, "faults", argv)
    console = Console()
    run_tidily(
        run_all(kinds, range(1, args.seeds + 1), args.seconds, args.workers, file, lambda row: _say(console, row))
    )
    render(console, file.rows)
    file.write_page(text_of(file.rows, args.seconds))
    return 0 if all(sound(row) for row in file.rows) else 1


async def run_all(
    kinds: Sequence[FaultKind],
    seeds: Sequence[int],
    seconds: float,
    workers: int,
    file: RowFile,
    told: Callable[[Row], None] = lambda row: None,
) -> None:
    """Each fault with each seed that ``file`` has no row of yet; ``workers`` at once."""
    await asyncio.to_thread(reference)
    done = {(row["fault"], row["seed"]) for row in file.rows}
    waiting = [(kind, seed) for seed in seeds for kind in kinds if (str(kind), seed) not in done and not why_not(kind)]
    for kind in kinds:
        if (reason := why_not(kind)) is not None:
            sys.stderr.write(f"{kind}: left out: {reason}\n")

    async def work() -> None:
        while waiting:
            row = await _row(*waiting.pop(0), seconds)
            file.add(row)
            told(row)

    async with asyncio.TaskGroup() as group:
        for number in range(workers):
            group.create_task(work(), name=f"worker {number}")


async def _row(kind: FaultKind, seed: int, seconds: float) -> Row:
    with tempfile.TemporaryDirectory(prefix="mdi-exit-chaos-", ignore_cleanup_errors=True) as folder:
        try:
            return (await run_fault(kind, seed, Path(folder), seconds=seconds)).to_json()
        except MdiExitError as error:
            return {"fault": str(kind), "seed": seed, "failed": str(error)}


def sound(row: Row) -> bool:
    return "failed" not in row and not any(row[name] for name in ("lost", "duplicated", "wrong", "unknown"))


def _say(console: Console, row: Row) -> None:
    mark = "ok" if sound(row) else "BROKEN"
    said = row.get("failed") or f"{row['completed']} of {row['admitted']}, recovery {_seconds(row['recovery_s'])} s"
    console.print(f"{row['fault']:<13} seed {row['seed']:>3}: {mark}, {said}", highlight=False)


def table_rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One line for each fault, in the order of their definition."""
    found = []
    for kind in FAULTS:
        own = [row for row in rows if row["fault"] == kind]
        ended = [row for row in own if "failed" not in row]
        if not own:
            continue
        times = sorted(row["recovery_s"] for row in ended if row["recovery_s"] is not None)
        unseen = len(ended) - len(times)
        sums = [sum(row[name] for row in ended) for name in _SUMS]
        runs = f"{len(own)}" + (f" ({len(own) - len(ended)} without an end)" if len(own) > len(ended) else "")
        shown = [_seconds(percentile(times, share)) if times else "-" for share in (0.5, 0.99)]
        if unseen:
            shown[1] += f" ({unseen} not seen)"
        found.append((str(kind), runs, *(f"{count:,}" for count in sums), *shown))
    return found


def render(console: Console, rows: Sequence[Row]) -> None:
    """The columns that fit on a terminal."""
    table = Table(title="items, and seconds to recover (half, 99 % are faster)", box=None, title_justify="left")
    for number, column in enumerate(_SHORT):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for fault, runs, admitted, _, errors, lost, twice, wrong, _, *times in table_rows(rows):
        table.add_row(fault, runs, admitted, errors, lost, twice, wrong, *times)
    console.print(table)


def text_of(rows: Sequence[Row], seconds: float) -> str:
    """The page beside the raw rows."""
    lines = [
        "# Faults",
        "",
        f"Runs of {seconds:g} s at 25 items a second: a source without layers, three agents (layers 0-5, 3-8 and 0-8, each "
        "stretched to a Jetson Nano), Mosquitto, all through the fault proxy; one fault each. *wrong*: labels unlike "
        "those of one process without a network. *recovery*: until results come again at 80 % of the rate before, from the "
        "fault's start or, where all need what is away, its end.",
        "",
        "| " + " | ".join(_COLUMNS) + " | what happens |",
        "|---|" + "---:|" * (len(_COLUMNS) - 1) + "---|",
    ]
    for line in table_rows(rows):
        lore = FAULTS[FaultKind(line[0])]
        lines.append("| " + " | ".join(line) + f" | {lore.about}; recovery from its {lore.counts_from} |")
    reasons = sorted({reason for row in rows for reason in row.get("reasons", {})})
    if reasons:
        lines += ["", "Errors, by what the source gives as the reason: " + "; ".join(reasons) + "."]
    failed = [f"{row['fault']} {row['seed']}: {row['failed']}" for row in rows if "failed" in row]
    if failed:
        lines += ["", "Without an end:", "", *(f"* {one}" for one in failed)]
    return "\n".join(lines) + "\n"


def _seconds(value: Any) -> str:
    return "not seen" if value is None else f"{value:.2f}"
