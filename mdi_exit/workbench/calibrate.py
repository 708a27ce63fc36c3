"""``mdi-exit calibrate ARTIFACT --data SPEC``: temperatures, reliability, thresholds with a promise or under a budget."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from mdi_exit import values
from mdi_exit.calibration.budget import best_under_budget
from mdi_exit.calibration.procedure import fitted_temperatures, least_for, parted, promised
from mdi_exit.calibration.temperature import scipy_part
from mdi_exit.confidence import MEASURES
from mdi_exit.config import resolve, setting
from mdi_exit.data.sets import Dataset
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.model.artifact import Artifact, check_output, rewritten, shipped_models
from mdi_exit.model.manifest import Calibration, Manifest, Measure, Promise
from mdi_exit.outcomes import Outcomes, outcomes
from mdi_exit.tensors import CODECS
from mdi_exit.workbench import calibration_report as report
from mdi_exit.workbench.calibration_report import Calibrated
from mdi_exit.workbench.samples import Samples, SplitSettings, samples_for

__all__ = ["CalibrateSettings", "calibrated", "main"]

_MAX_LOSS = 0.01


def _cost(text: str) -> tuple[float, bool]:
    """``30%`` of the network without exits, or MACs a sample: the number, and whether it is a share."""
    share = text.strip().endswith("%")
    number = values.positive_float(text.strip().removesuffix("%"))
    return (number / 100, True) if share else (number, False)


def _show_cost(value: tuple[float, bool] | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value[0]:g}%" if value[1] else f"{value[0]:,.0f} MACs"


def _open_share(text: str) -> float:
    value = values.fraction(text)
    if not 0 < value < 1:
        raise UsageError("", "a number between 0 and 1, ends excluded", text)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateSettings(SplitSettings):
    """``out`` and ``in_place`` unset: nothing is written but the picture."""

    measure: str | None = setting(None, help="of confidence; default: the artifact's", choices=MEASURES)
    max_accuracy_loss: float | None = setting(
        None, help=f"promise: share of all items that leaving early may turn wrong; default {_MAX_LOSS:g}, "
        "unless there is a target cost", parse=_open_share, metavar="SHARE",
    )  # fmt: skip
    confidence: float = setting(0.95, help="of the promise", parse=_open_share, metavar="SHARE")
    target_cost: tuple[float, bool] | None = setting(
        None, help="no promise but the best accuracy within MACs a sample, or a share of the network without exits: 30%",
        parse=_cost, metavar="COST", show=_show_cost,
    )  # fmt: skip
    codec: str = setting(
        "float32", help="of features between nodes, where a cut has none of its own", choices=tuple(CODECS)
    )
    out: Path | None = setting(None, help="write the calibrated artifact there", parse=values.path, metavar="DIR")
    in_place: bool = setting(False, help="or into the artifact itself", parse=values.switch)
    picture: Path | None = setting(
        None, help="reliability by exit, and accuracy against cost; default: calibration.png in the artifact written",
        parse=values.picture, metavar="FILE.png|.svg",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.max_accuracy_loss is not None and self.target_cost is not None:
            raise UsageError("--max-accuracy-loss, --target-cost", "one of them", "both")
        if self.out is not None and self.in_place:
            raise UsageError("--out, --in-place", "one of them", "both")


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    resolved = resolve(
        CalibrateSettings, argv, os.environ, prog="mdi-exit calibrate", section="calibrate", words="ARTIFACT",
        description="Calibrates a multi-exit model: temperature of each exit, and thresholds that keep a promise.",
        epilog="ARTIFACT: a folder, or the name of a shipped model (then --out DIR).",
    )  # fmt: skip
    settings = resolved.settings
    name = resolved.only_word("mdi-exit calibrate", "ARTIFACT")
    artifact = Artifact.open(name)
    if settings.in_place and name in shipped_models() and not Path(name).is_dir():
        raise UsageError("--in-place", "--out DIR for a model that came with the package", name)
    samples = samples_for(
        artifact.manifest, settings.data, seed=settings.seed, count=settings.calibration, data_dir=settings.data_dir
    )
    _check(artifact.manifest, settings, samples)
    console = Console()
    report.say_samples(console, artifact, samples)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        known = _run(artifact, samples.calibration, settings.codec, progress, "calibration samples")
        unseen = _run(artifact, samples.test, settings.codec, progress, "test samples")
    found = calibrated(artifact.manifest, known, settings, samples)
    report.show(console, unseen, found)
    folder = artifact.folder if settings.in_place else settings.out
    if folder is not None:
        rewritten(artifact, found.manifest, folder)
        sys.stdout.write(f"{folder}: calibrated\n")
    picture = settings.picture or (folder / "calibration.png" if folder is not None else None)
    if picture is not None:
        _draw(unseen, found, picture, asked=settings.picture is not None)
    return 0


def _check(manifest: Manifest, settings: CalibrateSettings, samples: Samples) -> None:
    """What can be refused before the model is run. Raises ``UsageError``."""
    scipy_part("optimize")
    if settings.out is not None:
        check_output(settings.out)
    if len(manifest.exits) < 2:
        raise UsageError("model", "at least one early exit", "none")
    if settings.measure == "gate" and any(spec.gate is None for spec in manifest.exits[:-1]):
        raise UsageError("--measure gate", "a gate at each early exit of the artifact", "none for some")
    if settings.measure == "frame-entropy" and any(spec.branch is None for spec in manifest.exits[:-1]):
        raise UsageError("--measure frame-entropy", "a branch at each early exit of the artifact", "none for some")
    if settings.target_cost is None:
        least = least_for(_max_loss(settings), settings.confidence)
        if len(samples.calibration) < least:
            raise UsageError("--calibration", f"at least {least} for this promise", len(samples.calibration))


def _max_loss(settings: CalibrateSettings) -> float:
    return _MAX_LOSS if settings.max_accuracy_loss is None else settings.max_accuracy_loss


def _run(artifact: Artifact, dataset: Dataset, codec: str, progress: Progress, what: str) -> Outcomes:
    task = progress.add_task(what, total=len(dataset))
    return outcomes(artifact, dataset, codec=codec, progress=lambda done: progress.update(task, completed=done))


def _draw(unseen: Outcomes, found: Calibrated, picture: Path, *, asked: bool) -> None:
    try:
        from mdi_exit.workbench.calibration_picture import draw
    except ImportError:
        if asked:
            raise UsageError("--picture", "the extra 'plot' (pip install 'mdi-exit[plot]')", "none") from None
        sys.stdout.write("no picture: it takes the extra 'plot'\n")
        return
    draw(unseen, found, picture)
    sys.stdout.write(f"{picture}\n")


def calibrated(manifest: Manifest, known: Outcomes, settings: CalibrateSettings, samples: Samples) -> Calibrated:
    """Temperatures, thresholds and what they promise, in a new manifest. Raises ``MdiExitError``."""
    measure: Measure = settings.measure or manifest.calibration.measure  # type: ignore[assignment]
    seed, promise, macs = samples.parts.record.seed, None, None
    if settings.target_cost is None:
        temperatures, thresholds, promise = _promised(known, measure, settings, seed)
    else:
        temperatures = fitted_temperatures(parted(known, seed)[0])
        trace = known.trace(measure, temperatures)
        number, is_share = settings.target_cost
        macs = number * trace.plain_macs if is_share else number
        thresholds = best_under_budget(trace, macs)
    mean_macs = known.trace(measure, temperatures).score(thresholds).mean_macs
    calibration = Calibration(
        measure=measure, threshold=_knob(thresholds), promise=promise, target_macs=macs, mean_macs=round(mean_macs, 1),
        data=samples.parts.record,
    )  # fmt: skip
    return Calibrated(_with(manifest, calibration, temperatures, thresholds), temperatures, thresholds)


def _promised(
    known: Outcomes, measure: Measure, settings: CalibrateSettings, seed: int
) -> tuple[tuple[float, ...], tuple[float, ...], Promise]:
    """Temperatures, thresholds, and what they promise. Raises ``MdiExitError`` when nothing can be."""
    max_loss = _max_loss(settings)
    kept = promised(known, measure, max_loss, settings.confidence, seed)
    if (chosen := kept.chosen) is None:
        raise MdiExitError(
            f"no threshold keeps a loss of {max_loss:g} with confidence {settings.confidence:g} on {len(known):,} samples: "
            "this model cannot leave early at that price"
        )
    promise = Promise(
        max_accuracy_loss=max_loss, confidence=settings.confidence, samples=chosen.samples,
        observed_loss=round(chosen.observed_loss, 6), codec=settings.codec,
    )  # fmt: skip
    return kept.temperatures, chosen.thresholds, promise


def _knob(thresholds: Sequence[float]) -> float:
    """Where the one knob stands when these are in force: their mean, so that it reads like a threshold."""
    return min(max(round(sum(thresholds) / len(thresholds), 4), 0.0001), 0.9999)


def _with(
    manifest: Manifest, calibration: Calibration, temperatures: Sequence[float], thresholds: Sequence[float]
) -> Manifest:
    own: list[float | None] = [*thresholds, None]
    exits = tuple(
        msgspec.structs.replace(spec, temperature=temperature, threshold=threshold)
        for spec, temperature, threshold in zip(manifest.exits, temperatures, own, strict=True)
    )
    return msgspec.structs.replace(manifest, exits=exits, calibration=calibration)
