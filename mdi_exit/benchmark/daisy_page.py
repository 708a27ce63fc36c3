"""The tables of ``mdi-exit benchmark daisy``, for terminal and page: mean over seeds, least and most in brackets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, Final

from rich.table import Table

from mdi_exit.benchmark.daisy_rows import CLEAN, FIXED, MEAN, RANKED, RULES, Row

__all__ = ["RULE_NAMES", "Sheet", "page_of", "ratio_name", "select", "sheets_of", "tasks_in"]

RULE_NAMES: Final = {
    "daisy": "DAISY: frame entropy", "confidence": "supervised confidence", FIXED: "fixed depth",
    RANKED: "DAISY, a threshold for each exit",
}  # fmt: skip
_AT: Final = (1.5, 2.0, 3.0, 4.0, 5.0)
_TOLD: Final[tuple[float | str, ...]] = (CLEAN, 10.0, 0.0, MEAN)
_RATIO_NAMES: Final[dict[float | str, str]] = {MEAN: "all together"}


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table: the first column says what a line is about, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]

    def shown(self) -> Table:
        table = Table(title=self.title)
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left")
        for line in self.lines:
            table.add_row(*line)
        return table

    def written(self) -> list[str]:
        head = f"| {' | '.join(self.columns)} |"
        rule = "|---|" + "---:|" * (len(self.columns) - 1)
        return [f"{self.title}:", "", head, rule, *(f"| {' | '.join(line)} |" for line in self.lines)]


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Those with these values, in the order of seeds."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def tasks_in(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in rows if "task" in row))


def _ratios_in(rows: Sequence[Row], task: str) -> list[float | str]:
    return list(dict.fromkeys(row["snr_db"] for row in select(rows, task=task)))


def ratio_name(snr: float | str) -> str:
    return _RATIO_NAMES.get(snr, snr) if isinstance(snr, str) else f"{snr:g}"


def _spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    middle = form(mean(values))
    return middle if len(values) == 1 else f"{middle} ({form(min(values))} to {form(max(values))})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _layers(value: float) -> str:
    return f"{value:.2f}"


def sheets_of(rows: Sequence[Row]) -> list[Sheet]:
    """By task: by ratio, at equal cost; then of all tasks what scores know, entropies, and where clips leave."""
    tasks = tasks_in(rows)
    sheets = [sheet for task in tasks for sheet in (_by_ratio(rows, task), _at_equal(rows, task))]
    return [*sheets, _depths(rows), _telling(rows), _entropies(rows), _exits(rows)]


def _by_ratio(rows: Sequence[Row], task: str) -> Sheet:
    lines = []
    for snr in _ratios_in(rows, task):
        of = select(rows, task=task, snr_db=snr)
        cells = []
        for rule in RULES:
            points = select(of, name="point", rule=rule)
            cells += [_spread([row["layers"] for row in points], _layers)]
            cells += [_spread([row["accuracy"] for row in points], _percent)]
        fixed = select(of, name="fixed")
        cells += [_spread([row["accuracy"][row["chosen"] - 1] for row in fixed], _percent)]
        cells += [_spread([row["accuracy"][-1] for row in fixed], _percent)]
        lines.append((ratio_name(snr), *cells))
    chosen = ", ".join(str(row["chosen"]) for row in select(rows, task=task, name="fixed", snr_db=MEAN))
    return Sheet(
        f"{task}, mean layers run and accuracy in % where calibration put each rule (fixed depth: {chosen} by seed)",
        ("dB", "DAISY: layers", "accuracy", "confidence: layers", "accuracy", "fixed depth", "all layers"), tuple(lines),
    )  # fmt: skip


def _at_equal(rows: Sequence[Row], task: str) -> Sheet:
    """Of each rule's curve over clean and noisy clips together, whatever threshold was chosen."""
    read_at = rows[0]["read at"]
    columns = [depth for depth in _AT if depth < read_at[-1]]
    curves = {rule: select(rows, task=task, snr_db=MEAN, name="curve", rule=rule) for rule in RULE_NAMES}
    at = {
        rule: [[row["accuracy"][read_at.index(d)] for row in found] for d in columns] for rule, found in curves.items()
    }
    lines = [
        (name, *(_spread(values, _percent) for values in at[rule]),
         _spread([row["layers to equal"] for row in curves[rule]], _layers))
        for rule, name in RULE_NAMES.items()
    ]  # fmt: skip
    for rival in ("confidence", FIXED):
        less = [_less(at["daisy"][number], at[rival][number]) for number in range(len(columns))]
        to_equal = [[row["layers to equal"] for row in curves[rule]] for rule in ("daisy", rival)]
        last = _spread([a - b for a, b in zip(*to_equal, strict=True)], lambda value: f"{value:+.2f}")
        lines.append((f"DAISY less {RULE_NAMES[rival]}", *less, last))
    return Sheet(
        f"{task}, accuracy in % at equal mean layers, and the fewest layers that give up no more than allowed",
        ("rule", *(f"{depth:g}" for depth in columns), "fewest layers"), tuple(lines),
    )  # fmt: skip


def _less(ours: Sequence[float], theirs: Sequence[float]) -> str:
    return _spread([a - b for a, b in zip(ours, theirs, strict=True)], _points)


def _depths(rows: Sequence[Row]) -> Sheet:
    lines = []
    for task, snr in _told(rows):
        shares = [row["accuracy"] for row in select(rows, task=task, snr_db=snr, name="fixed")]
        lines.append((f"{task}, {_ratio_words(snr)}", *(_spread(one, _percent) for one in zip(*shares, strict=True))))
    depths = range(1, len(lines[0]))
    return Sheet("Accuracy in % if all leave after a layer", ("after layer", *map(str, depths)), tuple(lines))


def _told(rows: Sequence[Row]) -> Iterator[tuple[str, float | str]]:
    for task in tasks_in(rows):
        for snr in _ratios_in(rows, task):
            if snr in _TOLD:
                yield task, snr


def _ratio_words(snr: float | str) -> str:
    return ratio_name(snr) if isinstance(snr, str) else f"{snr:g} dB"


def _telling(rows: Sequence[Row]) -> Sheet:
    lines = []
    for task, snr in _told(rows):
        cells = []
        for what in ("right", "spared"):
            for rule in RULES:
                of = select(rows, task=task, snr_db=snr, name="telling", rule=rule)
                found = [mean(one) for row in of if (one := [value for value in row[what] if value is not None])]
                cells.append(_spread(found, _layers) if found else "-")
        lines.append((f"{task}, {_ratio_words(snr)}", *cells))
    columns = ("", "right: DAISY", "confidence", "spared: DAISY", "confidence")
    return Sheet(
        "How well a score tells apart who is right at an exit, and who is spared, losing nothing by leaving there (0.5: not "
        "at all, 1: always; mean of the early exits)", columns, tuple(lines),
    )  # fmt: skip


def _entropies(rows: Sequence[Row]) -> Sheet:
    lines = []
    for task in tasks_in(rows):
        if task == "voice":  # the same clips as those of keyword
            continue
        for snr in _ratios_in(rows, task):
            if snr != MEAN:
                sure = [row["by layer"] for row in select(rows, task=task, snr_db=snr, name="sureness")]
                cells = (_spread([1 - value for value in one], _layers) for one in zip(*sure, strict=True))
                lines.append((f"{task}, {_ratio_words(snr)}", *cells))
    columns = ("after layer", *map(str, range(1, len(lines[0]))))
    return Sheet("Mean entropy of frames, as a share of the most there could be", columns, tuple(lines))


def _exits(rows: Sequence[Row]) -> Sheet:
    lines = []
    for task, snr in _told(rows):
        points = select(rows, task=task, snr_db=snr, name="point", rule="daisy")
        shares = zip(*([count / row["clips"] for count in row["exits"]] for row in points), strict=True)
        work = _spread([row["macs"] for row in points], lambda value: f"{100 * value:.0f}")
        cells = (_spread(one, lambda value: f"{100 * value:.0f}") for one in shares)
        lines.append((f"{task}, {_ratio_words(snr)}", *cells, work))
    columns = ("leave after layer, %", *map(str, range(1, len(lines[0]) - 1)), "work, %")
    return Sheet("Where clips leave by DAISY, and work, of all layers and the last head", columns, tuple(lines))


def page_of(rows: Sequence[Row]) -> str:
    """The page beside the raw rows."""
    seeds = [row["seed"] for row in rows if row["name"] == "branches"]
    clips = ", ".join(
        f"{task}: {select(rows, task=task, snr_db=CLEAN, name='fixed')[0]['clips']:,}" for task in tasks_in(rows)
    )
    lines = [
        "# DAISY over seeds",
        "",
        f"Seeds {', '.join(map(str, seeds))}; mean, and least to most in brackets. Test clips at each ratio: {clips}.",
        "What each word means stands in METHODOLOGY.md.",
    ]
    for sheet in sheets_of(rows):
        lines += ["", *sheet.written()]
    return "\n".join(lines) + "\n"
