"""What a calibration found, in tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from mdi_exit.calibration.curves import curve_of, equal_costs
from mdi_exit.calibration.reliability import BINS, Reliability, reliability
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.manifest import Manifest
from mdi_exit.outcomes import Outcomes, measures_of
from mdi_exit.trace import Trace
from mdi_exit.workbench.samples import Samples

__all__ = ["Calibrated", "reliabilities", "say_samples", "show"]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What was found: ``manifest`` with all of it in, ``thresholds`` of the early exits."""

    manifest: Manifest
    temperatures: tuple[float, ...]
    thresholds: tuple[float, ...]


def say_samples(console: Console, artifact: Artifact, samples: Samples) -> None:
    """What is used for what, before the work begins."""
    record = samples.parts.record
    console.print(
        f"{artifact.manifest.name} on {record.spec}, seed {record.seed}: {record.calibration:,} calibration samples, "
        f"{record.test:,} test samples; {samples.note}",
        highlight=False,
    )


def reliabilities(unseen: Outcomes, temperatures: Sequence[float]) -> list[Reliability]:
    """Of each exit, its confidence being the largest probability, whatever the measure that decides."""
    trace = unseen.trace("max-probability", temperatures)
    return [reliability(trace.scores_NS[:, exit_], trace.right_NS[:, exit_]) for exit_ in range(trace.exits)]


def show(console: Console, unseen: Outcomes, found: Calibrated) -> None:
    """``unseen``: the test part, on which everything is scored and nothing was chosen."""
    console.print(_exits(unseen, found))
    console.print(_measures(unseen, found))
    for line in _sentences(unseen, found):
        console.print(line, highlight=False)


def _exits(unseen: Outcomes, found: Calibrated) -> Table:
    table = Table(title=f"exits on {len(unseen):,} test samples (ECE: {BINS} bins of equally many samples)")
    for column in ("exit", "layer", "accuracy", "temperature", "ECE before", "after", "threshold"):
        table.add_column(column, justify="right")
    trace = unseen.trace(found.manifest.calibration.measure, found.temperatures)
    before, after = reliabilities(unseen, (1.0,) * unseen.exits), reliabilities(unseen, found.temperatures)
    thresholds = [*(f"{threshold:.4f}" for threshold in found.thresholds), "-"]
    for exit_, threshold in enumerate(thresholds):
        table.add_row(
            str(exit_),
            str(unseen.exit_layers_S[exit_]),
            f"{100 * trace.right_NS[:, exit_].mean():.2f} %",
            f"{found.temperatures[exit_]:.3f}",
            f"{100 * before[exit_].ece:.2f} %",
            f"{100 * after[exit_].ece:.2f} %",
            threshold,
        )
    return table


def _measures(unseen: Outcomes, found: Calibrated) -> Table:
    table = Table(title="accuracy at equal cost (MACs), one threshold for all exits, by measure of confidence")
    table.add_column("measure", no_wrap=True)
    traces = {measure: unseen.trace(measure, found.temperatures) for measure in measures_of(unseen)}
    costs = equal_costs(next(iter(traces.values())))
    for macs in costs:
        table.add_column(f"{macs / 1e6:,.2f} M", justify="right")
    for measure, trace in traces.items():
        curve = curve_of(trace)
        cells = [curve.accuracy_at(macs) for macs in costs]
        name = f"{measure} *" if measure == found.manifest.calibration.measure else measure
        table.add_row(name, *("-" if cell is None else f"{100 * cell:.2f} %" for cell in cells))
    table.caption = "* decides; - no threshold costs so little, or so much"
    return table


def _sentences(unseen: Outcomes, found: Calibrated) -> list[str]:
    calibration = found.manifest.calibration
    trace: Trace = unseen.trace(calibration.measure, found.temperatures)
    score, last = trace.score(found.thresholds), float(trace.right_NS[:, -1].mean())
    chosen = ", ".join(f"{threshold:.4f}" for threshold in found.thresholds)
    lines = [f"thresholds of {calibration.measure}: {chosen}; the one knob stands at {calibration.threshold:g}"]
    if calibration.promise is not None:
        lines.append(f"promised: {calibration.promise}; {100 * calibration.promise.observed_loss:.2f} % seen on them")
    elif calibration.target_macs is not None:
        lines.append(f"within {calibration.target_macs:,.0f} MACs a sample; nothing is promised")
    lines.append(
        f"on the test samples: {100 * score.accuracy:.2f} % right (last exit {100 * last:.2f} %), {100 * score.loss:.2f} % "
        f"wrong by leaving early, {score.mean_macs:,.0f} MACs a sample: {100 * score.mean_macs / trace.plain_macs:.1f} % of "
        f"the network without exits; by exit {', '.join(map(str, score.exits))}"
    )
    return lines
