"""What the simulator said of a run, beside what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from mdi_exit.plot.files import Item
from mdi_exit.snapshot import Snapshot

__all__ = ["Comparison", "Stretch", "compared", "ready_at_s", "stretch_of"]

_WARM_UP_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """What was completed from ``begin_s`` to ``end_s`` after the first admission."""

    begin_s: float
    end_s: float
    completed: int
    rate_per_s: float
    accuracy: float | None
    exits: dict[int, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def usual_warm_up_s(duration_s: float) -> float:
    """How long queues may take to fill, once all nodes are ready, before anything is measured."""
    return min(_WARM_UP_S, duration_s / 4)


def ready_at_s(timeline: Sequence[Snapshot], names: frozenset[str]) -> float | None:
    """When all of these nodes took tasks for the first time; None: never."""
    for moment in timeline:
        if names <= {node.name for node in moment.nodes if node.state == "ready"} and moment.admitted:
            return moment.elapsed_s
    return None


def stretch_of(
    timeline: Sequence[Snapshot],
    items: Sequence[Item],
    names: frozenset[str],
    until_s: float,
    most_s: float | None = None,
    warm_up_s: float | None = None,
) -> Stretch | None:
    """What is compared: from when all nodes are ready and queues have filled to ``until_s``, the last arrival.

    ``items``: in the order of their completion. ``warm_up_s``: from when all nodes are ready; None: the usual.
    ``most_s``: no longer than that. None: there is no such stretch.
    """
    ready_s = ready_at_s(timeline, names)
    if ready_s is None:
        return None
    begin_s = ready_s + (usual_warm_up_s(until_s) if warm_up_s is None else warm_up_s)
    end_s = until_s if most_s is None else min(until_s, begin_s + most_s)
    inside = [moment for moment in timeline if begin_s <= moment.elapsed_s <= end_s]
    if len(inside) < 2:
        return None
    first, last = inside[0], inside[-1]
    done = items[first.completed + first.errors : last.completed + last.errors]
    judged = [item.right for item in done if item.right is not None]
    return Stretch(
        begin_s=first.elapsed_s,
        end_s=last.elapsed_s,
        completed=last.completed - first.completed,
        rate_per_s=(last.completed - first.completed) / (last.elapsed_s - first.elapsed_s),
        accuracy=sum(judged) / len(judged) if judged else None,
        exits=dict(sorted(Counter(item.exit for item in done if item.exit is not None).items())),
    )


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
