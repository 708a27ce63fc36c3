"""``mdi-exit benchmark daisy``: where speech leaves as noise grows, and what that gives, beside other rules.

The artifacts' graphs are run by ONNX Runtime over the test clips, clean and with noise (white, pink or babble) at each
ratio. Rules, each chosen on the same calibration clips, with the noise of learning, so that no more accuracy is given up
there, against the last layer, than training allowed (1 %):

* DAISY: one threshold on the mean frame entropy of the branches, the task's own;
* supervised confidence: one threshold on the largest probability of the task's heads;
* fixed depth: every clip leaves after the same layer, the first that will do; the other layers are shown too.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from mdi_exit.data import Dataset
from mdi_exit.data.splits import splits
from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import MANIFEST_FILE, Artifact
from mdi_exit.model.manifest import Measure
from mdi_exit.outcomes import Outcomes, outcomes
from mdi_exit.trace import Trace
from mdi_exit.training.curve import thresholds_for
from mdi_exit.training.daisy.command import TASKS
from mdi_exit.training.daisy.heads import threshold_within
from mdi_exit.training.daisy.hearing import calibration_clips, clips_at

__all__ = ["CLEAN", "MEAN", "depth_within", "measure_daisy", "rows_of"]

Row = dict[str, Any]

CLEAN: Final = "clean"
MEAN: Final = "mean"
RULES: Final[dict[str, Measure]] = {"daisy": "frame-entropy", "confidence": "max-probability"}
_CURVE_POINTS: Final = 40
_BATCH: Final = 32


def measure_daisy(folder: Path, snrs_db: Sequence[float], out: Path | None) -> list[Row]:
    """The rows, shown. With ``out`` a run that was cut short goes on, and a picture is drawn. Raises ``UsageError``."""
    console = Console(width=120)
    if missing := [task for task in TASKS if not (folder / task / MANIFEST_FILE).is_file()]:
        raise UsageError("--model", f"what mdi-exit train-speech wrote, with {' and '.join(TASKS)}", f"no {missing[0]}")
    artifacts = {task: Artifact.open(folder / task) for task in TASKS}
    key = "-".join(artifact.manifest.digest[:8] for artifact in artifacts.values())
    rows: list[Row] = [{"name": "branches", **_shared(list(artifacts.values()))}]
    with tempfile.TemporaryDirectory(prefix="mdi-exit-daisy-") as spare:
        work = (out or Path(spare)) / f"daisy-{key}.unfinished"
        work.mkdir(parents=True, exist_ok=True)
        for task, artifact in artifacts.items():
            rows += _of_task(task, artifact, snrs_db, work, console)
        shutil.rmtree(work)
    for task in TASKS:
        console.print(_table(rows, task))
    if out is not None:
        _drawn(rows, out, console)
    return rows


def _shared(artifacts: Sequence[Artifact]) -> Row:
    """Whether the tasks' artifacts have the same layers and branches, byte for byte. Raises ``UsageError``."""
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
    return {"layers": len(artifacts[0].manifest.layers), "files shared": len(files[0])}


def _of_task(task: str, artifact: Artifact, snrs_db: Sequence[float], work: Path, console: Console) -> list[Row]:
    record = artifact.manifest.data
    if record is None:
        raise UsageError("model", "an artifact that says what it was tested on", "one that does not")
    parts = splits(record.spec, seed=record.seed, calibration=record.calibration)
    if parts.record != record:
        raise UsageError("data", f"what the artifact was trained and tested on ({record.spec})", "other data")
    heard = calibration_clips(parts.calibration, record.seed)
    calibration = _kept(artifact, heard, work / f"{task}-calibration.npz", console)
    tested = {
        snr: _kept(artifact, clips_at(parts.test, snr, record.seed), work / f"{task}-{snr}.npz", console)
        for snr in (None, *snrs_db)
    }
    return list(rows_of(task, calibration, tested, _allowed(artifact)))


def _allowed(artifact: Artifact) -> float:
    """What leaving early could cost when the artifact's own threshold was chosen."""
    try:
        return float(artifact.manifest.training["config"]["max_accuracy_loss"])
    except (KeyError, TypeError, ValueError):
        raise UsageError("model", "one of mdi-exit train-speech", artifact.manifest.name) from None


def _kept(artifact: Artifact, dataset: Dataset, path: Path, console: Console) -> Outcomes:
    """From the file of an earlier run that was cut short, if there is one."""
    if path.exists():
        return Outcomes.load(path)
    made = outcomes(artifact, dataset, batch=_BATCH)
    partial = path.with_name(f"partial-{path.name}")
    made.save(partial)
    partial.replace(path)
    console.print(f"{path.stem}: {len(made):,} clips")
    return made


def rows_of(task: str, calibration: Outcomes, tested: dict[float | None, Outcomes], loss: float) -> Iterator[Row]:
    """Of each ratio, and of all together, by rule: threshold, mean layers run, accuracy, exits; curves of accuracy against
    layers; accuracy after each layer; mean sureness after each. ``loss``: of accuracy on the calibration clips, at most.
    """
    thresholds = {rule: threshold_within(calibration.trace(measure), loss) for rule, measure in RULES.items()}
    depth = depth_within(calibration.trace(RULES["daisy"]), loss)
    by_snr: dict[float | str, dict[str, Trace]] = {
        CLEAN if snr_db is None else snr_db: {rule: made.trace(measure) for rule, measure in RULES.items()}
        for snr_db, made in tested.items()
    }
    by_snr[MEAN] = {rule: _together([traces[rule] for traces in by_snr.values()]) for rule in RULES}
    for snr, traces in by_snr.items():
        first = traces["daisy"]
        about = {"task": task, "snr_db": snr, "clips": len(first)}
        for rule, trace in traces.items():
            threshold = thresholds[rule]
            yield {"name": "point", **about, "rule": rule, "threshold": threshold, **_point(trace, threshold)}
            yield {"name": "curve", **about, "rule": rule, "points": list(_curve(trace))}
        shares_S, layers_S = first.right_NS.mean(0), first.exit_layers_S + 1
        for number, (layers, share) in enumerate(zip(layers_S.tolist(), shares_S.tolist(), strict=True)):
            yield {"name": "fixed", **about, "layers": layers, "accuracy": round(share, 5), "chosen": number == depth}
        yield {"name": "sureness", **about, "mean by layer": first.scores_NS[:, :-1].mean(0).round(5).tolist()}


def _together(traces: Sequence[Trace]) -> Trace:
    scores_NS, labels_NS = (
        np.concatenate([getattr(one, name) for one in traces]) for name in ("scores_NS", "labels_NS")
    )
    truth_N = np.concatenate([one.truth_N for one in traces])
    return replace(traces[0], scores_NS=scores_NS, labels_NS=labels_NS, truth_N=truth_N)


def depth_within(trace: Trace, loss: float) -> int:
    """The first exit at which at most ``loss`` of these samples' accuracy is given up against the last."""
    shares_S = trace.right_NS.mean(0)
    return int(np.argmax(shares_S >= shares_S[-1] - loss))


def _point(trace: Trace, threshold: float) -> Row:
    score, exits_N = trace.score(threshold), trace.exits_at(threshold)
    return {
        "layers": round(float((trace.exit_layers_S[exits_N] + 1).mean()), 4), "accuracy": round(score.accuracy, 5),
        "macs": round(score.mean_macs / trace.plain_macs, 5), "exits": list(score.exits),
    }  # fmt: skip


def _curve(trace: Trace) -> Iterator[tuple[float, float, float]]:
    """Threshold, mean layers, accuracy."""
    every = thresholds_for(trace)
    for threshold in every[np.unique(np.linspace(0, len(every) - 1, _CURVE_POINTS).round().astype(int))].tolist():
        point = _point(trace, threshold)
        yield round(threshold, 6), point["layers"], point["accuracy"]


def _table(rows: Sequence[Row], task: str) -> Table:
    found = [row for row in rows if row.get("task") == task]
    fixed = [
        f"{row['layers']}{' *' * row['chosen']}" for row in found if row["name"] == "fixed" and row["snr_db"] == CLEAN
    ]
    table = Table(
        title=f"{task}: mean layers and accuracy; at fixed depth, accuracy",
        caption="white, pink or babble noise; thresholds, and the starred depth, are chosen on calibration clips, three of "
        "four with noise",
    )
    table.add_column("SNR, dB")
    for column in ("DAISY layers", "accuracy", "confidence layers", "accuracy", *fixed):
        table.add_column(column, justify="right")
    for snr in dict.fromkeys(row["snr_db"] for row in found):
        of = [row for row in found if row["snr_db"] == snr]
        points = {row["rule"]: row for row in of if row["name"] == "point"}
        cells = [
            cell for rule in RULES for cell in (f"{points[rule]['layers']:.2f}", f"{points[rule]['accuracy']:.1%}")
        ]
        cells += [f"{row['accuracy']:.1%}" for row in of if row["name"] == "fixed"]
        table.add_row(f"{snr:g}" if isinstance(snr, float) else snr, *cells)
    return table


def _drawn(rows: Sequence[Row], out: Path, console: Console) -> None:
    from mdi_exit.benchmark.daisy_picture import draw

    try:
        console.print(f"picture: {draw(rows, out)}")
    except UsageError as error:
        console.print(f"no picture: {error}")
