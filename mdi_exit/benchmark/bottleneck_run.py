"""``mdi-exit benchmark bottleneck``, from its first step to the table."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from mdi_exit.benchmark.bottleneck import BottleneckLoad, full_width_row, trained_rows
from mdi_exit.data import splits

__all__ = ["measure_bottleneck"]

_WIDTH: Final = 120


def measure_bottleneck(out: Path | None, data_dir: Path | None) -> list[dict[str, Any]]:
    """The rows, shown. With ``out`` a run that was cut short goes on from its checkpoints there. Raises ``UsageError``."""
    console = Console(width=_WIDTH)
    with tempfile.TemporaryDirectory(prefix="mdi-exit-bottleneck-") as spare:
        work = (out or Path(spare)) / "bottleneck.unfinished"
        work.mkdir(parents=True, exist_ok=True)
        rows = [full_width_row(console.print)]
        parts = splits("fashion-mnist", data_dir=data_dir)
        rows += trained_rows(BottleneckLoad(), parts, work, console.print)
        shutil.rmtree(work)
    _show(console, rows)
    return rows


def _show(console: Console, rows: list[dict[str, Any]]) -> None:
    """Shapes and bytes at full width, then what was trained."""
    full, trained, *codecs = rows
    codec = trained["codec"]
    console.print(
        f"full width: {len(full['layers'])} layers, cut before {full['cut_before']}: "
        f"{_shape(full['features_shape'])} float32, {full['features_bytes']:,} bytes → {_shape(full['code_shape'])} {codec}, "
        f"{full['code_bytes'][codec]:,} bytes ({full['features_bytes'] / full['code_bytes'][codec]:.0f} times less); "
        f"{100 * full['bottleneck_macs'] / full['macs']:.1f} % more MACs"
    )
    table = Table(
        title=f"width {trained['width']:g}, {trained['images']:,} training images, {codecs[0]['test_images']:,} test images: "
        "accuracy (%) at each exit"
    )
    for column in ("layer", "shape", "as", "bytes", "ratio"):
        table.add_column(column, justify="left" if column in ("shape", "as") else "right", no_wrap=True)
    for number in range(len(trained["exit_layers"])):
        table.add_column(f"exit {number}", justify="right", no_wrap=True)
    for number, row in enumerate(codecs):
        group = (row["cut"], row["bottleneck"])
        new = number == 0 or (codecs[number - 1]["cut"], codecs[number - 1]["bottleneck"]) != group
        if new and number:
            table.add_section()
        shape = _shape(row["shape"]) + (" code" if row["bottleneck"] else "")
        exits = ("" if share is None else f"{100 * share:.2f}" for share in row["accuracies"])
        table.add_row(
            *((str(row["cut"]), shape) if new else ("", "")),
            row["codec"], f"{row['bytes']:,.0f}", f"{row['ratio']:.1f}", *exits,
        )  # fmt: skip
    console.print(table)
    points = " ".join(f"{points:+.2f}" for points in trained["points"])
    console.print(
        f"through the bottleneck as {codec}, in points at each exit, {trained['test_images']:,} test images: {points}"
    )


def _shape(shape: list[int]) -> str:
    return "×".join(map(str, shape))
