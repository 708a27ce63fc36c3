"""What the simulator said of a run, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["Comparison", "compared"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Measured and simulated: items a second, accuracy, share of completed items by exit; pairs in this order."""

    rate_per_s: tuple[float, float]
    accuracy: tuple[float, float]
    exit_shares: tuple[tuple[float, float], ...]

    @property
    def rate_error(self) -> float:
        """Of the simulated rate, as a share of the measured one."""
        measured, simulated = self.rate_per_s
        return simulated / measured - 1 if measured else 0.0

    @property
    def exit_error(self) -> float:
        """Half of the sum of the differences of shares: the items that would have to change their exit."""
        return sum(abs(measured - simulated) for measured, simulated in self.exit_shares) / 2

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"rate_error": self.rate_error, "exit_error": self.exit_error}

    def render(self, console: Console) -> None:
        table = Table(box=None, pad_edge=False)
        for name in ("", "measured", "simulated", "difference"):
            table.add_column(name, justify="left" if not name else "right")
        rate, accuracy = self.rate_per_s, self.accuracy
        table.add_row("rate", f"{rate[0]:.1f}/s", f"{rate[1]:.1f}/s", f"{100 * self.rate_error:+.1f} %")
        points = 100 * (accuracy[1] - accuracy[0])
        table.add_row("accuracy", f"{100 * accuracy[0]:.1f} %", f"{100 * accuracy[1]:.1f} %", f"{points:+.1f} points")
        for number, (measured, simulated) in enumerate(self.exit_shares):
            gap = f"{100 * (simulated - measured):+.1f} points"
            table.add_row(f"exit {number}", f"{100 * measured:.1f} %", f"{100 * simulated:.1f} %", gap)
        console.print(table)


def compared(measured: Mapping[str, Any], simulated: Mapping[str, Any]) -> Comparison:
    """Two summaries."""
    shares = [_shares(one) for one in (measured, simulated)]
    exits = range(1 + max((number for one in shares for number in one), default=-1))
    return Comparison(
        (float(measured["rate_per_s"]), float(simulated["rate_per_s"])),
        (float(measured["accuracy"] or 0.0), float(simulated["accuracy"] or 0.0)),
        tuple((shares[0].get(number, 0.0), shares[1].get(number, 0.0)) for number in exits),
    )


def _shares(summary: Mapping[str, Any]) -> dict[int, float]:
    counts = {int(number): count for number, count in summary["exits"].items()}
    total = sum(counts.values()) or 1
    return {number: count / total for number, count in counts.items()}
