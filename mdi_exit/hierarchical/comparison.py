"""``mdi-exit benchmark hierarchical``: training over a slow link, against the whole in the cloud and against split learning.

========  =========================================================================================================
part      what is measured
========  =========================================================================================================
time      so many steps of each scheme at each rate, one seed; an epoch is projected from the seconds of a step
accuracy  so many epochs of hierarchical training and of the baselines, unshaped link, each seed
outage    as accuracy, the link cut for 30 s in the middle, each seed
========  =========================================================================================================

The cut of each model is what the runtime model chose in the first run at each rate; accuracy and outage take the slowest
rate's. Rows are whole runs of real processes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from mdi_exit.chaos.rows import Row, RowFile
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.hierarchical.command import Run, measured_run
from mdi_exit.hierarchical.config import HierarchicalSettings, Outage, bit_rate

__all__ = ["main", "page_of"]

_PAPER: Final = {"small_vgg16": 29, "small_resnet18": 61}  # % less time than in the cloud, CIFAR-10 (arXiv 2303.02384)
_TIMED: Final = ("hierarchical", "cloud", "split", "edge")
_JUDGED: Final = ("hierarchical", "cloud")
_OUTAGE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Case:
    """One run. ``link``: as the user wrote it; empty: not shaped."""

    part: str
    model: str
    scheme: str
    link: str
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        return {"part": self.part, "model": self.model, "scheme": self.scheme, "link": self.link, "seed": self.seed}


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status. Raises ``MdiExitError``."""
    args = _parsed(argv)
    try:
        for link in args.links.split(","):
            bit_rate(link)
    except UsageError as error:
        raise UsageError("--links", error.expected, error.got) from None
    file = RowFile(args.out, "hierarchical", argv)
    waiting = [case for case in _cases(args) if not _is_done(case, file.rows)]
    for case in waiting[: args.most]:
        row = _measured(case, args, file.rows)
        file.add(row)
        sys.stdout.write(f"{case.key}: {row.get('failed') or round(row['seconds'], 1)}\n")
        sys.stdout.flush()
    text = page_of(file.rows)
    sys.stdout.write(text)
    file.write_page(text)
    return 1 if any("failed" in row for row in file.rows) else 0


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mdi-exit benchmark hierarchical", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", default=",".join(_PAPER), metavar="NAME,...", help="which (%(default)s)")
    parser.add_argument("--links", default="1Mbit,2Mbit", metavar="RATE,...", help="rates, slowest first (%(default)s)")
    parser.add_argument("--parts", default="time,accuracy,outage", metavar="NAME,...", help="which (%(default)s)")
    parser.add_argument("--width", type=float, default=0.25, metavar="W", help="of all channels (%(default)s)")
    parser.add_argument(
        "--data", default="fashion-mnist", metavar="SPEC", help="as in train-hierarchical (%(default)s)"
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--images", type=int, default=10_000, metavar="N", help="for training (%(default)s)")
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="of the part time (%(default)s)")
    parser.add_argument("--epochs", type=int, default=3, metavar="N", help="of accuracy and outage (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of accuracy and outage (%(default)s)")
    parser.add_argument("--slow-edge", type=float, default=1.0, metavar="X", help="emulated, times (%(default)s)")
    parser.add_argument("--outage-at", type=float, default=20.0, metavar="S", help="after the first step (%(default)s)")
    parser.add_argument(
        "--most", type=int, default=None, metavar="N", help="runs this time (all); the rest another time"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="raw rows; a file that is there is gone on with")
    return parser.parse_args(argv)


def _cases(args: argparse.Namespace) -> Iterator[_Case]:
    parts, links = args.parts.split(","), args.links.split(",")
    for model in args.models.split(","):
        if "time" in parts:
            for link in links:
                for scheme in _TIMED if link == links[0] else _TIMED[:-1]:  # no link: once
                    yield _Case("time", model, scheme, "" if scheme == "edge" else link, 0)
        for seed in range(args.seeds):
            if "accuracy" in parts:
                for scheme in _JUDGED:
                    yield _Case("accuracy", model, scheme, "", seed)
            if "outage" in parts:
                yield _Case("outage", model, "hierarchical", "", seed)


def _is_done(case: _Case, rows: Sequence[Row]) -> bool:
    return any(all(row.get(name) == value for name, value in case.key.items()) and "failed" not in row for row in rows)


def _cut(case: _Case, rows: Sequence[Row]) -> int | None:
    """What the runtime model chose for this model: at this rate, else at the first one measured."""
    chosen = [row for row in rows if row["model"] == case.model and row.get("cut") is not None]
    here = [row for row in chosen if row["link"] == case.link and row["part"] == "time"]
    return int((here or chosen)[0]["cut"]) if here or (chosen and case.part != "time") else None


def _measured(case: _Case, args: argparse.Namespace, rows: Sequence[Row]) -> Row:
    timed = case.part == "time"
    cut = _cut(case, rows)
    if case.scheme == "edge":
        cut = next((int(row["cut"]) for row in rows if row["model"] == case.model and row.get("cut") is not None), None)
    with tempfile.TemporaryDirectory(prefix="mdi-exit-hierarchical-") as folder:
        settings = HierarchicalSettings(
            out=Path(folder) / "model", name="all", schemes=(case.scheme,), data=args.data, model=case.model,
            width=args.width, cut=cut, link=bit_rate(case.link) if case.link else None, limit=args.images,
            steps=args.steps if timed else None, epochs=args.epochs, seed=case.seed, slow_edge=args.slow_edge,
            outage=Outage(args.outage_at, _OUTAGE_S) if case.part == "outage" else None,
            data_dir=args.data_dir.absolute(),
        )  # fmt: skip
        try:
            run: Run = asyncio.run(measured_run(settings, Console(stderr=True)))
        except MdiExitError as error:
            return {**case.key, "failed": str(error)}
    return {**case.key, "width": args.width, "images": args.images, **run.plain()}


def page_of(rows: Sequence[Row]) -> str:
    """The tables beside the raw rows."""
    ended = [row for row in rows if "failed" not in row]
    return "\n".join(["# Hierarchical training", "", *_times(ended), "", *_accuracies(ended)]) + "\n"


def _times(rows: Sequence[Row]) -> Iterator[str]:
    timed = [row for row in rows if row["part"] == "time"]
    yield "| model | link | scheme | cut | steps | seconds | s a step | s an epoch | MB sent | less than cloud | paper |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for row in timed:
        edge = row["edges"][0]
        steps = edge["steps"]
        an_epoch = row["images"] // 50 if "steps_an_epoch" not in edge else edge["steps_an_epoch"]
        cloud = next((o["step_s"] for o in timed if _same(o, row) and o["scheme"] == "cloud"), None)
        less = (
            f"{100 * (1 - row['step_s'] / cloud):.0f} %" if cloud and row["scheme"] in ("hierarchical", "split") else ""
        )
        paper = f"{_PAPER[row['model']]} %" if row["scheme"] == "hierarchical" and row["model"] in _PAPER else ""
        sent = edge.get("bytes_sent", 0) / 1e6
        yield (
            f"| {row['model']} | {row['link'] or 'none'} | {row['scheme']} | {row['cut']} | {steps} | {row['seconds']:.1f} "
            f"| {row['step_s']:.3f} | {row['step_s'] * an_epoch:.0f} | {sent:.2f} | {less} | {paper} |"
        )


def _same(one: Row, other: Row) -> bool:
    return all(one[name] == other[name] for name in ("model", "link"))


def _accuracies(rows: Sequence[Row]) -> Iterator[str]:
    yield "| model | part | scheme | cut | seeds | exit % | last exit % (each seed) | batches without a link |"
    yield "|---|---|---|---:|---:|---:|---|---:|"
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["part"] != "time":
            groups.setdefault((row["model"], row["part"], row["scheme"]), []).append(row)
    for (model, part, scheme), group in groups.items():
        first = statistics.mean(100 * row["accuracy_by_exit"][0] for row in group)
        last = [100 * row["accuracy_by_exit"][-1] for row in group]
        skipped = sum(edge.get("batches_skipped", 0) for row in group for edge in row["edges"])
        each = ", ".join(f"{share:.2f}" for share in last)
        yield (
            f"| {model} | {part} | {scheme} | {group[0]['cut']} | {len(group)} | {first:.2f} "
            f"| {statistics.mean(last):.2f} ({each}) | {skipped} |"
        )
