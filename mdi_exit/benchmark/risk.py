"""Does risk control keep its promise? 200 calibration sets drawn from a pool, each scored on the whole pool.

The pool is the population: what thresholds lose on all of it is their true loss, and drawing with replacement makes the
samples independent, as the promise demands. A promise at confidence 1 - δ may be broken in a share δ of the sets: how many
of 200 that can be is binomial. Three ways of choosing thresholds stand side by side:

* ``one threshold``: risk control along one threshold for all exits, at the artifact's own temperatures
* ``calibrate``: the whole of ``mdi-exit calibrate``: temperatures and a direction from a quarter, the test on the rest
* ``naive``: one threshold for all exits, as low as the loss on the samples allows, without a test
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from mdi_exit.calibration.procedure import least_for, promised
from mdi_exit.calibration.risk import losses, naively_passed, passed, steps
from mdi_exit.calibration.temperature import scipy_part
from mdi_exit.data.sets import load
from mdi_exit.errors import MdiExitError
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.outcomes import Outcomes, outcomes
from mdi_exit.trace import Trace

__all__ = ["CONFIDENCE", "METHODS", "Draw", "allowed", "draws", "markdown", "measure_risk", "summary", "write_draws"]

CONFIDENCE: Final = 0.95
SETS: Final = 200
SIZES: Final = (500, 1000, 2000)
MAX_LOSSES: Final = (0.005, 0.01, 0.02)
METHODS: Final = ("one threshold", "calibrate", "naive")
_SURE: Final = 0.99


@dataclass(frozen=True, slots=True)
class Draw:
    """What one calibration set led to, on the whole pool.

    ``thresholds``: 1 where nothing could be promised; ``macs``: mean of a sample; ``loss``: the true one.
    """

    method: str
    samples: int
    max_loss: float
    set: int
    thresholds: str
    loss: float
    accuracy: float
    macs: float

    @property
    def exceeds(self) -> bool:
        return self.loss > self.max_loss


def allowed(sets: int, confidence: float) -> int:
    """So many broken promises of ``sets`` at most, with a probability of 99 %, when each breaks with 1 - ``confidence``."""
    return int(scipy_part("stats").binom.ppf(_SURE, sets, 1.0 - confidence))


def draws(
    pool: Outcomes,
    *,
    sets: int = SETS,
    sizes: Sequence[int] = SIZES,
    max_losses: Sequence[float] = MAX_LOSSES,
    methods: Sequence[str] = METHODS,
    seed: int = 0,
    progress: Callable[[str], None] = lambda cell: None,
) -> list[Draw]:
    """All draws; the methods see the same calibration sets."""
    trace = pool.trace("max-probability")
    line = (1.0,) * (trace.exits - 1)
    lost_UN = losses(trace, line)
    found: list[Draw] = []
    for samples in sizes:
        for max_loss in max_losses:
            progress(f"{samples:,} samples, loss up to {max_loss:g}")
            for number in range(sets):
                rows_N = np.random.default_rng((seed, samples, number)).integers(0, len(pool), samples)
                count_U = lost_UN[:, rows_N].sum(axis=1)
                for method in methods:
                    thresholds, scored = line, trace
                    if method == "calibrate":
                        thresholds, scored = _calibrated(pool, rows_N, max_loss, number)
                    else:
                        test = passed(count_U, samples, max_loss, CONFIDENCE)
                        done = naively_passed(count_U, samples, max_loss) if method == "naive" else test
                        thresholds = (1.0 - float(steps()[done - 1]),) * len(line) if done else line
                    found.append(_scored(scored, method, samples, max_loss, number, thresholds))
    return found


def _calibrated(pool: Outcomes, rows_N: Any, max_loss: float, seed: int) -> tuple[tuple[float, ...], Trace]:
    """Thresholds as ``mdi-exit calibrate`` finds them, and the pool at its temperatures."""
    if len(rows_N) < least_for(max_loss, CONFIDENCE):  # it would refuse: no early exits
        return (1.0,) * (pool.exits - 1), pool.trace("max-probability")
    kept = promised(pool.subset(rows_N), "max-probability", max_loss, CONFIDENCE, seed)
    thresholds = kept.chosen.thresholds if kept.chosen else (1.0,) * (pool.exits - 1)
    return thresholds, pool.trace("max-probability", kept.temperatures)


def _scored(
    trace: Trace, method: str, samples: int, max_loss: float, number: int, thresholds: tuple[float, ...]
) -> Draw:
    score = trace.score(thresholds)
    macs = score.mean_macs if min(thresholds) < 1.0 else float(trace.plain_macs)  # at 1 no head is even run
    shown = " ".join(f"{threshold:.6g}" for threshold in thresholds)
    return Draw(method, samples, max_loss, number, shown, score.loss, score.accuracy, macs)


# --- what it comes to


def summary(found: Sequence[Draw], plain_macs: int) -> list[dict[str, Any]]:
    """One row for each method, size and loss."""
    rows = []
    for method, samples, max_loss in dict.fromkeys((draw.method, draw.samples, draw.max_loss) for draw in found):
        cell = [d for d in found if (d.method, d.samples, d.max_loss) == (method, samples, max_loss)]
        rows.append(
            {
                "method": method,
                "samples": samples,
                "max_loss": max_loss,
                "sets": len(cell),
                "exceeded": sum(draw.exceeds for draw in cell),
                "allowed": allowed(len(cell), CONFIDENCE),
                "mean_loss": round(float(np.mean([draw.loss for draw in cell])), 6),
                "largest_loss": round(max(draw.loss for draw in cell), 6),
                "mean_accuracy": round(float(np.mean([draw.accuracy for draw in cell])), 6),
                "macs_saved": round(1.0 - float(np.mean([draw.macs for draw in cell])) / plain_macs, 4),
                "without_promise": sum(draw.macs == plain_macs for draw in cell),
            }
        )
    return rows


def write_draws(found: Iterable[Draw], path: Path) -> None:
    """The raw rows as CSV. Raises ``MdiExitError``."""
    try:
        with path.open("w", newline="", encoding="utf-8") as stream:
            rows = [asdict(draw) | {"exceeds": int(draw.exceeds)} for draw in found]
            writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise MdiExitError(f"could not write {path}: {error.strerror}") from None


def markdown(rows: Sequence[dict[str, Any]], about: str, picture: str) -> str:
    """The summary as a page."""
    limit, sets = rows[0]["allowed"], rows[0]["sets"]
    more = 1.0 - scipy_part("stats").binom.cdf(limit, sets, 1.0 - CONFIDENCE)
    lines = [
        "# Does risk control keep its promise?",
        "",
        about,
        "",
        f"Each row: {sets} calibration sets drawn with replacement from the pool, confidence {CONFIDENCE:.0%}; what the",
        "thresholds lose is scored on the whole pool. A method that keeps its promise exceeds the loss more than",
        f"{limit} times of {sets} with a probability of {more:.2%} (binomial).",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|---" * len(_COLUMNS) + "|",
    ]
    for row in sorted(rows, key=lambda row: (METHODS.index(row["method"]), row["max_loss"], row["samples"])):
        most = "-" if row["method"] == "naive" else str(row["allowed"])
        exceeded = f"**{row['exceeded']}**" if row["exceeded"] > row["allowed"] else str(row["exceeded"])
        lines.append(
            f"| {row['method']} | {row['samples']:,} | {row['max_loss']:.1%} | {exceeded} | {most} | "
            f"{row['mean_loss']:.2%} | {row['largest_loss']:.2%} | {row['mean_accuracy']:.2%} | {row['macs_saved']:.1%} | "
            f"{row['without_promise'] or '-'} |"
        )
    return "\n".join([*lines, "", *_METHODS_TOLD, "", f"![true loss of each calibration set]({picture})", ""])


_COLUMNS: Final = (
    "method", "samples", "promised loss", "exceeded", "of at most", "mean loss", "largest", "accuracy", "MACs saved",
    "none promised",
)  # fmt: skip
_METHODS_TOLD: Final = (
    "*one threshold*: risk control with the same threshold at every exit. *calibrate*: all of `mdi-exit calibrate`, a",
    "threshold for each exit; a quarter of the samples goes into temperatures and direction, so the test has the rest.",
    "*naive*: as low a threshold as the loss on the samples allows. *MACs saved*: against the network without exits; *none",
    "promised*: sets on which the test let nothing pass, so that there are no early exits.",
)


def measure_risk(out: Path | None, data_dir: Path | None, scale: float) -> list[dict[str, Any]]:
    """The shipped model on all test images of Fashion-MNIST. Writes page, picture and draws into ``out``, if given.

    Returns the summary's rows. Raises ``MdiExitError``.
    """
    artifact = Artifact.open(DEFAULT_MODEL)
    pool = outcomes(artifact, load("fashion-mnist", "test", data_dir))
    sets = max(round(SETS * scale), 10)
    console = Console(width=120)
    found = draws(pool, sets=sets, progress=lambda cell: console.print(f"{sets} sets of {cell}", highlight=False))
    rows = summary(found, pool.trace("max-probability").plain_macs)
    table = Table(title=f"{sets} calibration sets, confidence {CONFIDENCE:.0%}")
    for column in ("method", "samples", "max_loss", "exceeded", "allowed", "mean_loss", "mean_accuracy", "macs_saved"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        table.add_row(*(str(row[str(column.header)]) for column in table.columns))
    console.print(table)
    if out is not None:
        from mdi_exit.benchmark.risk_picture import draw_picture

        out.mkdir(parents=True, exist_ok=True)
        stem = f"risk-{datetime.now(UTC):%Y-%m-%d}"
        model = f"{artifact.manifest.name} (digest {artifact.manifest.digest[:12]})"
        about = f"{model} on {len(pool):,} test images of Fashion-MNIST, max-probability."
        write_draws(found, out / f"{stem}.csv")
        (out / f"{stem}.md").write_text(markdown(rows, about, f"{stem}.png"))
        draw_picture(found, out / f"{stem}.png", f"What thresholds lose: {sets} calibration sets each")
    return rows
