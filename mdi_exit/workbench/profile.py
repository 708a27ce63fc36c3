"""``mdi-exit profile ARTIFACT --data SPEC --out FILE.npz``: the trace of an artifact on a data set."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mdi_exit import values
from mdi_exit.confidence import MEASURES
from mdi_exit.config import REQUIRED, resolve, setting
from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import Artifact
from mdi_exit.outcomes import outcomes
from mdi_exit.tensors import CODECS
from mdi_exit.trace import Trace
from mdi_exit.workbench.samples import SplitSettings, split_as_recorded

__all__ = ["ProfileSettings", "main"]

_PARTS: Final = ("test", "calibration", "train")


def _npz(text: str) -> Path:
    path = values.path(text)
    if path.suffix != ".npz":
        raise UsageError("", "a file that ends in .npz", repr(text))
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSettings(SplitSettings):
    """See ``mdi_exit.trace`` for the file."""

    part: str = setting("test", help="of the data", choices=_PARTS)
    out: Path = setting(REQUIRED, help="where to write the trace", parse=_npz, metavar="FILE.npz")
    measure: str | None = setting(None, help="of confidence; default: the artifact's", choices=MEASURES)
    codec: str = setting(
        "float32", help="of features between nodes, where a cut has none of its own", choices=tuple(CODECS)
    )


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    resolved = resolve(
        ProfileSettings, argv, os.environ, prog="mdi-exit profile", section="profile", words="ARTIFACT",
        description="Runs a model over a data set and keeps what every exit says of every sample, and what it costs.",
        epilog="ARTIFACT: a folder, or the name of a shipped model.",
    )  # fmt: skip
    settings = resolved.settings
    artifact = Artifact.open(resolved.only_word("mdi-exit profile", "ARTIFACT"))
    parts = split_as_recorded(
        artifact.manifest, settings.data, seed=settings.seed, data_dir=settings.data_dir, count=settings.calibration
    )
    dataset = {"train": parts.train, "calibration": parts.calibration, "test": parts.test}[settings.part]
    about = {"record": msgspec.to_builtins(parts.record), "part": settings.part}
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{settings.part} samples", total=len(dataset))
        made = outcomes(
            artifact, dataset, codec=settings.codec, about=about,
            progress=lambda done: progress.update(task, completed=done),
        )  # fmt: skip
    trace = made.trace(settings.measure or artifact.manifest.calibration.measure)  # type: ignore[arg-type]
    trace.save(settings.out)
    console.print(
        _table(trace, f"{artifact.manifest.name} on {len(trace):,} {settings.part} samples of {settings.data}")
    )
    sys.stdout.write(f"{settings.out}\n")
    return 0


def _table(trace: Trace, title: str) -> Table:
    table = Table(title=title)
    for column in ("exit", "layer", "MACs to here", "share", "accuracy", f"mean {trace.measure}"):
        table.add_column(column, justify="right")
    for number, layer in enumerate(trace.exit_layers_S.tolist()):
        macs = int(trace.macs_S[number])
        table.add_row(
            str(number),
            str(layer),
            f"{macs:,}",
            f"{macs / trace.plain_macs:.0%}",
            f"{trace.right_NS[:, number].mean():.2%}",
            f"{trace.scores_NS[:, number].mean():.3f}",
        )
    return table
