"""``mdi-exit benchmark kills``: a source with a journal dies at random moments; each item is to have one line of results."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

from mdi_exit.chaos.rows import Row, RowFile
from mdi_exit.chaos.run import reference
from mdi_exit.chaos.scene import SOURCE, Scene, Setting
from mdi_exit.chaos.verdict import judged
from mdi_exit.errors import MdiExitError
from mdi_exit.program import run_tidily

__all__ = ["killed_run", "main", "text_of"]

_RATE_PER_S: Final = 25.0
_KILLS: Final = 5  # in each run
_APART_S: Final = (0.2, 4.0)  # from a start to the next death: also before the first item
_PATIENCE_S: Final = 120.0


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns 1 if an item was lost or has two lines. Raises ``MdiExitError``."""
    parser = argparse.ArgumentParser(prog="mdi-exit benchmark kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, metavar="N", help=f"in runs of {_KILLS} (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="runs at once (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="raw rows; a file that is there is gone on with")
    args = parser.parse_args(argv)
    file = RowFile(args.out, "kills", argv)
    run_tidily(_all(-(-args.kills // _KILLS), args.workers, file))
    text = text_of(file.rows)
    sys.stdout.write(text)
    file.write_page(text)
    return 0 if all(_sound(row) for row in file.rows) else 1


async def _all(runs: int, workers: int, file: RowFile) -> None:
    await asyncio.to_thread(reference)
    done = {row["seed"] for row in file.rows}
    waiting = [seed for seed in range(1, runs + 1) if seed not in done]

    async def work() -> None:
        while waiting:
            seed = waiting.pop(0)
            with tempfile.TemporaryDirectory(prefix="mdi-exit-kills-") as folder:
                try:
                    row = await killed_run(seed, Path(folder))
                except MdiExitError as error:
                    row = {"seed": seed, "failed": str(error)}
            file.add(row)
            sys.stdout.write(f"run {seed}: {row}\n")
            sys.stdout.flush()

    async with asyncio.TaskGroup() as group:
        for number in range(workers):
            group.create_task(work(), name=f"worker {number}")


async def killed_run(seed: int, folder: Path, *, kills: int = _KILLS, items: int = 250) -> Row:
    """A run of ``items`` through which the source dies ``kills`` times. Raises ``MdiExitError``."""
    known = await asyncio.to_thread(reference)
    rng = Random(f"kills {seed}")
    setting = Setting(threshold=known.threshold, rate_per_s=_RATE_PER_S, items=items, seed=seed, journal=True)
    moments: list[float] = []
    async with Scene(setting, folder) as scene:
        await scene.begin()
        for number in range(kills):
            apart_s = rng.uniform(*_APART_S) if number else rng.uniform(0.0, _APART_S[1])
            await asyncio.sleep(apart_s)
            if scene.ended.is_set():
                break
            moments.append(round(apart_s, 3))
            await scene.kill(SOURCE)
            await scene.revive(SOURCE)
        await scene.finish(_PATIENCE_S)
        summary, rows = scene.summary(), scene.rows()
    verdict = judged(items, rows, known.labels)
    return {
        "seed": seed,
        "items": items,
        "kills": len(moments),
        "after_s": moments,
        "lines": len(rows),
        **verdict.to_json(),
        "summary_admitted": summary["admitted"],
        "discarded": summary["duplicates"],
    }


def _sound(row: Row) -> bool:
    return "failed" not in row and not any(row[name] for name in ("lost", "duplicated", "wrong", "unknown"))


def text_of(rows: Sequence[Row]) -> str:
    """The page beside the raw rows."""
    ended = [row for row in rows if "failed" not in row]
    names = ("kills", "items", "lines", "errors", "lost", "duplicated", "wrong", "unknown")
    sums = {name: sum(row[name] for row in ended) for name in names}
    lines = [
        "# The source dies",
        "",
        f"{len(rows)} runs, {len(rows) - len(ended)} of them without an end; the source with a journal is killed (SIGKILL) "
        "at random moments, starting included, and started again with the same command line.",
        "",
        "| " + " | ".join(names) + " |",
        "|" + "---:|" * len(names),
        "| " + " | ".join(f"{sums[name]:,}" for name in names) + " |",
    ]
    return "\n".join([*lines, *(f"\n* run {row['seed']}: {row['failed']}" for row in rows if "failed" in row)]) + "\n"
