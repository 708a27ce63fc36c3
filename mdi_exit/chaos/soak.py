"""``mdi-exit benchmark soak``: long runs in trouble, with the memory of every process watched.

faults: random faults at 80 % of the capacity; stalled: an agent stands still for most of the run; slow-broker: the broker
gives and takes 60 kB/s on each connection; overload: ten times the capacity is offered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from mdi_exit.chaos.faults import FAULTS, FaultKind, planned
from mdi_exit.chaos.inject import inflicted, why_not
from mdi_exit.chaos.packets import Trouble
from mdi_exit.chaos.rows import Row, RowFile
from mdi_exit.chaos.run import reference
from mdi_exit.chaos.scene import AGENTS, Scene, Setting
from mdi_exit.chaos.verdict import judged, rate_between
from mdi_exit.chaos.watch import Sample, growth, watched
from mdi_exit.errors import MdiExitError
from mdi_exit.program import run_tidily

__all__ = ["VARIANTS", "main", "soaked", "text_of"]

_LOAD: Final = {"faults": 0.8, "stalled": 0.5, "slow-broker": 0.8, "overload": 10.0}
VARIANTS: Final = tuple(_LOAD)
_CAPACITY_S: Final = 12.0
_EVERY_S: Final = 10.0
_SAMPLE_S: Final = 2.0
_WARM_S: Final = 60.0
_STALLED: Final = ("whole", 0.15, 0.85)
_SLOW_BYTES_PER_S: Final = 60_000.0
_OVERTIME_S: Final = 180.0
# A clock that jumps spoils the emulated devices, a full disk needs one of its own, source-kill is a benchmark of its own.
_SPARED: Final = (FaultKind.CLOCK, FaultKind.DISK_FULL, FaultKind.SOURCE_KILL)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns 1 if an item was lost, repeated or wrong. Raises ``MdiExitError``."""
    parser = argparse.ArgumentParser(prog="mdi-exit benchmark soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, metavar="M", help="of the variant faults (%(default)s)")
    parser.add_argument("--flow-minutes", type=float, default=5.0, metavar="M", help="of each other (%(default)s)")
    parser.add_argument("--variants", default=",".join(VARIANTS), metavar="NAMES", help="which (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the faults (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="raw rows; variants that are there are kept")
    args = parser.parse_args(argv)
    variants = args.variants.split(",")
    if wrong := [name for name in variants if name not in VARIANTS]:
        parser.error(f"argument --variants: expected names of {', '.join(VARIANTS)}, got {wrong[0]}")
    file = RowFile(args.out, "soak", argv)
    run_tidily(_all(variants, args.minutes * 60, args.flow_minutes * 60, args.seed, file))
    totals = [row for row in file.rows if row["row"] == "total"]
    text = text_of(totals)
    sys.stdout.write(text)
    file.write_page(text)
    return 0 if not any(row[name] for row in totals for name in ("lost", "duplicated", "wrong", "unknown")) else 1


async def _all(variants: Sequence[str], faults_s: float, others_s: float, seed: int, file: RowFile) -> None:
    done = {row["variant"] for row in file.rows if row["row"] == "total"}
    waiting = [variant for variant in variants if variant not in done]
    capacity = await _capacity() if waiting else 0.0
    for variant in waiting:
        with tempfile.TemporaryDirectory(prefix="mdi-exit-soak-") as folder:
            seconds = faults_s if variant == "faults" else others_s
            total, samples = await soaked(variant, seconds, seed, capacity, Path(folder))
        for sample in samples:
            file.add({"row": "sample", "variant": variant, **asdict(sample)})
        file.add(total)
        sys.stdout.write(f"{variant}: {total['completed']} of {total['admitted']} items, lost {total['lost']}\n")
        sys.stdout.flush()


async def _capacity() -> float:
    """Items a second that the agents can do together."""
    known = await asyncio.to_thread(reference)
    with tempfile.TemporaryDirectory(prefix="mdi-exit-soak-") as folder:
        setting = Setting(threshold=known.threshold, rate_per_s=None, duration_s=_CAPACITY_S)
        async with Scene(setting, Path(folder)) as scene:
            await scene.begin()
            await scene.finish(_CAPACITY_S + _OVERTIME_S)
            return rate_between(scene.progress, scene.begun_at + _CAPACITY_S / 3, scene.begun_at + _CAPACITY_S)


async def soaked(
    variant: str, seconds: float, seed: int, capacity: float, folder: Path, *, every_s: float = _SAMPLE_S
) -> tuple[Row, list[Sample]]:
    """One variant; the totals, and a sample of each process every ``every_s``. Raises ``MdiExitError``."""
    known = await asyncio.to_thread(reference)
    rate = max(_LOAD[variant] * capacity, 1.0)
    setting = Setting(threshold=known.threshold, rate_per_s=rate, duration_s=seconds, seed=seed, metrics=True)
    async with Scene(setting, folder) as scene:
        await scene.begin()
        async with watched(scene, every_s) as samples, _trouble(scene, variant, seconds, seed) as done:
            await scene.finish(seconds + _OVERTIME_S)
        summary, rows = scene.summary(), scene.rows()
    total: Row = {
        "row": "total",
        "variant": variant,
        "seconds": seconds,
        "capacity_per_s": round(capacity, 2),
        "offered_per_s": round(rate, 2),
        **judged(summary["admitted"], rows, known.labels).to_json(),
        "refused": summary["refused"],
        "retried": summary["retried"],
        "done": done,
        "restarts": scene.restarts,
        "processes": growth(samples, min(_WARM_S, seconds / 4)),
    }
    return total, samples


@contextlib.asynccontextmanager
async def _trouble(scene: Scene, variant: str, seconds: float, seed: int) -> AsyncIterator[list[str]]:
    """What the variant does to the scene, beside the context; a list of what was done."""
    done: list[str] = []
    task: asyncio.Task[None] | None = None
    match variant:
        case "faults":
            task = asyncio.create_task(_random_faults(scene, seconds, seed, done), name="faults")
        case "stalled":
            task = asyncio.create_task(_stall(scene, seconds, done), name="stall")
        case "slow-broker":
            scene.proxy.trouble("*", Trouble(bytes_per_s=_SLOW_BYTES_PER_S))
            done.append(f"{_SLOW_BYTES_PER_S:g} bytes/s on each connection, each way")
        case "overload":
            done.append("no faults")
        case _:
            raise MdiExitError(f"soak: no variant {variant}")
    try:
        yield done
    finally:
        if task is not None:
            failed = task.done() and not task.cancelled() and task.exception()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if failed:
                raise failed


async def _random_faults(scene: Scene, seconds: float, seed: int, done: list[str]) -> None:
    """Every ten seconds or so; the last leaves time to recover."""
    loop = asyncio.get_running_loop()
    kinds = [kind for kind in FAULTS if kind not in _SPARED and not why_not(kind)]
    for fault in planned(seed, kinds, list(AGENTS), seconds - _EVERY_S, _EVERY_S):
        await asyncio.sleep(max(scene.begun_at + fault.at_s - loop.time(), 0.0))
        done.append(f"{fault.at_s:.1f} s: {fault}")
        async with inflicted(scene, fault):
            await asyncio.sleep(fault.lasts_s)


async def _stall(scene: Scene, seconds: float, done: list[str]) -> None:
    name, begin, end = _STALLED
    await asyncio.sleep(begin * seconds)
    done.append(f"{name} stands still for {(end - begin) * seconds:g} s")
    scene.signal(name, signal.SIGSTOP)
    await asyncio.sleep((end - begin) * seconds)
    scene.signal(name, signal.SIGCONT)


def text_of(totals: Sequence[Row]) -> str:
    """The page beside the raw rows."""
    lines = [
        "# Soak",
        "",
        "Source, three agents (each stretched to a Jetson Nano) and Mosquitto, all through the fault proxy. Memory is "
        "resident (MiB), its slope in MiB a minute with the 95 % interval, after a minute of each life; counts are first and "
        "last of the longest life.",
        "",
        "| variant | minutes | offered/s | capacity/s | admitted | completed | errors | refused | lost | twice | wrong |",
        "|---|" + "---:|" * 10,
    ]
    for row in totals:
        counts = [row[name] for name in ("admitted", "completed", "errors", "refused", "lost", "duplicated", "wrong")]
        head = f"| {row['variant']} | {row['seconds'] / 60:g} | {row['offered_per_s']:g} | {row['capacity_per_s']:g} | "
        lines.append(head + " | ".join(f"{count:,}" for count in counts) + " |")
    lines += [
        "",
        "| variant | program | lives | memory first | last | most | slope | interval | descriptors | threads | coroutines |",
        "|---|---|" + "---:|" * 9,
    ]
    for row in totals:
        for name, found in row["processes"].items():
            slope = found["slope_mib_per_min"]
            shown = ("-", "-") if slope is None else (f"{slope[0]:+.3f}", f"{slope[1]:+.3f} to {slope[2]:+.3f}")
            first, last, _, most = found["memory_mib"]
            ends = [_ends(found[what]) for what in ("descriptors", "threads", "tasks")]
            cells = (
                row["variant"],
                name,
                str(found["lives"]),
                f"{first:.1f}",
                f"{last:.1f}",
                f"{most:.1f}",
                *shown,
                *ends,
            )
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"* {row['variant']}: {len(row['done'])} done: {_few(row['done'])}" for row in totals)]
    return "\n".join(lines) + "\n"


def _ends(found: Sequence[float] | None) -> str:
    return "-" if found is None else f"{found[0]:g} to {found[1]:g}"


def _few(done: Sequence[str]) -> str:
    return "; ".join(done[:3]) + ("; ..." if len(done) > 3 else "")
