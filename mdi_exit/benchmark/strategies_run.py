"""``mdi-exit benchmark strategies``, from its first step to table, text and picture."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from mdi_exit.benchmark.strategies import Study, run_study
from mdi_exit.training.curve import Curve, at_cost
from mdi_exit.training.picture import Line, draw

__all__ = ["FAMILIES", "SHARES", "at_cost_rows", "measure_strategies", "own_point_rows", "table_of", "text_of"]

SHARES: Final = (0.30, 0.40, 0.55, 0.75)
FAMILIES: Final = {
    "joint": "joint, largest probability",
    "distill": "distill, largest probability",
    "frozen": "frozen, largest probability",
    "jei plain": "JEI-DNN's heads, largest probability",
    "jei gate": "JEI-DNN's gates",
}
_GATE: Final = "jei gate"
_RIVALS: Final = ("jei plain", "frozen", "distill", "joint")
_WIDTH: Final = 120
_KEPT_POINTS: Final = 40
_GATE_THRESHOLD: Final = 0.5

Row = dict[str, Any]


def measure_strategies(out: Path | None, data_dir: Path | None, study: Study | None = None) -> list[Row]:
    """The rows, shown. With ``out`` text and picture are written there, and a run that was cut short goes on.

    Raises ``UsageError``.
    """
    study, console = study or Study(), Console(width=_WIDTH)
    with tempfile.TemporaryDirectory(prefix="mdi-exit-strategies-") as spare:
        work = (out or Path(spare)) / f"strategies-{study.key}.unfinished"
        trained = run_study(study, work, data_dir=data_dir, say=console.print)
        points = list(at_cost_rows(trained))
        own = list(own_point_rows(trained))
        console.print(table_of(points))
        text = text_of(study, trained, points, own)
        if out is not None:
            stem = out / f"strategies-{datetime.now(UTC):%Y-%m-%d}"
            _draw(trained, points, stem.with_suffix(".png"), study)
            stem.with_suffix(".md").write_text(text)
        shutil.rmtree(work)
    return [{"name": "study", **asdict(study)}, *points, *own, *(_thinned(row) for row in trained)]


def _curve(found: Row, part: str) -> Curve:
    return Curve(
        np.array(found["thresholds"]), np.array(found[part]["macs"]), np.array(found[part]["accuracies"], np.float64)
    )


def _of_family(trained: Sequence[Row], seed: int, family: str) -> dict[str, Row]:
    """The curves of a family for one seed: several for JEI-DNN, one a λ."""
    return {
        name: found
        for row in trained
        if row["seed"] == seed
        for name, found in row["curves"].items()
        if name.startswith(family)
    }


def _seeds(trained: Sequence[Row]) -> list[int]:
    return sorted({row["seed"] for row in trained})


def at_cost_rows(trained: Sequence[Row], shares: Sequence[float] = SHARES) -> Iterator[Row]:
    """For each seed, family and cost: the threshold (and λ) that is best on calibration samples, scored on the test set."""
    whole = trained[0]["costs"][-1]
    for seed in _seeds(trained):
        for share in shares:
            for family in FAMILIES:
                chosen = _best(_of_family(trained, seed, family), share * whole)
                if chosen is not None:
                    yield {"name": "at cost", "seed": seed, "family": family, "share": share, **chosen}


def _best(curves: dict[str, Row], cost: float) -> Row | None:
    best, found = -1.0, None
    for name, row in curves.items():
        calibration = _curve(row, "calibration")
        seen, scored = at_cost(calibration, calibration, cost), at_cost(calibration, _curve(row, "test"), cost)
        if seen is not None and scored is not None and seen.accuracy > best:
            best = seen.accuracy
            found = {
                "curve": name,
                "threshold": round(scored.threshold, 4),
                "calibration_accuracy": round(seen.accuracy, 5),
                "accuracy": round(scored.accuracy, 5),
                "mean_macs": round(scored.mean_macs),
            }
    return found


def own_point_rows(trained: Sequence[Row]) -> Iterator[Row]:
    """Where JEI-DNN's own rule, h ≥ 0.5, puts each λ, and what thresholds give at that very cost."""
    for seed in _seeds(trained):
        for name, row in _of_family(trained, seed, _GATE).items():
            at = row["thresholds"].index(_GATE_THRESHOLD)
            cost, accuracy = row["test"]["macs"][at], row["test"]["accuracies"][at]
            rivals = {
                "frozen": _of_family(trained, seed, "frozen")["frozen"],
                "jei plain": _of_family(trained, seed, "jei plain")[name.replace("gate", "plain")],
            }
            plain = {key: at_cost(_curve(one, "test"), _curve(one, "test"), cost) for key, one in rivals.items()}
            yield {
                "name": "own point",
                "seed": seed,
                "curve": name,
                "mean_macs": round(cost),
                "share": round(cost / trained[0]["costs"][-1], 4),
                "accuracy": accuracy,
                **{
                    f"{key} at this cost": None if one is None else round(one.accuracy, 5) for key, one in plain.items()
                },
            }


def _accuracies(points: Sequence[Row], family: str, share: float) -> list[float]:
    return [row["accuracy"] for row in points if row["family"] == family and row["share"] == share]


def _shares(points: Sequence[Row]) -> list[float]:
    return sorted({row["share"] for row in points})


def table_of(points: Sequence[Row]) -> Table:
    """Mean accuracy over the seeds, least and most, at each cost."""
    table = Table(title="accuracy on the test set at equal cost, %: mean over seeds (least to most)")
    table.add_column("strategy, exit rule")
    for share in _shares(points):
        table.add_column(f"{share:.0%} of all MACs", justify="right")
    for family, name in FAMILIES.items():
        table.add_row(name, *(_spread(_accuracies(points, family, share)) for share in _shares(points)))
    return table


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{100 * mean(values):.2f} ({100 * min(values):.2f} to {100 * max(values):.2f})"


def _differences(points: Sequence[Row], rival: str, share: float) -> list[float]:
    """Gates less rival, in points, seed by seed."""
    by_seed = [
        {row["seed"]: row["accuracy"] for row in points if row["family"] == family and row["share"] == share}
        for family in (_GATE, rival)
    ]
    return [100 * (by_seed[0][seed] - by_seed[1][seed]) for seed in sorted(by_seed[0]) if seed in by_seed[1]]


def text_of(study: Study, trained: Sequence[Row], points: Sequence[Row], own: Sequence[Row]) -> str:
    """The page beside the raw rows."""
    shares, first = _shares(points), trained[0]
    data = first["data"]
    lines = [
        "# Strategies at equal cost",
        "",
        f"{data['spec']}, {study.model} of width {study.width:g} with a stem of stride {study.stem_stride}, "
        f"{study.exits} exits (after layers {', '.join(map(str, first['exit_layers']))}), seeds "
        f"{', '.join(map(str, _seeds(trained)))}. {first['trained_on']:,} training images, {data['calibration']:,} for "
        f"calibration, {data['test']:,} for the test; whole network {first['costs'][-1]:,} MACs, its first exit "
        f"{first['costs'][0]:,}. {study.epochs} epochs for joint, distilled and bare backbone; on that backbone "
        f"{study.head_epochs} for frozen heads, or at most {study.warm_up_epochs} of warm-up and "
        f"{study.alternating_epochs} in turns for each λ of {', '.join(f'{one:g}' for one in study.cost_weights)}.",
        "",
        "Thresholds, and λ, are chosen on the calibration samples at each cost and scored on the test set: mean over seeds,",
        "least to most in brackets.",
        "",
        "| accuracy, % | " + " | ".join(f"at {share:.0%} of all MACs" for share in shares) + " |",
        "|---|" + "---:|" * len(shares),
    ]
    for family, name in FAMILIES.items():
        cells = " | ".join(_spread(_accuracies(points, family, share)) for share in shares)
        lines.append(f"| {name} | {cells} |")
    lines += [
        "",
        "JEI-DNN's gates less other rules, in points:",
        "",
        "| less | " + " | ".join(f"at {share:.0%}" for share in shares) + " |",
        "|---|" + "---:|" * len(shares),
    ]
    for rival in _RIVALS:
        cells = " | ".join(_signed(_differences(points, rival, share)) for share in shares)
        lines.append(f"| {FAMILIES[rival]} | {cells} |")
    lines += [
        "",
        "JEI-DNN's own rule (leave at the first h ≥ 0.5), and the largest probability at the same cost on the test set:",
        "",
        "| λ | seed | share of all MACs | gates, % | same heads, % | frozen heads, % |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in own:
        rules = [row["accuracy"], row["jei plain at this cost"], row["frozen at this cost"]]
        shown = " | ".join("-" if one is None else f"{100 * one:.2f}" for one in rules)
        lines.append(f"| {row['curve'].rpartition('=')[2]} | {row['seed']} | {row['share']:.1%} | {shown} |")
    lines += ["", "Each exit by itself on the test set, mean over seeds, %:", ""]
    lines += ["| | " + " | ".join(f"exit {number}" for number in range(study.exits)) + " |"]
    lines += ["|---|" + "---:|" * study.exits]
    for name in dict.fromkeys(name for row in trained for name in row["curves"]):
        if not name.startswith("jei plain"):
            found = [row["curves"][name]["exit_accuracies"] for row in trained if name in row["curves"]]
            cells = " | ".join(f"{100 * mean(column):.2f}" for column in zip(*found, strict=True))
            lines.append(f"| {name.replace(' gate', '')} | {cells} |")
    return "\n".join(lines) + "\n"


def _signed(values: Sequence[float]) -> str:
    return f"{mean(values):+.2f} ({min(values):+.2f} to {max(values):+.2f})" if values else "-"


def _draw(trained: Sequence[Row], points: Sequence[Row], out: Path, study: Study) -> None:
    """Each family's accuracy over cost, chosen as in the table, mean and range of the seeds."""
    whole, least = trained[0]["costs"][-1], trained[0]["costs"][0]
    shares = np.linspace(least / whole * 1.02, 0.98, 60).tolist()
    rows, lines = list(at_cost_rows(trained, shares)), []
    for family, name in FAMILIES.items():
        columns = [share for share in shares if len(_accuracies(rows, family, share)) == len(_seeds(trained))]
        values = np.array([_accuracies(rows, family, share) for share in columns])
        lines.append(
            Line(
                name=name, macs_T=whole * np.array(columns), accuracies_T=values.mean(1), least_T=values.min(1),
                most_T=values.max(1), dashed=family == "jei plain",
            )
        )  # fmt: skip
    seeds = len(_seeds(trained))
    draw(
        lines, out, "Strategies at equal cost",
        f"{trained[0]['data']['spec']}, {study.model} ×{study.width:g}, {seeds} seeds: mean, least and most on the test set; "
        "thresholds and λ chosen on calibration samples",
        marks=[share * whole for share in _shares(points)],
    )  # fmt: skip


def _thinned(row: Row) -> Row:
    """Curves with a few of their points: enough to draw them."""
    curves = {}
    for name, found in row["curves"].items():
        step = max(len(found["thresholds"]) // _KEPT_POINTS, 1)
        parts = {
            part: {key: [round(value, 5) for value in values[::step]] for key, values in found[part].items()}
            for part in ("calibration", "test")
        }
        curves[name] = {**found, "thresholds": found["thresholds"][::step], **parts}
    return {"name": "trained", **row, "curves": curves}
