"""``docs/metrics.md`` from the catalogue: ``python -m mdi_exit.metrics.doc`` writes it to stdout."""

from __future__ import annotations

import sys
from typing import Final

from mdi_exit.energy import DEVICES
from mdi_exit.metrics.catalogue import CATALOGUE, SCOPES, Row, exposed
from mdi_exit.metrics.samples import GONE_AFTER_S, MAX_LINKS, MAX_NODES, MAX_REASONS
from mdi_exit.reports import FULL_PERIOD_S

__all__ = ["document"]

_HEAD: Final = f"""# Metrics

Made of the catalogue by `python -m mdi_exit.metrics.doc`; a change here is lost.

Every program serves three addresses on one port, which it prints at its start (`--metrics HOST:PORT`; `--metrics off`:
none of it).

| address | says |
|---|---|
| `/metrics` | everything below, as Prometheus reads it |
| `/healthz` | 200 while the process lives and its event loop answers, else 503 |
| `/readyz` | 200 while connected to the broker and ready, else 503 and a line that says why |

An agent is ready when its segments are loaded, a source when all layers are held.

One scrape target is enough: the source also exposes what the other nodes say in their telemetry (`mdi_exit_node_…`), so
that a board behind a router needs no open port. A node that is gone for {GONE_AFTER_S:.0f} s disappears. Load comes with
every report; links and board with one every {FULL_PERIOD_S:.0f} s, or less often at a node with many links.

Every sample has the label `deployment`. Values are read from state when they are asked for, in base units. Labels are
bounded: at most {MAX_NODES:,} nodes, {MAX_LINKS:,} links (the busiest of each node) and {MAX_REASONS} reasons or kinds.
Counters start at 0 with their process; those of a link also with each start of the neighbour.
"""

_COLUMNS: Final = ("| metric | kind | unit | labels | what |", "|---|---|---|---|---|")

_ENERGY_HEAD: Final = """## Where the board's figures come from

* **Temperature**: the hottest processor among the kernel's thermal zones and hwmon chips.
* **Power**: the input rail, or the sum of the rails, of a Jetson's INA3221 (the drivers of JetPack 4 and of later ones),
  of other INA chips or of a power meter that hwmon knows. Else Intel's energy counters, where the process may read
  them; they cover processor and memory, not the rest of the machine. A Raspberry Pi has no sensor that a file shows, a
  Jetson Nano of 2 GB has none at all.
* **Energy**: `method="sensor"` is the integral of that, of the whole board, whoever keeps it busy: nodes that share a
  machine each show all of it. Without a sensor, `method="estimate"` is idle watts × time + (busy − idle watts) × seconds
  of compute, for the device named by `--device`, else for the one that `--profile` emulates; an emulated node never
  shows this machine's power. Without a name there is no estimate.

The watts of the estimate are ours, of whole boards without display, with one stream of inference on the processor. They
are orders of magnitude: no board was measured.

| device | idle W | busy W |
|---|---|---|
"""

_ENERGY_TAIL: Final = """
The summary of a run has `energy_j` by node, its `energy_method`, and `joules_per_item`: the energy of all of them by
completed items, a sensor that several nodes share counted once, and null where that of a node which ran layers is not
known.
"""


def _line(name: str, row: Row) -> str:
    shown = name + ("_total" if row.kind == "counter" else "")
    labels = ", ".join(f"`{label}`" for label in row.labels)
    return f"| `{shown}` | {row.kind} | {row.unit or '0 or 1'} | {labels} | {row.help} |"


def document() -> str:
    """The page."""
    parts = [_HEAD]
    for scope, title in SCOPES.items():
        rows = [_line(name, row) for name, row in CATALOGUE.items() if row.scope == scope]
        if rows:
            parts.append("\n".join((f"## {title}\n", *_COLUMNS, *rows, "")))
    histograms = [
        f"* `{name}`: up to {', '.join(f'{bound:g}' for bound in row.buckets)} and beyond, as "
        + ", ".join(f"`{shown}`" for shown in exposed(name))
        for name, row in CATALOGUE.items()
        if row.buckets
    ]
    parts.append("\n".join(("## Buckets\n", *histograms, "")))
    watts = [f"| {device.name} | {device.idle_w:g} | {device.busy_w:g} |" for device in DEVICES.values()]
    parts.append(_ENERGY_HEAD + "\n".join(watts) + "\n" + _ENERGY_TAIL)
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(document())
