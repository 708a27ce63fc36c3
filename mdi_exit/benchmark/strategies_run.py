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
_ONWARD: Final = "onward gate"
_GATE: Final = "jei gate"
_RIVALS: Final = ("jei plain", "frozen", "distill", "joint", _ONWARD)
_TEXT_SHARES: Final = (0.20, *SHARES)
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
        shares = _TEXT_SHARES if study.texts else SHARES
        points = list(at_cost_rows(trained, shares))
        own = list(own_point_rows(trained))
        by_weight = list(by_weight_rows(trained, shares)) if study.texts else []
        console.print(table_of(points))
        text = text_of(study, trained, points, own, by_weight)
        if out is not None:
            stem = out / f"{_name(study)}-{datetime.now(UTC):%Y-%m-%d}"
            _draw(trained, points, stem.with_suffix(".png"), study)
            stem.with_suffix(".md").write_text(text)
        shutil.rmtree(work)
    return [{"name": "study", **asdict(study)}, *points, *own, *by_weight, *(_thinned(row) for row in trained)]


def _name(study: Study) -> str:
    return f"text-strategies-{Path(study.data.partition(':')[2] or study.data).stem}" if study.texts else "strategies"


def families_in(trained: Sequence[Row]) -> dict[str, str]:
    """Those that were trained, with their names for people."""
    names = {name for row in trained for name in row["curves"]}
    named = {**FAMILIES, _ONWARD: "JEI-DNN's gates, the paper's targets"}
    return {family: shown for family, shown in named.items() if any(name.startswith(family) for name in names)}


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
            for family in families_in(trained):
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
        for name, row in (_of_family(trained, seed, _GATE) | _of_family(trained, seed, _ONWARD)).items():
            at = row["thresholds"].index(_GATE_THRESHOLD)
            cost, accuracy = row["test"]["macs"][at], row["test"]["accuracies"][at]
            rivals = {
                "frozen": _of_family(trained, seed, "frozen")["frozen"],
                "jei plain": _plain_of(trained, seed, name)[1],
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


def _plain_of(trained: Sequence[Row], seed: int, name: str) -> tuple[str, Row]:
    """The largest probability on the heads of a curve of gates."""
    plain = name.replace("gate", "plain")
    return plain, _of_family(trained, seed, plain)[plain]


def by_weight_rows(trained: Sequence[Row], shares: Sequence[float]) -> Iterator[Row]:
    """For each seed, λ, kind of targets and cost: gates, and the largest probability on the very same heads."""
    whole = trained[0]["costs"][-1]
    for seed in _seeds(trained):
        for name, row in (_of_family(trained, seed, _GATE) | _of_family(trained, seed, _ONWARD)).items():
            plain_name, plain = _plain_of(trained, seed, name)
            for share in shares:
                gates, same = _best({name: row}, share * whole), _best({plain_name: plain}, share * whole)
                if gates is not None and same is not None:
                    yield {
                        "name": "by weight", "seed": seed, "curve": name, "share": share, "accuracy": gates["accuracy"],
                        "same heads": same["accuracy"],
                    }  # fmt: skip


def _accuracies(points: Sequence[Row], family: str, share: float) -> list[float]:
    return [row["accuracy"] for row in points if row["family"] == family and row["share"] == share]


def _families(points: Sequence[Row]) -> dict[str, str]:
    return families_in([{"curves": {row["family"]: None for row in points}}])


def _shares(points: Sequence[Row]) -> list[float]:
    return sorted({row["share"] for row in points})


def table_of(points: Sequence[Row]) -> Table:
    """Mean accuracy over the seeds, least and most, at each cost."""
    table = Table(title="accuracy on the test set at equal cost, %: mean over seeds (least to most)")
    table.add_column("strategy, exit rule")
    for share in _shares(points):
        table.add_column(f"{share:.0%} of all MACs", justify="right")
    for family, name in _families(points).items():
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


def text_of(
    study: Study, trained: Sequence[Row], points: Sequence[Row], own: Sequence[Row], by_weight: Sequence[Row] = ()
) -> str:
    """The page beside the raw rows."""
    shares, families = _shares(points), families_in(trained)
    lines = [
        "# Strategies at equal cost",
        "",
        (_about_texts if study.texts else _about_images)(study, trained),
        "",
        "Thresholds, and λ, are chosen on the calibration samples at each cost and scored on the test set: mean over seeds,",
        "least to most in brackets.",
        "",
        "| accuracy, % | " + " | ".join(f"at {share:.0%} of all MACs" for share in shares) + " |",
        "|---|" + "---:|" * len(shares),
    ]
    for family, name in families.items():
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
        if rival in families:
            cells = " | ".join(_signed(_differences(points, rival, share)) for share in shares)
            lines.append(f"| {families[rival]} | {cells} |")
    if by_weight:
        lines += _by_weight_lines(by_weight, shares)
    lines += [
        "",
        "JEI-DNN's own rule (leave at the first h ≥ 0.5), and the largest probability at the same cost on the test set:",
        "",
        f"| {'targets | ' if study.texts else ''}λ | seed | share of all MACs | gates, % | same heads, % | frozen heads, % |",
        f"|{'---|' if study.texts else ''}---:|---:|---:|---:|---:|---:|",
    ]
    for row in own:
        rules = [row["accuracy"], row["jei plain at this cost"], row["frozen at this cost"]]
        shown = " | ".join("-" if one is None else f"{100 * one:.2f}" for one in rules)
        kind = f"{_targets(row['curve'])} | " if study.texts else ""
        lines.append(f"| {kind}{row['curve'].rpartition('=')[2]} | {row['seed']} | {row['share']:.1%} | {shown} |")
    lines += ["", "Each exit by itself on the test set, mean over seeds, %:", ""]
    exits = len(trained[0]["exit_layers"])
    lines += ["| | " + " | ".join(f"exit {number}" for number in range(exits)) + " |"]
    lines += ["|---|" + "---:|" * exits]
    for name in dict.fromkeys(name for row in trained for name in row["curves"]):
        if " plain" not in name:
            found = [row["curves"][name]["exit_accuracies"] for row in trained if name in row["curves"]]
            cells = " | ".join(f"{100 * mean(column):.2f}" for column in zip(*found, strict=True))
            lines.append(f"| {name.replace(' gate', '')} | {cells} |")
    return "\n".join(lines) + "\n"


def _about_images(study: Study, trained: Sequence[Row]) -> str:
    first = trained[0]
    data = first["data"]
    return (
        f"{data['spec']}, {study.model} of width {study.width:g} with a stem of stride {study.stem_stride}, "
        f"{study.exits} exits (after layers {', '.join(map(str, first['exit_layers']))}), seeds "
        f"{', '.join(map(str, _seeds(trained)))}. {first['trained_on']:,} training images, {data['calibration']:,} for "
        f"calibration, {data['test']:,} for the test; whole network {first['costs'][-1]:,} MACs, its first exit "
        f"{first['costs'][0]:,}. {study.epochs} epochs for joint, distilled and bare backbone; on that backbone "
        f"{study.head_epochs} for frozen heads, or at most {study.warm_up_epochs} of warm-up and "
        f"{study.alternating_epochs} in turns for each λ of {', '.join(f'{one:g}' for one in study.cost_weights)}."
    )


def _about_texts(study: Study, trained: Sequence[Row]) -> str:
    first = trained[0]
    data = first["data"]
    return (
        f"{data['spec']}, {study.model} with an exit after each of its {len(first['exit_layers'])} layers, texts of at most "
        f"{study.max_length} tokens, seeds {', '.join(map(str, _seeds(trained)))} (each with a split of its own). "
        f"{first['trained_on']:,} training texts, {data['calibration']:,} for calibration, {data['test']:,} for the test; "
        f"whole network {first['costs'][-1]:,} MACs at the mean length, its first exit {first['costs'][0]:,}. The encoder "
        f"stays as it came. {study.epochs} epochs for the last head; then {study.head_epochs} for frozen heads, or at most "
        f"{study.warm_up_epochs} of warm-up and {study.alternating_epochs} in turns for each λ of "
        f"{', '.join(f'{one:g}' for one in study.cost_weights)} and each kind of targets: `jei` has targets that are 1 once, "
        "`onward` the paper's."
    )


def _targets(curve: str) -> str:
    return "onward" if curve.startswith(_ONWARD) else "once"


def _by_weight_lines(rows: Sequence[Row], shares: Sequence[float]) -> list[str]:
    """Each λ by itself."""
    lines = [
        "",
        "Gates less the largest probability on the very same heads, each λ by itself, in points:",
        "",
        "| targets | λ | " + " | ".join(f"at {share:.0%}" for share in shares) + " |",
        "|---|---:|" + "---:|" * len(shares),
    ]
    for curve in sorted(
        {row["curve"] for row in rows}, key=lambda name: (_targets(name), float(name.partition("=")[2]))
    ):
        cells = []
        for share in shares:
            found = [row for row in rows if row["curve"] == curve and row["share"] == share]
            cells.append(_signed([100 * (row["accuracy"] - row["same heads"]) for row in found]))
        lines.append(f"| {_targets(curve)} | {curve.rpartition('=')[2]} | {' | '.join(cells)} |")
    return lines


def _signed(values: Sequence[float]) -> str:
    return f"{mean(values):+.2f} ({min(values):+.2f} to {max(values):+.2f})" if values else "-"


def _draw(trained: Sequence[Row], points: Sequence[Row], out: Path, study: Study) -> None:
    """Each family's accuracy over cost, chosen as in the table, mean and range of the seeds."""
    whole, least = trained[0]["costs"][-1], trained[0]["costs"][0]
    shares = np.linspace(least / whole * 1.02, 0.98, 60).tolist()
    rows, lines = list(at_cost_rows(trained, shares)), []
    for family, name in families_in(trained).items():
        columns = [share for share in shares if len(_accuracies(rows, family, share)) == len(_seeds(trained))]
        values = np.array([_accuracies(rows, family, share) for share in columns])
        lines.append(
            Line(
                name=name, macs_T=whole * np.array(columns), accuracies_T=values.mean(1), least_T=values.min(1),
                most_T=values.max(1), dashed=family == "jei plain",
            )
        )  # fmt: skip
    seeds, model = len(_seeds(trained)), study.model if study.texts else f"{study.model} ×{study.width:g}"
    draw(
        lines, out, "Strategies at equal cost",
        f"{trained[0]['data']['spec']}, {model}, {seeds} seeds: mean, least and most on the test set; "
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
