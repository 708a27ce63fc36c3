"""The files of a run of a scenario, in the form that the source writes live, so that the same tools read them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from mdi_exit.events import Record
from mdi_exit.plot.command import draw_run
from mdi_exit.plot.files import Item, Run
from mdi_exit.results import ResultsWriter, Summary, result_line, write_out
from mdi_exit.simulation.scenario import Scenario
from mdi_exit.snapshot import Snapshot
from mdi_exit.trial.config import TrialSettings

__all__ = ["item_of", "summary_of", "write_trial"]


def summary_of(scenario: Scenario, summary: Summary, **more: Any) -> dict[str, Any]:
    """The live run's summary, and what was run. ``more``: what else is to be said."""
    return summary.to_json() | {"scenario": scenario.name, "seed": scenario.seed} | more


def write_trial(
    scenario: Scenario,
    settings: TrialSettings,
    summary: Summary,
    timeline: Sequence[Snapshot],
    records: Sequence[Record],
    **more: Any,
) -> None:
    """Write what ``settings`` ask for; ``more``: of the summary. Raises ``MdiExitError``."""
    if settings.results is not None:
        with ResultsWriter(settings.results, settings.overwrite) as writer:
            for record in records:
                writer.write(record)
    content = summary_of(scenario, summary, **more)
    if settings.summary is not None:
        write_out(settings.summary, json.dumps(content, indent=2, ensure_ascii=False) + "\n", "--summary")
    if settings.timeline is not None:
        write_out(settings.timeline, "".join(snapshot.to_line() for snapshot in timeline), "--timeline")
    if settings.picture is not None:
        draw_run(Run(scenario.name, tuple(map(item_of, records)), tuple(timeline), content), settings.picture)


def item_of(record: Record) -> Item:
    """As a line of a results file says it."""
    known = {field.name for field in dataclasses.fields(Item)}
    line = {key: value for key, value in result_line(record).items() if key in known}
    return Item(**(line | {"path": tuple(line["path"])}))
