"""``mdi-exit benchmark daisy``: where speech leaves as noise grows, and what that gives, beside other rules, over seeds.

The artifacts' graphs are run by ONNX Runtime over the test clips, clean and with noise (white, pink or babble) at each
ratio. Rules, each chosen on the same calibration clips, with the noise of learning, so that no more accuracy is given up
there, against the last layer, than training allowed (1 %):

* DAISY: one threshold on the mean frame entropy of the branches, the task's own;
* supervised confidence: one threshold on the largest probability of the task's heads;
* fixed depth: every clip leaves after the same layer, the first that will do.

Beside these points stands all that each rule can give: accuracy on the test clips by mean layers, at every threshold. With
``--unheard`` the keyword task is also measured on words by voices that training has not heard, as it is.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console

from mdi_exit.benchmark.daisy_page import page_of, sheets_of
from mdi_exit.benchmark.daisy_rows import Row, depths_to, rows_of
from mdi_exit.data import Dataset
from mdi_exit.data.speech import from_wavs
from mdi_exit.data.splits import splits
from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import MANIFEST_FILE, Artifact
from mdi_exit.outcomes import Outcomes, outcomes
from mdi_exit.training.daisy.command import TASKS
from mdi_exit.training.daisy.hearing import calibration_clips, clips_at

__all__ = ["measure_daisy"]

_BATCH: Final = 32
_KEYWORD: Final = "keyword"


@dataclass(frozen=True, slots=True)
class _Bench:
    """``work``: where a run that was cut short finds what it has done. ``unheard``: words by other voices, by name."""

    snrs_db: Sequence[float]
    unheard: dict[str, Dataset]
    work: Path
    console: Console


def measure_daisy(
    folders: Sequence[Path], snrs_db: Sequence[float], unheard: Sequence[Path], out: Path | None
) -> list[Row]:
    """The rows, shown. With ``out`` a run that was cut short goes on, a page is written and a picture is drawn.

    ``folders``: of one seed each. ``unheard``: folders of words. Raises ``UsageError``.
    """
    console = Console(width=120)
    seeds = _opened(folders)
    layers = len(next(iter(seeds.values()))[_KEYWORD].manifest.layers)
    rows: list[Row] = [{"name": "depths", "layers": layers, "read at": depths_to(layers)}]
    strangers = {place.name: _strangers(place, seeds) for place in unheard}
    with tempfile.TemporaryDirectory(prefix="mdi-exit-daisy-") as spare:
        key = "-".join(artifact.manifest.digest[:8] for one in seeds.values() for artifact in one.values())
        work = (out or Path(spare)) / f"daisy-{key}.unfinished"
        work.mkdir(parents=True, exist_ok=True)
        bench = _Bench(snrs_db, strangers, work, console)
        for seed, artifacts in seeds.items():
            rows += [{"name": "branches", "seed": seed, "files shared": _shared(list(artifacts.values()))}]
            for task, artifact in artifacts.items():
                rows += _of_task(seed, task, artifact, bench)
        shutil.rmtree(work)
    for sheet in sheets_of(rows):
        console.print(sheet.shown())
    if out is not None:
        _written(rows, out, console)
    return rows


def _opened(folders: Sequence[Path]) -> dict[int, dict[str, Artifact]]:
    """Artifacts by seed and task. Raises ``UsageError``."""
    found: dict[int, dict[str, Artifact]] = {}
    for folder in folders:
        if missing := [task for task in TASKS if not (folder / task / MANIFEST_FILE).is_file()]:
            what = f"what mdi-exit train-speech wrote, with {' and '.join(TASKS)}"
            raise UsageError("--model", what, f"no {missing[0]} in {folder}")
        artifacts = {task: Artifact.open(folder / task) for task in TASKS}
        record = artifacts[_KEYWORD].manifest.data
        if record is None:
            raise UsageError("--model", "artifacts that say what they were tested on", f"{folder}, which does not")
        if record.seed in found:
            raise UsageError("--model", "each seed once", f"seed {record.seed} twice")
        found[record.seed] = artifacts
    alike = {(one[_KEYWORD].manifest.data.spec, len(one[_KEYWORD].manifest.layers)) for one in found.values()}  # type: ignore[union-attr]
    if len(alike) > 1:
        raise UsageError("--model", "artifacts of the same data and layers", "others")
    return found


def _shared(artifacts: Sequence[Artifact]) -> int:
    """How many layers and branches the tasks' artifacts share, byte for byte: all of them. Raises ``UsageError``."""
    files = [
        [
            graph.sha256
            for graph in (*(spec.graph for spec in one.layers), *(spec.branch for spec in one.exits))
            if graph
        ]
        for one in (artifact.manifest for artifact in artifacts)
    ]
    if any(other != files[0] for other in files[1:]):
        raise UsageError("model", "artifacts of one encoder with one set of branches", "others")
    return len(files[0])


def _strangers(place: Path, seeds: dict[int, dict[str, Artifact]]) -> Dataset:
    """Words by voices that none of the artifacts was trained on. Raises ``UsageError``."""
    clips, test = from_wavs(place)
    if test is not None:
        raise UsageError("--unheard", "a folder of words", f"parts of one in {place}")
    voices = from_wavs(place, "voices", (clips, None))[0].classes
    if heard := sorted({label for one in seeds.values() for label in one["voice"].manifest.labels} & set(voices)):
        raise UsageError("--unheard", "voices that training has not heard", ", ".join(heard[:3]))
    return clips


def _of_task(seed: int, task: str, artifact: Artifact, bench: _Bench) -> Iterator[Row]:
    record = artifact.manifest.data
    if record is None:
        raise UsageError("model", "an artifact that says what it was tested on", "one that does not")
    parts = splits(record.spec, seed=record.seed, calibration=record.calibration)
    if parts.record != record:
        raise UsageError("data", f"what the artifact was trained and tested on ({record.spec})", "other data")
    name = f"{seed}-{task}-calibration"
    calibration = _kept(artifact, lambda: calibration_clips(parts.calibration, record.seed), name, bench)
    tests = {task: parts.test}
    if task == _KEYWORD:
        tests |= {f"{task} by {name}": clips for name, clips in bench.unheard.items()}
    for name, test in tests.items():
        tested = {
            snr: _kept(artifact, partial(clips_at, test, snr, record.seed), f"{seed}-{name}-{snr}", bench)
            for snr in (None, *bench.snrs_db)
        }
        yield from rows_of({"seed": seed, "task": name}, calibration, tested, _allowed(artifact))


def _allowed(artifact: Artifact) -> float:
    """What leaving early could cost when the artifact's own threshold was chosen."""
    try:
        return float(artifact.manifest.training["config"]["max_accuracy_loss"])
    except (KeyError, TypeError, ValueError):
        raise UsageError("model", "one of mdi-exit train-speech", artifact.manifest.name) from None


def _kept(artifact: Artifact, heard: Callable[[], Dataset], name: str, bench: _Bench) -> Outcomes:
    """From the file of an earlier run that was cut short, if there is one; only else is it ``heard``."""
    path = bench.work / f"{name}.npz"
    if path.exists():
        return Outcomes.load(path)
    made = outcomes(artifact, heard(), batch=_BATCH)
    unfinished = path.with_name(f"partial-{path.name}")
    made.save(unfinished)
    unfinished.replace(path)
    bench.console.print(f"seed {name.replace('-', ', ', 1)}: {len(made):,} clips")
    return made


def _written(rows: Sequence[Row], out: Path, console: Console) -> None:
    """Page and picture."""
    from mdi_exit.benchmark.daisy_picture import draw

    stem = out / f"daisy-{datetime.now(UTC):%Y-%m-%d}"
    stem.with_suffix(".md").write_text(page_of(rows))
    console.print(f"page: {stem.with_suffix('.md')}")
    try:
        console.print(f"picture: {draw(rows, stem.with_suffix('.png'))}")
    except UsageError as error:
        console.print(f"no picture: {error}")
