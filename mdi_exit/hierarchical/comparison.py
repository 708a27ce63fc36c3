"""``mdi-exit benchmark hierarchical``: training over a slow link, against the whole in the cloud and against split learning.

========  =========================================================================================================
part      what is measured
========  =========================================================================================================
time      so many steps of each scheme at each rate, one seed; an epoch is projected from the seconds of a step
cuts      some steps with each cut of one model at one rate: is the one that the runtime model chose the fastest?
accuracy  so many epochs of hierarchical training and of training in the cloud (``--judged``), unshaped link, each seed
outage    as accuracy, the link cut for 30 s in the middle, each seed; the edge made slow (emulated) where all would
          else be over too soon after it
========  =========================================================================================================

The cut of each model is what the runtime model chose in the first run at each rate; accuracy and outage take the first
rate's. Rows are whole runs of real processes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from mdi_exit.chaos.rows import Row, RowFile
from mdi_exit.errors import MdiExitError, StoppedError, UsageError
from mdi_exit.hierarchical.command import Run, check_model, measured_run
from mdi_exit.hierarchical.comparison_page import page_of
from mdi_exit.hierarchical.config import HierarchicalSettings, Outage, bit_rate
from mdi_exit.hierarchical.keeping import Keeping
from mdi_exit.hierarchical.parts import CloudPart, EdgePart
from mdi_exit.hierarchical.study import Study
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.backbones import BACKBONES
from mdi_exit.outcomes import outcomes
from mdi_exit.program import run_tidily
from mdi_exit.values import positive_int

__all__ = ["main"]

_MODELS: Final = "small_vgg16,small_resnet18,resnet18"
_SCHEMES: Final = "hierarchical,cloud,split,edge"
_PARTS: Final = ("time", "cuts", "accuracy", "outage")
_JUDGED: Final = ("hierarchical", "cloud")
_OUTAGE_S: Final = 30.0
_OUTAGES: Final = 4  # so many outages long are an edge's steps
_SLOW_EDGE: Final = 3.0
_LATEST: Final = 0.85
_PROOF_ITEMS: Final = 1000


@dataclass(frozen=True, slots=True)
class _Case:
    """One run. ``link``: as the user wrote it; empty: not shaped. ``cut`` None: the chosen one."""

    part: str
    model: str
    scheme: str
    link: str
    seed: int
    slow_edge: float
    cut: int | None = None

    @property
    def key(self) -> dict[str, Any]:
        key = {
            "part": self.part, "model": self.model, "scheme": self.scheme, "link": self.link, "seed": self.seed,
            "emulated_slow_edge": self.slow_edge,
        }  # fmt: skip
        return key | ({"asked_cut": "auto" if self.cut is None else self.cut} if self.part == "cuts" else {})


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status. Raises ``MdiExitError``."""
    args = _parsed(argv)
    file = RowFile(args.out, "hierarchical", argv)
    tried: list[_Case] = []
    checked: set[str] = set()
    while args.most is None or len(tried) < args.most:
        waiting = (case for case in _cases(args, file.rows) if case not in tried and not _is_there(case.key, file.rows))
        if (case := next(waiting, None)) is None:
            break
        tried.append(case)
        if case.model not in checked:
            check_model(_settings(case, args, file.rows, Path("model")))
            checked.add(case.model)
        row = _measured(case, args, file.rows)
        file.add(row)
        sys.stdout.write(f"{case.key}: {row.get('failed') or round(row['seconds'], 1)}\n")
        sys.stdout.flush()
    text = page_of(file.rows)
    sys.stdout.write(text)
    file.write_page(text)
    failed = [{name: value for name, value in row.items() if name != "failed"} for row in file.rows if "failed" in row]
    return 0 if all(_is_there(key, file.rows) for key in failed) else 1


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mdi-exit benchmark hierarchical", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", default=_MODELS, metavar="NAME,...", help="which (%(default)s)")
    parser.add_argument(
        "--links", default="1Mbit,2Mbit", metavar="RATE,...", help="rates of the part time (%(default)s)"
    )
    parser.add_argument("--parts", default=",".join(_PARTS), metavar="NAME,...", help="which (%(default)s)")
    parser.add_argument("--schemes", default=_SCHEMES, metavar="NAME,...", help="of the part time (%(default)s)")
    parser.add_argument(
        "--width",
        type=float,
        default=0.25,
        metavar="W",
        help="of the channels of this package's own models (%(default)s)",
    )
    parser.add_argument("--data", default="composite", metavar="SPEC", help="as in train-hierarchical (%(default)s)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--images", type=int, default=10_000, metavar="N", help="for training (%(default)s)")
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="of the part time (%(default)s)")
    parser.add_argument("--cuts-link", default="4Mbit", metavar="RATE", help="of the part cuts (%(default)s)")
    parser.add_argument("--cuts-steps", type=int, default=40, metavar="N", help="of the part cuts (%(default)s)")
    parser.add_argument("--epochs", type=int, default=6, metavar="N", help="of accuracy and outage (%(default)s)")
    parser.add_argument(
        "--judged", default=",".join(_JUDGED), metavar="NAME,...", help="schemes of the part accuracy (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of accuracy and outage (%(default)s)")
    parser.add_argument("--slow-edge", type=float, default=1.0, metavar="X", help="emulated, times (%(default)s)")
    parser.add_argument(
        "--outage-at", type=float, default=0.25, metavar="SHARE", help="of the steps, when the link goes (%(default)s)"
    )
    parser.add_argument(
        "--most", type=int, default=None, metavar="N", help="runs this time (all); the rest another time"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="raw rows; a file that is there is gone on with")
    args = parser.parse_args(argv)
    for name in ("links", "cuts_link"):
        try:
            for link in getattr(args, name).split(","):
                bit_rate(link)
        except UsageError as error:
            raise UsageError(f"--{name.replace('_', '-')}", error.expected, error.got) from None
    for name, known in (("parts", _PARTS), ("schemes", _SCHEMES.split(",")), ("judged", _SCHEMES.split(","))):
        if wrong := [one for one in getattr(args, name).split(",") if one not in known]:
            raise UsageError(f"--{name}", f"of {', '.join(known)}", wrong[0])
    for name in ("images", "steps", "cuts_steps", "epochs", "seeds", "most"):
        try:
            value = getattr(args, name)
            positive_int(str(1 if value is None else value))
        except UsageError as error:
            raise UsageError(f"--{name.replace('_', '-')}", error.expected, error.got) from None
    return args


def _cases(args: argparse.Namespace, rows: Sequence[Row]) -> Iterator[_Case]:
    """In order; those of the part cuts are known once its first row, which says how many there are, is there."""
    parts, links, models, slow = args.parts.split(","), args.links.split(","), args.models.split(","), args.slow_edge
    for model in models if "time" in parts else ():
        for link in links:
            for scheme in args.schemes.split(","):
                if scheme != "edge":
                    yield _Case("time", model, scheme, link, 0, slow)
                elif link == links[0]:  # no link: once
                    yield _Case("time", model, scheme, "", 0, slow)
    if "cuts" in parts:
        asked = _Case("cuts", models[0], "hierarchical", args.cuts_link, 0, slow)
        yield asked
        for row in rows:
            if all(row.get(name) == value for name, value in asked.key.items()) and "failed" not in row:
                yield from (replace(asked, cut=cut) for cut in range(len(row["cloud"]["expected"])))
    for model in models:
        for seed in range(args.seeds):
            if "accuracy" in parts:
                for scheme in args.judged.split(","):
                    yield _Case("accuracy", model, scheme, "", seed, slow)
            if "outage" in parts:
                yield _Case("outage", model, "hierarchical", "", seed, slow)


def _is_there(key: Row, rows: Sequence[Row]) -> bool:
    return any(all(row.get(name) == value for name, value in key.items()) and "failed" not in row for row in rows)


def _cut(case: _Case, rows: Sequence[Row]) -> int | None:
    """What the runtime model chose for this model: at this rate, else at the first one measured."""
    if case.part == "cuts":
        return case.cut
    chosen = [row for row in rows if row["part"] == "time" and row["model"] == case.model and "failed" not in row]
    if case.part == "time" and case.link:
        wanted = (case.link, case.slow_edge)
        chosen = [row for row in chosen if (row["link"], row["emulated_slow_edge"]) == wanted]
    return int(chosen[0]["cut"]) if chosen else None


def _slow_edge(case: _Case, rows: Sequence[Row]) -> float:
    """As asked; with an outage, that the steps alone take several times as long as it."""
    if case.part != "outage":
        return case.slow_edge
    uncut = [row for row in rows if row["part"] == "accuracy" and row["model"] == case.model and "failed" not in row]
    busy_s = [row["edges"][0]["busy_s"] for row in uncut if row["scheme"] == "hierarchical"]
    return max(case.slow_edge, round(_OUTAGES * _OUTAGE_S / min(busy_s), 1) if busy_s else _SLOW_EDGE)


def _settings(case: _Case, args: argparse.Namespace, rows: Sequence[Row], out: Path) -> HierarchicalSettings:
    return HierarchicalSettings(
        out=out, name="all", schemes=(case.scheme,), data=args.data, model=case.model, width=_width(case, args),
        cut=_cut(case, rows), link=bit_rate(case.link) if case.link else None, limit=args.images,
        steps={"time": args.steps, "cuts": args.cuts_steps}.get(case.part), epochs=args.epochs, seed=case.seed,
        slow_edge=_slow_edge(case, rows), data_dir=args.data_dir.absolute(),
        outage=Outage(0.0, _OUTAGE_S, args.outage_at) if case.part == "outage" else None,
    )  # fmt: skip


def _width(case: _Case, args: argparse.Namespace) -> float | None:
    return args.width if case.model in BACKBONES else None


def _measured(case: _Case, args: argparse.Namespace, rows: Sequence[Row]) -> Row:
    with tempfile.TemporaryDirectory(prefix="mdi-exit-hierarchical-") as folder:
        settings = _settings(case, args, rows, Path(folder) / "model")
        try:
            run: Run = run_tidily(measured_run(settings, Console(stderr=True)))
            proof = _proof(settings, run) if case.part == "outage" else {}
        except StoppedError:
            raise
        except MdiExitError as error:
            return {**case.key, "failed": str(error)}
    return {
        **case.key, "width": settings.width, "images": args.images, "data": args.data, **run.plain(), **proof,
    }  # fmt: skip


def _proof(settings: HierarchicalSettings, run: Run) -> dict[str, Any]:
    """That the link was away in the middle, that both checkpoints can be gone on from, and that the artifact runs.

    Raises ``MdiExitError`` if not.
    """
    (figures,), cut = run.edges, run.cut
    if figures["last_skipped"] is None or figures["last_skipped"] > _LATEST * figures["steps"]:
        raise MdiExitError(f"expected the link back before {_LATEST:.0%} of the steps, got it later: more --epochs")
    study = Study(settings)
    made = study.network(cut)
    edge = Keeping(settings, "edge1", shard=[1, 1]).read()
    cloud = Keeping(settings, "cloud").read()
    if not edge or not cloud:
        raise MdiExitError(f"{settings.work}: expected a checkpoint of both sides, got {bool(edge)}, {bool(cloud)}")
    EdgePart(made.network, cut, settings.learning_rate).restore(edge)
    CloudPart(made.network, cut, settings.learning_rate).restore(cloud)
    test = study.parts.test
    some = test.subset(np.arange(min(len(test), _PROOF_ITEMS)))
    right_NS = outcomes(Artifact.open(settings.out), some).trace("max-probability").right_NS
    return {
        "checkpoints": {"edge_step": int(edge["step"]), "cloud_batches": int(cloud["trained"])},
        "checkpoint_accuracy_by_exit": list(study.accuracies(made)),
        "artifact_accuracy_of_first_1000": right_NS.mean(0).tolist(),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
